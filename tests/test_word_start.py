"""Word vectors from a larger model's: against numpy's SVD."""

import numpy as np
import pytest

from bert_miniatures.errors import ConfigError
from bert_miniatures.word_start import start_words

DRAWN = np.random.default_rng(3)
PIECES = [f"w{i}" for i in range(211)]
WORDS = (DRAWN.standard_normal((211, 13)) @ DRAWN.standard_normal((13, 13)) + 3).astype(np.float32)


def test_they_are_principal_components():
    found, shared = start_words(WORDS, PIECES, PIECES, 5, deviation=0.02)
    assert found.shape == (211, 5)
    assert found.dtype == np.float32
    assert shared == 211
    assert found.std() == pytest.approx(0.02, rel=1e-5)
    assert np.abs(found.mean(0)).max() < 1e-7
    centred = WORDS.astype(np.float64) - WORDS.astype(np.float64).mean(0)
    left, sizes, directions = np.linalg.svd(centred, full_matrices=False)
    expected = left[:, :5] * sizes[:5]
    expected *= 0.02 / expected.std()
    expected *= [np.sign(direction[np.abs(direction).argmax()]) for direction in directions[:5]]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_pieces_meet_by_name_and_the_others_are_drawn():
    mine = ["new", *reversed(PIECES[10:]), "newer"]
    found, shared = start_words(WORDS, PIECES, mine, 5, seed=7)
    assert shared == 201
    plain, _ = start_words(WORDS[10:], PIECES[10:], PIECES[10:], 5)
    np.testing.assert_allclose(found[1:-1][::-1], plain, rtol=1e-4, atol=1e-7)
    assert 0 < np.abs(found[[0, -1]]).max() <= 0.04
    assert np.array_equal(found, start_words(WORDS, PIECES, mine, 5, seed=7)[0])
    other = start_words(WORDS, PIECES, mine, 5, seed=8)[0]
    assert np.array_equal(other[1:-1], found[1:-1])
    assert not (other[[0, -1]] == found[[0, -1]]).any()


def test_the_order_of_the_pieces_does_not_matter():
    found, _ = start_words(WORDS, PIECES, PIECES, 5)
    order = np.random.default_rng(1).permutation(211)
    again, _ = start_words(WORDS[order], [PIECES[i] for i in order], PIECES, 5)
    np.testing.assert_allclose(found, again, rtol=1e-3, atol=1e-6)


def test_what_cannot_be_a_start():
    with pytest.raises(ConfigError, match=r"word vectors of 13 numbers cannot be the start of 14; .*start_words"):
        start_words(WORDS, PIECES, PIECES, 14)
    with pytest.raises(ConfigError, match="share 5 pieces, too few for word vectors of 5 numbers"):
        start_words(WORDS, PIECES, [*PIECES[:5], "x"], 5)
