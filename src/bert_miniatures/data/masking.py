"""Masked words: which positions the model must guess, and what stands there meanwhile.

Everything is drawn from a number per instance and the position, by a function without a state: the masks of an instance
do not depend on what else is in its batch. All of it is numpy over the flat tokens of a batch.

Source: Devlin et al. 2019, section 3.1 and appendix A.1; google-research/bert `create_pretraining_data.py`
(`create_masked_lm_predictions`, whole words included).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from bert_miniatures.tokenizer import Tokenizer
from bert_miniatures.vocabulary import SPECIAL

__all__ = ["Masker", "Masking", "draw"]

Masking = Literal["token", "word"]
Ints = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_MASKED, _RANDOM = 0.8, 0.1  # the others stay as they are
_SELECT, _ACT, _REPLACE = 1, 2, 3  # streams of random numbers
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def draw(numbers: Words, positions: npt.NDArray[np.integer], stream: int) -> Words:
    """Return 64 random bits for each pair of number and position.

    Source: the finaliser of SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators"),
    once over the number and once over the number's bits and the position.
    """
    return _mixed(
        _mixed(numbers * _GOLDEN) + (positions.astype(np.uint64) * np.uint64(4) + np.uint64(stream)) * _GOLDEN
    )


def _mixed(bits: Words) -> Words:
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


@dataclass(frozen=True)
class Flat:
    """The tokens of several instances, one instance after the other.

    Attributes:
        ids: int64 [M].
        instance: which instance each token belongs to, ascending, int64 [M].
        position: of each token in its instance, int64 [M].
        lengths: of the instances, int64 [I].
        numbers: what the randomness of each instance is drawn from, uint64 [I].
    """

    ids: Ints
    instance: Ints
    position: Ints
    lengths: Ints
    numbers: Words


class Masker:
    """Chooses and replaces.

    Args:
        tokenizer: says what the special pieces are and which pieces continue a word.
        masking: "token" chooses word pieces, "word" all pieces of a word or none.
        share: of the tokens of an instance, special ones included in the count and never chosen.
    """

    def __init__(self, tokenizer: Tokenizer, masking: Masking = "token", share: float = 0.15) -> None:
        self.masking, self.share, self.mask_id = masking, share, tokenizer.mask_id
        self._fixed = np.zeros(len(tokenizer.vocabulary), bool)
        self._fixed[[tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id]] = True
        self._continues = np.array([piece.startswith("##") for piece in tokenizer.vocabulary])
        self._ordinary = _ordinary(tokenizer.vocabulary)

    def __call__(self, flat: Flat) -> Ints:
        """Mask in place and return the chosen places of `flat`, ascending.

        Of an instance of n tokens round(share x n) are chosen, at least one; with whole words at most so many, as in
        the source: words are taken in random order, and one that would be too many is passed over. Where every word of
        a short instance is too long, the first one in that order is taken all the same. Of the chosen, 80 % become
        [MASK], 10 % a random ordinary piece, 10 % stay.
        """
        chosen = np.flatnonzero(self._choose(flat))
        numbers, positions = flat.numbers[flat.instance[chosen]], flat.position[chosen]
        act = (draw(numbers, positions, _ACT) >> np.uint64(11)) * 2.0**-53
        other = (draw(numbers, positions, _REPLACE) >> np.uint64(32)) * np.uint64(len(self._ordinary)) >> np.uint64(32)
        ids = flat.ids[chosen]
        ids = np.where(act < _MASKED + _RANDOM, self._ordinary[other.astype(np.int64)], ids)
        flat.ids[chosen] = np.where(act < _MASKED, self.mask_id, ids)
        return chosen

    def _choose(self, flat: Flat) -> npt.NDArray[np.bool_]:
        free = ~self._fixed[flat.ids]
        begins = free.copy()
        if self.masking == "word":
            begins[1:] &= ~(self._continues[flat.ids[1:]] & free[:-1])  # a special token parts two instances
        first = np.flatnonzero(begins)
        if not len(first):
            return begins
        owner = flat.instance[first]
        key = draw(flat.numbers[owner], flat.position[first], _SELECT)
        order = np.lexsort((key, owner))
        starts = np.searchsorted(owner, np.arange(len(flat.lengths) + 1))  # owner is ascending, sorted or not
        budget = np.maximum(np.rint(self.share * flat.lengths).astype(np.int64), 1)
        taken = np.zeros(len(first), bool)
        if self.masking == "token":
            taken[order] = np.arange(len(order)) - starts[owner] < budget[owner]
            return _at(first[taken], len(free))
        sizes = np.add.reduceat(free, first, dtype=np.int64)
        taken[order] = _fill(sizes[order], starts, budget)
        unit = np.cumsum(begins) - 1
        found: npt.NDArray[np.bool_] = free & taken[np.maximum(unit, 0)]
        return found


def _at(places: Ints, count: int) -> npt.NDArray[np.bool_]:
    found = np.zeros(count, bool)
    found[places] = True
    return found


def _fill(sizes: Ints, starts: Ints, budget: Ints) -> npt.NDArray[np.bool_]:
    """Go through the words of all instances at once, one word of each at a time.

    Args:
        sizes: pieces of each word, in the order in which they are tried, instance after instance.
        starts: where each instance's words begin, and the end of the last, [I + 1].
        budget: pieces that may be taken, [I].
    """
    taken = np.zeros(len(sizes), bool)
    at, left = starts[:-1].copy(), budget.copy()
    active = np.flatnonzero(at < starts[1:])
    while len(active):
        here = at[active]
        fits = sizes[here] <= left[active]
        taken[here[fits]] = True
        left[active] -= np.where(fits, sizes[here], 0)
        at[active] += 1
        active = active[(left[active] > 0) & (at[active] < starts[active + 1])]
    nothing = (left == budget) & (starts[:-1] < starts[1:])
    taken[starts[:-1][nothing]] = True
    return taken


def _ordinary(vocabulary: Sequence[str]) -> Ints:
    """Return the ids of pieces that occur in texts: neither special nor [unused…]."""
    special = set(SPECIAL)
    kept = [i for i, piece in enumerate(vocabulary) if piece not in special and not piece.startswith("[unused")]
    return np.array(kept or range(len(vocabulary)), np.int64)
