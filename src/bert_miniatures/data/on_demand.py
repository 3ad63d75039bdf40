"""Rows of batches that are looked up when they are asked for: an epoch need not be drawn to begin in its middle."""

from collections.abc import Callable, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

__all__ = ["OnDemand"]

Ints = npt.NDArray[np.int64]


class OnDemand(Sequence[Ints]):
    """A sequence whose items a function returns.

    Args:
        item: called with a number of `numbers`.
        numbers: which items there are; a slice has fewer.
    """

    def __init__(self, item: Callable[[int], Ints], numbers: range) -> None:
        self._item, self._numbers = item, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Ints: ...
    @overload
    def __getitem__(self, index: slice) -> "OnDemand": ...
    def __getitem__(self, index: int | slice) -> "Ints | OnDemand":
        if isinstance(index, slice):
            return OnDemand(self._item, self._numbers[index])
        return self._item(self._numbers[index])
