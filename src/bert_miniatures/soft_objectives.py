"""Objectives of distillation: the target is what a teacher says, `batch.teacher`, mixed with the label if wanted."""

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from bert_miniatures.data.batches import Batch
from bert_miniatures.model import Bert
from bert_miniatures.objectives import Loss, Objective

__all__ = ["soft_classification", "soft_multilabel", "soft_prior", "soft_regression"]


def soft_classification(temperature: float = 1.0, label_weight: float = 0.0) -> Objective:
    """Cross-entropy of the teacher's probabilities.

    Args:
        temperature: T divides the logits of both; the loss is multiplied by T², so that its gradient keeps its size.
        label_weight: share of the label's own cross-entropy, in rows that have a label; others learn from the teacher.

    Source: Hinton et al. 2015, section 2; with T = 1 and weight 0 the loss of Turc et al. 2019.
    """

    def loss(model: Bert, batch: Batch) -> Loss:
        logits = model.classify(batch.ids, batch.segments, batch.mask).float()
        assert batch.teacher is not None
        each = F.cross_entropy(logits / temperature, (batch.teacher / temperature).softmax(1), reduction="none")
        each = each * temperature**2
        if label_weight:
            assert batch.labels is not None
            hard = F.cross_entropy(logits, batch.labels.clamp(min=0), reduction="none")
            each = _mixed(each, hard, batch.labels >= 0, label_weight)
        return Loss(each.sum(), torch.tensor(float(len(batch))))

    return loss


def soft_multilabel(temperature: float = 1.0, label_weight: float = 0.0) -> Objective:
    """Binary cross-entropy of the teacher's probability of every label, mean over labels; see `soft_classification`."""

    def loss(model: Bert, batch: Batch) -> Loss:
        logits = model.classify(batch.ids, batch.segments, batch.mask).float()
        assert batch.teacher is not None
        targets = (batch.teacher / temperature).sigmoid()
        each = F.binary_cross_entropy_with_logits(logits / temperature, targets, reduction="none") * temperature**2
        if label_weight:
            assert batch.labels is not None
            hard = F.binary_cross_entropy_with_logits(
                logits, batch.labels.clamp(min=0).to(logits.dtype), reduction="none"
            )
            each = _mixed(each, hard, batch.labels >= 0, label_weight)
        return Loss(each.sum(), torch.tensor(float(each.numel())))

    return loss


def soft_regression(mean: float = 0.0, deviation: float = 1.0, label_weight: float = 0.0) -> Objective:
    """Mean squared error of the teacher's score, at the scale of `objectives.regression`.

    Args:
        mean, deviation: of the scores.
        label_weight: share of the squared error of the label itself, in rows that have one.
    """

    def loss(model: Bert, batch: Batch) -> Loss:
        outputs = model.classify(batch.ids, batch.segments, batch.mask).float()[:, 0]
        assert batch.teacher is not None
        each = (outputs - (batch.teacher[:, 0] - mean) / deviation) ** 2
        if label_weight:
            assert batch.labels is not None
            known = ~batch.labels.isnan()
            hard = (outputs - ((batch.labels.nan_to_num() - mean) / deviation).to(outputs.dtype)) ** 2
            each = _mixed(each, hard, known, label_weight)
        return Loss(each.sum(), torch.tensor(float(len(batch))))

    return loss


def _mixed(soft: Tensor, hard: Tensor, known: Tensor, weight: float) -> Tensor:
    share = weight * known.to(soft.dtype)
    return (1.0 - share) * soft + share * hard


def soft_prior(kind: str, teacher: npt.NDArray[np.float32], temperature: float = 1.0) -> float:
    """Return the loss of a student that knows only the teacher's mean answer, as `evaluate.prior_loss` for labels."""
    if kind == "regression":
        return 1.0
    logits = torch.from_numpy(teacher).double() / temperature
    if kind == "multilabel":
        share = logits.sigmoid().mean(0).clamp(1e-12, 1 - 1e-12)
        found = F.binary_cross_entropy(share, share)
    else:
        share = logits.softmax(1).mean(0).clamp(min=1e-12)
        found = -(share * share.log()).sum()
    return float(found) * temperature**2
