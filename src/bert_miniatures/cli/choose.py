"""`miniatures choose`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from bert_miniatures.choose.baseline import Baseline
    from bert_miniatures.choose.picking import Budget, Row
    from bert_miniatures.choose.profile import Profile
    from bert_miniatures.choose.survey import Survey

_HEADINGS = ("", "model", "", "", "threads", "p50 ms", "p95 ms", "texts/s", "MB memory", "MB disk", "GLUE", "")


def choose(
    latency: Annotated[str | None, typer.Option(help="most that p95 of one text may be, as 5ms")] = None,
    memory: Annotated[str | None, typer.Option(help="most that the process may take, as 100MB")] = None,
    throughput: Annotated[float | None, typer.Option(help="texts a second in batches, at least")] = None,
    disk: Annotated[str | None, typer.Option(help="most that the folder may take, as 50MB")] = None,
    lengths: Annotated[
        str | None, typer.Option(metavar="FILE|N", help="typical texts, or their length in word pieces [32]")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="of one process [1, and all cores]")] = None,
    data: Annotated[Path | None, typer.Option(help="labelled rows, for lengths and a TF-IDF row")] = None,
    dev: Annotated[Path | None, typer.Option(help="labelled rows to score TF-IDF on [a fifth of --data]")] = None,
    text: Annotated[str | None, typer.Option(help="column of the text")] = None,
    pair: Annotated[str | None, typer.Option(help="column of the second text")] = None,
    label: Annotated[str | None, typer.Option(help="column of the label")] = None,
    kind: Annotated[str | None, typer.Option(help="classification, regression or multilabel")] = None,
    max_length: Annotated[int, typer.Option(min=5, max=512, help="word pieces, where texts are cut")] = 128,
    every: Annotated[bool, typer.Option("--all", help="show what others beat, too")] = False,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="draw size against latency")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="open no socket")] = False,
) -> None:
    """Find out which of the 24 fits a budget on this machine. Exit 0 where one does, 1 where none does."""
    from bert_miniatures.choose.picking import Budget, bytes_of, seconds_of
    from bert_miniatures.cli.console import ConsoleWatch, emit_json
    from bert_miniatures.errors import ConfigError

    sizes = [None if value is None else bytes_of(value) for value in (memory, disk)]
    if throughput is not None and throughput <= 0:
        raise ConfigError(f"--throughput {throughput:g}: expected texts a second, more than 0")
    budget = Budget(None if latency is None else seconds_of(latency), sizes[0], sizes[1], throughput)
    _need_packages()
    columns = {"text": text, "pair": pair}
    profile = _profile(lengths, data, max_length, columns)
    from bert_miniatures.choose.survey import survey

    with ConsoleWatch() as watch:
        watch.note(profile.said)
        linear = _baseline(data, dev, columns | {"label": label, "kind": kind}) if data is not None else None
        found = survey(profile, budget, threads=None if threads is None else [threads], watch=watch)
    if plot is not None:
        _draw(plot, found)
    if as_json:
        emit_json(_document(found, linear))
    else:
        _print(found, linear, every)
    if found.best is None:
        raise typer.Exit(1)


def _need_packages() -> None:
    from importlib.util import find_spec

    from bert_miniatures.errors import MissingExtra

    if find_spec("onnx") is None or find_spec("onnxruntime") is None:
        raise MissingExtra("measuring the models", "deploy")


def _profile(lengths: str | None, data: Path | None, max_length: int, columns: dict[str, str | None]) -> "Profile":
    from bert_miniatures.choose import profile

    if lengths is not None and lengths.strip().isdecimal():
        return profile.of_number(int(lengths))
    file = Path(lengths) if lengths is not None else data
    return profile.of_number(profile.DEFAULT) if file is None else profile.of_file(file, max_length, **columns)


def _baseline(data: Path, dev: Path | None, columns: dict[str, str | None]) -> "Baseline":
    from bert_miniatures.choose.baseline import baseline

    return baseline(data, dev, **columns)


def _draw(path: Path, found: "Survey") -> None:
    from bert_miniatures.choose.plot import svg
    from bert_miniatures.files import atomic_write

    with atomic_write(path) as temporary:
        temporary.write_text(svg(found.rows, found.frontier, found.budget, found.best), encoding="utf-8")


# --------------------------------------------------------------------------------------------------- what is printed


def _print(found: "Survey", linear: "Baseline | None", every: bool) -> None:
    from bert_miniatures.choose.picking import fits

    rows = sorted(found.rows, key=lambda row: (row.worth, row.threads), reverse=True) if every else found.frontier
    lines = [_HEADINGS, *(_cells(row, row == found.best, fits(row, found.budget)) for row in rows)]
    if linear is not None:
        shown = ("", "TF-IDF, linear", "", "", "1", f"{1000 * linear.p50:.2f}", f"{1000 * linear.p95:.2f}")
        lines.append((*shown, f"{linear.rate:.0f}", "", f"{linear.disk / 1e6:.1f}", "", "measured"))
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADINGS))]
    for line in lines:
        cells = (
            c.ljust(w) if i in {0, 1, 2, 3, 11} else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join(c for c, w in zip(cells, widths, strict=True) if w).rstrip())
    print(f"\n{_errors(found)}")
    if linear is not None:
        print(f"TF-IDF with a linear model: {linear.metric} {linear.score:.4f} on {linear.dev_rows:,} rows apart.")
        print("What a miniature scores on them only 'miniatures finetune' tells.")
    print(f"\n{found.said}")


def _cells(row: "Row", is_best: bool, is_fit: bool) -> tuple[str, ...]:
    mark = ">" if is_best else "" if is_fit else "x"
    times = (f"{1000 * row.p50:.2f}", f"{1000 * row.p95:.2f}", f"{row.rate:.0f}")
    sizes = (f"{row.memory / 1e6:.0f}", f"{row.disk / 1e6:.1f}")
    score = "" if row.score is None else f"{row.score:g}"
    how = "measured" if row.is_measured else "modelled"
    return (mark, row.model.size, row.model.nickname or "", row.precision, str(row.threads), *times, *sizes, score, how)


def _errors(found: "Survey") -> str:
    """Say how far the model is off, in a sentence a precision."""
    said = []
    for precision, quantities in found.errors.items():
        parts = [f"{name} {_middle(list(map(abs, errors))):.0%} ({max(map(abs, errors)):.0%})"
                 for name, errors in quantities.items()]  # fmt: skip
        said.append(f"{precision}: {', '.join(parts)}")
    measured = sum(row.is_measured for row in found.rows)
    head = f"{measured} of {len(found.rows)} rows are measured, in {found.seconds:.0f} s"
    if not said:
        return f"{head}; too few to say how far the model is off"
    return f"{head}. Error of the model on a measured one that is left out, median (largest):\n" + "\n".join(said)


def _middle(values: list[float]) -> float:
    from statistics import median

    return median(values)


def _document(found: "Survey", linear: "Baseline | None") -> dict[str, Any]:
    from dataclasses import asdict

    frontier = found.frontier
    rows = [_entry(row, found.budget) | {"pareto": row in frontier} for row in found.rows]
    errors = {
        precision: {
            name: {"median": _middle(list(map(abs, values))), "largest": max(map(abs, values))}
            for name, values in quantities.items()
        }
        for precision, quantities in found.errors.items()
    }
    return {
        "recommendation": None if found.best is None else _entry(found.best, found.budget),
        "sentence": found.said,
        "lengths": {
            "said": found.profile.said,
            "p50": found.profile.quantile(0.5),
            "p95": found.profile.quantile(0.95),
        },
        "budget": asdict(found.budget),
        "rows": rows,
        "errors_left_one_out": errors,
        "tf_idf": None if linear is None else asdict(linear),
        "seconds": found.seconds,
    }


def _entry(row: "Row", budget: "Budget") -> dict[str, Any]:
    from bert_miniatures.choose.picking import fits

    return {
        "size": row.model.size,
        "nickname": row.model.nickname,
        "precision": row.precision,
        "threads": row.threads,
        "p50_seconds": row.p50,
        "p95_seconds": row.p95,
        "texts_per_second": row.rate,
        "memory_bytes": round(row.memory),
        "disk_bytes": row.disk,
        "parameters": row.model.parameters,
        "glue": row.score,
        "measured": row.is_measured,
        "fits": fits(row, budget),
    }
