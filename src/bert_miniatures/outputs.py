"""What a classifier's outputs mean. Here and not in checkpoint.py, so that predicting imports no settings."""

from dataclasses import dataclass

__all__ = ["Labels"]


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
