"""`miniatures submit`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bert_miniatures.choice import Choice
    from bert_miniatures.results import RunResult
    from bert_miniatures.watch import Watch


def submit(
    folder: Annotated[Path | None, typer.Argument(metavar="DIR", help="folder with the runs of one model")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="the zip to write")] = None,
    glue: Annotated[Path | None, typer.Option(help="GLUE with its test files; default: that of the runs")] = None,
    model: Annotated[str | None, typer.Option(help="which model, where DIR has runs of several")] = None,
    allow_missing: Annotated[bool, typer.Option("--allow-missing", help="write the files that can be written")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="open no socket")] = False,
    check: Annotated[Path | None, typer.Option(metavar="ZIP", help="check a zip, whatever made it")] = None,
) -> None:
    """Write a GLUE submission from the best run of each task, or check one with --check."""
    from bert_miniatures.cli.console import ConsoleWatch
    from bert_miniatures.errors import ConfigError

    if check is not None:
        if folder is not None or out is not None:
            raise ConfigError("--check takes a zip and nothing else; without it: miniatures submit DIR -o glue.zip")
        _check(check, allow_missing)
        return
    if folder is None or out is None:
        raise ConfigError("say where the runs are and where the zip goes: miniatures submit DIR -o glue.zip")
    with ConsoleWatch() as watch:
        write(folder, out, watch, glue=glue, model=model, allow_missing=allow_missing)


def write(
    folder: Path,
    out: Path,
    watch: "Watch",
    *,
    glue: Path | None = None,
    model: str | None = None,
    allow_missing: bool = False,
) -> None:
    """Write the submission of one model's runs, and say what is in it."""
    from bert_miniatures.results import collect

    runs = _of_one_model(collect([folder], watch), folder, model)
    _write(runs, out, glue, allow_missing, watch)


def _check(path: Path, allow_missing: bool) -> None:
    from bert_miniatures.submission import check_submission

    faults = check_submission(path, allow_missing=allow_missing)
    print("\n".join(faults) or "ok")
    if faults:
        raise SystemExit(2)


def _of_one_model(runs: "list[RunResult]", folder: Path, wanted: str | None) -> "list[RunResult]":
    """Return the GLUE runs of one model."""
    from bert_miniatures.data.tasks import TASKS
    from bert_miniatures.errors import ConfigError, DataError, UnknownName
    from bert_miniatures.zoo import lookup

    runs = [run for run in runs if run.task in TASKS]
    if not any(run.score is not None for run in runs):
        raise DataError(f"{folder}: no finished run with a score on a GLUE task ('miniatures finetune --task')")
    names = sorted({run.name for run in runs})
    if wanted is None:
        if len(names) > 1:
            raise ConfigError(f"{folder} has runs of {len(names)} models; say --model with one of {', '.join(names)}")
        return runs
    try:
        name = lookup(wanted).size
    except UnknownName:
        name = wanted
    if name not in names:
        raise UnknownName("model", wanted, names)
    return [run for run in runs if run.name == name]


def _write(runs: "list[RunResult]", out: Path, glue: Path | None, allow_missing: bool, watch: "Watch") -> None:
    from bert_miniatures.choice import choose
    from bert_miniatures.errors import WorkFailed
    from bert_miniatures.files import training_extra
    from bert_miniatures.submission import FILES, check_submission, write_submission
    from bert_miniatures.table import order_warnings

    choices = {choice.subject: choice for choice in choose(runs) if choice.mean is not None}
    for text in [text for choice in choices.values() for text in choice.warnings] + order_warnings(choices.values()):
        watch.warn(text)
    with training_extra("answering the test sets"):
        from bert_miniatures.recipes.answering import answer_tests, test_folder
    where = {task: choice.run.path for task, choice in choices.items()}
    answered = answer_tests(where, test_folder(glue, where), watch, allow_missing=allow_missing)
    missing = write_submission(answered, out, allow_missing=allow_missing)
    faults = check_submission(out, allow_missing=allow_missing)
    if faults:
        raise WorkFailed(f"{out} was written and has faults: {'; '.join(faults)}")
    for file in answered:
        print(_line(file, choices))
    for note in dict.fromkeys(note for file in answered for note in FILES[file][0].notes):
        watch.note(note)
    files = "1 file" if len(answered) == 1 else f"{len(answered)} files"
    print(f"{out}: {files}, ok" + (f"; missing: {', '.join(missing)}" if missing else ""))


def _line(file: str, choices: "dict[str, Choice]") -> str:
    """Return file, task, run and dev score, with tabs between."""
    from bert_miniatures.submission import FILES

    task, row = FILES[file]
    choice = choices[task.predicted_by or task.name]
    split = row.split.replace("test", "dev")  # test_mismatched goes with dev_mismatched
    split = split if split in choice.run.scores and not task.predicted_by else "dev"
    score = choice.run.scores[split].get(choice.run.metric)
    by = f"{task.title}, by {choice.run.task}" if task.predicted_by else task.title
    shown = "undefined" if score is None else f"{score:.4f}"
    return f"{file}\t{by}\t{choice.run.path}\t{split} {choice.run.metric} {shown}"
