"""`miniatures doctor`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from bert_miniatures.doctor.checks import Report
    from bert_miniatures.doctor.subject import Subject

Files = "an own file: .csv .tsv .jsonl .parquet"


def doctor(
    model: Annotated[str | None, typer.Option(help="nickname, size, official name or folder")] = None,
    task: Annotated[str | None, typer.Option(help="cola sst2 mrpc stsb qqp mnli qnli rte wnli")] = None,
    glue: Annotated[Path | None, typer.Option(help="folder with GLUE [$GLUE_DIR, the cache]")] = None,
    train: Annotated[Path | None, typer.Option(help=Files)] = None,
    dev: Annotated[Path | None, typer.Option(help=Files)] = None,
    text: Annotated[str | None, typer.Option(help="column of the text")] = None,
    pair: Annotated[str | None, typer.Option(help="column of the second text")] = None,
    label: Annotated[str | None, typer.Option(help="column of the label")] = None,
    kind: Annotated[str | None, typer.Option(help="classification, regression or multilabel")] = None,
    batch_size: Annotated[int | None, typer.Option(help="of a run that is planned")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="of a run that is planned")] = None,
    epochs: Annotated[int | None, typer.Option(help="of a run that is planned")] = None,
    max_length: Annotated[int | None, typer.Option(help="word pieces, special tokens included [128]")] = None,
    config: Annotated[Path | None, typer.Option(help="settings of a run that is planned, as TOML")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value, as train.warmup=0.2")] = None,
    fix: Annotated[bool, typer.Option("--fix", help="put right what can be put right without loss")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="open no socket")] = False,
) -> None:
    """Look for what is wrong: machine, packages, cache, a model, data, a planned run. Exit 0 clean, 1 findings."""
    from bert_miniatures.cli.console import emit_json
    from bert_miniatures.doctor.checks import examine, repair

    data: dict[str, Any] = {"task": task, "glue": glue, "train": train, "dev": dev}
    data |= {"text": text, "pair": pair, "label": label, "kind": kind, "max_length": max_length}
    training = {"batch_size": batch_size, "learning_rate": learning_rate, "epochs": epochs}
    given = {"model": model, "data": data, "train": training}
    report = examine(_subject(given, config, settings or []))
    done = repair(report) if fix else {}
    if as_json:
        emit_json(_document(report, done))
    else:
        _print(report, done)
    if len(done) < len(report.findings):
        raise typer.Exit(1)


def _subject(given: dict[str, Any], config: Path | None, settings: list[str]) -> "Subject":
    from bert_miniatures.config import FinetuneConfig, overridden, read_toml
    from bert_miniatures.doctor.subject import Subject
    from bert_miniatures.errors import ConfigError

    planned = bool(config or settings or any(value is not None for value in given["train"].values()))
    document = overridden(read_toml(config) if config else {}, [])
    for name, value in given.items():
        if isinstance(value, dict):
            section = document.setdefault(name, {})
            if not isinstance(section, dict):
                raise ConfigError(f"{config}: {name} is a section, [{name}], not a value")
            section |= {key: inner for key, inner in value.items() if inner is not None}
        elif value is not None:
            document[name] = value
    chosen = FinetuneConfig.of({"model": "", **document}, settings, where=str(config or ""))
    if chosen.data.task is not None and chosen.data.train is not None:
        raise ConfigError("give either --task with a GLUE folder, or own files with --train, not both")
    if chosen.data.train is None and chosen.data.dev is not None:
        raise ConfigError("--dev is looked at beside --train; give that too")
    return Subject(chosen.model or None, chosen.data, chosen.train, planned)


def _document(report: "Report", done: dict[int, str]) -> dict[str, Any]:
    findings = [
        {
            "check": check.name,
            "area": check.area,
            "what": one.what,
            "why": one.why,
            "type": one.type,
            "fixable": one.repair is not None,
            "fixed": done.get(i),
        }
        for i, (check, one) in enumerate(report.findings)
    ]
    return {"clean": not findings, "facts": report.facts, "findings": findings, "not_looked_at": report.skipped}


def _print(report: "Report", done: dict[int, str]) -> None:
    for area, facts in report.facts.items():
        for i, text in enumerate(facts):
            print(f"{area if i == 0 else '':<9} {text}")
    for name, why in report.skipped.items():
        print(f"{'not seen':<9} {name}: {why}")
    count = len(report.findings)
    print(f"\n{'nothing found' if not count else '1 finding' if count == 1 else f'{count} findings'}")
    for i, (check, one) in enumerate(report.findings):
        print(f"\n{i + 1}. {check.area}: {one.what}")
        print(f"   why   {one.why}")
        if i in done:
            print(f"   done  {done[i]}")
        else:
            print(f"   type  {one.type}{'  (or --fix)' if one.repair else ''}")
