"""Logits in data-set order, scores, and the finding when a run went nowhere."""

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from bert_miniatures import metrics
from bert_miniatures.data.batches import Dataset, by_length
from bert_miniatures.data.examples import Examples
from bert_miniatures.data.pretraining import PretrainBatch
from bert_miniatures.data.tasks import Task
from bert_miniatures.model import Bert
from bert_miniatures.objectives import guess
from bert_miniatures.predictions import Predictions

__all__ = ["evaluate_masked", "finding", "logits_of", "loss_of", "predictions_of", "prior_loss"]

Floats = npt.NDArray[np.float32]


@torch.inference_mode()
def logits_of(model: Bert, data: Dataset, budget: int = 4096) -> Floats:
    """Return the classifier's outputs for every row, in data-set order.

    Args:
        model: set to evaluation here, and left so.
        data: the rows.
        budget: positions per batch, padding included.

    Returns:
        [N, C], float32.
    """
    model.eval()
    device = next(model.parameters()).device
    out = np.empty((len(data), model.classes), np.float32)
    for rows in by_length(data.lengths, budget):
        batch = data.batch(rows).to(device)
        out[rows] = model.classify(batch.ids, batch.segments, batch.mask).float().cpu().numpy()
    return out


def evaluate_masked(model: Bert, batches: Sequence[PretrainBatch]) -> dict[str, float]:
    """Score the guesses of masked words and, where there are pairs, of next sentences.

    Args:
        model: set to evaluation here, and left so.
        batches: at least one.

    Returns:
        "loss", the mean over masked pieces; "accuracy", the share that is right; "perplexity", exp(loss); and with
        pairs "next_accuracy".
    """
    model.eval()
    device = next(model.parameters()).device
    found = [guess(model, batch.to(device)) for batch in batches]
    words, instances = sum(len(batch.masked) for batch in batches), sum(len(batch.starts) for batch in batches)
    loss = sum(one.masked_loss for one in found) / words
    scores = {"loss": loss, "accuracy": sum(one.masked_right for one in found) / words}
    scores["perplexity"] = math.exp(min(loss, 700.0))  # beyond there are no numbers
    if batches[0].next is not None:
        scores["next_accuracy"] = sum(one.next_right for one in found) / instances
    return scores


def prior_loss(kind: str, labels: npt.NDArray[np.generic]) -> float:
    """Return the loss of a model that knows only how frequent each label is; for regression, only the mean."""
    if kind == "regression":
        return 1.0
    if kind == "multilabel":
        share = np.clip(labels.mean(0, dtype=np.float64), 1e-12, 1 - 1e-12)
        return float(-(share * np.log(share) + (1 - share) * np.log(1 - share)).mean())
    counts = np.unique(labels, return_counts=True)[1]
    share = counts / counts.sum()
    return float(-(share * np.log(share)).sum())


def loss_of(kind: str, logits: Floats, gold: npt.NDArray[np.generic]) -> float:
    """Return the mean loss of outputs: cross-entropy, for several labels over all of them; squared error for scores.

    Args:
        logits: [N, C].
        gold: [N] or [N, C].
    """
    wide = logits.astype(np.float64)
    if kind == "regression":
        return float(np.square(wide[:, 0] - gold.astype(np.float64)).mean())
    if kind == "multilabel":
        return float((np.logaddexp(0, wide) - gold.astype(np.float64) * wide).mean())
    largest = wide.max(1, keepdims=True)
    known = wide[np.arange(len(wide)), gold.astype(np.int64)]
    return float((np.log(np.exp(wide - largest).sum(1)) + largest[:, 0] - known).mean())


def finding(task: Task, logits: Floats, gold: npt.NDArray[np.generic], last_loss: float, prior: float) -> str | None:
    """Say in one sentence that a run went nowhere, or return None.

    Args:
        logits: [N, C] on the dev set.
        gold: [N] or [N, C].
        last_loss: mean training loss of the last epoch.
        prior: what `prior_loss` says of the training labels.
    """
    said = metrics.degenerate(task.kind, logits, gold, task.labels)
    if said is None and last_loss >= 0.995 * prior:
        said = (
            f"the training loss of the last epoch, {last_loss:.3f}, is that of knowing only the share of each label, "
            f"{prior:.3f}: the model learnt nothing"
        )
    if said and task.degenerate_note:
        said = f"{said}; {task.degenerate_note}"
    return said


def predictions_of(task: Task, examples: Examples, logits: Floats) -> Predictions:
    """Return the logits of a split as they are written to `predictions/<split>.parquet`."""
    return Predictions(examples.row_ids, logits, task.labels, examples.labels, task.name, examples.checksum)
