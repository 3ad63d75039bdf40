"""`miniatures sweep` and `miniatures glue`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from bert_miniatures.recipes.sweep import Summary

Files = "an own file: .csv .tsv .jsonl .parquet"
Model = Annotated[list[str] | None, typer.Option(help="nickname, size, official name or folder; may be repeated")]
Out = Annotated[Path, typer.Option(help="the sweep's folder; a second call does what is missing")]
Glue = Annotated[Path | None, typer.Option(help="folder with GLUE [$GLUE_DIR, the cache, the Hub]")]
Grid = Annotated[str, typer.Option(help="published, or a TOML file with [grid] and other settings")]
Seeds = Annotated[int | None, typer.Option(help="seeds of each cell [1]")]
Workers = Annotated[int | None, typer.Option(help="processes [a core each, fewer where memory is short]", min=1)]
Kind = Annotated[str, typer.Option(help="local, or ray for a Ray cluster")]
Budget = Annotated[str | None, typer.Option(help="time on the wall, as 2h or 90m: leave out what does not fit")]
Adaptive = Annotated[bool, typer.Option("--adaptive", help="successive halving: leave bad cells behind early")]
KeepAll = Annotated[bool, typer.Option("--keep-all", help="keep the weights of every cell, not only of the best")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="print the plan and the forecast, and stop")]
Setting = Annotated[list[str] | None, typer.Option("--set", help="key=value, as train.warmup=0.2")]
AsJson = Annotated[bool, typer.Option("--json", help="print the summary as JSON")]
Offline = Annotated[bool, typer.Option("--offline", help="open no socket")]


def sweep(
    out: Out,
    model: Model = None,
    task: Annotated[
        list[str] | None, typer.Option(help="cola sst2 mrpc stsb qqp mnli qnli rte wnli; may be repeated")
    ] = None,
    glue: Glue = None,
    train: Annotated[Path | None, typer.Option(help=Files)] = None,
    dev: Annotated[Path | None, typer.Option(help=Files)] = None,
    text: Annotated[str | None, typer.Option(help="column of the text")] = None,
    pair: Annotated[str | None, typer.Option(help="column of the second text")] = None,
    label: Annotated[str | None, typer.Option(help="column of the label")] = None,
    kind: Annotated[str | None, typer.Option(help="classification, regression or multilabel")] = None,
    max_length: Annotated[int | None, typer.Option(help="word pieces, special tokens included [128]")] = None,
    teacher: Annotated[
        list[str] | None, typer.Option(help="distill: model folder, run, or file of answers; {task} is the task")
    ] = None,
    transfer: Annotated[
        list[str] | None, typer.Option(help="distill: unlabelled texts to learn from; {task} is the task")
    ] = None,
    grid: Grid = "published",
    seeds: Seeds = None,
    workers: Workers = None,
    engine: Kind = "local",
    budget: Budget = None,
    adaptive: Adaptive = False,
    keep_all: KeepAll = False,
    dry_run: DryRun = False,
    settings: Setting = None,
    as_json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Fine-tune or, with --teacher, distill over a grid of settings, models and tasks; keep the best."""
    data = {"glue": glue, "train": train, "dev": dev, "text": text, "pair": pair, "label": label, "kind": kind}
    document: dict[str, Any] = {"models": model, "tasks": task, "seeds": seeds}
    document["data"] = data | {"max_length": max_length}
    if teacher or transfer:
        document["distill"] = {"teacher": teacher or None, "transfer": transfer or None}
    how = {"workers": workers, "engine": engine, "adaptive": adaptive, "keep_all": keep_all, "dry_run": dry_run}
    summary = _run(document, grid, settings, out, budget, how)
    _print(summary, out, as_json=as_json, dry_run=dry_run)


def glue(
    out: Out,
    model: Model = None,
    glue: Glue = None,
    grid: Grid = "published",
    seeds: Seeds = None,
    workers: Workers = None,
    engine: Kind = "local",
    budget: Budget = None,
    adaptive: Adaptive = False,
    keep_all: KeepAll = False,
    dry_run: DryRun = False,
    settings: Setting = None,
    as_json: AsJson = False,
    offline: Offline = False,
) -> None:
    """Sweep all GLUE tasks, then write the table and the submission."""
    from bert_miniatures.data.tasks import TASKS

    tasks = [task.name for task in TASKS.values() if not task.predicted_by]
    document = {"models": model, "tasks": tasks, "seeds": seeds, "data": {"glue": glue}}
    how = {"workers": workers, "engine": engine, "adaptive": adaptive, "keep_all": keep_all, "dry_run": dry_run}
    summary = _run(document, grid, settings, out, budget, how)
    if as_json or dry_run:
        _print(summary, out, as_json=as_json, dry_run=dry_run)
        return
    _table_and_submissions(summary, out)
    _print_cells(summary, out)


