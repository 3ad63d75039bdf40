"""`miniatures tokenize`: what a model reads where a person reads a text."""

from typing import Annotated

import typer

__all__ = ["tokenize"]


def tokenize(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A nickname, size, official name or model folder.")],
    texts: Annotated[
        list[str] | None, typer.Argument(metavar="TEXT", help="One row each; lines of standard input if none.")
    ] = None,
    pair: Annotated[str | None, typer.Option(help="A second text: [CLS] TEXT [SEP] PAIR [SEP].")] = None,
    max_length: Annotated[int, typer.Option(help="Rows are cut to so many pieces, [CLS] and [SEP] included.")] = 512,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Print the word pieces and ids of texts, as the model reads them."""
    from bert_miniatures.cli.console import emit_json, lines_of_stdin, warn
    from bert_miniatures.models import resolve
    from bert_miniatures.tokenizer import Tokenizer, replace_surrogates

    tokenizer = Tokenizer.from_folder(resolve(model))
    rows, truncated = [], 0
    for text in texts or lines_of_stdin():
        encoded = tokenizer.encode([text], None if pair is None else [pair], max_length=max_length)
        ids = encoded.ids.tolist()
        pieces = [tokenizer.vocabulary[i] for i in ids]
        truncated += encoded.truncated
        if as_json:
            asked = {"text": replace_surrogates(text)} | ({} if pair is None else {"pair": replace_surrogates(pair)})
            counts = {"unknown": encoded.unknown, "truncated": bool(encoded.truncated)}
            rows.append(asked | {"pieces": pieces, "ids": ids} | counts)
        else:
            print(*pieces)
            print(*ids)
    if as_json:
        emit_json({"texts": rows})
    if truncated:
        warn(f"{truncated} text{'s were' if truncated > 1 else ' was'} cut to {max_length} pieces (--max-length)")
