"""`miniatures table`."""

from pathlib import Path
from typing import Annotated

import typer


def table(
    dirs: Annotated[list[Path], typer.Argument(metavar="DIR…", help="folders with runs, searched to the bottom")],
    form: Annotated[str, typer.Option("--format", help="md, csv or json")] = "md",
) -> None:
    """Print the best cell of each model and task, GLUE in the published layout with the published scores beside."""
    from bert_miniatures.cli.console import ConsoleWatch
    from bert_miniatures.errors import DataError, UnknownName
    from bert_miniatures.table import FORMATS, collect, glue_table, own_table, render

    if form not in FORMATS:
        raise UnknownName("format", form, FORMATS)
    with ConsoleWatch() as watch:
        runs = collect(dirs, watch)
        if not runs:
            raise DataError(f"no finished run in or below {', '.join(map(str, dirs))}; 'miniatures finetune' makes one")
        tables = {"glue": glue_table(runs), "own": own_table(runs)}
        for text in (text for found in tables.values() for text in found.warnings):
            watch.warn(text)
    print(render(tables, form), end="")
