"""What a teacher adds to a pre-training run: where word vectors start, two more objectives and their batches."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_miniatures.config import ModelConfig, PretrainConfig, TeacherConfig
from bert_miniatures.data.mixture import Mixture
from bert_miniatures.data.pairs import PairRules, Pairs
from bert_miniatures.data.pretraining import PretrainBatch
from bert_miniatures.data.teacher_store import TeacherStore
from bert_miniatures.data.teacher_texts import Selection
from bert_miniatures.data.teaching import PairBatch, PairBatches, VectorBatch, VectorBatches
from bert_miniatures.errors import ConfigError
from bert_miniatures.names import Weights
from bert_miniatures.objectives import Objective, by_kind, masked_lm, pair_similarity, sentence_vectors
from bert_miniatures.recipes.course import Course
from bert_miniatures.recipes.text_loading import TextInputs
from bert_miniatures.teacher_pass import make_pairs, make_store
from bert_miniatures.watch import Watch
from bert_miniatures.word_start import start_words

__all__ = ["Lessons", "TaughtCourse", "lessons_of"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Lessons:
    """What a run learns from its teacher; nothing of it where there is none.

    Attributes:
        weights: what the model starts from.
        store: sentences and phrases with the teacher's vectors.
        pairs: of them, where they are learnt.
        vectors: whether they are learnt.
    """

    weights: Weights
    store: TeacherStore | None = None
    pairs: Pairs | None = None
    vectors: bool = False

    @property
    def helpers(self) -> dict[str, int]:
        """The helpers of the model, name -> outputs."""
        found = {"projection": self.store.vectors.shape[1]} if self.store is not None and self.vectors else {}
        return found if self.pairs is None else found | {"similarity": 1}

    def objective(self) -> Objective:
        """Return what is learnt."""
        if self.store is None:
            return masked_lm()
        known: dict[type, Objective] = {PretrainBatch: masked_lm(), VectorBatch: sentence_vectors()}
        if self.pairs is not None:
            known[PairBatch] = pair_similarity(self.pairs.mean, self.pairs.deviation)
        return by_kind(known)

    def course(self, masked: Course, config: PretrainConfig, inputs: TextInputs) -> Course:
        """Return the batches of the run: those of masked words, and the teacher's among them."""
        if self.store is None:
            return masked
        teacher, tokenizer, train = config.teacher, inputs.parent.tokenizer, config.train
        rest = (tokenizer, config.data.max_length, teacher.batch_size or train.batch_size, train.seed)
        others: dict[str, VectorBatches | PairBatches] = {}
        if self.vectors:
            others["vectors"] = VectorBatches(self.store, *rest)
        if self.pairs is not None:
            others["pairs"] = PairBatches(self.store, self.pairs, *rest)
        return TaughtCourse(masked, others, teacher, train.seed)

    def facts(self) -> dict[str, Any]:
        """Return what result.json says of them."""
        if self.store is None:
            return {}
        texts = self.store.texts
        found = {"sentences": texts.sentences, "phrases": texts.phrases, "width": self.store.vectors.shape[1]}
        return {"lessons": found if self.pairs is None else found | {"pairs": len(self.pairs)}}


