"""What a model reads in pre-training: which stretches of which documents, as numbers.

An instance is `[CLS] a [SEP] b [SEP]` or `[CLS] a [SEP]`, a and b being consecutive pieces of one document each. The
documents of a chapter are walked through side by side, one instance of each at a time, so that the instances of
60 million pieces are known after seconds; they are a pure function of (seed, epoch, chapter).

Source: google-research/bert `create_pretraining_data.py` (`create_instances_from_document`, `truncate_seq_pair`).
"""

import math
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from bert_miniatures.data.encoding import EncodedCorpus
from bert_miniatures.errors import ConfigError, DataError
from bert_miniatures.tokenizer import kept_of_pair

__all__ = ["Instances", "Rules", "chapters", "instances", "pack", "split_documents"]

Ints = npt.NDArray[np.int64]

_CHAPTER = 2**27  # pieces whose instances are in memory at once; about 30 MB
_LEAST_DOCUMENTS = 4  # fewer are not divided into training and held-out ones
_SHORTEST = 2  # pieces that a short instance is made for


@dataclass(frozen=True)
class Rules:
    """How instances are made.

    Attributes:
        max_length: in word pieces, special tokens included.
        next_sentence: instances are pairs, and half of the second texts are from another document.
        short: share of instances that are made for a random smaller length.
        seed: of all that is drawn.
    """

    max_length: int = 128
    next_sentence: bool = True
    short: float = 0.1
    seed: int = 1

    @property
    def room(self) -> int:
        """Pieces that fit beside the special tokens."""
        return self.max_length - (3 if self.next_sentence else 2)


@dataclass(frozen=True)
class Instances:
    """N instances.

    Attributes:
        a, b: where the texts begin in the corpus, int64 [N].
        a_length, b_length: in pieces, int32 [N]; b has 0 where there is no second text.
        random: whether b is from another document, bool [N].
    """

    a: Ints
    a_length: npt.NDArray[np.int32]
    b: Ints
    b_length: npt.NDArray[np.int32]
    random: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.a)

    @property
    def lengths(self) -> npt.NDArray[np.int32]:
        """Pieces with the special tokens, int32 [N]."""
        found: npt.NDArray[np.int32] = (
            self.a_length + self.b_length + np.where(self.b_length > 0, 3, 2).astype(np.int32)
        )
        return found

    def at(self, places: Ints) -> "Instances":
        """Return some of them."""
        return Instances(*(getattr(self, field.name)[places] for field in fields(self)))


def split_documents(hashes: npt.NDArray[np.uint64], share: float = 0.01, most: int = 1000) -> tuple[Ints, Ints]:
    """Divide documents into training and held-out ones by their texts alone.

    Held out are those with a hash in the lowest `share` of all hashes: at least two texts, at most `most`, and none
    where there are fewer than four texts. Equal texts are on the same side. The order of files and documents does not
    matter, and a document stays on its side when others are added, as long as neither limit is reached.

    Returns:
        The numbers of the training documents and of the held-out ones, ascending.
    """
    texts = np.unique(hashes)
    if len(texts) < _LEAST_DOCUMENTS or share <= 0:
        return np.arange(len(hashes)), np.empty(0, np.int64)
    below = int(np.searchsorted(texts, np.uint64(min(int(share * 2**64), 2**64 - 1))))
    count = min(max(below, 2), max(most, 2), len(texts) - 2)
    held = hashes <= texts[count - 1]
    return np.flatnonzero(~held), np.flatnonzero(held)


