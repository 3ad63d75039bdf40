"""Measure few of the 24, model the others, say how far the model is off, recommend one and measure that too."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bert_miniatures.choose.measuring import PRECISIONS, Measured, Plan, measured, plan_of, quieter, shape_of
from bert_miniatures.choose.picking import Budget, Row, pareto, pick, sentence
from bert_miniatures.choose.profile import Profile
from bert_miniatures.choose.timing import Fit, Shape, disk, fit, line
from bert_miniatures.errors import UserError, WorkFailed
from bert_miniatures.machine import cores
from bert_miniatures.memory import available
from bert_miniatures.watch import Watch
from bert_miniatures.zoo import ZOO, Miniature

__all__ = ["LEAST", "MEASURED", "Survey", "predicted", "row_of", "survey"]

# Shallow and deep, narrow and wide, and the four with published scores. Any beginning of the list spans the table too.
MEASURED = ("2/128", "8/512", "4/256", "2/768", "12/128", "4/512", "6/768", "12/256")
LEAST = 4  # measured models, without which nothing is modelled
CALLS = 0.6  # seconds of calls with one text, for each graph and number of threads
SECONDS = 100.0  # until no further measurement is begun
VISITS = 2  # to each graph, one after all others had theirs: a machine has quiet and busy minutes
_TRIES = 3  # recommended rows that are measured after all
_WORK = 5  # copies of a graph that making one takes in memory

Known = Mapping[Miniature, Measured]


@dataclass
class Survey:
    """What was found.

    Attributes:
        rows: all that could be measured or modelled.
        errors: precision -> quantity -> errors of the model on each measured model, left out in turn, as shares.
        best: what is recommended; None where nothing fits.
        said: the recommendation in a sentence.
    """

    profile: Profile
    budget: Budget
    known: dict[str, dict[Miniature, Measured]] = field(default_factory=lambda: {name: {} for name in PRECISIONS})
    rows: list[Row] = field(default_factory=list)
    errors: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    best: Row | None = None
    said: str = ""
    seconds: float = 0.0

    @property
    def frontier(self) -> list[Row]:
        """The rows that no other one beats."""
        return pareto(self.rows)


def survey(
    profile: Profile,
    budget: Budget | None = None,
    *,
    threads: Sequence[int] | None = None,
    models: Sequence[str] = MEASURED,
    seconds: float = SECONDS,
    watch: Watch | None = None,
) -> Survey:
    """Find out what the 24 take on this machine.

    Args:
        profile: how long the texts are.
        budget: what must be kept.
        threads: numbers of threads; None: 1, and all cores.
        models: sizes of those that are measured, the most telling first.
        seconds: after which no measurement is begun.
        watch: hears how far the work is.

    Raises:
        UserError: too little memory to measure anything.
    """
    watch, began = watch or Watch(), time.monotonic()
    found = Survey(profile, budget or Budget())
    _warn_of_other_work(watch)
    plan = plan_of(profile, threads or sorted({1, cores()}), CALLS / VISITS)
    graphs = [(ZOO[size], precision) for size in models for precision in PRECISIONS]
    jobs = graphs * VISITS
    for number, (model, precision) in enumerate(jobs):
        watch.progress(number, len(jobs), f"{model.size} {precision}")
        once = number < len(graphs) or model in found.known[precision]  # what could not be measured is not tried again
        if once and time.monotonic() - began < seconds:
            _measure(found, model, precision, plan, watch)
    if not any(found.known.values()):
        raise UserError("too little memory is free to measure anything")
    _fill(found, plan)
    for _ in range(_TRIES):
        best = pick(found.rows, found.budget)
        if best is None or best.is_measured or time.monotonic() - began > seconds:
            break
        watch.note(f"measuring {best.name}, which was modelled")
        if not all(_measure(found, best.model, best.precision, plan, watch) for _ in range(VISITS)):
            break
        _fill(found, plan)
    found.best, found.said = pick(found.rows, found.budget), sentence(found.rows, found.budget)
    found.seconds = time.monotonic() - began
    return found


def _warn_of_other_work(watch: Watch) -> None:
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > cores() / 2:
        watch.warn(
            f"other work runs here (load {load:.1f} on {cores()} cores): times are too long and not to be relied on"
        )


def _measure(found: Survey, model: Miniature, precision: str, plan: Plan, watch: Watch) -> bool:
    free = available()
    if free is not None and free < _WORK * disk(model, "fp32"):
        watch.warn(f"{model.size} is not measured: {free / 1e6:.0f} MB of memory are free")
        return False
    known = found.known[precision]
    try:
        now = measured(model, precision, plan)
    except WorkFailed as error:
        watch.warn(str(error))
        return False
    known[model] = quieter(known[model], now) if model in known else now
    return True


def _fill(found: Survey, plan: Plan) -> None:
    """Make all rows, and the errors of the model."""
    found.rows, found.errors = [], {}
    for precision, known in found.known.items():
        for threads in plan.threads:
            found.rows += [row_of(model, precision, threads, one, plan) for model, one in known.items()]
            if len(known) >= LEAST:
                rest = [model for model in ZOO.values() if model not in known]
                found.rows += predicted(rest, precision, threads, known, plan, found.profile)
        if len(known) > LEAST:
            found.errors[precision] = _errors(precision, known, plan, found.profile)
    found.rows.sort(key=lambda row: (row.worth, row.threads))


def row_of(model: Miniature, precision: str, threads: int, one: Measured, plan: Plan) -> Row:
    """Return what was measured as a row."""
    times = one.times[threads]
    rate = sum(map(len, plan.batches)) / sum(times[shape_of(batch)] for batch in plan.batches)
    size = disk(model, precision)
    return Row(model, precision, threads, one.p50[threads], one.p95[threads], rate, one.memory, size, True)


def predicted(
    models: Sequence[Miniature], precision: str, threads: int, known: Known, plan: Plan, profile: Profile
) -> list[Row]:
    """Return rows for models that were not measured.

    Calls with one text and batches are fitted apart. p50 and p95 are those of the modelled times over the profile,
    times what the measured models have above theirs: the tail that every machine adds.
    """
    alone = fit(_times(known, threads, [Shape(1, n) for n in plan.alone]), precision)
    together = fit(_times(known, threads, [shape_of(batch) for batch in plan.batches]), precision)
    tails = {
        share: float(np.median([_call(one, threads, share) / _over(alone, model, precision, profile, share)
                                for model, one in known.items()]))
        for share in (0.5, 0.95)
    }  # fmt: skip
    base, slope = line([(disk(model, precision), one.memory) for model, one in known.items()])
    rows = []
    for model in models:
        p50, p95 = (tails[share] * _over(alone, model, precision, profile, share) for share in (0.5, 0.95))
        whole = sum(together.seconds(model, precision, shape_of(batch)) for batch in plan.batches)
        rate, size = sum(map(len, plan.batches)) / whole, disk(model, precision)
        rows.append(Row(model, precision, threads, p50, p95, rate, base + slope * size, size, False))
    return rows


def _times(known: Known, threads: int, shapes: Sequence[Shape]) -> dict[Miniature, dict[Shape, float]]:
    return {model: {shape: one.times[threads][shape] for shape in shapes} for model, one in known.items()}


def _call(one: Measured, threads: int, share: float) -> float:
    return one.p50[threads] if share == 0.5 else one.p95[threads]


def _over(fitted: Fit, model: Miniature, precision: str, profile: Profile, share: float) -> float:
    """Return the modelled time that this share of the texts does not exceed: that of the longest of them."""
    return fitted.seconds(model, precision, Shape(1, profile.quantile(share)))


def _errors(precision: str, known: Known, plan: Plan, profile: Profile) -> dict[str, list[float]]:
    """Return the errors of the model on each measured model, fitted without it."""
    found: dict[str, list[float]] = {name: [] for name in ("p50", "p95", "rate", "memory")}
    for threads in plan.threads:
        for model, one in known.items():
            rest = {other: its for other, its in known.items() if other != model}
            (guess,) = predicted([model], precision, threads, rest, plan, profile)
            truth = row_of(model, precision, threads, one, plan)
            for name, errors in found.items():
                errors.append(getattr(guess, name) / getattr(truth, name) - 1)
    return found
