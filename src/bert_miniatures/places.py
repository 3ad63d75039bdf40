"""Which positions attention must not see, and where wanted positions lie in a batch."""

import math

import torch
from torch import Tensor

__all__ = ["barred", "by_row"]


def barred(where: Tensor, like: Tensor) -> Tensor:
    """Return what is added to attention scores: -inf at these places, 0 elsewhere."""
    return torch.zeros(where.shape, dtype=like.dtype, device=like.device).masked_fill_(where, -math.inf)


def by_row(wanted: Tensor, rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Arrange ascending places of a flattened [rows, width] as [rows, M], filled up; return also where each one is."""
    row = wanted // width
    counts = torch.bincount(row, minlength=rows)
    column = torch.arange(len(wanted), device=wanted.device) - (counts.cumsum(0) - counts)[row]
    most = int(counts.max())
    picked = (torch.arange(rows, device=wanted.device) * width)[:, None].repeat(1, most)
    picked[row, column] = wanted
    return picked, row * most + column