class TaughtCourse(Course):
    """A course with batches of a teacher's among those of masked words.

    Args:
        masked: the batches of masked words.
        others: name -> the teacher's.
        teacher: their shares.
        seed: where the sequence of kinds begins.
    """

    def __init__(
        self, masked: Course, others: dict[str, VectorBatches | PairBatches], teacher: TeacherConfig, seed: int
    ) -> None:
        shares = {"masked": teacher.masked_share, "vectors": teacher.vector_share, "pairs": teacher.pair_share}
        self.kinds = ["masked", *others]
        self._masked = masked
        self._mixture = Mixture([masked, *others.values()], [shares[kind] for kind in self.kinds], seed)
        super().__init__(masked.phases)
        self.sources = [*masked.sources, *others.values()]

    @property
    def long_begins(self) -> int:
        """The first update after which masked words are read in the second length."""
        return self._long_begins

    @long_begins.setter
    def long_begins(self, step: int) -> None:
        self._long_begins = step
        self._masked.long_begins = self._mixture.done(step)[0]

    def at(self, step: int) -> tuple[int, int, int]:
        """Return where in the corpus the next update of masked words reads."""
        return self._masked.at(self._mixture.done(step)[0])

    def kind(self, step: int) -> str:
        """Return what the update after `step` others learns."""
        return self.kinds[int(self._mixture.kinds(step, step + 1)[0])]

    def rows_of(self, step: int) -> Ints:
        """Return the rows of the update after `step` others."""
        self.latest = self._mixture.rows_of(step)
        return self.latest

    def micro(self, rows: Ints, size: int | None = None) -> Iterator[Any]:
        """Collate rows."""
        return self._mixture.micro(rows, size)

    def lengths(self, rows: Ints) -> npt.NDArray[np.int32]:
        """Return the lengths of the texts in rows."""
        return self._mixture.lengths(rows).astype(np.int32)

    def cost(self, rows: Ints, config: ModelConfig, mask_share: float) -> tuple[int, float]:
        """Return tokens and floating-point operations; what a teacher says has no vocabulary projection."""
        return super().cost(rows, config, 0.0 if self._mixture.source(rows)[0] else mask_share)

    def updates(self, epochs: int) -> int:
        """Return how many updates read the corpus so often."""
        wanted = self._masked.updates(epochs)
        steps = math.ceil(wanted / self._mixture.shares[0])
        while self._mixture.done(steps)[0] < wanted:  # shares are kept but for a few
            steps += 1
        return steps

    def passes(self, step: int) -> float:
        """Return how often the corpus was read in the first `step` updates."""
        return self._masked.passes(self._mixture.done(step)[0])


def lessons_of(config: PretrainConfig, inputs: TextInputs, watch: Watch) -> Lessons:
    """Have the teacher read what it is to read, unless it did so before.

    Raises:
        ConfigError: the settings do not fit the teacher or the model.
        DataError: the corpus has no sentence for it.
    """
    teacher, read = config.teacher, inputs.teacher
    if read is None:
        return Lessons(inputs.parent.weights)
    weights = _start(config, inputs, watch) if teacher.start_words else inputs.parent.weights
    if not (teacher.vector_share or teacher.pair_share):
        return Lessons(weights)
    seed = teacher.seed
    rules = PairRules(teacher.pairs, teacher.near_share, teacher.thinned_share, teacher.among, seed=seed)
    room = min(config.data.max_length, read.max_length) - 2
    if teacher.longest is not None and teacher.longest > room:
        raise ConfigError(
            f"teacher.longest {teacher.longest}: at most {room} pieces fit into what both student and teacher read"
        )
    selection = Selection(
        teacher.sentences,
        rules.copies if teacher.pair_share else 0,
        teacher.shortest,
        room if teacher.longest is None else teacher.longest,
        seed,
        teacher.phrases if teacher.vector_share else 0,
    )
    student, processes = inputs.parent.tokenizer, config.train.threads
    how: dict[str, Any] = {"precision": teacher.precision, "processes": processes, "watch": watch}
    store = make_store(inputs.corpus, inputs.training, student, read, selection, **how)
    pairs = make_pairs(store, rules, processes=processes, watch=watch) if teacher.pair_share else None
    return Lessons(weights, store, pairs, teacher.vector_share > 0)


def _start(config: PretrainConfig, inputs: TextInputs, watch: Watch) -> Weights:
    """Return the teacher's word vectors, made narrower."""
    parent, read = inputs.parent, inputs.teacher
    assert read is not None
    if parent.weights:
        raise ConfigError(
            f"teacher.start_words is for new weights (--vocab), and {config.model} has word vectors of its own"
        )
    words, shared = start_words(
        read.model.weights["embed.word.weight"],
        read.model.tokenizer.vocabulary,
        parent.tokenizer.vocabulary,
        parent.config.hidden_size,
        deviation=parent.config.initializer_range,
        seed=config.train.seed,
    )
    watch.note(f"word vectors of {shared:,} of {len(words):,} pieces start from the teacher's")
    return {"embed.word.weight": words}
