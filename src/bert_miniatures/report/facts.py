"""Numbers that a report shows and no run has written down: cells of a grid, confusion, calibration, worst errors."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_miniatures.choice import Cell, Choice, grouped, noise
from bert_miniatures.results import RunResult
from bert_miniatures.zoo import ZOO

__all__ = ["Grid", "Reliability", "calibrated", "cells_of", "confusion", "grids", "losses", "parameters"]

Floats = npt.NDArray[np.float64]
BINS = 15


def cells_of(choice: Choice, runs: Iterable[RunResult]) -> list[Cell]:
    """Return the cells that a choice was made from: the runs of its model and task with its dev data."""
    dev = choice.run.data_sha256.get("dev")
    asked = (choice.model, choice.subject, dev)
    return grouped([run for run in runs if (run.name, run.subject, run.data_sha256.get("dev")) == asked])[0]


@dataclass(frozen=True)
class Grid:
    """Batch sizes by learning rates, everything else equal.

    Attributes:
        rest: what all cells of this grid share, as in "4 epochs".
        cells: (batch size, learning rate) -> the cell.
        near: the places of the cells that are as good as the best one, up to noise.
        band: the largest noise between the best cell and another one, a fraction; None where there is no best one.
    """

    rest: str
    cells: Mapping[tuple[int, float], Cell]
    near: frozenset[tuple[int, float]]
    band: float | None


def grids(choice: Choice, cells: Sequence[Cell]) -> list[Grid]:
    """Return the cells as grids, one for each combination of their other settings; single cells are no grid."""
    groups: dict[tuple[int, frozenset[str], str], dict[tuple[int, float], Cell]] = {}
    for cell in cells:
        run = cell.runs[0]
        other = frozenset(s for s in run.settings if not s.startswith(_AXES))
        place = (run.batch_size, run.learning_rate)
        groups.setdefault((run.epochs, other, run.data_sha256.get("train", "")), {})[place] = cell
    common = frozenset.intersection(*(other for _, other, _ in groups)) if groups else frozenset()
    found = []
    for (epochs, other, _), inside in groups.items():
        chance = _chances(choice, inside, cells)
        near = {place for place, by in chance.items() if choice.best.mean - inside[place].mean <= by}
        rest = ", ".join([f"{epochs} epochs", *sorted(other - common)])
        found.append(Grid(rest, inside, frozenset(near), max(chance.values(), default=None)))
    return found if len(cells) > 1 else []


_AXES = ("train.batch_size", "train.learning_rate", "train.epochs", "finetune.batch_size", "finetune.learning_rate")


def _chances(
    choice: Choice, inside: Mapping[tuple[int, float], Cell], cells: Sequence[Cell]
) -> dict[tuple[int, float], float]:
    """Return by how much each cell differs from the best one by chance."""
    rows, best = choice.run.rows.get("dev", 0), choice.best
    if not best.scores or not rows:
        return {}
    return {
        place: noise(choice.run.metric, best, cell, cells, rows)[0]
        for place, cell in inside.items()
        if cell.scores and cell.runs != best.runs
    }


# ------------------------------------------------------------------------------------------------ predictions


def confusion(gold: npt.NDArray[Any], predicted: npt.NDArray[Any], classes: int) -> npt.NDArray[np.int64]:
    """Return counts [C, C]: a row per true class, a column per answer. Rows with hidden labels are left out."""
    counts = np.zeros((classes, classes), np.int64)
    known = gold >= 0
    np.add.at(counts, (gold[known], predicted[known]), 1)
    return counts


@dataclass(frozen=True)
class Reliability:
    """How sure a model is, and how often it is right.

    Attributes:
        sure: mean confidence of each bin that is not empty, [K].
        right: share of right answers in it, [K].
        count: answers in it, [K].
        error: expected calibration error, a fraction.
    """

    sure: Floats
    right: Floats
    count: npt.NDArray[np.int64]
    error: float


def calibrated(confidence: Floats, right: npt.NDArray[np.bool_], bins: int = BINS) -> Reliability:
    """Put answers into bins of equal width by confidence.

    The expected calibration error is the mean of |confidence - accuracy| over the bins, weighted by their answers.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv 1706.04599, section 2.

    Example:
        >>> round(calibrated(np.array([0.9, 0.9, 0.6]), np.array([True, False, True])).error, 3)
        0.4
    """
    number = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(number, minlength=bins)
    full = count > 0
    sure = np.bincount(number, confidence, bins)[full] / count[full]
    hits = np.bincount(number, right.astype(np.float64), bins)[full] / count[full]
    error = float((np.abs(sure - hits) * count[full]).sum() / max(1, len(confidence)))
    return Reliability(sure, hits, count[full], error)


def losses(kind: str, logits: npt.NDArray[np.float32], gold: npt.NDArray[Any]) -> Floats:
    """Return how wrong each row is [N]: cross-entropy, its sum over several labels, or the distance of scores."""
    wide = logits.astype(np.float64)
    if kind == "regression":
        found: Floats = np.abs(wide[:, 0] - gold)
    elif kind == "multilabel":
        found = (np.logaddexp(0, wide) - wide * np.clip(gold, 0, 1)).sum(1)
    else:
        low = wide - np.logaddexp.reduce(wide, axis=1, keepdims=True)
        found = -low[np.arange(len(low)), np.clip(gold, 0, None)]
    return found


def parameters(run: RunResult) -> int | None:
    """Return how many parameters the encoder of a run has; None where its size is none of the 24."""
    size = f"{run.layers}/{run.width}"
    return ZOO[size].parameters if size in ZOO else None
