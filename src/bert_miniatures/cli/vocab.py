"""`miniatures vocab`: a WordPiece vocabulary from text."""

from pathlib import Path
from typing import Annotated, Literal

import typer

__all__ = ["vocab"]


def vocab(
    corpus: Annotated[
        list[Path], typer.Option(metavar="FILE", help=".txt .jsonl (.gz .xz .zst) or .parquet; may be repeated.")
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Where the tokenizer files go.")],
    more: Annotated[list[Path] | None, typer.Argument(metavar="FILE", help="More files of the corpus.")] = None,
    size: Annotated[int, typer.Option(help="Pieces, special ones included.")] = 30_522,
    cased: Annotated[bool, typer.Option("--cased", help="Keep capital letters and accents.")] = False,
    text: Annotated[str | None, typer.Option(metavar="COLUMN", help="Key or column with the text.")] = None,
    encoding_errors: Annotated[
        Literal["error", "replace", "skip"], typer.Option(help="What to do with a line that is not UTF-8.")
    ] = "error",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is in DIR.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Learn a WordPiece vocabulary: --corpus FILE [FILE…] -o DIR. The same text gives the same bytes."""
    from bert_miniatures.cli.console import ConsoleWatch, emit_json
    from bert_miniatures.data.corpus import open_corpus
    from bert_miniatures.pieces import learn_vocabulary

    sources = open_corpus([*corpus, *(more or [])], column=text)
    with ConsoleWatch() as watch:
        found = learn_vocabulary(
            sources, out, size=size, lowercase=not cased, on_errors=encoding_errors, overwrite=overwrite, watch=watch
        )
    counts = {"pieces": len(found.pieces), "words": found.words, "distinct": found.distinct}
    if as_json:
        emit_json({"out": str(out), **counts, "characters": found.characters, "unknown": found.unknown})
    else:
        print(f"{out}: {len(found.pieces):,} pieces from {found.words:,} words ({found.distinct:,} distinct)")
