"""Score a finished run again, on a split of its own data."""

from pathlib import Path
from typing import Any

import numpy as np

from bert_miniatures import metrics
from bert_miniatures.checkpoint import read_folder
from bert_miniatures.config import read_toml
from bert_miniatures.data.labels import label_map
from bert_miniatures.distill_config import run_settings
from bert_miniatures.errors import DataError
from bert_miniatures.evaluation import logits_of
from bert_miniatures.files import RunFolder
from bert_miniatures.model import build
from bert_miniatures.recipes.loading import encoded, load_splits, task_of
from bert_miniatures.recipes.method import set_threads
from bert_miniatures.traps import order_warning
from bert_miniatures.watch import Watch

__all__ = ["evaluate"]


def evaluate(run: str | Path, split: str = "dev", *, watch: Watch | None = None) -> dict[str, Any]:
    """Score the model of a run on a split of the run's data.

    Args:
        run: a finished run folder.
        split: "dev", "train", for MNLI "dev_mismatched" too.

    Returns:
        `{"split": "dev", "rows": 872, "scores": {"accuracy": 0.83}, "finding": None}`; an undefined score is NaN.

    Raises:
        DataError: the run is not finished, or the split's labels are hidden.

    Example:
        >>> evaluate("runs/sst2")["scores"]  # doctest: +SKIP
        {'accuracy': 0.8326}
    """
    watch, folder = watch or Watch(), RunFolder(Path(run))
    if not folder.is_finished():
        raise DataError(f"{folder.path}: no finished run (no result.json); 'miniatures finetune' makes one")
    if "corpus" in read_toml(folder.config).get("data", {}):
        raise DataError(f"{folder.path}: a pre-training run, scored on held-out documents only; see its result.json")
    config = run_settings(folder.config)
    task = task_of(config.data)
    examples = next(iter(load_splits(task, config.data, watch, only=split).values()))
    found = read_folder(folder.model, labels_needed=True)
    assert found.labels is not None
    set_threads(config.train)
    data = encoded(split, examples, found, found.labels.max_length, watch)
    model = build(found.config, found.weights, groups={"pooler", "head"}, classes=len(found.labels.names) or 1)
    logits = logits_of(model, data)
    if task.kind != "regression":
        order = label_map(found.labels.names, task.labels, str(folder.model))
        logits = logits if order is None else logits[:, order]
    gold = examples.labels
    if gold is None or not _known(gold):
        raise DataError(f"{examples.source}: the labels of '{split}' are hidden; they can be predicted, never scored")
    scores = metrics.score(task.metrics, task.kind, logits, gold)
    said = metrics.degenerate(task.kind, logits, gold, task.labels)
    swapped = order_warning(task, logits, gold)
    if swapped:
        watch.warn(swapped)
    return {"split": split, "rows": len(gold), "scores": scores, "finding": said}


def _known(gold: np.ndarray) -> bool:
    return not np.isnan(gold).any() if gold.dtype.kind == "f" else not (gold == -1).any()
