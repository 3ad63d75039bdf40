"""Batches of what a teacher says: sentences with its vectors, pairs with its cosines."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bert_miniatures.data.batches import epoch_order
from bert_miniatures.data.pairs import Pairs
from bert_miniatures.data.teacher_store import TeacherStore, Texts
from bert_miniatures.errors import ConfigError
from bert_miniatures.tokenizer import Tokenizer, kept_of_pair

__all__ = ["PairBatch", "PairBatches", "VectorBatch", "VectorBatches"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Batch:
    """Rows of pieces.

    Attributes:
        ids: int64 [B, T].
        segments: 1 in second texts, int64 [B, T]; None where there are none.
        mask: true at real positions, bool [B, T]; None where nothing is padded.
        targets: see the two kinds.
    """

    ids: Tensor
    segments: Tensor | None
    mask: Tensor | None
    targets: Tensor

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def to(self, device: torch.device) -> Any:
        """Return the batch on another device."""
        if device.type == "cpu":
            return self
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {name: value.to(device, non_blocking=True) for name, value in tensors.items()}
        return replace(self, **moved)


class VectorBatch(_Batch):
    """Sentences; the targets are the teacher's vectors, float32 [B, W]."""


class PairBatch(_Batch):
    """Pairs `[CLS] a [SEP] b [SEP]`; the targets are the teacher's cosines, float32 [B]."""


class VectorBatches:
    """The sentences and phrases of a store in their order: a source for `train`.

    Args:
        store: from `open_store`.
        tokenizer: the student's.
        max_length: in word pieces, special tokens included.
        batch_size: sentences per update.
        seed: decides the order of every epoch; sentences of similar length share a batch.
    """

    def __init__(self, store: TeacherStore, tokenizer: Tokenizer, max_length: int, batch_size: int, seed: int) -> None:
        _check(store.texts, max_length - 2, max_length)
        self.store, self.tokenizer, self.batch_size, self.seed = store, tokenizer, batch_size, seed
        self._numbers = store.texts.alone
        self._lengths = np.diff(store.texts.bounds)[self._numbers] + 2
        self.per_epoch = math.ceil(len(self._lengths) / batch_size)

    def rows(self, epoch: int) -> list[Ints]:
        """Return the rows of each batch of this epoch."""
        return epoch_order(self._lengths, self.batch_size, self.seed, epoch)

    def lengths(self, rows: Ints) -> npt.NDArray[np.int64]:
        """Return the lengths of rows, special tokens included."""
        return self._lengths[rows]

    def micro(self, rows: Ints, size: int | None = None) -> Iterator[VectorBatch]:
        """Collate the rows of one batch, in pieces of at most `size` rows."""
        for some in _pieces(self._numbers[rows], size):
            ids, _, mask = _laid_out(self.store.texts, some, None, self.tokenizer, 2**30)
            vectors = self.store.vectors[some].astype(np.float32)
            yield VectorBatch(ids, None, mask, torch.from_numpy(vectors))


class PairBatches:
    """Pairs in their order: a source for `train`.

    Of a pair that is too long, pieces go from the end of the longer text.

    Args:
        store: from `open_store`.
        pairs: of its texts.
        tokenizer, max_length, batch_size, seed: as in `VectorBatches`.
    """

    def __init__(
        self, store: TeacherStore, pairs: Pairs, tokenizer: Tokenizer, max_length: int, batch_size: int, seed: int
    ) -> None:
        self.store, self.pairs, self.tokenizer, self.max_length = store, pairs, tokenizer, max_length
        self.batch_size, self.seed = batch_size, seed
        each = np.diff(store.texts.bounds)
        self._lengths: npt.NDArray[np.int64] = np.minimum(each[pairs.a] + each[pairs.b] + 3, max_length)
        self.per_epoch = math.ceil(len(pairs) / batch_size)

    def rows(self, epoch: int) -> list[Ints]:
        """Return the rows of each batch of this epoch."""
        return epoch_order(self._lengths, self.batch_size, self.seed, epoch)

    def lengths(self, rows: Ints) -> npt.NDArray[np.int64]:
        """Return the lengths of rows, special tokens included."""
        return self._lengths[rows]

    def micro(self, rows: Ints, size: int | None = None) -> Iterator[PairBatch]:
        """Collate the rows of one batch, in pieces of at most `size` rows."""
        for some in _pieces(rows, size):
            a, b = self.pairs.a[some].astype(np.int64), self.pairs.b[some].astype(np.int64)
            ids, segments, mask = _laid_out(self.store.texts, a, b, self.tokenizer, self.max_length - 3)
            yield PairBatch(ids, segments, mask, torch.from_numpy(self.pairs.cosine[some].copy()))


def _check(texts: Texts, room: int, max_length: int) -> None:
    longest = int(np.diff(texts.bounds[: texts.sentences + 1]).max())
    if longest > room:
        raise ConfigError(f"sentences of {longest} pieces do not fit into max_length {max_length}; set teacher.longest")


def _pieces(rows: Ints, size: int | None) -> Iterator[Ints]:
    size = size or max(1, len(rows))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _laid_out(
    texts: Texts, a: Ints, b: Ints | None, tokenizer: Tokenizer, room: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return ids, segments and mask of `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`, padded to the longest.

    Args:
        a, b: numbers of the texts, [B].
        room: pieces of a pair that fit.
    """
    begin, first = texts.bounds[a], texts.bounds[a + 1] - texts.bounds[a]
    second, begin_b = np.zeros_like(first), np.zeros_like(first)
    if b is not None:
        begin_b = texts.bounds[b]
        first, second = kept_of_pair(first, texts.bounds[b + 1] - begin_b, room)
    whole = first + 2 if b is None else first + second + 3
    column = np.arange(int(whole.max()))
    real = column < whole[:, None]
    is_second = (column > first[:, None] + 1) & real
    source = np.where(is_second, (begin_b - first - 2)[:, None], (begin - 1)[:, None]) + column
    special = (column == 0) | (column == first[:, None] + 1) | (column == whole[:, None] - 1) | ~real
    ids = texts.ids[np.where(special, 0, source)].astype(np.int64)
    ids[special], ids[:, 0], ids[~real] = tokenizer.sep_id, tokenizer.cls_id, tokenizer.pad_id
    segments = None if b is None else torch.from_numpy(is_second.astype(np.int64))
    return torch.from_numpy(ids), segments, None if real.all() else torch.from_numpy(real)
