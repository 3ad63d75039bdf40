"""The updates of a pre-training run in their order: which rows of which length each one reads."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_miniatures.checkpoint import ModelFolder
from bert_miniatures.config import ModelConfig, PretrainConfig
from bert_miniatures.data.encoding import EncodedCorpus
from bert_miniatures.data.instances import Rules
from bert_miniatures.data.masking import Masker
from bert_miniatures.data.on_demand import OnDemand
from bert_miniatures.data.pretraining import PretrainBatch, PretrainBatches, held_out_batches

__all__ = ["Course", "course_of", "held_out_of", "work_of"]

Ints = npt.NDArray[np.int64]

_PHASE = 60  # the bits of a row's number below are those of PretrainBatches
_HELD_OUT = 512 * 128  # positions to validate on: 9,000 words to guess, an accuracy to half a point


class Course:
    """One or two sources of batches, one after the other; a source for `train`.

    Args:
        phases: batches of the first length and, where there is one, of the second.

    Attributes:
        sources: all whose rows are handed out.
        long_begins: the first update that reads the second source, from its beginning.
        per_epoch: so many that `train` never sees an end; how often the corpus was read is in `at`.
        latest: the rows that were handed out last.
    """

    per_epoch = 2**62

    def __init__(self, phases: Sequence[PretrainBatches]) -> None:
        self.phases, self.long_begins = list(phases), self.per_epoch
        self.sources: list[Any] = list(phases)
        self.latest = np.empty(0, np.int64)
        self._epoch: tuple[tuple[int, int], Sequence[Ints]] = ((-1, -1), [])

    def at(self, step: int) -> tuple[int, int, int]:
        """Return which source the update after `step` others reads, in which epoch of it, and which batch there."""
        phase = int(step >= self.long_begins and len(self.phases) > 1)
        return phase, *divmod(step - phase * self.long_begins, self.phases[phase].per_epoch)

    def rows(self, epoch: int) -> Sequence[Ints]:
        """Return the rows of each update."""
        return OnDemand(self.rows_of, range(self.per_epoch))

    def rows_of(self, step: int) -> Ints:
        """Return the rows of the update after `step` others; the source is in the upper bits."""
        phase, epoch, index = self.at(step)
        if self._epoch[0] != (phase, epoch):
            self._epoch = ((phase, epoch), self.phases[phase].rows(epoch))
        self.latest = self._epoch[1][index] + (phase << _PHASE)
        return self.latest

    def micro(self, rows: Ints, size: int | None = None) -> Iterator[PretrainBatch]:
        """Collate rows; `size` is that of the first length, and as many fewer as the second one is longer."""
        if len(rows):
            batches, plain = self._source(rows)
            yield from batches.micro(plain, size and _fewer(size, self.phases[0], batches))

    def lengths(self, rows: Ints) -> npt.NDArray[np.int32]:
        """Return the lengths of the instances in rows."""
        batches, plain = self._source(rows)
        return batches.lengths(plain)

    def kind(self, step: int) -> str:
        """Return what the update after `step` others learns; nothing where all learn the same."""
        return ""

    def cost(self, rows: Ints, config: ModelConfig, mask_share: float) -> tuple[int, float]:
        """Return the tokens of rows and the floating-point operations of an update on them."""
        lengths = self.lengths(rows)
        return int(lengths.sum()), work_of(config, lengths, mask_share)

    def updates(self, epochs: int) -> int:
        """Return how many updates read the corpus so often, in the first length."""
        return epochs * self.phases[0].per_epoch

    def passes(self, step: int) -> float:
        """Return how often the corpus was read in the first `step` updates."""
        done = [min(step, self.long_begins), max(0, step - self.long_begins)]
        return sum(n / batches.per_epoch for n, batches in zip(done, self.phases, strict=False))

    def _source(self, rows: Ints) -> tuple[PretrainBatches, Ints]:
        return self.phases[int(rows[0]) >> _PHASE], rows & (2**_PHASE - 1)


def _fewer(rows: int, first: PretrainBatches, other: PretrainBatches) -> int:
    return max(1, rows * first.rules.max_length // other.rules.max_length)


def course_of(config: PretrainConfig, parent: ModelFolder, corpus: EncodedCorpus, documents: Ints) -> Course:
    """Make the batches of a run.

    Raises:
        DataError: there are no documents, or one only and next-sentence prediction is on.
    """
    data, masker = config.data, _masker(config, parent)
    lengths = [data.max_length, *([data.long_length] if data.long_share else [])]
    return Course(
        [
            PretrainBatches(
                corpus,
                documents,
                parent.tokenizer,
                _rules(config, length),
                masker,
                max(1, config.train.batch_size * data.max_length // length),
                packed=data.packed,
            )
            for length in lengths
        ]
    )


def held_out_of(
    config: PretrainConfig, parent: ModelFolder, corpus: EncodedCorpus, documents: Ints
) -> list[list[PretrainBatch]]:
    """Return the batches to validate on, for each of the lengths."""
    lengths = [config.data.max_length, *([config.data.long_length] if config.data.long_share else [])]
    return [
        held_out_batches(
            corpus,
            documents,
            parent.tokenizer,
            _rules(config, length),
            _masker(config, parent),
            batch_size=max(1, 64 * 128 // length),
            most=max(2, _HELD_OUT // length),
        )
        for length in lengths
    ]


def _rules(config: PretrainConfig, length: int) -> Rules:
    return Rules(length, config.data.next_sentence, config.data.short_share, config.train.seed)


def _masker(config: PretrainConfig, parent: ModelFolder) -> Masker:
    return Masker(parent.tokenizer, config.data.masking, config.data.mask_share)


def work_of(config: ModelConfig, lengths: npt.NDArray[np.integer], mask_share: float) -> float:
    """Return the floating-point operations of training on instances of these lengths.

    They are those of the plain model, forward and twice as many backward: matrix products of every layer for every
    position, attention inside each instance, and the vocabulary projection of the pieces that are to be guessed.
    Nothing is left out and nothing padded, so that shares of a processor's peak can be compared.
    """
    width = config.hidden_size
    tokens, guessed = int(lengths.sum()), float(np.maximum(np.rint(mask_share * lengths), mask_share > 0).sum())
    layer = 4 * width**2 + 2 * width * config.intermediate_size
    positions = config.num_hidden_layers * (2 * layer * tokens + 4 * width * float((lengths.astype(float) ** 2).sum()))
    return 3 * (positions + 2 * guessed * (width * config.vocab_size + width**2))
