"""Scores against scikit-learn and scipy, the cases where they are not defined, and the two checks."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bert_miniatures.errors import DataError, LabelError, UnknownName, UserError
from bert_miniatures.metrics import METRICS, degenerate, label_permutation_gain, predictions, score

CLASSES = ("accuracy", "macro_f1", "matthews")


def random_case(classes: int, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    return random.normal(size=(rows, classes)).astype(np.float32), random.integers(0, classes, rows)


@pytest.mark.parametrize(("classes", "rows"), [(2, 277), (3, 101), (7, 53)])
def test_classification_scores_are_those_of_scikit_learn(classes: int, rows: int) -> None:
    logits, gold = random_case(classes, rows, seed=classes)
    predicted = logits.argmax(1)
    found = score(CLASSES, "classification", logits, gold)
    assert list(found) == list(CLASSES)
    assert found["accuracy"] == pytest.approx((predicted == gold).mean())
    assert found["macro_f1"] == pytest.approx(sklearn.metrics.f1_score(gold, predicted, average="macro"))
    assert found["matthews"] == pytest.approx(sklearn.metrics.matthews_corrcoef(gold, predicted))


def test_f1_is_that_of_the_second_class() -> None:
    logits, gold = random_case(2, 101, seed=5)
    predicted = logits.argmax(1)
    hits = ((predicted == 1) & (gold == 1)).sum()
    precision, recall = hits / (predicted == 1).sum(), hits / (gold == 1).sum()
    assert score(["f1"], "classification", logits, gold)["f1"] == pytest.approx(2 / (1 / precision + 1 / recall))


@pytest.mark.parametrize("shape", [(211, 1), (211,)])
def test_correlations_are_those_of_scipy(shape: tuple[int, ...]) -> None:
    random = np.random.default_rng(3)
    gold = random.integers(0, 26, 211) / 5.0
    outputs = (gold + random.normal(size=211)).astype(np.float32)
    found = score(["pearson", "spearman"], "regression", outputs.reshape(shape), gold)
    assert found["pearson"] == pytest.approx(np.corrcoef(outputs.astype(np.float64), gold)[0, 1])
    ranks = scipy.stats.rankdata(outputs), scipy.stats.rankdata(gold)
    assert found["spearman"] == pytest.approx(np.corrcoef(*ranks)[0, 1])


def test_multilabel_scores_cut_the_sigmoid_at_a_half() -> None:
    random = np.random.default_rng(9)
    logits, gold = random.normal(size=(67, 5)), random.integers(0, 2, (67, 5))
    predicted = 1 / (1 + np.exp(-logits)) > 0.5
    assert (predictions("multilabel", logits) == predicted).all()
    found = score(["micro_f1", "macro_f1"], "multilabel", logits, gold)
    hits = (predicted & (gold == 1)).sum()
    assert found["micro_f1"] == pytest.approx(2 * hits / (predicted.sum() + gold.sum()))
    by_label = 2 * (predicted & (gold == 1)).sum(0) / (predicted.sum(0) + gold.sum(0))
    assert found["macro_f1"] == pytest.approx(by_label.mean())


def test_the_first_of_equal_outputs_is_the_answer() -> None:
    assert predictions("classification", np.array([[1.0, 1.0, 0.0]])).tolist() == [0]


def test_matthews_of_constant_predictions_is_zero_by_definition() -> None:
    constant = np.tile([0.0, 1.0], (7, 1))
    gold = np.array([0, 1, 1, 1, 0, 1, 1])
    assert score(["matthews", "accuracy"], "classification", constant, gold) == {"matthews": 0.0, "accuracy": 5 / 7}
    assert score(["matthews"], "classification", constant, np.ones(7, int)) == {"matthews": 0.0}


def test_f1_without_the_class_is_zero_and_silent() -> None:
    assert score(["f1"], "classification", np.tile([1.0, 0.0], (3, 1)), np.zeros(3, int)) == {"f1": 0.0}


@pytest.mark.parametrize("values", [np.full(7, 2.5), 2.5 + 1e-15 * np.arange(7)])
def test_correlation_with_a_constant_is_nan(values: np.ndarray) -> None:
    gold = np.arange(7.0)
    for outputs, right in ((values, gold), (gold, values)):
        found = score(["pearson", "spearman"], "regression", outputs, right)
        assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_scores_of_outputs_that_are_not_finite_are_nan(bad: float) -> None:
    logits = np.array([[0.0, 1.0], [bad, 0.0], [1.0, 0.0]])
    assert math.isnan(score(["accuracy"], "classification", logits, np.array([1, 0, 0]))["accuracy"])


@pytest.mark.parametrize(
    ("kind", "gold"),
    [
        ("classification", np.array([0, -1, 1])),
        ("classification", np.array([0.0, -1.0, 1.0])),
        ("regression", np.array([0.5, math.nan, 1.0])),
        ("multilabel", np.array([[0, 1], [-1, -1], [1, 1]])),
    ],
)
def test_hidden_labels_are_never_scored(kind: str, gold: np.ndarray) -> None:
    logits = np.zeros((3, 1 if kind == "regression" else 2))
    with pytest.raises(DataError, match=r"labels are hidden: hidden labels can be predicted, never scored$"):
        score([], kind, logits, gold)


@pytest.mark.parametrize(
    ("kind", "logits", "gold", "says"),
    [
        ("classification", (5, 2), (4,), "classification: outputs of shape (5, 2) do not fit labels of shape (4,)"),
        ("classification", (5,), (5,), "classification: outputs of shape (5,) do not fit labels of shape (5,)"),
        ("regression", (5, 2), (5,), "regression: outputs of shape (5, 2) do not fit labels of shape (5,)"),
        ("multilabel", (5, 2), (5, 3), "multilabel: outputs of shape (5, 2) do not fit labels of shape (5, 3)"),
        ("classification", (0, 2), (0,), "there are no rows to score"),
    ],
)
def test_shapes_that_do_not_fit(kind: str, logits: tuple[int, ...], gold: tuple[int, ...], says: str) -> None:
    with pytest.raises(DataError) as caught:
        score([], kind, np.zeros(logits), np.zeros(gold, int))
    assert str(caught.value) == says


def test_a_label_beyond_the_outputs() -> None:
    with pytest.raises(LabelError, match=r"^the data has label number 2, the model has 2 outputs$"):
        score(["accuracy"], "classification", np.zeros((2, 2)), np.array([2, 0]))


def test_metrics_that_do_not_exist_or_do_not_apply() -> None:
    two, three, gold = np.zeros((2, 2)), np.zeros((2, 3)), np.array([0, 1])
    with pytest.raises(UnknownName, match=r"^unknown metric 'acuracy'; did you mean 'accuracy'"):
        score(["acuracy"], "classification", two, gold)
    with pytest.raises(UserError, match=r"^metric 'pearson' is not for classification; expected one of accuracy, f1"):
        score(["pearson"], "classification", two, gold)
    with pytest.raises(UserError, match=r"^metric 'f1' needs 2 classes, the model has 3; use macro_f1$"):
        score(["f1"], "classification", three, gold)


@given(st.integers(2, 5), st.integers(3, 40), st.integers(0, 2**32 - 1), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_scores_do_not_depend_on_the_order_of_rows_nor_of_labels(classes, rows, seed, random) -> None:
    logits, gold = random_case(classes, rows, seed)
    before = score(CLASSES, "classification", logits, gold)
    order = random.sample(range(rows), rows)
    assert score(CLASSES, "classification", logits[order], gold[order]) == pytest.approx(before)
    renamed = np.array(random.sample(range(classes), classes))  # class i becomes class renamed[i]
    assert score(CLASSES, "classification", logits[:, np.argsort(renamed)], renamed[gold]) == pytest.approx(before)


@given(st.integers(2, 5), st.integers(1, 40), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_the_best_label_order_is_that_of_trying_all(classes: int, rows: int, seed: int) -> None:
    logits, gold = random_case(classes, rows, seed)
    predicted = logits.argmax(1)
    best = max((np.array(p)[predicted] == gold).mean() for p in itertools.permutations(range(classes)))
    gain, order = label_permutation_gain(logits, gold)
    assert sorted(order) == list(range(classes))
    assert (predicted == gold).mean() + gain == pytest.approx(best)
    assert (np.array(order)[predicted] == gold).mean() == pytest.approx(best)
    assert order == tuple(range(classes)) or gain > 0


def test_a_model_with_another_label_order_is_found() -> None:
    gold = np.random.default_rng(0).integers(0, 3, 503)
    model_order = np.array([2, 0, 1])  # the model calls class i of the data model_order[i]
    logits = np.eye(3)[model_order[gold]]
    assert score(["accuracy"], "classification", logits, gold)["accuracy"] == 0.0
    gain, order = label_permutation_gain(logits, gold)
    assert gain == 1.0
    assert order == tuple(np.argsort(model_order))


def test_degenerate_says_which_answer() -> None:
    logits, gold = np.tile([0.2, 0.1], (5, 1)), np.array([0, 1, 1, 0, 1])
    assert degenerate("classification", logits, gold, ("bad", "good")) == (
        "all 5 predictions are 'bad', the right one for 40.0%: the model tells nothing apart"
    )
    assert degenerate("classification", logits) == "all 5 predictions are 'class 0': the model tells nothing apart"
    logits[2] = [0.1, 0.2]
    assert degenerate("classification", logits, gold) is None


def test_one_answer_is_right_where_gold_has_one() -> None:
    assert degenerate("classification", np.tile([0.2, 0.1], (5, 1)), np.zeros(5, int)) is None
    assert degenerate("classification", np.array([[0.2, 0.1]]), np.array([1])) is None


def test_degenerate_regression_and_multilabel() -> None:
    gold = np.linspace(0, 5, 7)
    flat = (2.5 + 1e-5 * np.arange(7)).reshape(7, 1)
    said = degenerate("regression", flat, gold)
    assert said == "all 7 scores are about 2.5 (spread 2e-05, the data's 1.7)"
    assert degenerate("regression", 2.5 + 0.1 * gold, gold) is None
    labels = np.array([[0, 1, 0], [1, 0, 0], [1, 1, 1]])
    said = degenerate("multilabel", np.full((3, 3), -4.0), labels)
    assert said == "all 3 rows get the same labels (0 of 3), whatever the text says"
    assert degenerate("multilabel", labels - 0.5, labels) is None


@given(hnp.arrays(np.float32, (5, 3), elements=st.floats(width=32)))
@settings(max_examples=60, deadline=None)
def test_outputs_that_are_not_finite_are_always_said(logits: np.ndarray) -> None:
    broken = int((~np.isfinite(logits)).any(1).sum())
    said = degenerate("classification", logits, np.array([0, 1, 2, 0, 1]))
    expected = f"the outputs of {broken} of 5 rows are NaN or infinite: the training diverged"
    assert (said == expected) == (broken > 0)


def test_every_metric_is_scored_by_some_kind() -> None:
    assert set(METRICS) == {"accuracy", "f1", "macro_f1", "micro_f1", "matthews", "pearson", "spearman"}


def test_importing_the_module_loads_neither_scikit_learn_nor_scipy_nor_torch() -> None:
    code = (
        "import sys, bert_miniatures.metrics, bert_miniatures.data.examples; "
        "print([m for m in ('sklearn', 'scipy', 'torch', 'pyarrow', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
