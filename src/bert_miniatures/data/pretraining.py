"""Batches for pre-training: instances of an encoded corpus, masked when they are read.

A row is an instance or, packed, several of them side by side. What a row holds is a pure function of (seed, epoch,
number of the row): batches can be reached in any order, and the same epoch never gives other masks.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bert_miniatures.data.encoding import EncodedCorpus
from bert_miniatures.data.instances import Instances, Rules, chapters, instances, pack
from bert_miniatures.data.masking import Flat, Masker, draw
from bert_miniatures.data.on_demand import OnDemand
from bert_miniatures.errors import DataError
from bert_miniatures.tokenizer import Tokenizer

__all__ = ["HELD_OUT_SEED", "PretrainBatch", "PretrainBatches", "held_out_batches"]

HELD_OUT_SEED = 20_200_220  # the same for all runs, so that they guess the same held-out words
_GROUP = 50  # batches that are sorted by length together
_CHAPTER, _EPOCH = 32, 40  # bits of a row's number: the row below, then the chapter, then the epoch
_KEPT = 2  # chapters in memory

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PretrainBatch:
    """B rows of T positions with I instances, M words to guess.

    Attributes:
        ids: word pieces, int64 [B, T].
        segments: 1 in second texts, int64 [B, T]; None without next-sentence prediction.
        mask: true at real positions, bool [B, T]; None where nothing is padded.
        groups: 0 at padding, else the number of the instance in its row, from 1, int64 [B, T]; None unless packed.
        positions: of each piece in its instance, int64 [B, T]; None unless packed.
        masked: where words are to be guessed, as places of the flattened [B * T], ascending, int64 [M].
        targets: the pieces there, int64 [M].
        starts: where each instance has its [CLS], places as in `masked`, int64 [I].
        next: 0 where the second text follows the first, 1 where it is random, int64 [I]; None without next-sentence
            prediction.
        tokens: real positions.
    """

    ids: Tensor
    segments: Tensor | None
    mask: Tensor | None
    groups: Tensor | None
    positions: Tensor | None
    masked: Tensor
    targets: Tensor
    starts: Tensor
    next: Tensor | None
    tokens: int

    def __len__(self) -> int:
        return int(self.ids.shape[0])

    def to(self, device: torch.device) -> "PretrainBatch":
        """Return the batch on another device."""
        if device.type == "cpu":
            return self
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {name: value.to(device, non_blocking=True) for name, value in tensors.items()}
        return replace(self, **moved)


@dataclass(frozen=True)
class _Chapter:
    """The instances of a chapter, and which of them are in which row."""

    found: Instances
    members: Ints
    begins: Ints

    @property
    def rows(self) -> int:
        return len(self.begins) - 1


class PretrainBatches:
    """The training batches of an encoded corpus.

    Args:
        corpus: from `encode_corpus`.
        documents: the numbers of those to read, ascending; see `split_documents`.
        tokenizer: the one that the corpus was encoded with.
        rules: how instances are made.
        masker: chooses and replaces words.
        batch_size: rows per optimizer step.
        packed: rows hold as many instances as fit; otherwise one, and rows of similar length share a batch.

    Attributes:
        per_epoch: batches in an epoch: as many as the first epoch fills. Others have a few instances more, which are
            left out, or fewer, so that some come twice.

    Raises:
        ConfigError: `max_length` leaves no room.
        DataError: no documents, or one document only and next-sentence prediction is on.
    """

    def __init__(
        self,
        corpus: EncodedCorpus,
        documents: Ints,
        tokenizer: Tokenizer,
        rules: Rules,
        masker: Masker,
        batch_size: int,
        *,
        packed: bool = False,
    ) -> None:
        if not len(documents):
            raise DataError("the corpus has no documents to train on")
        self.corpus, self.documents, self.rules, self.masker = corpus, documents, rules, masker
        self.batch_size, self.packed = batch_size, packed
        self._cls, self._sep, self._pad = tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id
        self._kept: OrderedDict[tuple[int, int], _Chapter] = OrderedDict()
        self._parts: OrderedDict[int, list[Ints]] = OrderedDict()
        self._lock = threading.Lock()  # threads share batches
        self.chapters = len(self._documents_of(0))
        self.per_epoch = max(1, self.chapters * self._chapter(0, 0).rows // batch_size)

    def rows(self, epoch: int) -> Sequence[Ints]:
        """Return the rows of each batch of this epoch; chapters are drawn when their batches are asked for."""

        @lru_cache(1)
        def of(chapter: int) -> list[Ints]:
            return self.epoch_rows(epoch, chapter)

        def batch_rows(number: int) -> Ints:
            chapter = next(c for c in range(self.chapters) if number < self.first_batch(c + 1))
            return of(chapter)[number - self.first_batch(chapter)]

        return OnDemand(batch_rows, range(self.per_epoch))

    def micro(self, rows: Ints, size: int | None = None) -> Iterator[PretrainBatch]:
        """Collate the rows of one batch, in pieces of at most `size` rows."""
        size = size or max(1, len(rows))
        for start in range(0, len(rows), size):
            yield self.batch(rows[start : start + size])

    def batch(self, rows: Ints) -> PretrainBatch:
        """Collate rows, all of the same chapter."""
        known, first, members, counts = self._members(rows)
        flat, is_second = self._flat(known.found.at(members), first + members)
        row = np.repeat(np.arange(len(rows)), counts)
        return self._laid_out(flat, is_second, row, known.found.random[members])

    def lengths(self, rows: Ints) -> npt.NDArray[np.int32]:
        """Return the lengths of the instances in rows of the same chapter, special tokens included."""
        known, _, members, _ = self._members(rows)
        return known.found.lengths[members]

    def _members(self, rows: Ints) -> tuple[_Chapter, np.int64, Ints, Ints]:
        """Return the chapter of some rows, the number of its first row, their instances, and how many each has."""
        epoch, chapter = int(rows[0]) >> _EPOCH, (int(rows[0]) >> _CHAPTER) & (2 ** (_EPOCH - _CHAPTER) - 1)
        known = self._chapter(epoch, chapter)
        local = rows & (2**_CHAPTER - 1)
        counts = known.begins[local + 1] - known.begins[local]
        places = np.arange(counts.sum()) + np.repeat(known.begins[local] - (np.cumsum(counts) - counts), counts)
        return known, rows[0] - local[0], known.members[places], counts

    def epoch_rows(self, epoch: int, chapter: int) -> list[Ints]:
        """Return the rows of each batch of a chapter."""
        known = self._chapter(epoch, chapter)
        wanted = self.first_batch(chapter + 1) - self.first_batch(chapter)
        drawn = np.random.default_rng([self.rules.seed, epoch, chapter, 2])
        size = min(self.batch_size, known.rows)
        order = np.resize(drawn.permutation(known.rows), wanted * size)  # cut, or repeated from its beginning
        if not self.packed:
            lengths = known.found.lengths
            for start in range(0, len(order), size * _GROUP):
                group = order[start : start + size * _GROUP]
                group[:] = group[np.argsort(lengths[group], kind="stable")]
        batches = order.reshape(wanted, size) + ((epoch << _EPOCH) + (chapter << _CHAPTER))
        return list(batches[drawn.permutation(wanted)])

    def lengths_of(self, chapter: int) -> npt.NDArray[np.int32]:
        """Return the instances' lengths of a chapter of epoch 0."""
        return self._chapter(0, chapter).found.lengths

    def first_batch(self, chapter: int) -> int:
        """Return how many batches of an epoch come before a chapter."""
        return self.per_epoch * chapter // self.chapters

    # ---- chapters

    def _documents_of(self, epoch: int) -> list[Ints]:
        if epoch not in self._parts:
            self._parts[epoch] = chapters(self.corpus, self.documents, self.rules, epoch)
            while len(self._parts) > _KEPT:
                self._parts.popitem(last=False)
        return self._parts[epoch]

    def _chapter(self, epoch: int, chapter: int) -> _Chapter:
        with self._lock:
            key = (epoch, chapter)
            if key not in self._kept:
                part = self._documents_of(epoch)[chapter]
                found = instances(self.corpus, part, self.documents, self.rules, epoch, chapter)
                self._kept[key] = self._arranged(found, epoch, chapter)
                while len(self._kept) > _KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]

    def _arranged(self, found: Instances, epoch: int, chapter: int) -> _Chapter:
        if not self.packed:
            return _Chapter(found, np.arange(len(found)), np.arange(len(found) + 1))
        order = np.random.default_rng([self.rules.seed, epoch, chapter, 3]).permutation(len(found))
        members, begins = pack(found.lengths[order], self.rules.max_length)
        return _Chapter(found, order[members], begins)

    # ---- collation

    def _flat(self, found: Instances, numbers: Ints) -> tuple[Flat, npt.NDArray[np.bool_]]:
        """Read instances from the corpus, one after the other; tell which tokens are of second texts."""
        lengths = found.lengths.astype(np.int64)
        owner = np.repeat(np.arange(len(found)), lengths)
        position = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        a_end = found.a_length[owner] + 1  # where the first [SEP] is
        is_second = position > a_end
        source = np.where(is_second, found.b[owner] - a_end - 1, found.a[owner] - 1) + position
        is_start, is_end = position == 0, (position == a_end) | (position == lengths[owner] - 1)
        source[is_start | is_end] = 0
        ids = self.corpus.ids[source].astype(np.int64)
        ids[is_start], ids[is_end] = self._cls, self._sep
        seed = draw(np.full(1, self.rules.seed, np.uint64), np.zeros(1, np.int64), 0)
        return Flat(ids, owner, position, lengths, numbers.astype(np.uint64) ^ seed), is_second

    def _laid_out(
        self, flat: Flat, is_second: npt.NDArray[np.bool_], row: Ints, is_random: npt.NDArray[np.bool_]
    ) -> PretrainBatch:
        """Put instances into the rows that they belong to. Rows are ascending in `row`."""
        targets = flat.ids.copy()
        chosen = self.masker(flat)
        before = np.cumsum(flat.lengths) - flat.lengths
        first = np.searchsorted(row, np.arange(row[-1] + 1))  # the first instance of each row
        offset = before - before[first][row]
        filled = np.add.reduceat(flat.lengths, first)
        height, width = len(first), int(filled.max())
        begins = row * width + offset
        at = begins[flat.instance] + flat.position

        def spread(values: npt.NDArray[np.integer | np.bool_], fill: int = 0) -> Tensor:
            grid = np.full(height * width, fill, np.int64)
            grid[at] = values
            return torch.from_numpy(grid.reshape(height, width))

        pair = self.rules.next_sentence
        number = np.arange(len(row)) - first[row] + 1
        real = np.arange(width) < filled[:, None]
        return PretrainBatch(
            ids=spread(flat.ids, self._pad),
            segments=spread(is_second) if pair else None,
            mask=None if real.all() else torch.from_numpy(real),
            groups=spread(number[flat.instance]) if self.packed else None,
            positions=spread(flat.position) if self.packed else None,
            masked=torch.from_numpy(at[chosen]),
            targets=torch.from_numpy(targets[chosen]),
            starts=torch.from_numpy(begins),
            next=torch.from_numpy(is_random.astype(np.int64)) if pair else None,
            tokens=len(at),
        )


def held_out_batches(
    corpus: EncodedCorpus,
    documents: Ints,
    tokenizer: Tokenizer,
    rules: Rules,
    masker: Masker,
    *,
    batch_size: int = 64,
    most: int = 2048,
) -> list[PretrainBatch]:
    """Return fixed batches for validation: the same instances with the same masks, whatever the seed of the run.

    Args:
        documents: the held-out ones; see `split_documents`.
        rules: as in training; the seed is not used.
        most: instances; of more, so many are taken in equal steps.
    """
    if not len(documents):
        return []
    batches = PretrainBatches(corpus, documents, tokenizer, replace(rules, seed=HELD_OUT_SEED), masker, batch_size)
    lengths = batches.lengths_of(0)
    rows = np.unique(np.linspace(0, len(lengths) - 1, min(most, len(lengths))).astype(np.int64))
    rows = rows[np.argsort(lengths[rows], kind="stable")]
    return [batches.batch(rows[i : i + batch_size]) for i in range(0, len(rows), batch_size)]
