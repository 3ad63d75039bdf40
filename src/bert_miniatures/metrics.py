"""Scores over scikit-learn and scipy, and the two checks that explain a bad one: one answer only, labels mixed up.

All scores are fractions. A score that is not defined is NaN, never a number made up for it:

    matthews            one class only in predictions or gold: 0.0, by the metric's definition
    f1                  nothing predicted and nothing there for a class: 0.0, as scikit-learn has it
    pearson, spearman   constant predictions or constant gold: NaN, a correlation with a constant does not exist
    any                 outputs that are NaN or infinite: NaN
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bert_miniatures.errors import DataError, LabelError, MissingExtra, UnknownName, UserError

__all__ = ["METRICS", "degenerate", "label_permutation_gain", "predictions", "score"]


def _accuracy(predicted: np.ndarray, gold: np.ndarray) -> float:
    from sklearn.metrics import accuracy_score

    return float(accuracy_score(gold, predicted))


def _f1(average: str) -> Callable[[np.ndarray, np.ndarray], float]:
    def f1(predicted: np.ndarray, gold: np.ndarray) -> float:
        from sklearn.metrics import f1_score

        return float(f1_score(gold, predicted, average=average, zero_division=0))

    return f1


def _matthews(predicted: np.ndarray, gold: np.ndarray) -> float:
    from sklearn.metrics import matthews_corrcoef

    if np.ptp(predicted) == 0 or np.ptp(gold) == 0:
        return 0.0
    return float(matthews_corrcoef(gold, predicted))


def _is_constant(values: np.ndarray) -> bool:
    """Tell whether the values are equal but for rounding; below that a correlation is noise."""
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def _correlation(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    def correlation(predicted: np.ndarray, gold: np.ndarray) -> float:
        import scipy.stats

        if _is_constant(predicted) or _is_constant(gold):
            return math.nan
        return float(getattr(scipy.stats, name)(predicted, gold).statistic)

    return correlation


@dataclass(frozen=True)
class _Metric:
    """A score of (predictions, gold), and what it can be asked of."""

    compute: Callable[[np.ndarray, np.ndarray], float]
    kinds: tuple[str, ...]
    classes: int | None = None


_CLASSES = ("classification",)
METRICS: dict[str, _Metric] = {
    "accuracy": _Metric(_accuracy, _CLASSES),
    "f1": _Metric(_f1("binary"), _CLASSES, classes=2),
    "macro_f1": _Metric(_f1("macro"), (*_CLASSES, "multilabel")),
    "micro_f1": _Metric(_f1("micro"), ("multilabel",)),
    "matthews": _Metric(_matthews, _CLASSES),
    "pearson": _Metric(_correlation("pearsonr"), ("regression",)),
    "spearman": _Metric(_correlation("spearmanr"), ("regression",)),
}


def predictions(kind: str, logits: np.ndarray) -> np.ndarray:
    """Return what the outputs [N, C] answer.

    Returns:
        Classification: the class of the largest output, int64 [N], the first one where two are equal. Regression: the
        output itself, float64 [N]. Multilabel: 1 where the sigmoid is above 0.5, int64 [N, C].
    """
    if kind == "regression":
        return np.asarray(logits, dtype=np.float64).reshape(len(logits))
    if kind == "multilabel":
        return (np.asarray(logits) > 0).astype(np.int64)
    largest: np.ndarray = np.argmax(logits, axis=1)
    return largest.astype(np.int64)


def score(metrics: Sequence[str], kind: str, logits: np.ndarray, gold: np.ndarray) -> dict[str, float]:
    """Score a model's outputs.

    Args:
        metrics: names out of `METRICS`. `f1` is that of class 1, of two; `macro_f1` is the plain mean over the classes
            that occur; `micro_f1` counts every (row, label) alike.
        kind: "classification", "regression" or "multilabel".
        logits: [N, C]; regression [N, 1] or [N].
        gold: classification int [N], regression float [N], multilabel 0 and 1 [N, C].

    Returns:
        {metric: fraction} in the order asked for. NaN where the score is not defined (write it as null).

    Raises:
        DataError: no rows, hidden labels in `gold`, or shapes that do not fit.
        LabelError: `gold` has a class that the model has no output for.
        UnknownName: no such metric.
        UserError: a metric that this kind of task does not have.

    Source: Wang et al. 2019, arXiv 1804.07461, section 3 (which task has which metric).

    Example:
        >>> score(["accuracy"], "classification", np.array([[0.1, 0.9], [0.8, 0.2]]), np.array([1, 1]))
        {'accuracy': 0.5}
    """
    logits, gold = np.asarray(logits), np.asarray(gold)
    _check(kind, logits, gold)
    for name in metrics:
        _check_metric(name, kind, logits)
    if not np.isfinite(logits).all():
        return dict.fromkeys(metrics, math.nan)
    predicted = predictions(kind, logits)
    try:
        return {name: METRICS[name].compute(predicted, gold) for name in metrics}
    except ImportError as error:
        raise MissingExtra("scoring", "train") from error


def _check_metric(name: str, kind: str, logits: np.ndarray) -> None:
    metric = METRICS.get(name)
    if metric is None:
        raise UnknownName("metric", name, METRICS)
    if kind not in metric.kinds:
        possible = ", ".join(other for other, found in METRICS.items() if kind in found.kinds)
        raise UserError(f"metric '{name}' is not for {kind}; expected one of {possible}")
    if metric.classes is not None and logits.shape[1] != metric.classes:
        raise UserError(
            f"metric '{name}' needs {metric.classes} classes, the model has {logits.shape[1]}; use macro_f1"
        )


def _check(kind: str, logits: np.ndarray, gold: np.ndarray) -> None:
    """Refuse outputs and gold that cannot be compared."""
    if len(gold) == 0:
        raise DataError("there are no rows to score")
    hidden = int(np.isnan(gold).sum() if kind == "regression" else (gold < 0).sum())
    if hidden:
        raise DataError(f"{hidden:,} of {gold.size:,} labels are hidden: hidden labels can be predicted, never scored")
    expected: dict[str, tuple[Any, ...]] = {"multilabel": gold.shape, "regression": (len(gold), 1)}
    wanted = expected.get(kind, (len(gold), "classes"))
    fits = logits.ndim == 2 and logits.shape[0] == len(gold) and wanted[1] in {"classes", logits.shape[1]}
    if kind == "regression" and logits.shape == (len(gold),):
        fits = True
    if not fits or gold.ndim != (2 if kind == "multilabel" else 1):
        raise DataError(f"{kind}: outputs of shape {logits.shape} do not fit labels of shape {gold.shape}")
    if kind == "classification" and gold.max() >= logits.shape[1]:
        raise LabelError(f"the data has label number {gold.max()}, the model has {logits.shape[1]} outputs")


def degenerate(
    kind: str, logits: np.ndarray, gold: np.ndarray | None = None, labels: Sequence[str] | None = None
) -> str | None:
    """Say in one sentence that a model gives everything the same answer, or return None.

    Args:
        kind: "classification", "regression" or "multilabel".
        logits: [N, C]; regression [N, 1] or [N].
        gold: the right answers, where they are known. Where they are all alike too, one answer is no fault.
        labels: names of the classes, for the sentence.
    """
    logits = np.asarray(logits)
    broken = int((~np.isfinite(logits.reshape(len(logits), -1))).any(axis=1).sum())
    if broken:
        return f"the outputs of {broken:,} of {len(logits):,} rows are NaN or infinite: the training diverged"
    if len(logits) < 2 or (gold is not None and bool((gold == gold[:1]).all())):
        return None
    predicted = predictions(kind, logits)
    if kind == "regression":
        return _flat(predicted, gold)
    if not (predicted == predicted[:1]).all():
        return None
    if kind == "multilabel":
        count = int(predicted[0].sum())
        return f"all {len(logits):,} rows get the same labels ({count} of {predicted.shape[1]}), whatever the text says"
    name = labels[predicted[0]] if labels else f"class {predicted[0]}"
    share = "" if gold is None else f", the right one for {float((gold == predicted[0]).mean()):.1%}"
    return f"all {len(logits):,} predictions are '{name}'{share}: the model tells nothing apart"


# Outputs that vary less than this share of the gold scores' spread differ by chance, not by text.
FLAT = 1e-3


def _flat(predicted: np.ndarray, gold: np.ndarray | None) -> str | None:
    spread, scale = float(predicted.std()), 1.0 if gold is None else float(np.nanstd(gold))
    if spread > FLAT * scale:
        return None
    return (
        f"all {len(predicted):,} scores are about {predicted.mean():.3g} (spread {spread:.1g}, the data's {scale:.2g})"
    )


def label_permutation_gain(logits: np.ndarray, gold: np.ndarray) -> tuple[float, tuple[int, ...]]:
    """Return how much accuracy would rise if the model's outputs were named in the best order.

    A gain far above noise means that the label order of model and data differs: outputs that look broken are right
    under other names.

    Args:
        logits: [N, C].
        gold: class numbers [N].

    Returns:
        The gain as a fraction (0.0 where the order is the best one), and for each output the class that it should
        stand for; the order itself where nothing is gained.

    Raises:
        DataError, LabelError: as `score`.

    Source: Kuhn 1955, the Hungarian method, as scipy has it: the best order is an assignment over the confusion matrix.

    Example:
        >>> logits = np.eye(3)[[1, 2, 0, 1]]
        >>> label_permutation_gain(logits, np.array([0, 1, 2, 0]))
        (1.0, (2, 0, 1))
    """
    logits, gold = np.asarray(logits), np.asarray(gold)
    _check("classification", logits, gold)
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as error:
        raise MissingExtra("scoring", "train") from error
    classes = logits.shape[1]
    confusion = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(confusion, (predictions("classification", logits), gold), 1)
    outputs, best = linear_sum_assignment(confusion, maximize=True)
    gain = int(confusion[outputs, best].sum() - confusion.trace())
    if gain == 0:
        return 0.0, tuple(range(classes))
    return gain / len(gold), tuple(int(i) for i in best)
