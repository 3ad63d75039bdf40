"""Only the weights of the best run of each model and task stay on the disk; of the others all but the weights."""

import math
import shutil
import statistics
from collections.abc import Mapping
from pathlib import Path

from bert_miniatures.plan import group_of, without_seed
from bert_miniatures.results import RunResult, collect

__all__ = ["drop_weights", "planned_seeds", "superfluous"]

_DROPPED = ".model.dropped"


def drop_weights(folder: Path, group: str, planned: Mapping[str, int]) -> list[str]:
    """Remove the weights that can no longer be the best ones of a group; return the names of those runs.

    A run whose result.json is not there yet is never touched, and what beats a run is finished and has its weights,
    so that the best ones are there at every moment.

    Args:
        folder: of the sweep.
        group: model and task, as `plan.group_of` says.
        planned: cell without its seed -> how many seeds it will have.
    """
    place = folder / group
    if not place.is_dir():
        return []
    for rest in place.glob(f"*/{_DROPPED}"):
        shutil.rmtree(rest)
    runs = {str(run.path.relative_to(folder)): run for run in collect([place])}
    dropped = []
    for name in superfluous(runs, planned):
        weights = folder / name / "model"
        if weights.is_dir():
            gone = weights.with_name(_DROPPED)
            weights.rename(gone)  # nobody meets a model folder with half of its files
            shutil.rmtree(gone)
            dropped.append(name)
    return dropped


def superfluous(runs: Mapping[str, RunResult], planned: Mapping[str, int]) -> list[str]:
    """Return the finished runs of a group that cannot be chosen any more, whatever the runs to come score.

    The chosen run is the best seed of the cell with the best mean (`choice.choose`). So a run is out where another seed
    of its cell scored better, or where its cell has all its seeds and another one that has all scored a better mean.
    Of equals the earlier name, the lower seed, stays.

    Args:
        runs: name -> finished run.
        planned: cell without its seed -> how many seeds it will have; a cell of another plan has all it will have.
    """
    cells: dict[str, list[str]] = {}
    for name in sorted(runs, key=lambda name: (Path(without_seed(name)), runs[name].seed)):
        cells.setdefault(without_seed(name), []).append(name)
    whole = {cell: _mean([_score(runs[n]) for n in names])
             for cell, names in cells.items() if len(names) >= planned.get(cell, 0)}  # fmt: skip
    best = max(whole, key=lambda cell: whole[cell], default=None)
    out = []
    for cell, names in cells.items():
        first = max(names, key=lambda name: _score(runs[name]))
        out += [name for name in names if name != first or (cell in whole and cell != best)]
    return out


def _score(run: RunResult) -> float:
    return -math.inf if run.score is None else run.score


def _mean(scores: list[float]) -> float:
    return statistics.fmean(scores) if math.isfinite(min(scores)) else -math.inf


def planned_seeds(cells: Mapping[str, object]) -> dict[str, dict[str, int]]:
    """Return group -> cell without its seed -> number of seeds.

    Example:
        >>> planned_seeds({"tiny/rte/bs8-lr1e-4-seed1": None, "tiny/rte/bs8-lr1e-4-seed2": None})
        {'tiny/rte': {'tiny/rte/bs8-lr1e-4': 2}}
    """
    found: dict[str, dict[str, int]] = {}
    for name in cells:
        group = found.setdefault(group_of(name), {})
        group[without_seed(name)] = group.get(without_seed(name), 0) + 1
    return found
