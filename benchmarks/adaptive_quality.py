"""Does --adaptive find what the full grid finds, and at what cost?

    python benchmarks/adaptive_quality.py --glue GLUE [--tasks mrpc rte cola] [--model starter]

Runs `miniatures sweep` over the published grid (20 cells, 4 epochs, one seed) on each task: the full grid, and
--adaptive in a folder of its own; what is there in --scratch is not run again. Printed for each task: the best cell of
the full grid, the cell that --adaptive chose and its score in the full grid (the same settings and seed train the same
weights), the standard error of one dev score, and the cost. The cost counts the part of its updates that each cell was
trained for at the seconds that this cell took in the full grid, so that other work on the machine, at one of the two
times, is not in it.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bert_miniatures.choice import standard_error
from exactness import METRICS

RESULTS = Path(__file__).parent / "results"


def run(options: argparse.Namespace, task: str, name: str, *more: str) -> Path:
    """Sweep, or what is missing of it, and return the folder of the task's cells."""
    out: Path = options.scratch / name
    command = [sys.executable, "-m", "bert_miniatures", "sweep", "--model", options.model, "--task", task]
    command += ["--glue", str(options.glue), "--out", str(out), *more]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return Path(out / options.model.replace("/", "-") / task)


def cells(folder: Path) -> dict[str, Any]:
    """Return cell -> result of the cells that were trained to their end."""
    found = {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))}
    return {name: result for name, result in found.items() if result["epoch"] == result["epochs"]}


def compared(task: str, full: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return what the search in a folder found of a full grid, and what it cost."""
    record = json.loads((folder / "adaptive.json").read_text())
    trained = {Path(cell).name: record["rungs"][max(map(int, seen))] for cell, seen in record["cells"].items()}
    scores = {name: result["scores"]["dev"][METRICS[task]] for name, result in full.items()}
    finished = cells(folder)
    best, chosen = max(scores, key=scores.__getitem__), max(finished, key=scores.__getitem__)
    cost = sum(share * full[name]["seconds"] for name, share in trained.items())
    row = {"task": task, "metric": METRICS[task], "best": best, "best_score": scores[best]}
    row |= {"chosen": chosen, "chosen_score": scores[chosen], "finished": len(finished), "cells": len(full)}
    row |= {"cost": cost / sum(result["seconds"] for result in full.values())}
    return row | {"standard_error": standard_error(METRICS[task], scores[best], full[best]["rows"]["dev"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue", type=Path, default=Path(os.environ.get("GLUE_DIR", "../shared/glue")))
    parser.add_argument("--tasks", nargs="+", default=["mrpc", "rte", "cola"], choices=list(METRICS))
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "adaptive_quality")
    parser.add_argument("--model", default="starter", help="MODEL of the command line, one for a scratch folder")
    options = parser.parse_args()
    options.scratch.mkdir(parents=True, exist_ok=True)
    rows = []
    for task in options.tasks:
        full = cells(run(options, task, "grid"))
        row = compared(task, full, run(options, task, "adaptive", "--adaptive"))
        rows.append(row)
        best, chosen, error = (f"{100 * row[name]:.1f}" for name in ("best_score", "chosen_score", "standard_error"))
        print(f"| {task} | {row['best']} {best} | {row['chosen']} {chosen} | {error} | {row['cost']:.2f} |", flush=True)
    (RESULTS / "adaptive_quality.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
