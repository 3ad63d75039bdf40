"""The label-order trap: a model that is right under other names of its outputs looks broken."""

import numpy as np
import numpy.typing as npt

from bert_miniatures import metrics
from bert_miniatures.data.tasks import Task

__all__ = ["GAIN", "order_warning"]

GAIN = 0.20  # a rise of accuracy, as a fraction, that other names of the outputs must bring to be worth a sentence


def order_warning(task: Task, logits: npt.NDArray[np.float32], gold: npt.NDArray[np.generic]) -> str | None:
    """Say in one sentence that the outputs seem to stand in another order than the labels, or return None.

    It is said where some permutation of the labels would raise accuracy by more than 20 points. A model that gives
    every row the same answer is not meant: it is right under the name of the most frequent class and still broken.

    Args:
        task: any task; only classification has an order of labels.
        logits: [N, C], columns in the order of `task.labels`.
        gold: class numbers [N].

    Raises:
        DataError: no rows, hidden labels, or shapes that do not fit.
        MissingExtra: scipy is not installed.

    Example:
        >>> from bert_miniatures.data.tasks import TASKS
        >>> gold = np.array([0, 1, 2] * 10)
        >>> order_warning(TASKS["mnli"], np.eye(3, dtype=np.float32)[(gold + 1) % 3], gold)[:76]
        'MNLI: accuracy is 0.0 %, and would be 100.0 % with the outputs named otherwi'
    """
    if task.kind != "classification" or not np.isfinite(logits).all():
        return None
    gain, order = metrics.label_permutation_gain(logits, gold)
    predicted = metrics.predictions(task.kind, logits)
    if gain <= GAIN + 1e-12 or np.ptp(predicted) == 0:
        return None
    now = float((predicted == gold).mean())
    renamed = ", ".join(f"'{task.labels[i]}' for '{task.labels[j]}'" for i, j in enumerate(order) if i != j)
    said = (
        f"{task.title or task.name}: accuracy is {now:.1%}, and would be {now + gain:.1%} with the outputs named "
        f"otherwise (it says {renamed}); if the label order of model and data differs, this is why"
    ).replace("%", " %")
    return "; ".join((said, *task.notes)) if task.title else said
