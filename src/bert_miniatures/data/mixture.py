"""Several sources of batches as one: which of them an update reads is a pure function of its number and the seed."""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, overload

import numpy as np
import numpy.typing as npt

__all__ = ["ENDLESS", "Mixture", "Part"]

Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

ENDLESS = 2**62  # batches of an epoch of which `train` never sees the end
_KIND = 61  # the bits of a row's number below are the source's
_CHUNK = 2**16  # updates counted at once
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio


class Part(Protocol):
    """One of the sources."""

    per_epoch: int

    def rows(self, epoch: int) -> Sequence[Ints]:
        """Return the rows of each batch of an epoch."""

    def micro(self, rows: Ints, size: int | None) -> Iterator[Any]:
        """Collate rows, at most `size` at a time."""

    def lengths(self, rows: Ints) -> npt.NDArray[np.integer]:
        """Return how many positions each row has."""


class Mixture:
    """Batches of several sources, one source in each batch; a source for `train`.

    Update t reads the source into whose part of [0, 1) the fraction of t / golden ratio + seed falls: each source comes
    in its share, evenly spread, and no two runs of updates are far from it. Each source goes through its own epochs.

    Args:
        parts: at most four.
        shares: of the updates, in any unit; each more than 0.
        seed: where the sequence begins.

    Attributes:
        per_epoch: so many that `train` never sees an end.
        latest: the rows that were handed out last.
    """

    per_epoch = ENDLESS

    def __init__(self, parts: Sequence[Part], shares: Sequence[float], seed: int) -> None:
        self.parts = list(parts)
        edges = np.cumsum(np.asarray(shares, np.float64)) / sum(shares)
        self._edges = np.array([min(int(edge * 2**64), 2**64 - 1) for edge in edges[:-1]], np.uint64)
        self._begin = np.random.default_rng([seed, 4]).integers(0, 2**64, dtype=np.uint64)
        self._counts = [np.zeros(len(self.parts), np.int64)]  # updates of each source before each chunk
        self._epochs: dict[int, tuple[int, Sequence[Ints]]] = {}
        self.latest = np.empty(0, np.int64)

    def kinds(self, start: int, end: int) -> Ints:
        """Return which source each of these updates reads, counted from 0."""
        steps = np.arange(start, end, dtype=np.uint64)
        return np.searchsorted(self._edges, steps * np.uint64(_GOLDEN) + self._begin, "right")

    def done(self, step: int) -> Ints:
        """Return how many batches of each source the first `step` updates read."""
        chunk, rest = divmod(step, _CHUNK)
        while len(self._counts) <= chunk:
            at = (len(self._counts) - 1) * _CHUNK
            self._counts.append(self._counts[-1] + self._count(at, at + _CHUNK))
        found: Ints = self._counts[chunk] + self._count(step - rest, step)
        return found

    def _count(self, start: int, end: int) -> Ints:
        return np.bincount(self.kinds(start, end), minlength=len(self.parts))

    def rows(self, epoch: int) -> "Sequence[Ints]":
        """Return the rows of each update."""
        return _Updates(self, range(self.per_epoch))

    def rows_of(self, step: int) -> Ints:
        """Return the rows of the update after `step` others; the source is in the upper bits."""
        kind = int(self.kinds(step, step + 1)[0])
        part = self.parts[kind]
        epoch, index = divmod(int(self.done(step)[kind]), part.per_epoch)
        if self._epochs.get(kind, (-1, []))[0] != epoch:
            self._epochs[kind] = (epoch, part.rows(epoch))
        self.latest = self._epochs[kind][1][index] + (kind << _KIND)
        return self.latest

    def micro(self, rows: Ints, size: int | None = None) -> Iterator[Any]:
        """Collate rows, all of the same source."""
        if len(rows):
            kind, plain = self.source(rows)
            yield from self.parts[kind].micro(plain, size)

    def lengths(self, rows: Ints) -> npt.NDArray[np.integer]:
        """Return how many positions each row has."""
        kind, plain = self.source(rows)
        return self.parts[kind].lengths(plain)

    def source(self, rows: Ints) -> tuple[int, Ints]:
        """Return which source rows are of, and their numbers there."""
        return int(rows[0]) >> _KIND, rows & (2**_KIND - 1)


class _Updates(Sequence[Ints]):
    """The rows of some updates."""

    def __init__(self, mixture: Mixture, part: range) -> None:
        self._mixture, self._part = mixture, part

    def __len__(self) -> int:
        return len(self._part)

    @overload
    def __getitem__(self, index: int) -> Ints: ...
    @overload
    def __getitem__(self, index: slice) -> "_Updates": ...
    def __getitem__(self, index: int | slice) -> "Ints | _Updates":
        if isinstance(index, slice):
            return _Updates(self._mixture, self._part[index])
        return self._mixture.rows_of(self._part[index])
