"""8-bit integers where they cost little and bring time: which parts, what it costs in the task's metric, how fast.

Tried in this order until the loss is within the margin: one scale for each product; a scale for each output of a
product; the same without the parts that move the outputs most. The word vectors have a scale for each row throughout.
What is accepted must also be faster than fp32 on this machine.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import numpy as np

from bert_miniatures import metrics
from bert_miniatures.engine import Floats
from bert_miniatures.errors import DataError
from bert_miniatures.machine import adds_in_32_bits, instructions
from bert_miniatures.onnx_graph import Precision
from bert_miniatures.predict_onnx import batches, open_session, run
from bert_miniatures.tokenizer import Encoded

__all__ = ["Check", "Choice", "choose", "paired_bootstrap", "time_ratio"]

_LEFT_OUT = (0.25, 0.5)  # shares of the parts that stay fp32, tried in this order
_ROWS_TO_RANK = 256  # rows that sensitivity and fixed scales are measured on
_WORDS = "words"


@dataclass(frozen=True)
class Check:
    """Labelled rows that int8 is judged on.

    Attributes:
        kind, metric: of the task; the metric that selects.
        rows: encoded texts.
        gold: as `metrics.score` wants it.
        order: columns of the logits in the data's order of labels; None where they are so already.
        source: where the rows are from.
    """

    kind: str
    metric: str
    rows: Encoded
    gold: np.ndarray
    order: np.ndarray | None
    pad_id: int
    source: str

    def score(self, logits: Floats, rows: np.ndarray | None = None) -> float:
        """Return the task's metric, a fraction, over all rows or these."""
        taken = logits if self.order is None else logits[:, self.order]
        gold = self.gold
        if rows is not None:
            taken, gold = taken[rows], gold[rows]
        return metrics.score([self.metric], self.kind, taken, gold)[self.metric]

    def first(self, count: int) -> Encoded:
        """Return the first rows alone."""
        kept, end = self.rows.lengths[:count], int(self.rows.lengths[:count].sum())
        return replace(self.rows, ids=self.rows.ids[:end], lengths=kept, first=self.rows.first[:count])


@dataclass(frozen=True)
class Choice:
    """What became of int8.

    Attributes:
        graph: the file's bytes; None where only fp32 is written.
        said: the result in one sentence.
        report: what was tried and measured, for miniature.json.
    """

    graph: bytes | None
    said: str
    report: dict[str, Any]


Make = Callable[[Precision, bool], bytes]  # (precision, whether the inputs of products are shown) -> a graph


def choose(
    make: Make, parts: list[str], check: Check, *, margin: float, fixed_scales: bool = False, at_most: float = 1.0
) -> Choice:
    """Find 8-bit precision that keeps the metric and is faster.

    Args:
        make: writes a graph.
        parts: names of the products.
        check: what it is judged on.
        margin: the loss that is allowed, in points (hundredths of the metric).
        fixed_scales: measure the range of each product's input beforehand: a row's answer is then the same whatever
            shares its batch.
        at_most: time of int8 as a share of fp32's that is still taken.

    Raises:
        DataError: fp32 has no score on these rows.
    """
    full = make(Precision(), False)
    expected = _logits(full, check, check.rows)
    reference = check.score(expected)
    if np.isnan(reference):
        raise DataError(f"{check.source}: {check.metric} is not defined for fp32 there; int8 is judged on other rows")
    ranges = _ranges(make, check) if fixed_scales else {}
    basis = Precision(bits=8 if adds_in_32_bits() else 7, ranges=ranges)
    report: dict[str, Any] = {"metric": check.metric, "rows": len(check.gold), "source": check.source}
    report |= {"fp32": reference, "margin_points": margin, "tried": []}
    for what, precision in _candidates(make, parts, check, basis):
        graph = make(precision, False)
        found = _logits(graph, check, check.rows)
        score = check.score(found)
        loss = 100 * (reference - score)
        report["tried"].append({"what": what, check.metric: score, "loss_points": loss})
        if loss <= margin:  # not so where it is not a number
            return _accepted(graph, full, precision, (expected, found), check, report, at_most)
    least = min((trial["loss_points"] for trial in report["tried"]), default=np.nan)
    said = f"int8 loses {least:.2f} points of {check.metric} at best, {margin:g} are allowed; only fp32 is written"
    return Choice(None, said, report)


