"""Runs grouped into cells, the best cell of each model and task, and how sure that choice is."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bert_miniatures.data.tasks import TASKS
from bert_miniatures.results import RunResult, title

__all__ = ["Cell", "Choice", "choose", "grouped", "noise", "standard_error"]


@dataclass(frozen=True)
class Cell:
    """Runs with the same settings, that differ by their seed only.

    Attributes:
        runs: by seed.
        scores: of the runs that have one.
    """

    runs: tuple[RunResult, ...]
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over the seeds; -inf where no run has a score."""
        return statistics.fmean(self.scores) if self.scores else -math.inf

    @property
    def is_whole(self) -> bool:
        """Whether every run has a score."""
        return len(self.scores) == len(self.runs)

    @property
    def settings(self) -> str:
        """Batch size, learning rate and epochs, as they are shown."""
        first = self.runs[0]
        return f"batch {first.batch_size}, {_short(first.learning_rate)}, {first.epochs} epochs"


def _short(rate: float) -> str:
    """Write a learning rate as in "3e-4"."""
    digits, exponent = f"{rate:e}".split("e")
    return f"{float(digits):g}e{int(exponent)}"


@dataclass(frozen=True)
class Choice:
    """The best cell of a model on a task.

    Attributes:
        model: as `RunResult.name`.
        subject: as `RunResult.subject`.
        run: the run of the best cell with the best score: what is submitted.
        best: the best cell.
        cells: how many cells it was chosen from, failed ones included.
        mean: of the task's first metric over the seeds of the best cell; None where no run has a score.
        deviation: sample standard deviation over those seeds; None for one seed.
        error: standard error of `mean`, as `noise` has it; None where there is no mean.
        scores: split -> metric -> mean over those seeds; None where a seed has none.
        warnings: what a reader of the numbers should know, a sentence each.
    """

    model: str
    subject: str
    run: RunResult
    best: Cell
    cells: int
    mean: float | None
    deviation: float | None
    error: float | None
    scores: Mapping[str, Mapping[str, float | None]]
    warnings: tuple[str, ...] = ()

    @property
    def seeds(self) -> int:
        """Number of runs in the best cell."""
        return len(self.best.runs)

    @property
    def label(self) -> str:
        """Batch size, learning rate and epochs of the best cell, as in "8, 3e-4, 4"."""
        return f"{self.run.batch_size}, {_short(self.run.learning_rate)}, {self.run.epochs}"


def choose(results: Iterable[RunResult]) -> list[Choice]:
    """Choose the best cell for each model and task.

    Runs with the same settings are repeats of one cell, whatever their seed. The cell with the highest mean of the
    task's first metric on dev wins; cells where a run has no score come after all others.

    Returns:
        A choice per (model, task), ordered by both names.

    Example:
        >>> best = choose(collect([Path("runs")]))[0]  # doctest: +SKIP
        >>> best.mean, best.cells, best.seeds  # doctest: +SKIP
        (0.8326, 20, 1)
    """
    groups: dict[tuple[str, str], list[RunResult]] = {}
    for run in results:
        groups.setdefault((run.name, run.subject), []).append(run)
    return [_choice(model, subject, runs) for (model, subject), runs in sorted(groups.items())]


def _choice(model: str, subject: str, runs: list[RunResult]) -> Choice:
    runs, warnings = _comparable(model, subject, runs)
    cells, more = grouped(runs)
    ranked = sorted(cells, key=lambda cell: (not cell.is_whole, -cell.mean))
    best = ranked[0]
    kept = max(best.runs, key=lambda run: -math.inf if run.score is None else run.score)
    close = _too_close(ranked)
    warnings += more + ([f"{_shown(model, subject)}: {close}"] if close else [])
    if kept.finding and kept.score is not None:
        warnings.append(f"{kept.path}: {kept.finding}")
    mean = best.mean if best.scores else None
    deviation = statistics.stdev(best.scores) if len(best.scores) > 1 else None
    error = None if mean is None else _error_of(best, kept.metric, cells, kept.rows.get("dev", 0))[0]
    return Choice(model, subject, kept, best, len(cells), mean, deviation, error, _means(best), tuple(warnings))


def _shown(model: str, subject: str) -> str:
    return f"{title(model)} on {TASKS[subject].title if subject in TASKS else subject}"


def _comparable(model: str, subject: str, runs: list[RunResult]) -> tuple[list[RunResult], list[str]]:
    """Keep the runs that were scored on the same dev set: the largest one, of equal ones the one with most runs."""
    warnings = []
    by_dev: dict[str, list[RunResult]] = {}
    for run in runs:
        by_dev.setdefault(run.data_sha256.get("dev", ""), []).append(run)
    kept = max(by_dev.values(), key=lambda group: (group[0].rows.get("dev", 0), len(group)))
    if len(by_dev) > 1:
        warnings.append(
            f"{_shown(model, subject)}: {len(runs) - len(kept)} of {len(runs)} runs were scored on other dev data than "
            f"the {kept[0].rows.get('dev', 0):,} rows of {kept[0].path}; left out, for such scores do not compare"
        )
    starts = {run.parent_sha256 for run in kept if run.parent_sha256}
    if len(starts) > 1:
        warnings.append(f"{_shown(model, subject)}: the runs began from {len(starts)} different sets of weights")
    failed = [run for run in kept if run.score is None]
    if failed:
        reason = f" ({failed[0].finding})" if failed[0].finding else ""
        count = f"{len(failed)} of {len(kept)} runs have no score on dev"
        warnings.append(f"{_shown(model, subject)}: {count}: {failed[0].path}{reason}")
    return kept, warnings