def chapters(corpus: EncodedCorpus, documents: Ints, rules: Rules, epoch: int) -> list[Ints]:
    """Divide the documents of an epoch, in random order, into chapters of about as many pieces each.

    The number of chapters is the same in every epoch: one for each 134 million pieces.
    """
    sizes = corpus.sentences[corpus.documents[documents + 1]] - corpus.sentences[corpus.documents[documents]]
    total = int(sizes.sum())
    count = min(math.ceil(total / _CHAPTER), len(documents) // 2) or 1
    order = np.random.default_rng([rules.seed, epoch]).permutation(len(documents))
    middles = np.cumsum(sizes[order]) - sizes[order] // 2
    cuts = np.searchsorted(middles, np.arange(1, count) * (total / count))
    return [documents[part] for part in np.split(order, cuts)]


def instances(
    corpus: EncodedCorpus, documents: Ints, others: Ints, rules: Rules, epoch: int, chapter: int = 0
) -> Instances:
    """Make the instances of some documents.

    Args:
        documents: their numbers, in the order in which they are walked through.
        others: the documents that random second texts come from, ascending; `documents` are among them.
        epoch, chapter: what the randomness is drawn from, beside the seed.

    Raises:
        ConfigError: `max_length` leaves no room.
        DataError: one document only, and random second texts are to come from another one.
    """
    least = 5 if rules.next_sentence else 3
    if rules.max_length < least:
        raise ConfigError(f"max_length {rules.max_length} is too small for pre-training; at least {least} are needed")
    drawn = np.random.default_rng([rules.seed, epoch, chapter, 1])
    if not rules.next_sentence:
        return _singles(corpus, documents, rules, drawn)
    if len(others) < 2:
        raise DataError(
            "next-sentence prediction needs at least 2 documents, the corpus has 1; put an empty line between "
            "documents, or switch it off (next_sentence = false)"
        )
    return _pairs(corpus, documents, others, rules, drawn)


def _targets(count: int, rules: Rules, drawn: np.random.Generator) -> Ints:
    """Draw how many pieces each instance is made for."""
    is_short = drawn.random(count) < rules.short
    found: Ints = np.where(is_short, drawn.integers(min(_SHORTEST, rules.room), rules.room + 1, count), rules.room)
    return found


def _singles(corpus: EncodedCorpus, documents: Ints, rules: Rules, drawn: np.random.Generator) -> Instances:
    """Take as many whole sentences as fit. One that does not fit into a row is cut, and its rest begins the next row.

    Every piece is in exactly one instance.
    """
    ends = corpus.sentences
    at, stop = ends[corpus.documents[documents]], ends[corpus.documents[documents + 1]]
    begins, sizes = [], []
    active = np.arange(len(documents))
    while len(active):
        here = at[active]
        last = here + _targets(len(active), rules, drawn)
        end = ends[np.searchsorted(ends, last, "right") - 1]
        sentence = ends[np.minimum(np.searchsorted(ends, here, "right"), len(ends) - 1)]
        end = np.where(end > here, end, np.minimum(sentence, here + rules.room))
        end = np.minimum(end, stop[active])
        begins.append(here)
        sizes.append(end - here)
        at[active] = end
        active = active[end < stop[active]]
    a, lengths = _joined(begins), _joined(sizes)
    nothing = np.zeros(len(a), np.int32)
    return Instances(a, lengths.astype(np.int32), np.zeros_like(a), nothing, nothing.astype(bool))


def _pairs(corpus: EncodedCorpus, documents: Ints, others: Ints, rules: Rules, drawn: np.random.Generator) -> Instances:
    """Pack sentences until the target is reached, divide them into a and b, and replace b in half of the pairs.

    The sentences that a random b replaced begin the next instance. A difference to the source: whether an instance is
    short is drawn for each instance, not once for a whole document, which may be a book.
    """
    ends = corpus.sentences
    at, stop = corpus.documents[documents].copy(), corpus.documents[documents + 1]
    walked: list[tuple[Ints, ...]] = []
    active = np.arange(len(documents))
    while len(active):
        here, last = at[active], stop[active]
        target = _targets(len(active), rules, drawn)
        end = np.clip(np.searchsorted(ends, ends[here] + target), here + 1, last)
        divide = here + 1 + (drawn.random(len(active)) * (end - here - 1)).astype(np.int64)
        is_random = (end - here == 1) | (drawn.random(len(active)) < 0.5)
        walked.append((active, here, divide, end, target, is_random.astype(np.int64)))
        at[active] = np.where(is_random, divide, end)
        active = active[at[active] < last]
    owner, first, divide, end, target, flag = (_joined(list(column)) for column in zip(*walked, strict=True))
    is_random = flag.astype(bool)
    a, a_length = ends[first], ends[divide] - ends[first]
    b_first, b_end = _random_seconds(corpus, documents[owner], others, target - a_length, drawn)
    b_first, b_end = np.where(is_random, b_first, divide), np.where(is_random, b_end, end)
    b, b_length = ends[b_first], ends[b_end] - ends[b_first]
    a_kept, b_kept = kept_of_pair(a_length, b_length, rules.room)
    a += drawn.binomial(a_length - a_kept, 0.5)  # each piece too many goes from the front or from the end
    b += drawn.binomial(b_length - b_kept, 0.5)
    return Instances(a, a_kept.astype(np.int32), b, b_kept.astype(np.int32), is_random)


def _random_seconds(
    corpus: EncodedCorpus, own: Ints, others: Ints, target: Ints, drawn: np.random.Generator
) -> tuple[Ints, Ints]:
    """Draw another document, a sentence in it, and as many sentences from there as the target asks for."""
    pick = (drawn.random(len(own)) * (len(others) - 1)).astype(np.int64)
    pick += pick >= np.searchsorted(others, own)
    document = others[pick]
    begin, stop = corpus.documents[document], corpus.documents[document + 1]
    first = begin + (drawn.random(len(own)) * (stop - begin)).astype(np.int64)
    end = np.searchsorted(corpus.sentences, corpus.sentences[first] + np.maximum(target, 1))
    return first, np.clip(end, first + 1, stop)


def _joined(blocks: list[Ints]) -> Ints:
    return np.concatenate(blocks) if blocks else np.empty(0, np.int64)


def pack(lengths: npt.NDArray[np.integer], room: int) -> tuple[Ints, Ints]:
    """Put instances together into rows of at most `room` positions, best fit, longest first.

    Args:
        lengths: [N], none over `room`.

    Returns:
        The instances, row after row [N], and where each row begins in them, with the end of the last [R + 1]. Which
        instances of equal length meet depends on their order.

    Example:
        >>> members, begins = pack(np.array([3, 7, 6, 4]), 10)
        >>> [members[i:j].tolist() for i, j in zip(begins, begins[1:])]
        [[1, 0], [2, 3]]
    """
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    sizes = np.asarray(lengths)[order].tolist()
    row = np.empty(len(order), np.int64)
    open_rows: list[list[int]] = [[] for _ in range(room + 1)]  # by the room that is left
    count = 0
    for i, size in enumerate(sizes):
        left = next((left for left in range(size, room + 1) if open_rows[left]), None)
        if left is None:
            number, left = count, room
            count += 1
        else:
            number = open_rows[left].pop()
        row[i] = number
        open_rows[left - size].append(number)
    by_row = np.argsort(row, kind="stable")
    return order[by_row], np.searchsorted(row[by_row], np.arange(count + 1))
