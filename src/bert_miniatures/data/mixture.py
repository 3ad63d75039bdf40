"""Several sources of batches as one: which of them an update reads is a pure function of its number and the seed."""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bert_miniatures.data.on_demand import OnDemand

__all__ = ["ENDLESS", "Mixture", "Part"]

Ints = npt.NDArray[np.int64]

ENDLESS = 2**62  # batches of an epoch of which `train` never sees the end
_KIND = 61  # the bits of a row's number below are the source's
_WHOLE = 2**64
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
        shares: their sum is 1.
        latest: the rows that were handed out last.
    """

    per_epoch = ENDLESS

    def __init__(self, parts: Sequence[Part], shares: Sequence[float], seed: int) -> None:
        self.parts = list(parts)
        self.shares = [share / sum(shares) for share in shares]
        edges = np.cumsum(np.asarray(shares, np.float64)) / sum(shares)
        self._edges = [min(int(edge * _WHOLE), _WHOLE - 1) for edge in edges[:-1]]
        self._begin = int(np.random.default_rng([seed, 4]).integers(0, _WHOLE, dtype=np.uint64))
        self._epochs: dict[int, tuple[int, Sequence[Ints]]] = {}
        self.latest = np.empty(0, np.int64)

    def kinds(self, start: int, end: int) -> Ints:
        """Return which source each of these updates reads, counted from 0."""
        steps = np.arange(start, end, dtype=np.uint64)
        places = steps * np.uint64(_GOLDEN) + np.uint64(self._begin)  # modulo 2**64
        return np.searchsorted(np.array(self._edges, np.uint64), places, "right")

    def done(self, step: int) -> list[int]:
        """Return how many batches of each source the first `step` updates read.

        An update's place is (golden x t + begin) modulo 2**64. It is at an edge or beyond where adding 2**64 - edge
        carries, so that two sums of quotients count these updates, in a few steps for any number of them.
        """
        plain = _quotients(step, _WHOLE, _GOLDEN, self._begin)
        beyond = [_quotients(step, _WHOLE, _GOLDEN, self._begin + _WHOLE - edge) - plain for edge in self._edges]
        bounds = [step, *beyond, 0]
        return [more - fewer for more, fewer in pairwise(bounds)]

    def rows(self, epoch: int) -> "Sequence[Ints]":
        """Return the rows of each update."""
        return OnDemand(self.rows_of, range(self.per_epoch))

    def rows_of(self, step: int) -> Ints:
        """Return the rows of the update after `step` others; the source is in the upper bits."""
        kind = int(self.kinds(step, step + 1)[0])
        part = self.parts[kind]
        epoch, index = divmod(self.done(step)[kind], part.per_epoch)
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


def _quotients(count: int, divisor: int, factor: int, start: int) -> int:
    """Return the sum of (factor x t + start) // divisor over t from 0 to count - 1.

    The whole parts of factor and start are summed directly. What is left counts points of a grid under a line; seen
    from the other axis it is the same sum with factor and divisor exchanged, as in Euclid's algorithm.
    """
    total = 0
    while True:
        total += count * (count - 1) // 2 * (factor // divisor) + count * (start // divisor)
        factor, start = factor % divisor, start % divisor
        end = factor * count + start
        if end < divisor:
            return total
        count, divisor, factor, start = end // divisor, factor, divisor, end % divisor
