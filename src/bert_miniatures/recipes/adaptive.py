"""Successive halving over the cells of a grid, through Optuna, with ties told from differences.

All cells of a model and task run to 1/8 of their updates, the best third of them to 3/8, and the best third of those to
the end. Cells are paused and resumed, so nothing is computed twice, and a cell that ends is the same as without this.

Source: Jamieson and Talwalkar 2016, "Non-stochastic Best Arm Identification and Hyperparameter Optimization", for
successive halving; Optuna (Akiba et al. 2019) keeps the trials.
"""

import itertools
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_miniatures.choice import standard_error
from bert_miniatures.config import FinetuneConfig
from bert_miniatures.errors import ConfigError, DataError, MissingExtra, WorkFailed
from bert_miniatures.files import read_json, write_json
from bert_miniatures.forecast import Cost, cost_key, seconds_of, updates_of
from bert_miniatures.plan import group_of, places, without_seed
from bert_miniatures.sweep_folder import SweepFolder

if TYPE_CHECKING:
    import optuna

__all__ = ["RUNGS", "Search", "Searches", "Seen", "affordable", "ranked"]

RUNGS = (1 / 8, 3 / 8, 1.0)
_FORMAT = 2  # of adaptive.json; format 1, which had no number, had the training loss
_KEPT = 1 / 3  # of the cells, at each rung
_SHARE = 1 / 3  # of the whole grid's cost, at most


@dataclass(frozen=True)
class Seen:
    """A cell at a rung.

    Attributes:
        score: the task's first metric on dev; -inf where it is not defined.
        loss: on dev.
        place: position of each grid setting's value among the values of that setting.
        cost: seconds of the whole cell.
    """

    score: float
    loss: float
    place: tuple[int, ...]
    cost: float


def ranked(seen: Mapping[str, Seen], metric: str, rows: int) -> list[str]:
    """Return the cells of a rung, best first.

    Scores within one standard error of the dev set are ties: the best score opens a class with all cells that are less
    than one standard error below it, the best of the rest opens the next class, and so on. Within a class the loss on
    dev decides, which tells cells apart that all give one answer yet, then the score; both as the mean over a cell and
    its neighbours in the grid (one step in one setting), for chance cancels and a trend stays. Then the name.

    Args:
        seen: cell -> what is known of it at this rung.
        metric: name of the score.
        rows: of the dev set.
    """
    rest, ordered = dict(seen), list[str]()
    while rest:
        top = max(rest.values(), key=lambda cell: cell.score).score
        error = standard_error(metric, top, rows) if math.isfinite(top) else 0.0
        tied = [name for name, cell in rest.items() if cell.score >= top - error or cell.score == top]
        ordered += sorted(tied, key=lambda name: (*_with_neighbours(name, seen), name))
        rest = {name: cell for name, cell in rest.items() if name not in tied}
    return ordered


def _with_neighbours(name: str, seen: Mapping[str, Seen]) -> tuple[float, float]:
    """Return the mean loss of a cell and of those one step away in one setting, and their mean score, negative."""
    place = seen[name].place
    near = [cell for cell in seen.values() if sum(abs(a - b) for a, b in zip(cell.place, place, strict=True)) <= 1]
    return _mean([cell.loss for cell in near]), _mean([-cell.score for cell in near])


