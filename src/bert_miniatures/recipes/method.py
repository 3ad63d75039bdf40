"""The parts of fine-tuning that the settings decide: threads, target scale, rows of the word table, model, loss."""

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from bert_miniatures.checkpoint import ModelFolder
from bert_miniatures.config import ModelConfig, TrainConfig
from bert_miniatures.data.batches import Dataset
from bert_miniatures.data.tasks import Task
from bert_miniatures.errors import ConfigError, DataError
from bert_miniatures.machine import cores, launch
from bert_miniatures.model import Bert, build
from bert_miniatures.names import Weights
from bert_miniatures.objectives import Objective, classification, multilabel, regression

__all__ = ["Aim", "fold", "labels_of", "model_of", "narrow", "nulls", "objective_of", "set_threads", "standard",
           "trained_sizes", "unfold"]  # fmt: skip


@dataclass(frozen=True)
class Aim:
    """What a run learns.

    Attributes:
        objective: its loss.
        mean, deviation: the scale that regression targets are trained at.
        prior: the loss of a model that knows only how frequent each label is.
        facts: what result.json says about it.
        helpers: name -> outputs of layers that are trained and thrown away, see `Bert`.
    """

    objective: Objective
    mean: float
    deviation: float
    prior: float
    facts: Mapping[str, Any] = field(default_factory=dict)
    helpers: Mapping[str, int] = field(default_factory=dict)


def set_threads(config: TrainConfig) -> None:
    """Use the cores that this process may use, unless the settings or OMP_NUM_THREADS say otherwise.

    Processes that share a run on this machine share its cores too.
    """
    torch.set_num_threads(config.threads or min(torch.get_num_threads(), max(1, cores() // launch().local)))
    with suppress(RuntimeError):  # can be set once per process
        torch.set_num_interop_threads(1)


def fold(weights: Weights, mean: float, deviation: float) -> Weights:
    """Put the target's scale into the head, so that it answers in the data's own units. Exact: the head is linear."""
    if (mean, deviation) == (0.0, 1.0) or "head.weight" not in weights:
        return weights
    head = {
        "head.weight": weights["head.weight"] * np.float32(deviation),
        "head.bias": weights["head.bias"] * np.float32(deviation) + np.float32(mean),
    }
    return weights | head


def unfold(weights: Weights, mean: float, deviation: float) -> Weights:
    """Take the target's scale out of a head that is trained further, if there is one."""
    return fold(weights, -mean / deviation, 1 / deviation)


def standard(task: Task, data: Dataset, config: TrainConfig) -> tuple[float, float]:
    """Return mean and deviation that regression targets are trained at; 0 and 1 where they stay as they are."""
    if task.kind != "regression" or not config.standardise:
        return 0.0, 1.0
    labels = labels_of(data)
    deviation = float(labels.std())
    if deviation == 0:
        raise DataError(f"all {len(labels)} training scores are {labels[0]}; there is nothing to learn")
    return float(labels.mean()), deviation


def labels_of(data: Dataset) -> Any:
    """Return the labels of a split that has them."""
    assert data.labels is not None
    return data.labels


def narrow(data: Mapping[str, Dataset], config: TrainConfig) -> tuple[Any, dict[str, Dataset]]:
    """Renumber the pieces that occur; the rows of the others are neither trained nor stepped (docs/finetuning.md)."""
    if not config.exact_speedups:
        return None, dict(data)
    used = data["train"].used_ids()
    for split in data.values():
        used = np.union1d(used, split.used_ids())
    return used, {name: split.renumber(used) for name, split in data.items()}


def trained_sizes(model: ModelConfig, config: TrainConfig) -> ModelConfig:
    """Return the sizes of a model with the dropout that it is trained with."""
    kinds = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
    return model if config.dropout is None else model.model_copy(update=dict.fromkeys(kinds, config.dropout))


def model_of(
    parent: ModelFolder,
    full: Weights,
    used: Any,
    classes: int,
    config: TrainConfig,
    helpers: Mapping[str, int] | None = None,
) -> Bert:
    """Build the model that is trained: with the rows `used` of the word table only, where they are given."""
    sizes, weights = trained_sizes(parent.config, config), full
    if used is not None:
        sizes = sizes.model_copy(update={"vocab_size": len(used)})
        weights = full | {"embed.word.weight": full["embed.word.weight"][used]}
    model = build(sizes, weights, groups={"pooler", "head"}, classes=classes, helpers=helpers, seed=config.seed)
    model.exact_speedups = config.exact_speedups
    return model


def objective_of(task: Task, data: Dataset, config: TrainConfig, mean: float, deviation: float) -> Objective:
    """Return the task's loss."""
    if task.kind == "regression":
        return regression(mean, deviation)
    make = multilabel if task.kind == "multilabel" else classification
    weights = _class_weights(task, labels_of(data), config)
    return make(None if weights is None else torch.tensor(weights, dtype=torch.float32))


def _class_weights(task: Task, labels: Any, config: TrainConfig) -> list[float] | None:
    wanted = config.class_weights
    if wanted == "none":
        return None
    if isinstance(wanted, dict):
        for name in wanted:
            if name not in task.labels:
                raise ConfigError(f"train.class_weights: '{name}' is not one of {', '.join(task.labels)}")
        return [wanted.get(name, 1.0) for name in task.labels]
    if task.kind == "multilabel":
        positive = labels.sum(0)
        return [float((len(labels) - count) / max(1, count)) for count in positive]
    counts = np.bincount(labels, minlength=len(task.labels))
    return [float(len(labels) / (len(counts) * count)) if count else 1.0 for count in counts]


def nulls(scores: Mapping[str, float | None]) -> dict[str, float | None]:
    """Replace NaN by null: what is undefined stays undefined, and JSON stays JSON."""
    return {name: None if value is None or math.isnan(value) else value for name, value in scores.items()}
