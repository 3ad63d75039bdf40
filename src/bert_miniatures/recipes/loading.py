"""What a run needs before its first update: task, examples, encoded data sets, the model."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from bert_miniatures.checkpoint import Labels, ModelFolder, read_folder
from bert_miniatures.config import DataConfig, FinetuneConfig
from bert_miniatures.data.batches import Dataset, encode
from bert_miniatures.data.examples import Examples, own_task, read_file, read_glue
from bert_miniatures.data.glue_find import find_glue
from bert_miniatures.data.labels import label_map
from bert_miniatures.data.tasks import Task, task_named
from bert_miniatures.errors import ConfigError, LabelError
from bert_miniatures.models import resolve
from bert_miniatures.names import Weights
from bert_miniatures.watch import Watch

__all__ = ["Inputs", "encoded", "load_inputs", "load_splits", "read_parent", "starting_point", "task_of"]

HOLD_OUT_SEED = 20_190_823  # who is held out never depends on the run's seed, so that seeds can be compared


@dataclass(frozen=True)
class Inputs:
    """A run's inputs.

    Attributes:
        splits: "train", and every split with labels to score on: "dev", for MNLI "dev_mismatched" too.
        data: the same, encoded.
        parent: the model to start from.
    """

    task: Task
    parent: ModelFolder
    splits: Mapping[str, Examples]
    data: Mapping[str, Dataset]


def load_inputs(config: FinetuneConfig, watch: Watch) -> Inputs:
    """Read and check everything, so that what is wrong is said before the work begins."""
    task = task_of(config.data)
    for text in task.notes:
        watch.note(text)
    splits = load_splits(task, config.data, watch)
    parent = read_parent(config, watch)
    data = {name: encoded(name, examples, parent, config.data.max_length, watch) for name, examples in splits.items()}
    return Inputs(task, parent, splits, data)


def read_parent(config: FinetuneConfig, watch: Watch) -> ModelFolder:
    """Read the model to start from."""
    parent = read_folder(resolve(config.model))
    for text in parent.notes:
        watch.note(text)
    if config.data.max_length > parent.config.max_position_embeddings:
        limit = parent.config.max_position_embeddings
        raise ConfigError(f"max_length {config.data.max_length} is more than the model's {limit} positions")
    return parent


def task_of(config: DataConfig) -> Task:
    """Return the GLUE task that is named, or the task that the own training file shows."""
    if config.task and (config.train or config.dev):
        raise ConfigError("give either --task with a GLUE folder, or own files with --train, not both")
    if config.task:
        task = task_named(config.task)
        if task.predicted_by:
            raise ConfigError(f"{task.title} has no training data; fine-tune on '{task.predicted_by}' instead")
        return task
    if config.train is None:
        raise ConfigError("no data: give --task TASK --glue DIR, or --train FILE")
    return own_task(config.train, text=config.text, pair=config.pair, label=config.label, kind=config.kind)


def load_splits(task: Task, config: DataConfig, watch: Watch, only: str | None = None) -> dict[str, Examples]:
    """Read train and the labelled dev splits, or only the split that is named."""
    found = _glue_splits(task, config, watch, only) if config.task else _own_splits(task, config, watch, only)
    for examples in found.values():
        for text in examples.warnings:
            watch.warn(text)
    return found


def _glue_splits(task: Task, config: DataConfig, watch: Watch, only: str | None) -> dict[str, Examples]:
    folder = find_glue(task, config.glue, watch)
    main = task.main_split.get("dev", "dev")
    wanted = [only] if only else ["train", main, *(s for s in task.splits if s.startswith("dev") and s != main)]
    limits = {"train": config.train_rows}
    return {
        ("dev" if name == main else name): read_glue(
            task, folder, name, limits.get(name, config.dev_rows if name.startswith("dev") else None)
        )
        for name in wanted
    }


def _own_splits(task: Task, config: DataConfig, watch: Watch, only: str | None) -> dict[str, Examples]:
    assert config.train is not None
    files = {"train": (config.train, config.train_rows), "dev": (config.dev, config.dev_rows)}
    if only and only not in files:
        raise ConfigError(f"own data has the splits train and dev, not '{only}'")
    if config.dev is not None:
        wanted = [only] if only else ["train", "dev"]
        return {name: read_file(path, task, rows=rows) for name in wanted for path, rows in [files[name]] if path}
    every = read_file(config.train, task, rows=config.train_rows)
    held = _held_out(len(every.texts), config.hold_out)
    if not held.any():
        watch.note("no --dev file and nothing held out: the run will have no scores")
        return {"train": every}
    watch.note(f"no --dev file: {held.sum()} of {len(held)} rows are held out as dev (data.hold_out)")
    found = {"train": every.take(np.flatnonzero(~held)), "dev": every.take(np.flatnonzero(held))}
    return {only: found[only]} if only else found


def _held_out(count: int, share: float) -> np.ndarray:
    held = np.zeros(count, bool)
    held[np.random.default_rng(HOLD_OUT_SEED).permutation(count)[: int(count * share)]] = True
    return held


def encoded(name: str, examples: Examples, model: ModelFolder, max_length: int, watch: Watch) -> Dataset:
    """Encode a split; say how many texts were cut and how many pieces the vocabulary lacks."""
    found = encode(model.tokenizer, examples.texts, examples.pairs, max_length=max_length)
    rows = len(examples.texts)
    unknown = found.unknown / max(1, found.pieces)
    watch.note(
        f"{name}: {rows} rows, {found.pieces / rows:.1f} pieces on average, "
        f"{found.truncated} cut at {max_length} ({found.truncated / rows:.1%}), {unknown:.2%} unknown pieces"
    )
    if unknown > 0.2:
        watch.warn(
            f"{name}: {unknown:.0%} of the pieces are unknown to this vocabulary; most likely it is the wrong one or "
            "not whole (another language, a cased model, an empty vocab.txt), and the model will learn little"
        )
    longest = model.config.max_position_embeddings
    if found.truncated > 0.1 * rows and max_length < longest:
        watch.warn(f"{name}: {found.truncated / rows:.0%} of the texts are cut; --max-length goes up to {longest}")
    return Dataset(found, examples.labels, model.tokenizer.pad_id)


def starting_point(parent: ModelFolder, task: Task, watch: Watch) -> tuple[Weights, int]:
    """Return the weights to start from and the number of outputs.

    A classifier whose labels are those of the task (in any order) is kept and put into the task's order; any other one
    is left out and said.
    """
    classes = 1 if task.kind == "regression" else len(task.labels)
    weights = dict(parent.weights)
    old = parent.labels
    if old is not None:
        order = _kept_order(old, task)
        if order is None:
            watch.note(
                f"the model's classifier ({old.kind}: {', '.join(old.names) or 'score'}) is replaced by a new one"
            )
            del weights["head.weight"], weights["head.bias"]
        else:
            weights["head.weight"], weights["head.bias"] = weights["head.weight"][order], weights["head.bias"][order]
            watch.note("the model's classifier has the task's labels and is trained further")
    dropped = sorted({"mlm", "nsp"} & parent.groups)
    if dropped:
        names = {"mlm": "masked-LM", "nsp": "next-sentence"}
        watch.note(f"the {' and '.join(names[group] for group in dropped)} head is not used for fine-tuning")
    if "pooler" not in parent.groups:
        watch.note("the model has no pooler; a new one is trained")
    return weights, classes


def _kept_order(old: Labels, task: Task) -> np.ndarray | None:
    """Return where each label of the task stands in the old classifier, or None where the classifier does not fit."""
    if old.kind != task.kind:
        return None
    if task.kind == "regression":
        return np.array([0])
    try:
        order = label_map(old.names, task.labels, "model")
    except LabelError:
        return None
    return np.arange(len(task.labels)) if order is None else order