def _mean(values: Sequence[float]) -> float:
    """Return the mean of what is finite; infinity where nothing is."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.inf


def affordable(order: Sequence[str], seen: Mapping[str, Seen], rung: int, money: float) -> list[str]:
    """Return the first cells of `order` that go on to the next rung: a third of them, fewer where money is short.

    Args:
        order: all cells of this rung, best first.
        seen: what they cost.
        rung: where they are.
        money: seconds that may still be spent; what the first one needs to the end is kept back.
    """
    step, end = RUNGS[rung + 1] - RUNGS[rung], 1 - RUNGS[rung + 1]
    chosen: list[str] = []
    left = money - end * seen[order[0]].cost
    for name in order[: max(1, round(_KEPT * len(order)))]:
        left -= step * seen[name].cost
        if chosen and left < 0:
            break
        chosen.append(name)
    return chosen


class Search:
    """The search over the cells of one model and task.

    What cells scored is kept in the group's `adaptive.json`; an interrupted search goes on from there.

    Args:
        cells: the cells of one group, all of one seed, that are not done.
        costs: by `forecast.cost_key`.
        folder: of the sweep.
    """

    def __init__(self, cells: Mapping[str, FinetuneConfig], costs: Mapping[str, Cost], folder: SweepFolder) -> None:
        self.cells, self.costs = dict(cells), costs
        self.ledger = folder.path / group_of(next(iter(cells))) / "adaptive.json"
        self.seconds = {name: seconds_of(config, costs[cost_key(config)]) for name, config in cells.items()}
        self.rows = max(costs[cost_key(config)].dev_rows for config in cells.values())
        self.alive, self.left_behind, self.rung = list(cells), list[str](), 0
        self._asked: set[tuple[str, int]] = set()
        self._known = self._read()
        self._study, self._trials = _study(self)

    def jobs(self) -> list[tuple[str, int | None]]:
        """Return what is new to run now: a cell and the update to pause at, None being its end."""
        while not self.has_ended and not self._waits_for():
            self._promote()
        todo = [name for name in self._waits_for() if (name, self.rung) not in self._asked]
        self._asked |= {(name, self.rung) for name in todo}
        return [(name, self._until(name)) for name in todo]

    @property
    def has_ended(self) -> bool:
        """Whether the last rung is complete."""
        return not self._waits_for() and (self.rung == len(RUNGS) - 1 or not self.alive)

    def _waits_for(self) -> list[str]:
        return [name for name in self.alive if self.rung not in self._known.get(name, {})]

    def heard(self, name: str, scores: Mapping[str, Mapping[str, float | None]], loss: float | None) -> None:
        """Take what a cell scored at this rung; a run that diverged has no scores."""
        metric, score = next(iter(scores.get("dev", {}).items()), ("", None))
        self._known.setdefault(name, {})[self.rung] = (metric, score, loss)
        self._write()

    def lost(self, name: str) -> None:
        """Take out a cell that failed."""
        self.alive.remove(name)

    def spent(self, rung: int) -> float:
        """Return the forecast seconds of all that was run up to a rung."""
        reached = {name: max((r for r in rungs if r <= rung), default=None) for name, rungs in self._known.items()}
        return sum(self.seconds[name] * RUNGS[last] for name, last in reached.items() if last is not None)

    def later(self) -> float:
        """Return the forecast seconds of the rungs to come, about."""
        kept, total = float(len(self.alive)), 0.0
        for below, above in list(itertools.pairwise(RUNGS))[self.rung :]:
            kept = max(1.0, kept * _KEPT)
            total += kept * (above - below) * sum(self.seconds.values()) / len(self.seconds)
        return total

    def choose(self, scores: Mapping[str, float], rung: int) -> list[str]:
        """Return the cells that go on from a rung; the pruner's question."""
        where = places(self.cells)
        seen = {}
        for name, score in scores.items():
            loss = self._known[name][rung][2]
            seen[name] = Seen(
                score,
                math.inf if loss is None else loss,
                tuple(position for position, _ in where[name]),
                self.seconds[name],
            )
        metric = next((self._known[name][rung][0] for name in scores if self._known[name][rung][0]), "")
        money = _SHARE * sum(self.seconds.values()) - self.spent(rung)
        return affordable(ranked(seen, metric, self.rows), seen, rung, money)

    def _until(self, name: str) -> int | None:
        config = self.cells[name]
        steps = updates_of(config, self.costs[cost_key(config)])
        return None if self.rung == len(RUNGS) - 1 else max(1, math.ceil(RUNGS[self.rung] * steps))

    def _promote(self) -> None:
        """Report the rung to Optuna and ask which cells go on."""
        for name in self.alive:
            score = self._known[name][self.rung][1]
            self._trials[name].report(-math.inf if score is None else score, self.rung)
        pruned = [name for name in self.alive if self._trials[name].should_prune()]
        for name in pruned:
            self.alive.remove(name)
            self.left_behind.append(name)
        self.rung += 1
        self._write()

    def _read(self) -> dict[str, dict[int, tuple[str, float | None, float | None]]]:
        """Return what an interrupted search of the same folder knew; nothing where there is none."""
        try:
            known = read_json(self.ledger)
            cells = known["cells"] if known["format"] == _FORMAT else {}
            return {name: {int(rung): (metric, score, loss) for rung, (metric, score, loss) in found.items()}
                    for name, found in cells.items() if name in self.cells}  # fmt: skip
        except (DataError, KeyError, TypeError, ValueError, AttributeError):
            return {}

    def _write(self) -> None:
        cells = {name: {str(rung): list(found) for rung, found in rungs.items()} for name, rungs in self._known.items()}
        write_json(self.ledger, {"format": _FORMAT, "rungs": RUNGS, "left_behind": self.left_behind, "cells": cells})


