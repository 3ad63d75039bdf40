"""From logits to what a client reads: shares, and labels in the order of their scores."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_miniatures.engine import Floats
from bert_miniatures.outputs import Labels, shares, sigmoid, softmax

__all__ = ["FUNCTIONS", "label_names", "ranked", "scores"]

Wide = npt.NDArray[np.float64]


# Hugging Face's `function_to_apply`
FUNCTIONS: dict[str, Callable[[Wide], Wide]] = {"softmax": softmax, "sigmoid": sigmoid, "none": lambda logits: logits}


def scores(labels: Labels, logits: Floats, function: str | None = None) -> Wide:
    """Return [N, C]: softmax for one label, sigmoid for several, the number itself for a score; or `function`."""
    return FUNCTIONS[function](logits.astype(np.float64)) if function else shares(labels.kind, logits)


def label_names(labels: Labels) -> tuple[str, ...]:
    """Return a name per output; the one output of regression is called "score"."""
    return labels.names or ("score",)


def ranked(labels: Labels, found: Wide, top_k: int | None = None) -> list[list[dict[str, Any]]]:
    """Return `{"label", "score"}` for each label of each row, the highest score first.

    Args:
        found: scores [N, C].
        top_k: how many of a row; None for all.

    Example:
        >>> ranked(Labels("classification", ("bad", "good")), np.array([[0.25, 0.75]]), 1)
        [[{'label': 'good', 'score': 0.75}]]
    """
    names = label_names(labels)
    order = np.argsort(-found, axis=1, kind="stable")[:, :top_k]
    rows = np.take_along_axis(found, order, 1).tolist()
    return [
        [{"label": names[i], "score": score} for i, score in zip(places, row, strict=True)]
        for places, row in zip(order.tolist(), rows, strict=True)
    ]
