"""`miniatures finetune`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from bert_miniatures.machine import Launch

Files = "an own file: .csv .tsv .jsonl .parquet"


def finetune(
    out: Annotated[Path, typer.Option(help="the run folder")],
    model: Annotated[str | None, typer.Option(help="nickname, size, official name or folder")] = None,
    task: Annotated[str | None, typer.Option(help="cola sst2 mrpc stsb qqp mnli qnli rte wnli")] = None,
    glue: Annotated[Path | None, typer.Option(help="folder with GLUE [$GLUE_DIR, the cache, the Hub]")] = None,
    train: Annotated[Path | None, typer.Option(help=Files)] = None,
    dev: Annotated[Path | None, typer.Option(help=Files)] = None,
    text: Annotated[str | None, typer.Option(help="column of the text")] = None,
    pair: Annotated[str | None, typer.Option(help="column of the second text")] = None,
    label: Annotated[str | None, typer.Option(help="column of the label")] = None,
    kind: Annotated[str | None, typer.Option(help="classification, regression or multilabel")] = None,
    batch_size: Annotated[int | None, typer.Option(help="published: 8 16 32 64 128 [32]")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="published: 3e-4 1e-4 5e-5 3e-5 [1e-4]")] = None,
    epochs: Annotated[int | None, typer.Option(help="published: 4 [4]")] = None,
    seed: Annotated[int | None, typer.Option(help="decides new weights, order and dropout [1]")] = None,
    max_length: Annotated[int | None, typer.Option(help="word pieces, special tokens included [128]")] = None,
    keep: Annotated[str | None, typer.Option(help="weights of the last epoch or the best one [last]")] = None,
    config: Annotated[Path | None, typer.Option(help="settings as TOML")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value, as train.warmup=0.2")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in --out")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the run in --out")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print result.json")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="open no socket")] = False,
) -> None:
    """Fine-tune a model on a GLUE task or on own files."""
    data: dict[str, Any] = {"task": task, "glue": glue, "train": train, "dev": dev}
    data |= {"text": text, "pair": pair, "label": label, "kind": kind, "max_length": max_length}
    training = {"batch_size": batch_size, "learning_rate": learning_rate, "epochs": epochs, "seed": seed}
    given = {"model": model, "keep": keep, "data": data, "train": training}
    with _processes() as started:
        if started.restarts and _was_begun(out):  # torchrun started all processes again because one was lost
            resume, overwrite = True, False
        document = _document(given, config, out, resume=resume, overwrite=overwrite)
        result = _run(document, settings or [], str(config or ""), out, resume=resume, overwrite=overwrite)
        if started.rank == 0:
            _print(result, out, as_json=as_json)


@contextmanager
def _processes() -> Iterator["Launch"]:
    """Join the other processes of torchrun, where there are some."""
    from bert_miniatures.files import training_extra
    from bert_miniatures.machine import launch

    started = launch()
    if started.world == 1:
        yield started
        return
    with training_extra("fine-tuning"):
        from bert_miniatures.distributed import joined
    with joined(started):
        yield started


def _was_begun(out: Path) -> bool:
    from bert_miniatures.files import RunFolder

    return RunFolder(out).is_run()


def _document(
    given: dict[str, Any], config: Path | None, out: Path, *, resume: bool, overwrite: bool
) -> dict[str, Any]:
    """Return the settings of the file, or of the run that is resumed, with the options of the command line on top."""
    from bert_miniatures.config import read_toml
    from bert_miniatures.errors import ConfigError
    from bert_miniatures.files import RunFolder

    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other: one keeps what is in --out, the other does not")
    document: dict[str, Any] = read_toml(config) if config else {}
    if resume and not config and RunFolder(out).is_run():
        document = read_toml(RunFolder(out).config)
    for section in ("data", "train"):
        if not isinstance(document.get(section, {}), dict):
            raise ConfigError(f"{config}: {section} is a section, [{section}], not a value")
        said = {key: value for key, value in given[section].items() if value is not None}
        document[section] = dict(document.get(section, {})) | said
    document |= {name: given[name] for name in ("model", "keep") if given[name] is not None}
    if "model" not in document and resume:
        raise ConfigError(f"{out}: there is no run to resume; to begin one give --model and data too")
    if "model" not in document:
        raise ConfigError("no model: give --model, as in --model tiny ('miniatures models' lists them)")
    return document


def _run(
    document: dict[str, Any], settings: list[str], where: str, out: Path, *, resume: bool, overwrite: bool
) -> dict[str, Any]:
    from bert_miniatures.cli.console import ConsoleWatch
    from bert_miniatures.config import FinetuneConfig
    from bert_miniatures.files import training_extra

    chosen = FinetuneConfig.of(document, settings, where=where)
    with training_extra("fine-tuning"):
        from bert_miniatures.recipes.finetune import run_finetune
    with ConsoleWatch() as watch:
        return run_finetune(chosen, out, resume=resume, overwrite=overwrite, watch=watch)


def _print(result: dict[str, Any], out: Path, *, as_json: bool) -> None:
    from bert_miniatures.cli.console import emit_json

    if as_json:
        emit_json(result)
        return
    for split, scores in result["scores"].items():
        shown = ", ".join(
            f"{name} {'undefined' if value is None else f'{value:.4f}'}" for name, value in scores.items()
        )
        print(f"{split}: {shown}")
    print(f"{out}: {result['seconds']:.0f} s")
