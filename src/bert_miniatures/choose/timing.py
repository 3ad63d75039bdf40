"""A model of time: what a call costs, as a sum of five kinds of work, fitted to measured calls.

    seconds of a call = a                              the call itself, tokenizer included
                      + b x layers                     starting each operation of each layer
                      + c x bytes of the weights       reading them, whatever the batch; word vectors not counted
                      + d x multiply-adds              the matrix products, without those below
                      + e x numbers that pass          norms, GELU, sums: layers x positions x width
                      + f x attention                  the products of positions with positions, and the softmax

The six factors are not negative and are found by least squares in relative error, so that a model of a millisecond
counts as much as one of a hundred. They are fitted for each precision, number of threads and kind of call alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bert_miniatures.zoo import POSITIONS, SEGMENTS, VOCABULARY, Miniature

__all__ = ["TOKENIZER_FILES", "Fit", "Shape", "disk", "features", "fit", "layer_parameters", "line",
           "nnls", "weights"]  # fmt: skip

FOLDED_HEADS = 4  # as in onnx_graph.py
TOKENIZER_FILES = 950_000  # bytes of vocab.txt, tokenizer.json and the small files of a deploy folder

Floats = npt.NDArray[np.float64]


class Shape(NamedTuple):
    """Rows of a batch, and the word pieces of its longest row."""

    rows: int
    width: int


@dataclass(frozen=True)
class Fit:
    """Factors of the six kinds of work, in seconds a unit."""

    factors: tuple[float, ...]

    def seconds(self, model: Miniature, precision: str, shape: Shape) -> float:
        """Return the time of a call."""
        return float(np.dot(features(model, precision, shape), self.factors))


def features(model: Miniature, precision: str, shape: Shape) -> Floats:
    """Return how much of each kind of work a call is; the graph is that of onnx_graph.py.

    The last layer computes the first position alone.
    """
    layers, d, heads = model.layers, model.width, model.heads
    rows, width = shape
    folded = heads <= FOLDED_HEADS
    dense = (layers - 1) * 12 * d * d * rows * width
    last = rows * ((2 * heads if folded else 4) * d * d + 9 * d * d)
    squares = (layers - 1) * rows * width * width * d + rows * width * heads * d
    products, others = weights(model)
    read = products * (1 if precision == "int8" else 4) + 4 * others
    return np.array([1.0, layers, read, dense + last, (layers - 1) * rows * width * d + rows * d, squares])


def layer_parameters(model: Miniature) -> int:
    """Return the parameters of all layers, without embeddings and pooler: what a model can learn with."""
    d = model.width
    return model.layers * (12 * d * d + 13 * d)


def weights(model: Miniature) -> tuple[int, int]:
    """Return how many numbers of a graph are in products that may have 8 bits, and how many are not.

    Those of words and positions, of which a call reads few, are in neither.
    """
    d, n, layers = model.width, model.heads, model.layers
    if n <= FOLDED_HEADS:  # in the last layer, which asks from one position, products of weights take the place of keys
        products, others = 2 * n * d * d, n * d + d
    else:
        products, others = 2 * d * d, 2 * d * d + 2 * d
    products += (layers - 1) * 4 * d * d + layers * 8 * d * d + d * d
    others += (layers - 1) * 2 * d + layers * 9 * d + 2 * d + d + 2 * d
    return products, others


def disk(model: Miniature, precision: str) -> int:
    """Return the bytes of a deploy folder, by formula: the graph's weights, and the tokenizer's files."""
    products, others = weights(model)
    others += SEGMENTS * POSITIONS * model.width + POSITIONS * 2
    words = VOCABULARY * model.width
    whole = products + words + 4 * (others + VOCABULARY) if precision == "int8" else 4 * (products + words + others)
    return whole + TOKENIZER_FILES


def nnls(matrix: Floats, target: Floats) -> Floats:
    """Return the factors, none negative, with the least squared error.

    With six columns every choice of columns is tried, so the answer is exact.

    Args:
        matrix: [N, K].
        target: [N].

    Source: Lawson and Hanson 1974, chapter 23, says what the answer is.

    Example:
        >>> nnls(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([2.0, -1.0])).tolist()
        [2.0, 0.0]
    """
    scale = np.linalg.norm(matrix, axis=0)
    scaled = matrix / np.where(scale > 0, scale, 1.0)
    best, least = np.zeros(matrix.shape[1]), float(target @ target)
    for size in range(1, matrix.shape[1] + 1):
        for chosen in map(list, combinations(range(matrix.shape[1]), size)):
            found = np.linalg.lstsq(scaled[:, chosen], target, rcond=None)[0]
            error = float(((scaled[:, chosen] @ found - target) ** 2).sum())
            if (found >= 0).all() and error < least * (1 - 1e-9):
                best, least = np.zeros(matrix.shape[1]), error
                best[chosen] = found
    return best / np.where(scale > 0, scale, 1.0)


def fit(measured: Mapping[Miniature, Mapping[Shape, float]], precision: str) -> Fit:
    """Fit the factors to measured calls.

    Args:
        measured: model -> shape of a call -> its seconds.
    """
    rows = [(features(m, precision, s), t) for m, calls in measured.items() for s, t in calls.items()]
    seconds = np.array([t for _, t in rows])
    matrix = np.stack([f for f, _ in rows]) / seconds[:, None]
    return Fit(tuple(float(x) for x in nnls(matrix, np.ones(len(rows)))))


def line(known: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return a and b of `y = a + b x`, neither negative, least squares in relative error.

    Args:
        known: pairs of x and y.
    """
    x, y = np.array(known, dtype=np.float64).T
    matrix = np.stack([np.ones_like(x), x], axis=1) / y[:, None]
    a, b = nnls(matrix, np.ones(len(y)))
    return float(a), float(b)