def grouped(runs: list[RunResult]) -> tuple[list[Cell], list[str]]:
    """Group runs into cells; of two runs with the same settings and seed the first counts."""
    groups: dict[tuple[Any, ...], dict[int, RunResult]] = {}
    warnings = []
    for run in runs:
        key = (run.batch_size, run.learning_rate, run.epochs, run.settings, run.data_sha256.get("train", ""))
        seen = groups.setdefault(key, {}).setdefault(run.seed, run)
        if seen is not run:
            warnings.append(f"{run.path}: same settings and seed as {seen.path}; counted once")
    cells = []
    for seeds in groups.values():
        ordered = tuple(seeds[seed] for seed in sorted(seeds))
        cells.append(Cell(ordered, tuple(run.score for run in ordered if run.score is not None)))
    return cells, warnings


def _means(cell: Cell) -> dict[str, dict[str, float | None]]:
    found: dict[str, dict[str, float | None]] = {}
    for split, scores in cell.runs[0].scores.items():
        found[split] = {}
        for metric in scores:
            values = [run.scores.get(split, {}).get(metric) for run in cell.runs]
            known = [value for value in values if value is not None]
            found[split][metric] = statistics.fmean(known) if known and len(known) == len(values) else None
    return found


# ------------------------------------------------------------------------------------------------------ noise


def _coin(s: float, n: int) -> float:
    return math.sqrt(max(0.0, s * (1 - s)) / n)


_ERRORS: dict[str, Callable[[float, int], float]] = {
    "matthews": lambda s, n: math.sqrt(max(0.0, 1 - s * s) / n),
    "pearson": lambda s, n: (1 - s * s) / math.sqrt(max(1, n - 1)),
    "spearman": lambda s, n: (1 - s * s) / math.sqrt(max(1, n - 1)),
}


def standard_error(metric: str, score: float, rows: int) -> float:
    """Return how much one score deviates by chance, because the dev set has so many rows and no more.

    For accuracy and F1 it is sqrt(s (1 - s) / N), as for N tosses of a coin; for Matthews sqrt((1 - s^2) / N), the same
    thing for two equal classes, where s is 2 x accuracy - 1; for correlations (1 - s^2) / sqrt(N - 1).

    Args:
        metric: the score's name.
        score: a fraction.
        rows: of the dev set.

    Example:
        >>> round(standard_error("accuracy", 0.6, 277), 3)
        0.029

    Source: the standard error of a binomial share is a textbook formula; that of a correlation is Fisher's, 1915.
    """
    return _ERRORS.get(metric, _coin)(score, max(1, rows))


def noise(metric: str, first: Cell, second: Cell, cells: Sequence[Cell], rows: int) -> tuple[float, str]:
    """Return how much the means of two cells differ by chance, and in words where that number is from.

    It is sqrt(e1^2 + e2^2), where e is the standard error of a cell's mean. Where some cell has two seeds or more, e is
    s / sqrt(n), with n seeds in the cell and s the standard deviation of seeds, pooled over all cells:
    s^2 = sum((n - 1) sd^2) / sum(n - 1). With one seed everywhere there is only the dev set's size to go by, see
    `standard_error`. Both cells answer the same rows, so the truth may be smaller; luck of the seed is not in it, so it
    may be larger too.

    Args:
        metric: the score's name.
        first, second: the two cells, each with a score.
        cells: all cells of the model on the task.
        rows: of the dev set.

    Returns:
        A fraction, and its source in words.

    Source: pooled variance is a textbook formula.
    """
    (one, words), (other, _) = (_error_of(cell, metric, cells, rows) for cell in (first, second))
    return math.hypot(one, other), words


def _error_of(cell: Cell, metric: str, cells: Sequence[Cell], rows: int) -> tuple[float, str]:
    """Return the standard error of a cell's mean, and in words where it is from."""
    freedom = sum(len(other.scores) - 1 for other in cells if len(other.scores) > 1)
    if not freedom:
        return standard_error(metric, cell.mean, rows), f"one seed, {rows:,} dev rows"
    squares = sum(statistics.variance(c.scores) * (len(c.scores) - 1) for c in cells if len(c.scores) > 1)
    spread = math.sqrt(squares / freedom)
    return spread / math.sqrt(len(cell.scores)), f"seeds deviate by {100 * spread:.1f}"


def _too_close(ranked: list[Cell]) -> str | None:
    """Say that the best two cells differ by no more than the noise, or return None."""
    whole = [cell for cell in ranked if cell.is_whole]
    if len(whole) < 2:
        return None
    first, second = whole[:2]
    kept = first.runs[0]
    chance, source = noise(kept.metric, first, second, ranked, kept.rows.get("dev", 0))
    gap = first.mean - second.mean
    if gap > chance:
        return None
    names = " and ".join(_named(cell, other) for cell, other in ((first, second), (second, first)))
    return (
        f"the best two of {len(ranked)} cells differ by {100 * gap:.1f} points of {kept.metric}, no more than the "
        f"noise of {100 * chance:.1f} ({source}): {names}; another seed may turn them round"
    )


def _named(cell: Cell, other: Cell) -> str:
    """Return the settings of a cell, with what else sets it apart from the other one."""
    more = sorted(set(cell.runs[0].settings) - set(other.runs[0].settings))
    return ", ".join((cell.settings, *(text for text in more if text.split(" = ")[0] not in _SHOWN)))


_SHOWN = {"train.batch_size", "train.learning_rate", "train.epochs"}  # by `Cell.settings`
