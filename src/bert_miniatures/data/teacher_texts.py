"""Which sentences of a corpus a teacher reads, thinned copies and phrases of them: a pure function of the seed.

A sentence's place in the order is a hash of its pieces and the seed. Equal sentences are therefore met once, the order
of files and documents does not matter, and the first n of any number are a random sample.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bert_miniatures.data.encoding import EncodedCorpus
from bert_miniatures.data.masking import draw
from bert_miniatures.errors import DataError
from bert_miniatures.tokenizer import Tokenizer

__all__ = ["Selection", "choose", "gathered", "phrases", "thinned"]

Ints = npt.NDArray[np.int64]

_BLOCK = 2**16  # sentences looked at at once; a few MB
_LEAST_DROPPED, _MOST_DROPPED = 0.1, 0.5  # share of a sentence's words that its thinned copy lacks
_PHRASE = 8  # words of a phrase at most
_CONTENT, _THINNED, _PHRASES = 5, 6, 7  # streams of random numbers


@dataclass(frozen=True)
class Selection:
    """Which sentences.

    Attributes:
        sentences: how many; fewer where the corpus has not so many.
        copies: so many of them are met as thinned copies too.
        shortest, longest: in word pieces, special tokens not counted.
        seed: of all that is drawn.
        phrases: how many phrases of them; fewer where there are not so many different ones.
    """

    sentences: int = 500_000
    copies: int = 75_000
    shortest: int = 6
    longest: int = 126
    seed: int = 1
    phrases: int = 0


def choose(corpus: EncodedCorpus, documents: Ints, tokenizer: Tokenizer, selection: Selection) -> Ints:
    """Return the numbers of the chosen sentences, in the order of their hashes.

    Sentences with an unknown piece are left out: the teacher would not read what the student reads.

    Args:
        corpus: from `encode_corpus`.
        documents: the numbers of those to choose from, ascending.
        tokenizer: the one that the corpus was encoded with.

    Raises:
        DataError: no sentence of these lengths.
    """
    allowed = np.zeros(len(corpus.documents) - 1, bool)
    allowed[documents] = True
    keys, numbers = np.empty(0, np.uint64), np.empty(0, np.int64)
    for start in range(0, len(corpus.sentences) - 1, _BLOCK):
        more = np.arange(start, min(start + _BLOCK, len(corpus.sentences) - 1))
        more = more[allowed[np.searchsorted(corpus.documents, more, "right") - 1]]
        lengths = corpus.sentences[more + 1] - corpus.sentences[more]
        more = more[(lengths >= selection.shortest) & (lengths <= selection.longest)]
        if not len(more):
            continue
        found, known = _keys(corpus, more, tokenizer.unk_id, selection.seed)
        keys, numbers = np.concatenate([keys, found[known]]), np.concatenate([numbers, more[known]])
        keys, first = np.unique(keys, return_index=True)  # ascending; of equal sentences the first
        keys, numbers = keys[: selection.sentences], numbers[first[: selection.sentences]]
    if not len(numbers):
        raise DataError(
            f"the corpus has no sentence of {selection.shortest} to {selection.longest} pieces for a teacher to read"
        )
    return numbers


def _keys(
    corpus: EncodedCorpus, numbers: Ints, unknown: int, seed: int
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.bool_]]:
    """Return a hash of each sentence's pieces and the seed, and whether all of its pieces are known."""
    ids, bounds = gathered(corpus.ids, corpus.sentences[numbers], corpus.sentences[numbers + 1])
    known: npt.NDArray[np.bool_] = ~np.logical_or.reduceat(ids == unknown, bounds[:-1])
    return _hashes(ids, bounds, seed), known


def _hashes(ids: npt.NDArray[np.integer], bounds: Ints, seed: int) -> npt.NDArray[np.uint64]:
    """Return a hash of each text's pieces and the seed."""
    position = np.arange(len(ids)) - np.repeat(bounds[:-1], np.diff(bounds))
    hashes = np.add.reduceat(draw(ids.astype(np.uint64), position, _CONTENT), bounds[:-1])
    return draw(hashes, np.full(len(hashes), seed), _CONTENT)


def gathered(
    ids: npt.NDArray[np.integer], begins: Ints, ends: Ints
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.int64]]:
    """Return stretches of an array one after the other, and where each begins, with the end of the last [N + 1]."""
    lengths = ends - begins
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    places = np.arange(bounds[-1]) + np.repeat(begins - bounds[:-1], lengths)
    return ids[places], bounds


