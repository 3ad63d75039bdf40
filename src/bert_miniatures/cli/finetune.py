"""`miniatures finetune`."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from bert_miniatures.cli.running import Recipe, run_as_told

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
    how: dict[str, Any] = {"config": config, "settings": settings, "resume": resume, "overwrite": overwrite}
    result = run_as_told("fine-tuning", _prepared, given, out, **how)
    if result is not None:
        _print(result, out, as_json=as_json)


def _prepared(document: dict[str, Any], settings: list[str], where: str) -> Recipe:
    from bert_miniatures.config import FinetuneConfig
    from bert_miniatures.files import training_extra

    chosen = FinetuneConfig.of(document, settings, where=where)
    with training_extra("fine-tuning"):
        from bert_miniatures.recipes.finetune import run_finetune
    return partial(run_finetune, chosen)


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
