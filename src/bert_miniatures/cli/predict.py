"""`miniatures predict`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bert_miniatures.predict import Counts


def predict(
    model: Annotated[str, typer.Argument(help="a deploy folder, a model folder or a run folder")],
    file: Annotated[Path | None, typer.Argument(help=".csv .tsv .jsonl .parquet .txt; - or none reads lines")] = None,
    text: Annotated[str | None, typer.Option(help="column of the text")] = None,
    pair: Annotated[str | None, typer.Option(help="column of the second text")] = None,
    out: Annotated[Path | None, typer.Option(help="write here (.jsonl) instead of stdout")] = None,
    workers: Annotated[int, typer.Option(min=1, help="processes of one thread each")] = 1,
    threads: Annotated[int | None, typer.Option(min=1, help="of one process [all cores]")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="the 8-bit graph of a deploy folder")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="open no socket")] = False,
) -> None:
    """Answer each text with a label and its score: one JSON object a line, in input order."""
    from bert_miniatures.cli.console import note
    from bert_miniatures.data.stream import stream_rows
    from bert_miniatures.errors import UserError
    from bert_miniatures.files import atomic_write
    from bert_miniatures.predict import Counts, engine_of, predict_stream

    engine_of(model)  # what is not installed is said before the file is read; the import itself can take seconds
    if threads is not None and workers > 1:
        raise UserError("--threads is for one process; each of several --workers has one thread")
    if out is not None and out.suffix != ".jsonl":
        raise UserError(f"{out}: answers are written as .jsonl")
    if out is not None and file is not None and out.resolve() == file.resolve():
        raise UserError(f"{out} is the file to read; the answers need another --out")
    typed = str(file or "-") == "-" and sys.stdin.isatty()
    if typed:
        note("one text a line; Ctrl-D ends")
    counts = Counts()
    chunks = stream_rows(str(file or "-"), text=text, pair=pair, chunk=1 if typed else 1024)
    precision = "int8" if int8 else "fp32"
    answered = predict_stream(model, chunks, workers=workers, threads=threads, precision=precision, counts=counts)
    if out is None:
        _write(answered, sys.stdout, counts)
    else:
        with atomic_write(out) as temporary, temporary.open("w", encoding="utf-8") as handle:
            _write(answered, handle, counts)
    _tell(counts)


def _write(answered: "Iterator[list[dict[str, Any]]]", file: TextIO, counts: "Counts") -> None:
    from time import monotonic

    from bert_miniatures.cli.console import note

    last = monotonic()
    for answers in answered:
        file.writelines(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
        file.flush()
        if monotonic() - last >= 10:
            last = monotonic()
            note(f"{counts.rows:,} rows")


def _tell(counts: "Counts") -> None:
    """Say what the model did not see of the texts."""
    from bert_miniatures.cli.console import note, warn

    unknown = counts.unknown / max(1, counts.pieces)
    note(
        f"{counts.rows:,} rows, {counts.truncated:,} cut at {counts.max_length} pieces "
        f"({counts.truncated / max(1, counts.rows):.1%}), {unknown:.2%} unknown pieces"
    )
    if unknown > 0.2:
        warn(f"{unknown:.0%} of the pieces are unknown to this model's vocabulary; is it the right language?")
