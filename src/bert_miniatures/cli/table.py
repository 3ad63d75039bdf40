"""`miniatures table`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bert_miniatures.watch import Watch


def table(
    dirs: Annotated[list[Path], typer.Argument(metavar="DIR…", help="folders with runs, searched to the bottom")],
    form: Annotated[str, typer.Option("--format", help="md, csv or json")] = "md",
) -> None:
    """Print the best cell of each model and task, GLUE in the published layout with the published scores beside."""
    from bert_miniatures.cli.console import ConsoleWatch
    from bert_miniatures.errors import UnknownName
    from bert_miniatures.table import FORMATS

    if form not in FORMATS:
        raise UnknownName("format", form, FORMATS)
    with ConsoleWatch() as watch:
        text = tables(dirs, form, watch)
    print(text, end="")


def tables(dirs: list[Path], form: str, watch: "Watch") -> str:
    """Return the tables of the runs in these folders; `watch` hears what makes a number doubtful."""
    from bert_miniatures.errors import DataError
    from bert_miniatures.table import collect, glue_table, own_table, render

    runs = collect(dirs, watch)
    if not runs:
        raise DataError(f"no finished run in or below {', '.join(map(str, dirs))}; 'miniatures finetune' makes one")
    found = {"glue": glue_table(runs), "own": own_table(runs)}
    for text in (text for one in found.values() for text in one.warnings):
        watch.warn(text)
    return render(found, form)
