"""Does --adaptive find what the full grid finds, and at what cost?

    python benchmarks/adaptive_quality.py --glue GLUE [--tasks mrpc rte cola] [--model MODEL]

Runs `miniatures sweep` over the published grid (20 cells, 4 epochs, one seed) with a MODEL, by default that of
start_model.py, on each task: the full grid, and --adaptive in a folder of its own. Printed for each task: the best
cell of the full grid, the cell that --adaptive chose and its score in the full grid (the same settings and seed train
the same weights), the standard error of one dev score, and the share of the full grid's training seconds that
--adaptive spent.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from exactness import METRICS
from start_model import make

RESULTS = Path(__file__).parent / "results"


def run(options: argparse.Namespace, task: str, adaptive: bool) -> dict[str, Any]:
    """Sweep, and return the summary with the seconds that it took."""
    out = options.scratch / f"{task}-{'adaptive' if adaptive else 'full'}"
    kept = out.with_suffix(".json")
    if not kept.exists():
        model = options.model or str(make(options.scratch / "start"))
        command = [sys.executable, "-m", "bert_miniatures", "sweep", "--model", model]
        command += ["--task", task, "--glue", str(options.glue), "--out", str(out), "--json"]
        started = time.perf_counter()
        done = subprocess.run(command + ["--adaptive"] * adaptive, check=True, stdout=subprocess.PIPE, text=True)
        summary = {"seconds": time.perf_counter() - started, "summary": json.loads(done.stdout)}
        kept.write_text(json.dumps(summary))
    found: dict[str, Any] = json.loads(kept.read_text())
    cells = {}
    for path in sorted(out.rglob("result.json")):
        cells[path.parent.name] = json.loads(path.read_text())["scores"]["dev"][METRICS[task]]
    return found | {"cells": cells}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue", type=Path, default=Path(os.environ.get("GLUE_DIR", "../shared/glue")))
    parser.add_argument("--tasks", nargs="+", default=["mrpc", "rte", "cola"], choices=list(METRICS))
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "adaptive_quality")
    parser.add_argument("--model", help="MODEL of the command line, one for a scratch folder")
    options = parser.parse_args()
    options.scratch.mkdir(parents=True, exist_ok=True)
    rows = []
    for task in options.tasks:
        full, adaptive = (run(options, task, adaptive) for adaptive in (False, True))
        best = max(full["cells"], key=lambda name: full["cells"][name])
        chosen = max(adaptive["cells"], key=lambda name: adaptive["cells"][name])
        row = {"task": task, "metric": METRICS[task], "best": best, "best_score": full["cells"][best]}
        row |= {"chosen": chosen, "chosen_score": full["cells"][chosen], "finished": len(adaptive["cells"])}
        row |= {"seconds": full["seconds"], "adaptive_seconds": adaptive["seconds"]}
        row |= {"share": adaptive["seconds"] / full["seconds"], "summary": adaptive["summary"]}
        rows.append(row)
        print(f"| {task} | {best} {100 * row['best_score']:.1f} | {chosen} {100 * row['chosen_score']:.1f} | "
              f"{row['share']:.2f} |", flush=True)  # fmt: skip
    (RESULTS / "adaptive_quality.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
