"""`miniatures track`."""

from pathlib import Path
from typing import Annotated

import typer


def track(
    dirs: Annotated[list[Path], typer.Argument(metavar="DIR…", help="folders with runs, searched to the bottom")],
    to: Annotated[str, typer.Option("--to", metavar="tensorboard|trackio", help="where the numbers go")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="TensorBoard's files")] = Path("tensorboard"),
    project: Annotated[str, typer.Option(help="the project in trackio")] = "bert-miniatures",
    follow: Annotated[bool, typer.Option("--follow", help="go on until all runs are finished")] = False,
) -> None:
    """Show the records of runs (metrics.jsonl) in TensorBoard or trackio, afterwards or while they go on."""
    from bert_miniatures.cli.console import ConsoleWatch
    from bert_miniatures.trackers import track as hand_on

    with ConsoleWatch() as watch:
        count = hand_on(dirs, to, out=out, project=project, follow=follow, watch=watch)
    look = f"tensorboard --logdir {out}" if to == "tensorboard" else f"trackio show --project {project}"
    print(f"{count} run{'' if count == 1 else 's'}; look at them with: {look}")
