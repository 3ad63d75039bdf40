"""`miniatures pretrain`."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from bert_miniatures.cli.running import Recipe, run_as_told

__all__ = ["pretrain"]


def pretrain(
    out: Annotated[Path, typer.Option(help="the run folder")],
    model: Annotated[
        str | None, typer.Option(help="a size of the 24 with --vocab; without it a MODEL, which is trained further")
    ] = None,
    corpus: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help=".txt .jsonl (.gz .xz .zst) or .parquet; may be repeated")
    ] = None,
    more: Annotated[list[Path] | None, typer.Argument(metavar="FILE", help="more files of the corpus")] = None,
    vocab: Annotated[
        Path | None, typer.Option(metavar="DIR", help="the vocabulary of a model with new weights")
    ] = None,
    budget: Annotated[str | None, typer.Option(help="time, as 2h: decides the number of updates")] = None,
    epochs: Annotated[int | None, typer.Option(help="passes over the corpus [1]")] = None,
    text: Annotated[str | None, typer.Option(metavar="COLUMN", help="key or column with the text")] = None,
    encoding_errors: Annotated[
        str | None, typer.Option(help="a line that is not UTF-8: error, replace or skip [error]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="rows per update [32]")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="at its highest [5e-4]")] = None,
    max_length: Annotated[int | None, typer.Option(help="word pieces, special tokens included [128]")] = None,
    seed: Annotated[int | None, typer.Option(help="decides new weights, texts, masks and dropout [1]")] = None,
    config: Annotated[Path | None, typer.Option(help="settings as TOML")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="key=value, as data.masking=word")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="continue the run in --out")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the run in --out")] = False,
    engine: Annotated[str, typer.Option(help="local, or ray for a Ray cluster that shares each batch")] = "local",
    workers: Annotated[int | None, typer.Option(min=2, help="processes with --engine ray [one on each node]")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print result.json")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="open no socket")] = False,
) -> None:
    """Pre-train a model on text: masked words and next sentences."""
    files = [str(path) for path in (*(corpus or []), *(more or []))] or None
    data = {"corpus": files, "text": text, "encoding_errors": encoding_errors, "max_length": max_length}
    train = {"batch_size": batch_size, "learning_rate": learning_rate, "seed": seed, "epochs": epochs, "budget": budget}
    given = {"model": model, "vocab": None if vocab is None else str(vocab), "data": data, "train": train}
    how: dict[str, Any] = {"config": config, "settings": settings, "resume": resume, "overwrite": overwrite}
    result = run_as_told("pre-training", _prepared, given, out, **how, engine=engine, workers=workers)
    if result is not None:
        _print(result, out, as_json=as_json)


def _prepared(document: dict[str, Any], settings: list[str], where: str) -> Recipe:
    from bert_miniatures.config import PretrainConfig
    from bert_miniatures.files import training_extra

    chosen = PretrainConfig.of(document, settings, where=where)
    with training_extra("pre-training"):
        from bert_miniatures.recipes.pretrain import run_pretrain
    return partial(run_pretrain, chosen)


def _print(result: dict[str, Any], out: Path, *, as_json: bool) -> None:
    from bert_miniatures.cli.console import emit_json

    if as_json:
        emit_json(result)
        return
    for split, scores in result["scores"].items():
        shown = ", ".join(
            f"{name.replace('_', ' ')} {'undefined' if value is None else f'{value:.4f}'}"
            for name, value in scores.items()
        )
        print(f"{split.replace('_', ' ')}: {shown}")
    print(f"{out}: {result['steps']} updates, {result['tokens']:,} tokens, {result['seconds']:.0f} s")
