"""`miniatures distill`."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from bert_miniatures.cli.finetune import Files
from bert_miniatures.cli.running import Recipe, run_as_told


def distill(
    out: Annotated[Path, typer.Option(help="the run folder")],
    model: Annotated[str | None, typer.Option(help="the student: nickname, size, official name or folder")] = None,
    teacher: Annotated[
        list[str] | None, typer.Option(help="model folder, run, or file of answers; several are averaged")
    ] = None,
    transfer: Annotated[
        list[Path] | None, typer.Option(help="unlabelled texts to learn from; may be given more than once")
    ] = None,
    task: Annotated[str | None, typer.Option(help="cola sst2 mrpc stsb qqp mnli qnli rte wnli")] = None,
    glue: Annotated[Path | None, typer.Option(help="folder with GLUE [$GLUE_DIR, the cache, the Hub]")] = None,
    train: Annotated[Path | None, typer.Option(help=Files)] = None,
    dev: Annotated[Path | None, typer.Option(help=Files)] = None,
    text: Annotated[str | None, typer.Option(help="column of the text")] = None,
    pair: Annotated[str | None, typer.Option(help="column of the second text")] = None,
    label: Annotated[str | None, typer.Option(help="column of the label")] = None,
    kind: Annotated[str | None, typer.Option(help="classification, regression or multilabel")] = None,
    transfer_text: Annotated[str | None, typer.Option(help="column of the text in --transfer files")] = None,
    transfer_pair: Annotated[str | None, typer.Option(help="column of the second text there")] = None,
    labelled: Annotated[
        bool | None, typer.Option("--labelled/--transfer-only", help="learn from the labelled set's texts too [yes]")
    ] = None,
    augment: Annotated[
        int | None, typer.Option(help="texts to make from those there are, by replacing words [0]")
    ] = None,
    augment_with: Annotated[
        str | None, typer.Option(help="model with a masked-LM head that finds the words [the student]")
    ] = None,
    temperature: Annotated[float | None, typer.Option(help="divides the logits of both [1]")] = None,
    label_weight: Annotated[float | None, typer.Option(help="share of the labels' own loss, 0 to 1 [0]")] = None,
    then_finetune: Annotated[
        bool | None, typer.Option("--then-finetune", help="fine-tune on the labelled set afterwards")
    ] = None,
    compare: Annotated[Path | None, typer.Option(help="run of this student fine-tuned alone [beside --out]")] = None,
    batch_size: Annotated[int | None, typer.Option(help="published: 8 16 32 64 128 [32]")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="published: 3e-4 1e-4 5e-5 3e-5 [1e-4]")] = None,
    epochs: Annotated[int | None, typer.Option(help="passes over the texts [4]")] = None,
    seed: Annotated[int | None, typer.Option(help="decides new weights, order and dropout [1]")] = None,
    max_length: Annotated[int | None, typer.Option(help="word pieces, special tokens included [128]")] = None,
    keep: Annotated[str | None, typer.Option(help="weights of the last epoch or the best one [last]")] = None,
    config: Annotated[Path | None, typer.Option(help="settings as TOML")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value, as finetune.epochs=2")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in --out")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the run in --out")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print result.json")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="open no socket")] = False,
) -> None:
    """Train a student on what a teacher says about texts, labelled or not."""
    data: dict[str, Any] = {"task": task, "glue": glue, "train": train, "dev": dev}
    data |= {"text": text, "pair": pair, "label": label, "kind": kind, "max_length": max_length}
    training = {"batch_size": batch_size, "learning_rate": learning_rate, "epochs": epochs, "seed": seed}
    given: dict[str, Any] = {"model": model, "keep": keep, "data": data, "train": training, "teacher": teacher or None}
    given |= {"transfer": transfer or None, "transfer_text": transfer_text, "transfer_pair": transfer_pair}
    given |= {"augment": augment, "augment_with": augment_with}
    given |= {"labelled": labelled, "temperature": temperature, "label_weight": label_weight}
    given |= {"then_finetune": then_finetune, "compare": compare}
    how: dict[str, Any] = {"config": config, "settings": settings, "resume": resume, "overwrite": overwrite}
    result = run_as_told("distillation", _prepared, given, out, **how)
    if result is not None:
        _print(result, out, as_json=as_json)


def _prepared(document: dict[str, Any], settings: list[str], where: str) -> Recipe:
    from bert_miniatures.distill_config import DistillConfig
    from bert_miniatures.errors import ConfigError
    from bert_miniatures.files import training_extra

    if "teacher" not in document:
        raise ConfigError("no teacher: give --teacher with a model folder, a run, or a file of its answers")
    chosen = DistillConfig.of(document, settings, where=where)
    with training_extra("distillation"):
        from bert_miniatures.recipes.distill import run_distill
    return partial(run_distill, chosen)


def _print(result: dict[str, Any], out: Path, *, as_json: bool) -> None:
    from bert_miniatures.cli.console import emit_json
    from bert_miniatures.recipes.comparison import table

    if as_json:
        emit_json(result)
        return
    print(table(result["comparison"]))
    print(f"{out}: {result['seconds']:.0f} s")
