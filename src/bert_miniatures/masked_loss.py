"""Cross-entropy over the vocabulary without holding logits of all masked positions; for training on a CPU.

A step of 32 x 128 pieces has 600 masked ones: logits of 600 x 30,522 numbers, read and written five times by the plain
computation, are most of the memory that passes. Here some rows at a time are projected, and their gradients are made
while the logits are at hand; the backward pass only hands them out. The numbers are those of F.cross_entropy but for
rounding.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["masked_cross_entropy"]

_HELD = 8_000_000  # logits held at once


def masked_cross_entropy(hidden: Tensor, words: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
    """Return the summed cross-entropy of logits `hidden @ words.T + bias`, a scalar.

    Args:
        hidden: [M, D].
        words: [V, D].
        bias: [V].
        targets: [M], numbers below V.
    """
    total: Tensor = _Loss.apply(hidden, words, bias, targets)  # type: ignore[no-untyped-call]
    return total


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, words: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        rows = max(1, min(len(hidden), _HELD // len(words)))
        total = hidden.new_zeros(())
        dhidden, dwords, dbias = torch.empty_like(hidden), torch.zeros_like(words), torch.zeros_like(bias)
        logits, shares = (hidden.new_empty(rows, len(words)) for _ in range(2))
        for start in range(0, len(hidden), rows):
            h, goal = hidden[start : start + rows], targets[start : start + rows, None]
            z, p = logits[: len(h)], shares[: len(h)]
            torch.addmm(bias, h, words.t(), out=z)
            torch.softmax(z, 1, out=p)
            total += _losses(z, p, goal).sum()
            p.scatter_add_(1, goal, p.new_full(goal.shape, -1.0))  # the gradient of the logits
            torch.mm(p, words, out=dhidden[start : start + rows])
            dwords.addmm_(p.t(), h)
            dbias.add_(p.sum(0))
        ctx.save_for_backward(dhidden, dwords, dbias)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if float(gradient) == 1.0:  # a pass over the table is saved
            return (*ctx.saved_tensors, None)
        return (*(gradient * tensor for tensor in ctx.saved_tensors), None)


def _losses(logits: Tensor, shares: Tensor, goal: Tensor) -> Tensor:
    """Return -log of the goals' shares; from the logits where a share is too small for its logarithm."""
    losses = -shares.gather(1, goal).log()
    tiny = (losses > 60.0)[:, 0]
    if tiny.any():
        losses[tiny] = logits[tiny].logsumexp(1, keepdim=True) - logits[tiny].gather(1, goal[tiny])
    return losses
