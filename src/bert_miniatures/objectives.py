"""Objectives: a function `(model, batch) -> Loss` each. The training loop knows nothing else about what is learnt.

A loss is a sum and a weight. The loop divides the summed gradient by the summed weight, so that micro-batches and
several processes give the same update as one large batch.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bert_miniatures.data.batches import Batch
from bert_miniatures.data.pretraining import PretrainBatch
from bert_miniatures.data.teaching import PairBatch, VectorBatch
from bert_miniatures.model import Bert

__all__ = ["Guesses", "Loss", "Objective", "by_kind", "classification", "guess", "masked_lm", "multilabel",
           "pair_similarity", "regression", "sentence_vectors"]  # fmt: skip


class Loss(NamedTuple):
    """The sum of the examples' losses, and the weight that turns it into a mean; both scalars."""

    total: Tensor
    weight: Tensor


Objective = Callable[[Bert, Any], Loss]


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


def masked_lm() -> Objective:
    """Cross-entropy of the masked pieces and, where there are pairs, of whether the second text follows the first.

    The loss is the mean over masked pieces plus a mean over instances in which an instance counts as often as it has
    masked pieces, so that one weight serves both and no division of a batch into parts changes the update. (Google's
    mean counts every instance once.)

    Source: google-research/bert `run_pretraining.py`.
    """

    def loss(model: Bert, batch: PretrainBatch) -> Loss:
        hidden, first = _hidden(model, batch)
        total = model.masked_loss(hidden, batch.targets)
        if batch.next is not None:
            each = F.cross_entropy(model.next_sentence(first).float(), batch.next, reduction="none")
            total = total + (each * _masked_of_each(batch)).sum()
        return Loss(total, torch.tensor(float(len(batch.masked))))

    return loss


def sentence_vectors() -> Objective:
    """One minus the cosine of the teacher's vector and what the helper "projection" makes of the pooled vector.

    The projection is thrown away, and with it the length of what it gives; the cosine asks for the direction alone. It
    is half the squared distance of vectors of length 1.
    """

    def loss(model: Bert, batch: VectorBatch) -> Loss:
        found = model.helpers["projection"](model.pooled(batch.ids, batch.segments, batch.mask)).float()
        total = (1.0 - F.cosine_similarity(found, batch.targets, dim=1)).sum()
        return Loss(total, torch.tensor(float(len(batch))))

    return loss


def pair_similarity(mean: float = 0.0, deviation: float = 1.0) -> Objective:
    """Mean squared error of (the teacher's cosine - mean) / deviation, which the helper "similarity" guesses.

    Args:
        mean, deviation: of the cosines; the helper is thrown away, so nothing is folded back.
    """

    def loss(model: Bert, batch: PairBatch) -> Loss:
        found = model.helpers["similarity"](model.pooled(batch.ids, batch.segments, batch.mask)).float()[:, 0]
        targets = (batch.targets - mean) / deviation
        return Loss(F.mse_loss(found, targets, reduction="sum"), torch.tensor(float(len(batch))))

    return loss


def by_kind(objectives: Mapping[type, Objective]) -> Objective:
    """Return the objective that asks what kind a batch is of."""

    def loss(model: Bert, batch: Any) -> Loss:
        return objectives[type(batch)](model, batch)

    return loss


class Guesses(NamedTuple):
    """What a model makes of a batch: summed losses and how many guesses were right.

    Attributes:
        masked_loss: summed over masked pieces.
        masked_right: guessed at the first place.
        next_loss: summed over instances; 0 without pairs.
        next_right: instances.
    """

    masked_loss: float
    masked_right: int
    next_loss: float
    next_right: int


@torch.inference_mode()
def guess(model: Bert, batch: PretrainBatch) -> Guesses:
    """Score a batch without changing anything; the model is to be in evaluation mode."""
    hidden, first = _hidden(model, batch)
    logits = model.masked(hidden).float()
    lost = float(F.cross_entropy(logits, batch.targets, reduction="sum"))
    right = int((logits.argmax(1) == batch.targets).sum())
    if batch.next is None:
        return Guesses(lost, right, 0.0, 0)
    pairs = model.next_sentence(first).float()
    found = int((pairs.argmax(1) == batch.next).sum())
    return Guesses(lost, right, float(F.cross_entropy(pairs, batch.next, reduction="sum")), found)


def _hidden(model: Bert, batch: PretrainBatch) -> tuple[Tensor, Tensor]:
    """Return the hidden states of the masked positions [M, D] and of the first position of each instance [I, D]."""
    places, order = torch.cat([batch.masked, batch.starts]).sort()
    extra = {"positions": batch.positions, "groups": batch.groups}
    hidden = model(batch.ids, batch.segments, batch.mask, wanted=places, **extra)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    masked, first = hidden[back].split([len(batch.masked), len(batch.starts)])
    return masked, first


def _masked_of_each(batch: PretrainBatch) -> Tensor:
    """Return how many masked pieces each instance has, float [I]; instances are in the order of their places."""
    owner = torch.bucketize(batch.masked, batch.starts, right=True) - 1
    return torch.bincount(owner, minlength=len(batch.starts)).to(torch.float32)