class Searches:
    """The schedule of an adaptive sweep: a search in each group, then the further seeds of the cells that got through.

    Args:
        cells: all of the plan.
        todo: those that are not done.
        costs: by `forecast.cost_key`.
        folder: of the sweep.
        keep_all: keep the folders of cells that were left behind.

    Raises:
        ConfigError: a group without a dev set cannot be searched.
    """

    def __init__(
        self, cells: Mapping[str, FinetuneConfig], todo: Sequence[str], costs: Mapping[str, Cost], folder: SweepFolder,
        *, keep_all: bool = False,
    ) -> None:  # fmt: skip
        self.cells, self.todo, self.folder, self.keep_all = cells, list(todo), folder, keep_all
        self._of: dict[str, Search] = {}
        self._more: set[str] = set()
        for group in dict.fromkeys(map(group_of, todo)):
            first = min(cells[name].train.seed for name in cells if group_of(name) == group)
            known = _known_cells(folder.path / group / "adaptive.json")
            wanted = {name: cells[name] for name in cells if group_of(name) == group
                      and cells[name].train.seed == first and (name in todo or name in known)}  # fmt: skip
            if wanted:
                _check_costs(group, wanted, costs)
                self._of[group] = Search(wanted, costs, folder)

    def start(self) -> list[tuple[str, int | None]]:
        """Return the first rung of each group."""
        return [job for group in dict.fromkeys(map(group_of, self.todo)) for job in self._next(group)]

    def heard(self, name: str, answer: Mapping[str, Any]) -> list[tuple[str, int | None]]:
        """Tell the cell's search; return its next rung where this one is complete."""
        search = self._of.get(group_of(name))
        if search is not None and name in search.alive:
            if "failed" in answer:
                search.lost(name)
            else:
                found = answer.get("done") or answer["paused"]
                search.heard(name, found["scores"], found.get("loss"))
        return self._next(group_of(name))

    def share(self, name: str) -> float:
        """Return how far a cell runs by now."""
        search = self._of.get(group_of(name))
        return RUNGS[search.rung] if search is not None and name in search.cells else 1.0

    def later(self) -> float:
        """Return the forecast seconds of the rungs to come, about."""
        return sum(search.later() for search in self._of.values())

    def left_behind(self) -> list[str]:
        """Return the cells that no rung chose, and their further seeds once the search has ended."""
        gone = [name for search in self._of.values() for name in search.left_behind]
        ended = {group for group, search in self._of.items() if search.has_ended}
        lost = {without_seed(name) for name in gone if group_of(name) in ended}
        return gone + [name for name in self.todo if name not in gone and without_seed(name) in lost]

    def _next(self, group: str) -> list[tuple[str, int | None]]:
        search = self._of.get(group)
        jobs = search.jobs() if search else []
        if search:
            self._tidy(search)
        if search is None or search.has_ended:
            finished = [name for name in self.cells if self.folder.status(name) == "done"]
            through = {without_seed(name) for name in (search.alive if search else finished)}
            more = [name for name in self.todo if group_of(name) == group and name not in self._more
                    and without_seed(name) in through and (search is None or name not in search.cells)]  # fmt: skip
            self._more.update(more)
            jobs += [(name, None) for name in more]
        return jobs

    def _tidy(self, search: Search) -> None:
        """Remove what cells that were left behind have on the disk; a finished run stays."""
        for name in () if self.keep_all else search.left_behind:
            run = self.folder.cell(name)
            if run.path.is_dir() and not run.is_finished():
                shutil.rmtree(run.path)


def _known_cells(ledger: Path) -> set[str]:
    try:
        return set(read_json(ledger)["cells"])
    except (DataError, KeyError, TypeError):
        return set()


def _check_costs(group: str, cells: Mapping[str, FinetuneConfig], costs: Mapping[str, Cost]) -> None:
    found = [costs.get(cost_key(config)) for config in cells.values()]
    if any(cost is None for cost in found):
        raise WorkFailed(f"{group}: --adaptive needs the forecast, and not all cells could be timed")
    if any(cost is not None and not cost.dev_rows for cost in found):
        raise ConfigError(f"{group}: --adaptive compares cells on a dev set; give --dev")


def _study(search: Search) -> "tuple[optuna.Study, dict[str, optuna.Trial]]":
    """Return a study with a trial for each cell, in memory, whose pruner asks the search."""
    try:
        import optuna
    except ModuleNotFoundError:
        raise MissingExtra("--adaptive", "sweep") from None

    class TiedHalving(optuna.pruners.BasePruner):
        """Prunes what is not among the best of its rung; all trials of the rung must have reported."""

        def prune(self, study: "optuna.Study", trial: "optuna.trial.FrozenTrial") -> bool:
            rung = trial.last_step
            assert rung is not None
            values = {t.user_attrs["cell"]: t.intermediate_values for t in study.get_trials(deepcopy=False)}
            scores = {name: found[rung] for name, found in values.items() if rung in found}
            return trial.user_attrs["cell"] not in search.choose(scores, rung)

    optuna.logging.set_verbosity(logging.WARNING)
    study = optuna.create_study(direction="maximize", pruner=TiedHalving())
    trials = {}
    for name in search.cells:
        study.enqueue_trial({}, user_attrs={"cell": name})
        trials[name] = study.ask()
    return study, trials
