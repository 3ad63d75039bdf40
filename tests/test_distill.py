"""Distillation: objectives against numpy and scipy, a student that reaches its teacher, resume, labels, faults."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, softmax

from bert_miniatures.data.batches import Batch
from bert_miniatures.evaluate import prior_loss
from bert_miniatures.soft_objectives import soft_classification, soft_multilabel, soft_prior, soft_regression

DRAWN = np.random.default_rng(31)
ROWS, CLASSES = 7, 5


def batch_of(teacher, labels) -> Batch:
    ids = torch.zeros(len(teacher), 3, dtype=torch.int64)
    rows = np.arange(len(teacher))
    return Batch(ids, None, None, torch.from_numpy(labels), rows, torch.from_numpy(teacher.astype(np.float32)))


def lost(objective, student, teacher, labels):
    """Return the mean loss of these logits and its gradient."""
    logits = torch.tensor(student, dtype=torch.float32, requires_grad=True)
    found = objective(SimpleNamespace(classify=lambda *_: logits), batch_of(teacher, labels))
    mean = found.total / found.weight
    mean.backward()
    return mean.item(), logits.grad.numpy()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.7])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_soft_cross_entropy_and_its_gradient(temperature, weight):
    student, teacher = DRAWN.normal(size=(2, ROWS, CLASSES)) * 3
    labels = DRAWN.integers(0, CLASSES, ROWS)
    labels[2] = -1
    share = weight * (labels >= 0)
    soft_target, soft_output = softmax(teacher / temperature, axis=1), softmax(student / temperature, axis=1)
    one_hot = np.eye(CLASSES)[labels]
    soft = -(soft_target * log_softmax(student / temperature, axis=1)).sum(1) * temperature**2
    hard = -(one_hot * log_softmax(student, axis=1)).sum(1)
    gradient = (1 - share)[:, None] * temperature * (soft_output - soft_target)
    gradient += share[:, None] * (softmax(student, axis=1) - one_hot)
    loss, found = lost(soft_classification(temperature, weight), student, teacher, labels)
    assert loss == pytest.approx(((1 - share) * soft + share * hard).mean(), rel=1e-5)
    np.testing.assert_allclose(found, gradient / ROWS, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_soft_binary_cross_entropy_and_its_gradient(weight):
    student, teacher = DRAWN.normal(size=(2, ROWS, CLASSES)) * 3
    labels = DRAWN.integers(0, 2, (ROWS, CLASSES))
    labels[4] = -1
    share = weight * (labels >= 0)
    p, q, t = expit(teacher / 2), expit(student / 2), expit(student)
    soft = -4 * (p * np.log(q) + (1 - p) * np.log(1 - q))
    hard = -(labels * np.log(t) + (1 - labels) * np.log(1 - t))
    loss, found = lost(soft_multilabel(2.0, weight), student, teacher, labels)
    assert loss == pytest.approx(((1 - share) * soft + share * hard).mean(), rel=1e-5)
    gradient = (1 - share) * 2 * (q - p) + share * (t - labels)
    np.testing.assert_allclose(found, gradient / labels.size, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_squared_error_of_the_teachers_score(weight):
    student, teacher = DRAWN.normal(size=(2, ROWS, 1)) * 3
    labels = DRAWN.normal(size=ROWS)
    labels[3] = np.nan
    known = ~np.isnan(labels)
    share, label = weight * known, np.where(known, labels, 0)
    to = (teacher[:, 0] - 1.5) / 0.7, (label - 1.5) / 0.7
    errors = student[:, 0] - to[0], student[:, 0] - to[1]
    loss, found = lost(soft_regression(1.5, 0.7, weight), student, teacher, labels)
    assert loss == pytest.approx(((1 - share) * errors[0] ** 2 + share * errors[1] ** 2).mean(), rel=1e-5)
    gradient = 2 * ((1 - share) * errors[0] + share * errors[1]) / ROWS
    np.testing.assert_allclose(found[:, 0], gradient, atol=1e-6)


def test_a_sure_teacher_is_a_label():
    labels = np.array([0, 2, 1, 2, 2])
    teacher = (np.eye(3)[labels] * 60).astype(np.float32)
    student = DRAWN.normal(size=(5, 3))
    hard = torch.nn.functional.cross_entropy(torch.from_numpy(student), torch.from_numpy(labels)).item()
    assert lost(soft_classification(), student, teacher, labels)[0] == pytest.approx(hard, rel=1e-5)
    assert soft_prior("classification", teacher) == pytest.approx(prior_loss("classification", labels), rel=1e-6)
    several = np.eye(3)[labels]
    sure = ((several * 2 - 1) * 60).astype(np.float32)
    assert soft_prior("multilabel", sure) == pytest.approx(prior_loss("multilabel", several), rel=1e-6)
