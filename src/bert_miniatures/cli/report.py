"""`miniatures report`."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    dirs: Annotated[list[Path], typer.Argument(metavar="DIR…", help="folders with runs, searched to the bottom")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="the HTML file")] = Path("report.html"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace the file that is there")] = False,
) -> None:
    """Write one HTML file about finished runs: scores, curves, grids, confusion, calibration, worst errors."""
    from bert_miniatures.cli.console import ConsoleWatch
    from bert_miniatures.errors import OutputExists
    from bert_miniatures.report.page import write_report

    if out.exists() and not overwrite:
        raise OutputExists(f"{out} exists; give another -o or --overwrite")
    with ConsoleWatch() as watch:
        size = write_report(dirs, out, watch)
        watch.note(f"{size / 1000:,.0f} kB, one file that loads nothing")
    print(out)
