"""`miniatures export`."""

from pathlib import Path
from typing import Annotated, Any

import typer


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL|RUN", help="a fine-tuned model folder or a run folder")],
    out: Annotated[Path, typer.Argument(help="the deploy folder to make")],
    int8: Annotated[bool, typer.Option("--int8", help="8-bit integers too, where they keep the metric")] = False,
    check: Annotated[
        str | None, typer.Option(metavar="FILE|TASK", help="judge int8 on this [the run's dev split]")
    ] = None,
    glue: Annotated[Path | None, typer.Option(help="folder with GLUE [$GLUE_DIR, the cache, the Hub]")] = None,
    text: Annotated[str | None, typer.Option(help="column of the text")] = None,
    pair: Annotated[str | None, typer.Option(help="column of the second text")] = None,
    label: Annotated[str | None, typer.Option(help="column of the label")] = None,
    margin: Annotated[float, typer.Option(min=0, help="points of the metric that int8 may lose")] = 0.5,
    batch_invariant: Annotated[
        bool, typer.Option("--batch-invariant", help="int8 with fixed scales: no text depends on its batch")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the folder that is there")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON document")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="open no socket")] = False,
) -> None:
    """Write a folder that predicts without torch: ONNX, checked against torch before it is there."""
    from bert_miniatures.cli.console import ConsoleWatch, emit_json

    _need_packages()
    from bert_miniatures.exporting import export as write

    with ConsoleWatch() as watch:
        meta = write(
            model,
            out,
            int8=int8,
            check=check,
            glue=glue,
            columns={"text": text, "pair": pair, "label": label},
            margin=margin,
            batch_invariant=batch_invariant,
            overwrite=overwrite,
            watch=watch,
        )
    if as_json:
        emit_json({"path": str(out)} | meta)
        return
    for name, entry in meta["onnx"].items():
        print(f"{out / name}\t{_size(entry)}")


def _size(entry: dict[str, Any]) -> str:
    return f"{entry['bytes'] / 1e6:.1f} MB"


def _need_packages() -> None:
    """Say at once what is not installed: onnx and onnxruntime, and torch to compare with."""
    from importlib.util import find_spec

    from bert_miniatures.errors import MissingExtra

    for package, extra in (("torch", "train"), ("onnx", "deploy"), ("onnxruntime", "deploy")):
        try:
            missing = find_spec(package) is None
        except ModuleNotFoundError:
            missing = True
        if missing:
            raise MissingExtra("exporting to ONNX", extra)
