"""Which sentences of a corpus a teacher reads, and thinned copies of them: a pure function of the seed.

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

__all__ = ["Selection", "choose", "gathered", "thinned"]

Ints = npt.NDArray[np.int64]

_BLOCK = 2**16  # sentences looked at at once; a few MB
_LEAST_DROPPED, _MOST_DROPPED = 0.1, 0.5  # share of a sentence's words that its thinned copy lacks
_CONTENT, _THINNED = 5, 6  # streams of random numbers


@dataclass(frozen=True)
class Selection:
    """Which sentences.

    Attributes:
        sentences: how many; fewer where the corpus has not so many.
        copies: so many of them are met as thinned copies too.
        shortest, longest: in word pieces, special tokens not counted.
        seed: of all that is drawn.
    """

    sentences: int = 500_000
    copies: int = 75_000
    shortest: int = 6
    longest: int = 126
    seed: int = 1


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
    ids, ends = gathered(corpus.ids, corpus.sentences[numbers], corpus.sentences[numbers + 1])
    begins = ends[:-1]
    position = np.arange(len(ids)) - np.repeat(begins, np.diff(ends))
    hashes = np.add.reduceat(draw(ids.astype(np.uint64), position, _CONTENT), begins)
    known: npt.NDArray[np.bool_] = ~np.logical_or.reduceat(ids == unknown, begins)
    return draw(hashes, np.full(len(hashes), seed), _CONTENT), known


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
    continues = np.array([piece.startswith("##") for piece in tokenizer.vocabulary])
    for start in range(0, len(bounds) - 1, _BLOCK):
        block = bounds[start : start + _BLOCK + 1]
        part = ids[block[0] : block[-1]]
        kept = _kept(part, block - block[0], continues, np.random.default_rng([seed, _THINNED, start]))
        yield part[kept], np.add.reduceat(kept, block[:-1] - block[0], dtype=np.int64)


def _kept(
    ids: npt.NDArray[np.integer], bounds: Ints, continues: npt.NDArray[np.bool_], drawn: np.random.Generator
) -> npt.NDArray[np.bool_]:
    """Tell which pieces stay."""
    begins = ~continues[ids]
    begins[bounds[:-1]] = True
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
