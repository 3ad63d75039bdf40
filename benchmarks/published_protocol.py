"""Dev scores by the published protocol: the best cell of the grid, then that cell with three seeds.

    python benchmarks/published_protocol.py --glue GLUE --model starter [--tasks mrpc stsb rte cola sst2]
        [--adaptive sst2] [--scratch FOLDER]

For each task `miniatures sweep` runs the published grid (5 batch sizes, 4 learning rates, 4 epochs, seed 1; with
--adaptive as successive halving), and then its best cell with the other seeds. Printed are mean and standard
deviation beside the published test scores of tiny and mini. What is in FOLDER is not run again.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bert_miniatures.zoo import lookup
from exactness import METRICS

RESULTS = Path(__file__).parent / "results"
Cell = dict[str, Any]


def cells_of(out: Path, model: str, task: str) -> list[Cell]:
    """Return the results of the finished cells of a model and a task."""
    found = [json.loads(path.read_text()) for path in sorted(out.glob(f"*/{task}/*/result.json"))]
    return [one for one in found if one["model"] == model and one["scores"].get("dev")]


def chosen(options: argparse.Namespace, task: str) -> list[Cell]:
    """Run what is missing, and return the cells with the settings that were best with seed 1."""
    adaptive = task in options.adaptive
    out = options.scratch / ("adaptive" if adaptive else "grid")
    command = [sys.executable, "-m", "bert_miniatures", "sweep", "--model", options.model, "--task", task]
    command += ["--glue", str(options.glue)]
    quiet = {"check": True, "stdout": subprocess.DEVNULL}
    subprocess.run([*command, "--out", str(out)] + ["--adaptive"] * adaptive, **quiet)
    cells = cells_of(out, options.model, task)
    first = [cell for cell in cells if cell["seed"] == 1 and cell["epoch"] == cell["epochs"]]
    best = max(first, key=lambda cell: float(cell["scores"]["dev"][METRICS[task]]))
    settings = ("batch_size", "learning_rate")
    grid = options.scratch / f"{task}.toml"
    grid.write_text("[grid]\n" + "".join(f"{name} = [{best[name]}]\n" for name in settings))
    seeds = options.scratch / "seeds"
    subprocess.run([*command, "--grid", str(grid), "--seeds", str(options.seeds), "--out", str(seeds)], **quiet)
    cells = cells_of(seeds, options.model, task)
    return [cell for cell in cells if all(cell[name] == best[name] for name in settings)]


def row(task: str, cells: list[Cell]) -> dict[str, Any]:
    """Return what is known of a task's best cell."""
    scores: dict[str, list[float]] = {}
    for cell in sorted(cells, key=lambda cell: int(cell["seed"])):
        for metric, value in cell["scores"]["dev"].items():
            scores.setdefault(metric, []).append(round(100 * value, 2))
    settings = {name: cells[0][name] for name in ("batch_size", "learning_rate", "epochs")}
    return {"task": task} | settings | {"scores": scores, "seconds": [cell["seconds"] for cell in cells]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue", type=Path, default=Path(os.environ.get("GLUE_DIR", "../shared/glue")))
    parser.add_argument("--model", default="starter")
    parser.add_argument("--tasks", nargs="+", default=["sst2", "mrpc", "stsb", "rte", "cola"], choices=list(METRICS))
    parser.add_argument("--adaptive", nargs="*", default=[], help="tasks whose grid is searched by successive halving")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "published_protocol")
    parser.add_argument("--out", type=Path, default=RESULTS / "published_protocol.json")
    options = parser.parse_args()
    options.scratch.mkdir(parents=True, exist_ok=True)
    rows = []
    for task in options.tasks:
        rows.append(row(task, chosen(options, task)) | {"adaptive": task in options.adaptive})
        shown = ", ".join(
            f"{metric} {statistics.mean(found):.1f} ± {statistics.stdev(found) if found[1:] else 0:.1f}"
            for metric, found in rows[-1]["scores"].items()
        )
        published = [(lookup(name).published or {})[task] for name in ("tiny", "mini")]
        settings = f"batch {rows[-1]['batch_size']}, {rows[-1]['learning_rate']:g}"
        print(f"| {task} | {shown} | {published} | {settings} |", flush=True)
    options.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
