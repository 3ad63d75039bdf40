"""What a classifier's outputs mean. Here and not in checkpoint.py, so that predicting imports no settings."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Labels", "shares", "sigmoid", "softmax"]

Wide = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Labels:
    """What the classifier's outputs mean.

    Attributes:
        kind: classification, regression or multilabel.
        names: a name per output; empty for regression.
        task: the task's name, for people.
        pair: whether inputs are pairs of texts.
        max_length: in word pieces, the length that the model was tuned at.
    """

    kind: str = "classification"
    names: tuple[str, ...] = ()
    task: str | None = None
    pair: bool = False
    max_length: int = 128


def softmax(logits: Wide) -> Wide:
    """Return shares [N, C] that sum to one in each row."""
    raised = np.exp(logits - logits.max(1, keepdims=True))
    return np.asarray(raised / raised.sum(1, keepdims=True))


def sigmoid(logits: Wide) -> Wide:
    """Return shares [N, C], each for itself."""
    return np.asarray(np.exp(-np.logaddexp(0, -logits)))


# kind of model -> what makes its answers of its logits
_OF_KIND: dict[str, Callable[[Wide], Wide]] = {
    "classification": softmax,
    "multilabel": sigmoid,
    "regression": lambda logits: logits,
}


def shares(kind: str, logits: npt.NDArray[Any]) -> Wide:
    """Return probabilities [N, C], in float64: softmax, for several labels sigmoid; the number itself for a score."""
    return _OF_KIND[kind](logits.astype(np.float64))
