"""`miniatures models`: the table of the 24."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

_SCORES = ("score", "cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli", "ax")
_HEADINGS = ("GLUE", "CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI", "QNLI", "RTE", "WNLI", "AX")


def models(json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False) -> None:
    """List the 24 models: sizes, parameters, bytes, published GLUE test scores."""
    from bert_miniatures.cli.console import emit_json

    rows = _rows()
    if json:
        emit_json({"models": rows})
        return
    import sys

    from rich.console import Console

    terminal = sys.stdout.isatty()
    sizes, scores = _tables(rows, plain=not terminal)
    # Through a pipe: no frames, no colours, and as wide as the table is.
    console = Console() if terminal else Console(width=200, force_terminal=False, color_system=None)
    with console.capture() as captured:
        console.print(sizes)
        console.print("\nPublished GLUE test scores, per cent; GLUE is the mean over the nine tasks, without AX:\n")
        console.print(scores)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _rows() -> list[dict[str, Any]]:
    from bert_miniatures.models import converted, is_model
    from bert_miniatures.zoo import ZOO

    return [
        {
            "size": model.size,
            "nickname": model.nickname,
            "official": model.official,
            "layers": model.layers,
            "width": model.width,
            "heads": model.heads,
            "parameters": model.parameters,
            "bytes": model.parameters * 4,
            "hub": model.hub,
            "google_zip": model.google_zip,
            "published": model.published,
            "here": str(converted(model)) if is_model(converted(model)) else None,
        }
        for model in ZOO.values()
    ]


def _tables(rows: list[dict[str, Any]], plain: bool) -> "tuple[Table, Table]":
    from rich import box
    from rich.table import Table

    style: dict[str, Any] = {"box": None if plain else box.SIMPLE_HEAD, "pad_edge": False}
    sizes, scores = Table(**style), Table(**style)
    for heading in ("size", "name"):
        sizes.add_column(heading, no_wrap=True)
        scores.add_column(heading, no_wrap=True)
    for heading in ("layers", "width", "heads", "parameters", "MB fp32"):
        sizes.add_column(heading, justify="right", no_wrap=True)
    sizes.add_column("here")
    sizes.add_column("on the Hub", no_wrap=True)
    for heading in _HEADINGS:
        scores.add_column(heading, justify="right")
    for row in rows:
        numbers = (row["layers"], row["width"], row["heads"], f"{row['parameters']:,}", f"{row['bytes'] / 1e6:.1f}")
        here = "yes" if row["here"] else ""
        sizes.add_row(row["size"], row["nickname"] or "", *map(str, numbers), here, row["hub"])
        if row["published"]:
            cells = ("/".join(f"{value:.1f}" for value in row["published"][name]) for name in _SCORES)
            scores.add_row(row["size"], row["nickname"], *cells)
    return sizes, scores
