"""A row for honesty: TF-IDF and a linear model on the user's own data, with nothing pre-trained in it."""

from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bert_miniatures import metrics
from bert_miniatures.data.examples import Examples, own_task, read_file
from bert_miniatures.data.tasks import Task
from bert_miniatures.errors import DataError
from bert_miniatures.files import training_extra

__all__ = ["Baseline", "baseline"]

DEV_SHARE = 0.2  # of the rows that are held out where there is no dev file
_CALLS = 200


@dataclass(frozen=True)
class Baseline:
    """What TF-IDF with a linear model reaches.

    Attributes:
        metric, score: a fraction, on rows that were not trained on.
        train_rows, dev_rows: how many.
        p50, p95: seconds until one text is answered.
        rate: texts a second.
        disk: bytes of its vocabulary and weights.
        train_seconds: until it was fitted.
    """

    metric: str
    score: float
    train_rows: int
    dev_rows: int
    p50: float
    p95: float
    rate: float
    disk: int
    train_seconds: float


def baseline(train: Path, dev: Path | None = None, **columns: str | None) -> Baseline:
    """Fit and score TF-IDF of words and word pairs with logistic regression (Ridge for scores).

    Args:
        train: labelled rows.
        dev: rows to score on; None holds a fifth of the rows out.
        columns: text, pair, label, kind.

    Raises:
        DataError: the files cannot be used.
        MissingExtra: scikit-learn is not installed.
    """
    with training_extra("TF-IDF"):
        import sklearn.feature_extraction.text as text
        import sklearn.pipeline as pipeline
    task = own_task(train, **columns)
    rows, held = _splits(task, train, dev)
    vectors = text.TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    model = pipeline.make_pipeline(vectors, _linear(task))
    began = perf_counter()
    try:
        model.fit(_texts(rows), rows.labels)
    except ValueError as error:  # no word at all, or one class among the rows that are left
        raise DataError(f"{train}: TF-IDF cannot be fitted: {error}") from None
    fitted = perf_counter() - began
    score = metrics.score(task.metrics[:1], task.kind, _outputs(model, _texts(held), task), np.asarray(held.labels))
    times, rate = _speed(model, _texts(held))
    size = sum(len(word) + 8 for word in vectors.vocabulary_) + 8 * len(vectors.vocabulary_) * (
        1 + max(1, len(task.labels))
    )
    p50, p95 = (float(x) for x in np.percentile(times, [50, 95]))
    return Baseline(task.metrics[0], score[task.metrics[0]], len(rows), len(held), p50, p95, rate, size, fitted)


def _splits(task: Task, train: Path, dev: Path | None) -> tuple[Examples, Examples]:
    rows = read_file(train, task)
    if dev is not None:
        return rows, read_file(dev, task)
    order = np.random.default_rng(0).permutation(len(rows))
    count = max(1, round(DEV_SHARE * len(rows)))
    return rows.take(order[count:]), rows.take(order[:count])


def _texts(examples: Examples) -> list[str]:
    """Return a string a row; the words of a pair are in one bag."""
    if examples.pairs is None:
        return examples.texts
    return [f"{first} {second}" for first, second in zip(examples.texts, examples.pairs, strict=True)]


def _linear(task: Task) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier

    if task.kind == "regression":
        return Ridge()
    single = LogisticRegression(C=10.0, max_iter=1000)
    return OneVsRestClassifier(single) if task.kind == "multilabel" else single


def _outputs(model: Any, texts: list[str], task: Task) -> np.ndarray:
    """Return what `metrics.score` takes: a number a class, in the task's order, above 0 for yes."""
    if task.kind == "regression":
        return np.asarray(model.predict(texts), dtype=np.float64)[:, None]
    shares = np.asarray(model.predict_proba(texts), dtype=np.float64)
    if task.kind == "multilabel":
        return shares - 0.5
    full = np.zeros((len(texts), len(task.labels)))  # a class that only the held-out rows have is never answered
    full[:, model.classes_] = shares
    return full


def _speed(model: Any, texts: list[str]) -> tuple[list[float], float]:
    times = []
    for i in range(_CALLS):
        began = perf_counter()
        model.predict([texts[i % len(texts)]])
        times.append(perf_counter() - began)
    many = (texts * (1 + 500 // len(texts)))[:500]
    began = perf_counter()
    model.predict(many)
    return times, len(many) / (perf_counter() - began)
