"""`miniatures evaluate`."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    run: Annotated[Path, typer.Argument(help="a finished run folder")],
    split: Annotated[str, typer.Option(help="dev, train, for MNLI dev_mismatched too")] = "dev",
    offline: Annotated[bool, typer.Option("--offline", help="open no socket")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
) -> None:
    """Score a run's model on a split of its data."""
    from bert_miniatures.cli.console import ConsoleWatch, emit_json
    from bert_miniatures.files import training_extra

    with training_extra("evaluating"):
        from bert_miniatures.recipes.scoring import evaluate as score
    with ConsoleWatch() as watch:
        found = score(run, split, watch=watch)
    if as_json:
        emit_json({key: found[key] for key in ("split", "rows", "scores")})
    else:
        for name, value in found["scores"].items():
            print(f"{name}\t{value:.4f}")
    if found["finding"]:
        watch.warn(found["finding"])
