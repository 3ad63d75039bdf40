"""The loss of outputs on held-out rows, against torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bert_miniatures.evaluation import loss_of

DRAWN = np.random.default_rng(7)
LOGITS = (5 * DRAWN.standard_normal((31, 3))).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "gold", "theirs"),
    [
        ("classification", DRAWN.integers(0, 3, 31), F.cross_entropy),
        ("multilabel", DRAWN.integers(0, 2, (31, 3)), F.binary_cross_entropy_with_logits),
        ("regression", DRAWN.standard_normal(31).astype(np.float32), F.mse_loss),
    ],
)
def test_the_loss_is_torchs(kind, gold, theirs):
    logits = LOGITS[:, :1] if kind == "regression" else LOGITS
    target = torch.from_numpy(gold if kind == "classification" else gold.astype(np.float32))
    outputs = torch.from_numpy(logits)
    expected = theirs(outputs[:, 0] if kind == "regression" else outputs, target)
    assert loss_of(kind, logits, gold) == pytest.approx(float(expected), rel=1e-5)


def test_large_outputs_do_not_overflow():
    assert loss_of("classification", np.float32([[1e4, -1e4]]), np.array([1])) == pytest.approx(2e4)
    assert loss_of("multilabel", np.float32([[1e4, -1e4]]), np.array([[0, 1]])) == pytest.approx(1e4)
