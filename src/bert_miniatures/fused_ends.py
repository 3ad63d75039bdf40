"""What comes before and after the layers as one autograd function each. For training on a CPU; see fused.py.

Both add the gradients of their weights where they are (`sums`), so that autograd records two nodes instead of twenty,
and the table of word vectors gets the rows that were looked up and no array of its own size.

Shapes: B batch, T positions, D width, C outputs.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["classifier", "embedding"]

Tensors = tuple[Tensor, ...]


def embedding(
    ids: Tensor,
    segments: Tensor | None,
    positions: Tensor | None,
    drawn: Tensor | None,
    epsilon: float,
    table: Tensor,
    weights: Tensors,
    sums: Tensors,
) -> Tensor:
    """Map word pieces [B, T] to [B, T, D]: sum of three tables, LayerNorm, dropout.

    Args:
        segments: [B, T]; None where all are 0.
        positions: [B, T]; None where rows begin at position 0.
        drawn: what dropout multiplies each element with, [B, T, D], or None.
        epsilon: of LayerNorm.
        table: the word vectors as the parameter that they are, so that autograd knows that something is learnt here.
        weights: tables of words, positions and segments, weight and bias of the norm; no gradients asked.
        sums: where the gradients of these are added.
    """
    x: Tensor = _Embedding.apply(table, ids, segments, positions, drawn, epsilon, weights, sums)  # type: ignore[no-untyped-call]
    return x


def classifier(first: Tensor, drawn: Tensor | None, weights: Tensors, sums: Tensors) -> Tensor:
    """Map the first position [B, D] to outputs [B, C]: pooler, tanh, dropout, linear.

    Args:
        drawn: what dropout multiplies each element with, [B, D], or None.
        weights: weight and bias of the pooler, and of the head; no gradients asked.
        sums: where the gradients of these are added.
    """
    outputs: Tensor = _Classifier.apply(first, drawn, weights, sums)  # type: ignore[no-untyped-call]
    return outputs


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        _: Tensor,
        ids: Tensor,
        segments: Tensor | None,
        positions: Tensor | None,
        drawn: Tensor | None,
        epsilon: float,
        weights: Tensors,
        sums: Tensors,
    ) -> Tensor:
        word, position, segment, norm, bias = weights
        (b, t), width = ids.shape, word.shape[1]
        x = word.index_select(0, ids.view(-1)).view(b, t, width)
        fixed = position[:t] if positions is None else position[positions]
        x += fixed + segment[0] if segments is None else fixed
        if segments is not None:
            x += segment[segments]
        y, mean, deviation = torch.native_layer_norm(x, (width,), norm, bias, epsilon)
        ctx.kept = ids, segments, positions, drawn, x, mean, deviation, norm, bias, sums
        return y if drawn is None else y.mul_(drawn)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[None, ...]:
        ids, segments, positions, drawn, x, mean, deviation, norm, bias, sums = ctx.kept
        ctx.kept = None
        words, places, kinds, dnorm, dbias = sums
        (_, t, d), every = x.shape, [True, True, True]
        dy = dy if drawn is None else dy * drawn
        dx, *more = torch.ops.aten.native_layer_norm_backward(dy, x, (d,), mean, deviation, norm, bias, every)
        dnorm.add_(more[0])
        dbias.add_(more[1])
        rows = dx.view(-1, d)
        words.index_add_(0, ids.view(-1), rows)
        if positions is None:
            by_place = dx.sum(0)
            places[:t].add_(by_place)
        else:
            places.index_add_(0, positions.view(-1), rows)
        if segments is None:
            kinds[0].add_((rows if positions is not None else by_place).sum(0))
        else:
            kinds.index_add_(0, segments.view(-1), rows)
        return (None,) * 8


class _Classifier(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, first: Tensor, drawn: Tensor | None, weights: Tensors, sums: Tensors) -> Tensor:
        pooler, pooler_bias, head, head_bias = weights
        pooled = torch.addmm(pooler_bias, first, pooler.t()).tanh_()
        dropped = pooled if drawn is None else pooled * drawn
        ctx.kept = first, drawn, pooled, dropped, weights, sums
        return torch.addmm(head_bias, dropped, head.t())

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        first, drawn, pooled, dropped, (pooler, _, head, _), sums = ctx.kept
        ctx.kept = None
        sums[2].addmm_(dy.t(), dropped)
        sums[3].add_(dy.sum(0))
        dpooled = dy @ head
        if drawn is not None:
            dpooled.mul_(drawn)
        dpooled = torch.ops.aten.tanh_backward(dpooled, pooled)
        sums[0].addmm_(dpooled.t(), first)
        sums[1].add_(dpooled.sum(0))
        return dpooled @ pooler, None, None, None
