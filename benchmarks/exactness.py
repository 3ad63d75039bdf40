"""Dev scores with the exact speed-ups and without: the same distribution?

    python benchmarks/exactness.py --glue GLUE [--seeds 5] [--tasks mrpc rte cola] [--model starter]

Fine-tunes a model, that of start_model.py unless --model names another, with `miniatures sweep` (batch 32, learning
rate 3e-4, 4 epochs), SEEDS seeds per task, once as it is and once with `--set train.exact_speedups=false`, which trains
the plain computation: every position of the last layer, every word of the vocabulary, operations recorded by autograd
one by one. Printed are mean, standard deviation and Welch's t-test.
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

from scipy.stats import ttest_ind

from start_model import make

RESULTS = Path(__file__).parent / "results"
METRICS = {"mrpc": "f1", "rte": "accuracy", "cola": "matthews", "stsb": "pearson", "sst2": "accuracy"}


def scores(options: argparse.Namespace, exact: bool) -> dict[str, list[float]]:
    """Run the sweep, or what is missing of it, and return task -> dev scores in the order of the seeds."""
    out = options.scratch / (("exact" if exact else "plain") + suffix(options))
    grid = options.scratch / "grid.toml"
    grid.write_text("[grid]\nbatch_size = [32]\nlearning_rate = [3e-4]\n")
    model = options.model or str(make(options.scratch / "start"))
    command = [sys.executable, "-m", "bert_miniatures", "sweep", "--model", model]
    command += [part for task in options.tasks for part in ("--task", task)]
    command += ["--glue", str(options.glue), "--grid", str(grid), "--seeds", str(options.seeds), "--out", str(out)]
    command += ["--set", f"train.exact_speedups={json.dumps(exact)}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found: dict[str, list[float]] = {task: [] for task in options.tasks}
    for path in sorted(out.rglob("result.json")):
        result = json.loads(path.read_text())
        task = path.relative_to(out).parts[-3]
        found[task].append(100 * result["scores"]["dev"][METRICS[task]])
    return found


def suffix(options: argparse.Namespace) -> str:
    return f"_{options.model.replace('/', '_')}" if options.model else ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue", type=Path, default=Path(os.environ.get("GLUE_DIR", "../shared/glue")))
    parser.add_argument("--tasks", nargs="+", default=["mrpc", "rte", "cola"], choices=list(METRICS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--model", help="nickname of a model, such as starter; one is made unless given")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()) / "exactness")
    options = parser.parse_args()
    options.scratch.mkdir(parents=True, exist_ok=True)
    sides = {name: scores(options, name == "exact") for name in ("exact", "plain")}
    rows: list[dict[str, Any]] = []
    for task in options.tasks:
        exact, plain = sides["exact"][task], sides["plain"][task]
        test = ttest_ind(exact, plain, equal_var=False)
        rows.append({"task": task, "metric": METRICS[task], "exact": exact, "plain": plain, "p": float(test.pvalue)})
        shown = [f"{statistics.mean(v):.2f} ± {statistics.stdev(v):.2f}" for v in (exact, plain)]
        print(f"| {task} | {METRICS[task]} | {shown[0]} | {shown[1]} | {test.pvalue:.2f} |")
    (RESULTS / f"exactness{suffix(options)}.json").write_text(
        json.dumps({"seeds": options.seeds, "tasks": rows}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
