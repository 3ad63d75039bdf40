"""`miniatures predict`."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bert_miniatures.predict import Counts, Rows


_CHUNK = 1024  # rows


def predict(
    model: Annotated[str, typer.Argument(help="a deploy folder, a model folder or a run folder")],
    file: Annotated[Path | None, typer.Argument(help=".csv .tsv .jsonl .parquet .txt; - or none reads lines")] = None,
    text: Annotated[str | None, typer.Option(help="column of the text")] = None,
    pair: Annotated[str | None, typer.Option(help="column of the second text")] = None,
    out: Annotated[Path | None, typer.Option(help="write here (.jsonl .csv .tsv .parquet), not to stdout")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from what an interrupted run left of --out")] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="processes of one thread each [one, of all cores]")] = None,
    engine: Annotated[str, typer.Option(help="local, or ray for a Ray cluster")] = "local",
    threads: Annotated[int | None, typer.Option(min=1, help="of one process [all cores]")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="the 8-bit graph of a deploy folder")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="open no socket")] = False,
) -> None:
    """Answer each text with a label and its score: one JSON object a line, in input order."""
    from bert_miniatures.cli.console import note
    from bert_miniatures.data.stream import stream_rows
    from bert_miniatures.errors import UserError
    from bert_miniatures.predict import Counts, engine_of, predict_stream

    engine_of(model)  # what is not installed is said before the file is read; the import itself can take seconds
    if threads is not None and (engine == "ray" or (workers or 1) > 1):
        raise UserError("--threads is for one process; each of several --workers has one thread")
    if out is not None and file is not None and out.resolve() == file.resolve():
        raise UserError(f"{out} is the file to read; the answers need another --out")
    piped = str(file or "-") == "-"
    if resume and (out is None or piped):
        raise UserError("--resume needs a file to read and --out: what was printed or piped is gone")
    typed = piped and sys.stdin.isatty()
    if typed:
        note("one text a line; Ctrl-D ends")
    counts = Counts()
    chunks = stream_rows(str(file or "-"), text=text, pair=pair, chunk=1 if typed else _CHUNK)
    precision = "int8" if int8 else "fp32"
    how: dict[str, Any] = {
        "workers": workers,
        "threads": threads,
        "precision": precision,
        "counts": counts,
        "note": note,
    }
    if out is None:
        _print(predict_stream(model, chunks, **how), counts)
    else:
        asked = {"text": text, "pair": pair, "precision": precision}
        _keep(lambda rest: predict_stream(model, rest, **how), chunks, out, model, file, asked, resume, counts)
    _tell(counts)


def _print(answered: "Iterator[list[dict[str, Any]]]", counts: "Counts") -> None:
    from time import monotonic

    from bert_miniatures.cli.console import note

    last = monotonic()
    for answers in answered:
        sys.stdout.writelines(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
        sys.stdout.flush()
        if monotonic() - last >= 10:
            last = monotonic()
            note(f"{counts.rows:,} rows")


def _keep(
    answering: "Callable[[Iterator[Rows]], Iterator[list[dict[str, Any]]]]",
    chunks: "Iterator[Rows]",
    out: Path,
    model: str,
    file: Path | None,
    asked: dict[str, Any],
    resume: bool,
    counts: "Counts",
) -> None:
    """Write the answers into a file, from where an interrupted run stopped."""
    from itertools import islice

    from bert_miniatures.answer_file import AnswerFile, estimated_rows, sketch
    from bert_miniatures.cli.console import ConsoleWatch
    from bert_miniatures.predict import weights_of

    read = file is not None and str(file) != "-"
    about = {"model": sketch(weights_of(model, asked["precision"])), "file": sketch(file) if file and read else None}
    answers = AnswerFile(out, about | asked, chunk=_CHUNK, resume=resume)
    total = estimated_rows(file) if file and read else 0
    with ConsoleWatch() as watch:
        if answers.done:
            watch.note(f"{answers.done:,} rows are answered already")

        def shown() -> "Iterator[list[dict[str, Any]]]":
            for found in answering(islice(chunks, answers.done // _CHUNK, None)):
                yield found
                done = answers.done + counts.rows
                if total:
                    watch.progress(min(done, total), max(done, total), "rows")

        answers.write(shown())
    answers.finish()


def _tell(counts: "Counts") -> None:
    """Say what the model did not see of the texts."""
    from bert_miniatures.cli.console import note, warn

    unknown = counts.unknown / max(1, counts.pieces)
    note(
        f"{counts.rows:,} row{'s' * (counts.rows != 1)}, {counts.truncated:,} cut at {counts.max_length} pieces "
        f"({counts.truncated / max(1, counts.rows):.1%}), {unknown:.2%} unknown pieces"
    )
    if unknown > 0.2:
        warn(f"{unknown:.0%} of the pieces are unknown to this model's vocabulary; is it the right language?")
