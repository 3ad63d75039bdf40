"""Objectives: a function `(model, batch) -> Loss` each. The training loop knows nothing else about what is learnt.

A loss is a sum and a weight. The loop divides the summed gradient by the summed weight, so that micro-batches and
several processes give the same update as one large batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bert_miniatures.data.batches import Batch
from bert_miniatures.model import Bert

__all__ = ["Loss", "Objective", "classification", "multilabel", "regression"]


class Loss(NamedTuple):
    """The sum of the examples' losses, and the weight that turns it into a mean; both scalars."""

    total: Tensor
    weight: Tensor


Objective = Callable[[Bert, Batch], Loss]


def classification(class_weights: Tensor | None = None) -> Objective:
    """Cross-entropy of the label.

    Args:
        class_weights: [C]; the mean is then the weighted one, as in torch's CrossEntropyLoss.

    Source: google-research/bert `run_classifier.py`.
    """

    def loss(model: Bert, batch: Batch) -> Loss:
        logits = model.classify(batch.ids, batch.segments, batch.mask).float()
        assert batch.labels is not None
        weights = None if class_weights is None else class_weights.to(logits.device)
        total = F.cross_entropy(logits, batch.labels, weight=weights, reduction="sum")
        weight = torch.tensor(float(len(batch))) if weights is None else weights[batch.labels].sum()
        return Loss(total, weight)

    return loss


def regression(mean: float = 0.0, deviation: float = 1.0) -> Objective:
    """Mean squared error of (target - mean) / deviation.

    The head learns the standardised target; `fold` in recipes/finetune.py puts mean and deviation into its weights.
    """

    def loss(model: Bert, batch: Batch) -> Loss:
        outputs = model.classify(batch.ids, batch.segments, batch.mask).float()[:, 0]
        assert batch.labels is not None
        targets = ((batch.labels - mean) / deviation).to(outputs.dtype)
        return Loss(F.mse_loss(outputs, targets, reduction="sum"), torch.tensor(float(len(batch))))

    return loss


def multilabel(class_weights: Tensor | None = None) -> Objective:
    """Binary cross-entropy of every label, mean over labels.

    Args:
        class_weights: [C], the weight of a label's positive examples.
    """

    def loss(model: Bert, batch: Batch) -> Loss:
        logits = model.classify(batch.ids, batch.segments, batch.mask).float()
        assert batch.labels is not None
        weights = None if class_weights is None else class_weights.to(logits.device)
        targets = batch.labels.to(logits.dtype)
        total = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="sum")
        return Loss(total, torch.tensor(float(targets.numel())))

    return loss
