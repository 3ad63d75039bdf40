"""Objectives of distillation: the target is what a teacher says, `batch.teacher`, mixed with the label if wanted.

`guided` adds what goes on inside a teacher that reads the same word pieces.

Shapes: B batch, T positions, D width, A relation heads, L layers.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from bert_miniatures.data.batches import Batch
from bert_miniatures.model import Bert
from bert_miniatures.objectives import Loss, Objective

__all__ = ["guided", "hidden_loss", "relation_heads", "relation_loss", "soft_classification", "soft_multilabel",
           "soft_prior", "soft_regression"]  # fmt: skip

_Seen = list[tuple[Tensor, Tensor]]  # input [B, T, D] and output of each layer; of the last one [B, 1, D] may be all
_ONE_AT_A_TIME = threading.Lock()  # a teacher is one, and where there is no fork several threads ask it
_NARROWEST = 8  # numbers of a relation head's vectors


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


# ---------------------------------------------------------------------------------------------------- inside a teacher


def guided(
    objective: Objective, teacher: Bert, *, hidden: float = 0.0, relations: float = 0.0, heads: int = 1
) -> Objective:
    """Add to an objective how far the student is from a teacher's hidden states and attention relations.

    Args:
        objective: of the answers; it runs the student once, and what its layers read and gave is compared.
        teacher: in evaluation mode, of the student's vocabulary; it reads every batch.
        hidden: weight of `hidden_loss`; the student has the helper "hidden", from its width to the teacher's.
        relations: weight of `relation_loss` between the last layers.
        heads: relation heads.
    """

    def loss(model: Bert, batch: Batch) -> Loss:
        with _watching(model) as own:
            found = objective(model, batch)
        with _ONE_AT_A_TIME, torch.no_grad(), _watching(teacher.to(batch.ids.device)) as theirs:
            teacher(batch.ids, batch.segments, batch.mask)
        real = torch.ones_like(batch.ids, dtype=torch.bool) if batch.mask is None else batch.mask
        each = torch.zeros(len(batch), device=batch.ids.device)
        if hidden:
            each = each + hidden * hidden_loss(
                [model.helpers["hidden"](x) for x in _states(own)], _states(theirs), real
            )
        if relations:
            last = [_last_qkv(model, own), _last_qkv(teacher, theirs)]
            each = each + relations * relation_loss(last[0], last[1], real, heads)
        return Loss(found.total + each.sum() * found.weight.to(each.device) / len(batch), found.weight)

    return loss


def hidden_loss(own: Sequence[Tensor], theirs: Sequence[Tensor], real: Tensor) -> Tensor:
    """Return the squared error of the student's states, mean over states, positions and numbers, per example [B].

    State m of the student learns from state round(m L / M) of the teacher, M and L being their numbers of layers: the
    embedding from the embedding, the last from the last. The last state is compared at the first position alone, for
    the answer reads no other.

    Args:
        own: embedding and outputs of the layers, projected to the teacher's width, [B, T, D]; the last one [B, 1, D].
        theirs: those of the teacher.
        real: which positions are no padding, bool [B, T].

    Source: Jiao et al. 2020, "TinyBERT", arXiv 1909.10351, section 3.1, equations 8 and 9, and uniform mapping.
    """
    total = torch.zeros(len(real), device=real.device)
    for m, state in enumerate(own):
        target = theirs[round(m * (len(theirs) - 1) / (len(own) - 1))]
        wanted = real[:, : state.shape[1]]
        error = ((state.float() - target[:, : state.shape[1]].float()) ** 2).mean(2)
        total = total + (error * wanted).sum(1) / wanted.sum(1)
    return total / len(own)


def relation_loss(own: Tensor, theirs: Tensor, real: Tensor, heads: int) -> Tensor:
    """Return how far the student's relations between positions are from the teacher's, per example [B].

    Queries, keys and values are each cut into relation heads, whatever the number of attention heads, so that the two
    widths may differ. A relation is the softmax over positions of the scaled products of a position's vector with all
    others of its kind; the loss is the divergence from the teacher's, mean over the three kinds, heads and positions.

    Args:
        own, theirs: queries, keys and values of one layer, [B, T, 3 D] with each one's own D.
        real: which positions are no padding, bool [B, T].
        heads: A, a divisor of both widths.

    Source: Wang et al. 2021, "MiniLMv2", arXiv 2012.15828, section 3.
    """
    log_own, log_theirs = (_log_relations(x, real, heads) for x in (own, theirs))
    divergence = (log_theirs.exp() * (log_theirs - log_own)).sum(-1).mean((0, 2))  # B T
    return (divergence * real).sum(1) / real.sum(1)


def _last_qkv(model: Bert, seen: _Seen) -> Tensor:
    """Return queries, keys and values of all positions, from what the last layer read."""
    qkv: Any = model.layers[-1].qkv
    return F.linear(seen[-1][0], qkv.weight, qkv.bias)


def _log_relations(x: Tensor, real: Tensor, heads: int) -> Tensor:
    b, t, width = x.shape
    each = x.float().view(b, t, 3, heads, width // (3 * heads)).permute(2, 0, 3, 1, 4)  # 3 B A T D/A
    scores = each @ each.transpose(3, 4) * each.shape[4] ** -0.5
    shares: Tensor = scores.masked_fill(~real[:, None, None], -1e30).log_softmax(-1)  # finite: 0 times it is 0
    return shares


def relation_heads(own: int, theirs: int) -> int:
    """Return how many relation heads two widths have by default: as many as leave the student 8 numbers a head.

    Example:
        >>> relation_heads(128, 384), relation_heads(21, 15)
        (16, 1)
    """
    most = max(1, own // _NARROWEST)
    return max(n for n in range(1, most + 1) if own % n == 0 and theirs % n == 0)


def _states(seen: _Seen) -> list[Tensor]:
    """Return the embedding and the layers' outputs; of the last one the first position."""
    return [seen[0][0], *(out for _, out in seen[:-1]), seen[-1][1][:, :1]]


@contextmanager
def _watching(model: Bert) -> Iterator[_Seen]:
    """Yield a list of what each layer reads and gives inside the block, fused or not."""
    seen: _Seen = []
    hooks = [layer.register_forward_hook(lambda _, given, out: seen.append((given[0], out))) for layer in model.layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
