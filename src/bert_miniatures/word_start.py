"""Where a new model's word vectors start: at the first principal components of a larger model's."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bert_miniatures.errors import ConfigError

__all__ = ["start_words"]

Floats = npt.NDArray[np.float32]


def start_words(
    words: Floats,
    of_words: Sequence[str],
    vocabulary: Sequence[str],
    width: int,
    *,
    deviation: float = 0.02,
    seed: int = 1,
) -> tuple[Floats, int]:
    """Return word vectors for a new model, made of a larger one's.

    Pieces that both vocabularies have get the first `width` principal components of their vectors, centred, all of them
    scaled by one number so that their standard deviation is `deviation`. The others are drawn: normal, truncated at two
    deviations, as all weights of a new model.

    Args:
        words: the larger model's vectors, [V, W].
        of_words: its pieces, [V].
        vocabulary: the new model's pieces.
        width: D, at most W.
        deviation: of new weights, `initializer_range`.
        seed: of what is drawn.

    Returns:
        The table, [len(vocabulary), D], and how many pieces both vocabularies have.

    Raises:
        ConfigError: the larger model is narrower than the new one, or both share next to no pieces.
    """
    if words.shape[1] < width:
        raise ConfigError(
            f"word vectors of {words.shape[1]} numbers cannot be the start of {width}; a wider teacher can, or "
            "teacher.start_words = false"
        )
    place = {piece: i for i, piece in enumerate(of_words)}
    theirs = np.array([place.get(piece, -1) for piece in vocabulary])
    shared = theirs >= 0
    if int(shared.sum()) <= width:
        raise ConfigError(
            f"the vocabularies share {int(shared.sum())} pieces, too few for word vectors of {width} numbers to start "
            "from; teacher.start_words = false"
        )
    found = words[theirs[shared]].astype(np.float64)
    found -= found.mean(0)
    _, directions = np.linalg.eigh(found.T @ found)  # ascending
    directions = directions[:, ::-1][:, :width]
    largest = np.abs(directions).argmax(0)
    directions *= np.sign(directions[largest, np.arange(width)])  # the sign of an eigenvector is nobody's choice
    reduced = found @ directions
    table = _drawn((len(vocabulary), width), deviation, np.random.default_rng([seed, 11]))
    table[shared] = reduced * (deviation / reduced.std())
    return table.astype(np.float32), int(shared.sum())


def _drawn(shape: tuple[int, int], deviation: float, drawn: np.random.Generator) -> npt.NDArray[np.float64]:
    values = drawn.standard_normal(shape)
    while (far := np.abs(values) > 2).any():
        values[far] = drawn.standard_normal(int(far.sum()))
    return values * deviation
