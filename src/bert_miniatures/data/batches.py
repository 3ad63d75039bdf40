"""From texts to batches: encode once and keep on disk, group by length, collate.

The order of the batches is a pure function of (seed, epoch), and any step of it can be reached without the ones before.
"""

import copy
import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bert_miniatures.errors import MiniaturesError
from bert_miniatures.files import atomic_write, cache_folder
from bert_miniatures.tokenizer import Encoded, Tokenizer

__all__ = ["Batch", "Batches", "Dataset", "by_length", "encode", "epoch_order"]

_FORMAT = "encoded-2"
_GROUP = 50  # batches that are sorted by length together; the Trainer's group_by_length uses 50 too


@dataclass(frozen=True)
class Batch:
    """Examples, padded to the longest of them.

    Attributes:
        ids: word pieces, int64 [B, T].
        segments: 0 or 1 per position, int64 [B, T]; None where all are 0.
        mask: true at real positions, bool [B, T]; None where nothing is padded.
        labels: class numbers int64 [B], targets float32 [B], or float32 [B, C] for multilabel; None where hidden.
        rows: positions of the examples in the data set, [B].
        teacher: a teacher's logits, float32 [B, C]; None where there is no teacher.
    """

    ids: Tensor
    segments: Tensor | None
    mask: Tensor | None
    labels: Tensor | None
    rows: npt.NDArray[np.int64]
    teacher: Tensor | None = None

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on another device."""
        if device.type == "cpu":
            return self
        ids = self.ids.to(device, non_blocking=True)
        segments, mask, labels, teacher = (
            None if tensor is None else tensor.to(device, non_blocking=True)
            for tensor in (self.segments, self.mask, self.labels, self.teacher)
        )
        return Batch(ids, segments, mask, labels, self.rows, teacher)


class Dataset:
    """Encoded examples with their labels.

    Args:
        encoded: the word pieces of N rows.
        labels: [N] or [N, C]; None where they are hidden.
        pad_id: what fills short rows.
        teacher: a teacher's logits, float32 [N, C].
    """

    def __init__(
        self,
        encoded: Encoded,
        labels: npt.NDArray[np.generic] | None,
        pad_id: int = 0,
        teacher: npt.NDArray[np.float32] | None = None,
    ) -> None:
        self.ids, self.lengths, self.first = encoded.ids, encoded.lengths, encoded.first
        self.offsets = np.concatenate([[0], np.cumsum(encoded.lengths, dtype=np.int64)])
        self.labels, self.teacher = labels, teacher
        self.pad_id = pad_id
        self.number: npt.NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.lengths)

    def batch(self, rows: npt.NDArray[np.int64]) -> Batch:
        """Collate these rows."""
        lengths = self.lengths[rows]
        width = int(lengths.max())
        columns = np.arange(width)
        real = columns < lengths[:, None]
        where = np.minimum(self.offsets[rows][:, None] + columns, len(self.ids) - 1)
        ids = np.where(real, self.ids[where], self.pad_id).astype(np.int64)
        if self.number is not None:
            ids = self.number[ids]
        first = self.first[rows]
        segments = None
        if (first < lengths).any():
            segments = torch.from_numpy(((columns >= first[:, None]) & real).astype(np.int64))
        labels = None
        if self.labels is not None:
            labels = torch.from_numpy(self.labels[rows])
        teacher = None if self.teacher is None else torch.from_numpy(self.teacher[rows])
        mask = None if real.all() else torch.from_numpy(real)
        return Batch(torch.from_numpy(ids), segments, mask, labels, rows, teacher)

    def used_ids(self) -> npt.NDArray[np.int64]:
        """Return the sorted piece numbers that occur, with the padding."""
        return np.union1d(np.unique(self.ids), [self.pad_id]).astype(np.int64)

    def renumber(self, used: npt.NDArray[np.int64]) -> "Dataset":
        """Return the data set with piece numbers replaced by their positions in `used`.

        The ids stay where they are, in pages that processes share; a batch is renumbered when it is made.
        """
        number = np.zeros(int(used[-1]) + 1, np.int64)
        number[used] = np.arange(len(used))
        other = copy.copy(self)
        other.number = number
        return other


def epoch_order(
    lengths: npt.NDArray[np.integer], batch_size: int, seed: int, epoch: int, *, grouped: bool = True
) -> list[npt.NDArray[np.int64]]:
    """Return the rows of each batch of one epoch: every row once, batches of `batch_size`, the last one may be smaller.

    Args:
        lengths: pieces per row, [N].
        grouped: rows of similar length share a batch. Rows are drawn in groups of 50 batches, sorted by length within
            the group, and the batches are shuffled; who meets whom still changes from epoch to epoch.
    """
    drawn = np.random.default_rng([seed, epoch])
    rows = drawn.permutation(len(lengths))
    if not grouped:
        return [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
    size = batch_size * _GROUP
    batches = []
    for start in range(0, len(rows), size):
        group = rows[start : start + size]
        group = group[np.argsort(lengths[group], kind="stable")]
        batches += [group[i : i + batch_size] for i in range(0, len(group), batch_size)]
    return [batches[i] for i in drawn.permutation(len(batches))]


class Batches:
    """The training batches of a data set.

    Args:
        data: the examples.
        batch_size: examples per optimizer step.
        seed: decides the order of every epoch.
        grouped: rows of similar length share a batch.
    """

    def __init__(self, data: Dataset, batch_size: int, seed: int, *, grouped: bool = True) -> None:
        self.data, self.batch_size, self.seed, self.grouped = data, batch_size, seed, grouped
        self.per_epoch = math.ceil(len(data) / batch_size)

    def rows(self, epoch: int) -> list[npt.NDArray[np.int64]]:
        """Return the rows of each batch of this epoch."""
        return epoch_order(self.data.lengths, self.batch_size, self.seed, epoch, grouped=self.grouped)

    def micro(self, rows: npt.NDArray[np.int64], size: int | None) -> Iterator[Batch]:
        """Collate the rows of one batch, in pieces of at most `size` rows."""
        size = size or max(1, len(rows))
        for start in range(0, len(rows), size):
            yield self.data.batch(rows[start : start + size])


def by_length(lengths: npt.NDArray[np.integer], budget: int = 4096) -> list[npt.NDArray[np.int64]]:
    """Return batches for inference: sorted by length, each of at most `budget` positions, padding included."""
    order = np.argsort(lengths, kind="stable")[::-1].astype(np.int64)
    batches, start = [], 0
    while start < len(order):
        rows = max(1, budget // int(lengths[order[start]]))
        batches.append(order[start : start + rows])
        start += rows
    return batches


def encode(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    *,
    max_length: int,
    cache: Path | None = None,
) -> Encoded:
    """Encode texts, or read them from the cache where the same texts were encoded the same way before.

    Args:
        cache: the folder; None means `encoded` in the cache folder. A cache that cannot be read or written is not an
            error: the texts are encoded again.
    """
    folder = cache or cache_folder() / "encoded"
    path = folder / f"{_key(tokenizer, texts, pairs, max_length)}.npy"
    found = _read(path)
    if found is not None:
        return found
    encoded = tokenizer.encode(texts, pairs, max_length=max_length)
    try:
        with atomic_write(path, durable=False) as temporary, temporary.open("wb") as file:
            np.save(file, _packed(encoded))
    except (MiniaturesError, OSError):
        return encoded  # the cache saves time, nothing depends on it
    return _read(path) or encoded


def _key(tokenizer: Tokenizer, texts: Sequence[str], pairs: Sequence[str] | None, max_length: int) -> str:
    digest = hashlib.sha256(f"{_FORMAT} {tokenizer.fingerprint} {max_length} {pairs is None}".encode())
    for column in (texts, pairs or ()):
        for text in column:
            raw = text.encode("utf-8", "surrogatepass")
            digest.update(len(raw).to_bytes(8, "little"))
            digest.update(raw)
    return digest.hexdigest()


# A cached data set is one int32 array: 8 numbers of digest, then pieces, unknown, truncated and rows as int64, then the
# lengths, the first segments' lengths and the ids. One array can be memory-mapped: processes share its pages.
_DIGEST, _HEAD = 8, 16


def _packed(encoded: Encoded) -> npt.NDArray[np.int32]:
    counts = np.array([encoded.pieces, encoded.unknown, encoded.truncated, len(encoded.lengths)], np.int64)
    body = np.concatenate([counts.view(np.int32), encoded.lengths, encoded.first, encoded.ids]).astype(np.int32)
    return np.concatenate([_digest(body), body])


def _digest(body: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    return np.frombuffer(hashlib.sha256(np.ascontiguousarray(body).data).digest(), np.int32)


def _read(path: Path) -> Encoded | None:
    try:
        packed = np.load(path, mmap_mode="r", allow_pickle=False)
        if packed.dtype != np.int32 or not np.array_equal(packed[:_DIGEST], _digest(packed[_DIGEST:])):
            return None
        pieces, unknown, truncated, rows = (int(count) for count in packed[_DIGEST:_HEAD].view(np.int64))
    except (OSError, ValueError, EOFError, SyntaxError):  # what numpy raises for a damaged header
        return None
    lengths, first, ids = np.split(packed[_HEAD:], [rows, 2 * rows])
    return Encoded(ids, lengths, first, pieces, unknown, truncated)