def _table_and_submissions(summary: "Summary", out: Path) -> None:
    """Print GLUE's table; write a zip for each model, with the files whose test sets are there."""
    from bert_miniatures.cli.console import ConsoleWatch
    from bert_miniatures.cli.submit import write
    from bert_miniatures.cli.table import tables
    from bert_miniatures.errors import MiniaturesError

    with ConsoleWatch() as watch:  # one for all, so that a warning about a run is said once
        if summary.choices:
            print(tables([out], "md", watch), end="")
        for text in summary.warnings:
            watch.warn(text)
        folders = {choice.model: choice.run.path.relative_to(out).parts[0] for choice in summary.choices}
        for name, folder in folders.items():
            file = out / f"glue-{folder}.zip"
            try:
                write(out, file, watch, model=name, allow_missing=True)
                watch.note(f"{file}: the submission of {name}; files whose test data are missing are not in it")
            except MiniaturesError as error:
                watch.warn(f"no submission of {name}: {error}")


def _run(
    document: dict[str, Any], grid: str, settings: list[str] | None, out: Path, budget: str | None, how: dict[str, Any]
) -> "Summary":
    from bert_miniatures.budget import parse_duration
    from bert_miniatures.cli.console import ConsoleWatch
    from bert_miniatures.config import read_toml
    from bert_miniatures.errors import ConfigError
    from bert_miniatures.files import training_extra
    from bert_miniatures.plan import SweepConfig
    from bert_miniatures.recipes.sweep import run_sweep

    chosen = {} if grid == "published" else read_toml(Path(grid))
    for key, value in document.items():
        if isinstance(value, dict):
            said = {name: inner for name, inner in value.items() if inner is not None}
            chosen[key] = dict(chosen.get(key, {})) | said
        elif value:
            chosen[key] = value
    if not chosen.get("models"):
        raise ConfigError("no model: give --model, as in --model tiny ('miniatures models' lists them)")
    plan = SweepConfig.of(chosen, settings or (), where="" if grid == "published" else grid)
    with training_extra("sweeping"), ConsoleWatch() as watch:
        return run_sweep(plan, out, budget=parse_duration(budget) if budget else None, watch=watch, **how)


def _print(summary: "Summary", out: Path, *, as_json: bool, dry_run: bool) -> None:
    """Print what was found, or forecast."""
    from bert_miniatures.cli.console import emit_json, warn
    from bert_miniatures.watch import clock

    for text in summary.warnings:
        warn(text)
    if as_json:
        emit_json(_document(summary))
    elif dry_run:
        print(f"{summary.cells} cells, about {clock(summary.seconds)}; nothing was written")
    else:
        print(_table(summary))
    if not dry_run:
        _print_cells(summary, out)


def _print_cells(summary: "Summary", out: Path) -> None:
    """Name the cells that a reader should know about; fail where cells failed, after all else is said."""
    from bert_miniatures.cli.console import note
    from bert_miniatures.errors import WorkFailed

    for title, cells in (("failed", summary.failed), ("degenerate", summary.degenerate)):
        for name, reason in cells.items():
            note(f"{title}: {name}: {reason}")
    for text in summary.left_out:
        note(f"left out: {text}")
    if summary.failed:
        count = f"{len(summary.failed)} of {summary.cells} cells failed"
        raise WorkFailed(f"{out}: {count}; the others are done, and the same command tries these again")


def _table(summary: "Summary") -> str:
    """Return the best cell of each model and task, a line each."""
    from bert_miniatures.results import title

    lines = [("model", "task", "metric", "mean", "sd", "cells", "seeds", "best: batch, rate, epochs", "run")]
    for choice in summary.choices:
        mean = "undefined" if choice.mean is None else f"{100 * choice.mean:.1f}"
        spread = "" if choice.deviation is None else f"{100 * choice.deviation:.1f}"
        counts = (str(choice.cells), str(choice.seeds))
        lines.append((title(choice.model), choice.subject, choice.run.metric, mean, spread, *counts, choice.label,
                      str(choice.run.path)))  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    rows = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*rows, f"{summary.done} of {summary.cells} cells done"])


def _document(summary: "Summary") -> dict[str, Any]:
    """Return the summary as JSON has it."""
    chosen = [
        {"model": choice.model, "task": choice.subject, "metric": choice.run.metric, "mean": choice.mean,
         "deviation": choice.deviation, "standard_error": choice.error, "cells": choice.cells,
         "seeds": choice.seeds, "run": str(choice.run.path),
         "scores": {split: dict(scores) for split, scores in choice.scores.items()}}
        for choice in summary.choices
    ]  # fmt: skip
    plain = {name: value for name, value in vars(summary).items() if name != "choices"}
    return plain | {"best": chosen}