def thinned(
    ids: npt.NDArray[np.integer], bounds: Ints, tokenizer: Tokenizer, seed: int
) -> Iterator[tuple[npt.NDArray[np.integer], Ints]]:
    """Drop words of texts, some texts at a time.

    Of each text a share between 0.1 and 0.5 of its words is dropped, at least one and never all; a word is a piece and
    the `##` pieces after it. A text of one word stays as it is.

    Args:
        ids: the texts' pieces, one text after the other.
        bounds: where each text begins, and the end of the last, [N + 1].

    Yields:
        The pieces that are left and how many each text has, [n].
    """
    continues = _continues(tokenizer)
    for start in range(0, len(bounds) - 1, _BLOCK):
        block = bounds[start : start + _BLOCK + 1]
        part = ids[block[0] : block[-1]]
        kept = _kept(part, block - block[0], continues, np.random.default_rng([seed, _THINNED, start]))
        yield part[kept], np.add.reduceat(kept, block[:-1] - block[0], dtype=np.int64)


def _kept(
    ids: npt.NDArray[np.integer], bounds: Ints, continues: npt.NDArray[np.bool_], drawn: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Tell which pieces stay."""
    begins = _begins(ids, bounds, continues)
    owner = np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))[begins]  # of each word
    words = np.bincount(owner, minlength=len(bounds) - 1)
    share = drawn.uniform(_LEAST_DROPPED, _MOST_DROPPED, len(words))
    dropped = np.minimum(np.maximum(np.rint(share * words).astype(np.int64), 1), words - 1)
    order = np.lexsort((drawn.random(len(owner)), owner))
    place = np.arange(len(owner)) - np.repeat(np.cumsum(words) - words, words)
    stays = np.empty(len(owner), bool)
    stays[order] = place >= dropped[owner]
    found: npt.NDArray[np.bool_] = stays[np.cumsum(begins) - 1]
    return found


def phrases(
    ids: npt.NDArray[np.integer], bounds: Ints, tokenizer: Tokenizer, count: int, seed: int
) -> tuple[Ints, Ints]:
    """Choose phrases: 1 to 8 words of a text that stand side by side, and not all of its words.

    Each text gives as many as it takes, where and how long is drawn; equal ones are met once. A phrase of one word is
    as likely as one of any other length, so that rare words come too.

    Args:
        ids: the texts' pieces, one text after the other.
        bounds: where each text begins, and the end of the last, [N + 1].
        count: how many at most.

    Returns:
        Where each phrase begins and ends in `ids`, [P] each, in the order of their hashes.
    """
    continues = _continues(tokenizer)
    keys, spans = np.empty(0, np.uint64), np.empty((0, 2), np.int64)
    each = -(-3 * count // (2 * (len(bounds) - 1)))  # half as many again, for some are equal
    for start in range(0, len(bounds) - 1, _BLOCK):
        block = bounds[start : start + _BLOCK + 1]
        part = ids[block[0] : block[-1]]
        more = _spans(part, block - block[0], continues, each, np.random.default_rng([seed, _PHRASES, start]))
        if not len(more):
            continue
        keys = np.concatenate([keys, _hashes(*gathered(part, more[:, 0], more[:, 1]), seed)])
        keys, first = np.unique(keys, return_index=True)  # ascending; of equal phrases the first
        keys, spans = keys[:count], np.concatenate([spans, more + block[0]])[first[:count]]
    return spans[:, 0], spans[:, 1]


def _spans(
    ids: npt.NDArray[np.integer],
    bounds: Ints,
    continues: npt.NDArray[np.bool_],
    each: int,
    drawn: np.random.Generator,
) -> Ints:
    """Return where phrases begin and end, `each` of every text that has two words or more, [n, 2]."""
    begins = _begins(ids, bounds, continues)
    places = np.append(np.flatnonzero(begins), len(ids))  # of the words, and the end
    bounds = np.searchsorted(places, bounds)  # in words
    first, words = np.repeat(bounds[:-1], each), np.repeat(np.diff(bounds), each)
    first, words = first[words > 1], words[words > 1]
    length = np.minimum(drawn.integers(1, _PHRASE + 1, len(words)), words - 1)
    start = first + (drawn.random(len(words)) * (words - length + 1)).astype(np.int64)
    return np.stack([places[start], places[start + length]], 1)


def _continues(tokenizer: Tokenizer) -> npt.NDArray[np.bool_]:
    """Tell of each piece whether it continues a word."""
    return np.array([piece.startswith("##") for piece in tokenizer.vocabulary])


def _begins(ids: npt.NDArray[np.integer], bounds: Ints, continues: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Tell where words begin; the first piece of a text begins one, whatever it is."""
    found: npt.NDArray[np.bool_] = ~continues[ids]
    found[bounds[:-1]] = True
    return found