def _accepted(
    graph: bytes,
    full: bytes,
    precision: Precision,
    logits: tuple[Floats, Floats],
    check: Check,
    report: dict[str, Any],
    at_most: float,
) -> Choice:
    trial = report["tried"][-1]
    low, high = paired_bootstrap(check, *logits)
    report |= {"int8": trial[check.metric], "loss_points": trial["loss_points"], "interval_points": [low, high]}
    report |= {"what": trial["what"], "bits": precision.bits, "instructions": instructions()}
    report |= {"batch_invariant": bool(precision.ranges)}
    ratio = time_ratio(graph, full, check)
    report["time_of_fp32"] = ratio
    told = (
        f"{check.metric} {report['int8']:.4f}, fp32 {report['fp32']:.4f} on {report['rows']:,} rows: loss "
        f"{trial['loss_points']:.2f} points, 95 % between {low:.2f} and {high:.2f}; {trial['what']}"
    )
    if ratio >= at_most:
        return Choice(None, f"int8 takes {ratio:.2f} of fp32's time here; only fp32 is written ({told})", report)
    return Choice(graph, f"int8: {told}; {ratio:.2f} of fp32's time", report)


def _candidates(make: Make, parts: list[str], check: Check, basis: Precision) -> Iterator[tuple[str, Precision]]:
    """Yield what is tried, each with its name; what is left out is measured when it is needed."""
    every = replace(basis, products=frozenset(parts), words=True)
    yield "one scale a product", every
    finer = replace(every, per_channel=True)
    yield "a scale for each output", finer
    ranked = _by_sensitivity(make, parts, check, finer)
    for share in _LEFT_OUT:
        left = ranked[: max(1, round(share * len(ranked)))]
        kept = frozenset(parts) - set(left)
        yield (
            f"a scale for each output, fp32: {', '.join(left)}",
            replace(finer, products=kept, words=_WORDS not in left),
        )


def _by_sensitivity(make: Make, parts: list[str], check: Check, every: Precision) -> list[str]:
    """Return the parts, those first that alone move the outputs most."""
    rows = check.first(_ROWS_TO_RANK)
    expected = _logits(make(Precision(), False), check, rows)
    moved = {}
    for part in (_WORDS, *parts):
        one = replace(every, products=frozenset({part} - {_WORDS}), words=part == _WORDS)
        moved[part] = float(np.abs(_logits(make(one, False), check, rows) - expected).mean())
    return sorted(moved, key=lambda part: -moved[part])


def _ranges(make: Make, check: Check) -> dict[str, tuple[float, float]]:
    """Return the least and greatest input of each product over some rows, one row a batch so that nothing is padded."""
    session = open_session(make(Precision(), True), 1)
    names = [output.name for output in session.get_outputs() if output.name != "logits"]
    found = dict.fromkeys(names, (0.0, 0.0))
    for _, feed in batches(check.first(_ROWS_TO_RANK), check.pad_id, budget=1):
        for name, values in zip(names, session.run(names, feed), strict=True):
            least, greatest = found[name]
            found[name] = (min(least, float(values.min())), max(greatest, float(values.max())))
    return found


def _logits(graph: bytes, check: Check, rows: Encoded) -> Floats:
    return run(open_session(graph, 1), rows, check.pad_id)


def paired_bootstrap(check: Check, before: Floats, after: Floats, samples: int = 300) -> tuple[float, float]:
    """Return between which losses, in points, 95 of 100 samples of the same rows lie.

    Args:
        before, after: logits [N, C] of both models on the same rows.

    Source: Efron and Tibshirani 1993, chapter 13; paired as in Koehn 2004, "Statistical significance tests for machine
    translation evaluation".
    """
    drawn = np.random.default_rng(0)
    losses = []
    for _ in range(samples):
        rows = drawn.integers(0, len(check.gold), len(check.gold))
        losses.append(100 * (check.score(before, rows) - check.score(after, rows)))
    low, high = np.nanpercentile(losses, [2.5, 97.5]) if np.isfinite(losses).any() else (np.nan, np.nan)
    return float(low), float(high)


def time_ratio(graph: bytes, other: bytes, check: Check, rounds: int = 7) -> float:
    """Return the time of one graph as a share of another's: median of alternating rounds, one thread, 32 rows."""
    rows = check.first(32)
    feeds = [feed for _, feed in batches(rows, check.pad_id)]
    sessions = [open_session(model, 1) for model in (graph, other)]

    def seconds(session: Any, times: int) -> float:
        start = perf_counter()
        for _ in range(times):
            for feed in feeds:
                session.run(["logits"], feed)
        return perf_counter() - start

    warm = min(seconds(session, 2) / 2 for session in sessions)
    times = max(1, int(0.02 / max(warm, 1e-6)))
    return float(np.median([seconds(sessions[0], times) / seconds(sessions[1], times) for _ in range(rounds)]))
