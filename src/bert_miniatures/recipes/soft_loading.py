"""What a distillation needs before its first update: the texts to learn from, and what the teachers say about them."""

import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bert_miniatures import metrics
from bert_miniatures.data.batches import Dataset
from bert_miniatures.data.examples import Examples
from bert_miniatures.data.stream import stream_rows
from bert_miniatures.data.tasks import Task
from bert_miniatures.distill_config import DistillConfig
from bert_miniatures.errors import ConfigError, DataError
from bert_miniatures.files import cache_folder
from bert_miniatures.recipes.augmenting import more_texts
from bert_miniatures.recipes.label import label_rows, missing_said, rows_of
from bert_miniatures.recipes.loading import Inputs, encoded, load_splits, read_parent, task_of
from bert_miniatures.recipes.teachers import FileTeacher, Teacher, answers_of, open_teachers, order_of
from bert_miniatures.soft_labels import About, hashes_of
from bert_miniatures.transfer import locked
from bert_miniatures.traps import order_warning
from bert_miniatures.watch import Watch

__all__ = ["SoftInputs", "load_soft_inputs"]

_FEW = 1_000  # texts to learn from
_LONGER = 3.0  # times as many pieces in a text
_UNKNOWN = 0.02  # more of the pieces unknown than in the task's own texts

Floats = np.ndarray


@dataclass(frozen=True)
class SoftInputs(Inputs):
    """A distillation's inputs; "train" is all texts that the student learns from, with the teachers' logits.

    Attributes:
        teachers: name, sha256 and, where known, parameters and bytes of each.
        teacher_scores: the teachers' mean answer scored on dev; empty where they do not know the dev texts.
        texts: where the texts to learn from come from: counts.
        augmentation: how texts were made, and what was dropped; empty where none were.
    """

    teachers: Sequence[Mapping[str, Any]]
    teacher_scores: Mapping[str, float]
    texts: Mapping[str, int]
    augmentation: Mapping[str, Any]


def load_soft_inputs(config: DistillConfig, watch: Watch) -> SoftInputs:
    """Read and check everything; let teachers answer what they have not answered before."""
    task = task_of(config.data)
    for text in task.notes:
        watch.note(text)
    splits = load_splits(task, config.data, watch)
    parent = read_parent(config, watch)
    about = About(task.kind, task.labels if task.kind != "regression" else ())
    teachers = open_teachers(config.teacher, watch, task.kind)
    for teacher, name in zip(teachers, config.teacher, strict=True):
        order_of(teacher, about, name)
    if config.augment:
        _check_can_answer(teachers)
    source, texts = _texts_to_learn(config, task, splits, watch)
    logits = _answers(teachers, about, source, watch)
    known = ~np.isnan(logits).any(1)
    who = tuple(facts for teacher in teachers for facts in teacher.about.teachers)
    missing_said(int((~known).sum()), len(source), replace(about, teachers=who), watch, config.missing)
    if not known.all():
        source, logits = source.take(np.flatnonzero(known)), logits[known]
    own = int(known[: texts["labelled"]].sum())
    texts |= {"labelled": own, "transfer": len(source) - own}
    augmentation: dict[str, Any] = {}
    if config.augment:
        made, augmentation = more_texts(config, task, source, splits, watch)
        texts["augmented"] = len(made)
        if len(made):
            logits = np.concatenate([logits, _answers(teachers, about, made, watch)])
            source = _joined(source, made)
    if len(source) < _FEW:
        watch.warn(
            f"the student learns from {len(source):,} texts only; more unlabelled text (--transfer FILE, or --augment "
            "N) is what makes a student better"
        )
    soft = {"train": replace(source, checksum=_checksum(source, config, who))}
    splits = soft | {name: examples for name, examples in splits.items() if name != "train"}
    length = config.data.max_length
    data = {name: encoded(name, examples, parent, length, watch) for name, examples in splits.items()}
    data["train"].teacher = np.ascontiguousarray(logits, np.float32)
    _far(data, slice(own, own + texts["transfer"]), parent.tokenizer.unk_id, watch)
    scores = _standing(teachers, about, task, splits, watch)
    return SoftInputs(task, parent, splits, data, who, scores, texts, augmentation)


# ---------------------------------------------------------------------------------------------------- the texts


def _texts_to_learn(
    config: DistillConfig, task: Task, splits: Mapping[str, Examples], watch: Watch
) -> tuple[Examples, dict[str, int]]:
    """Return the labelled texts, then those of the transfer files that are new, and counts.

    A text that is in a split to score on is never learnt from.
    """
    train = splits["train"]
    texts: list[str] = list(train.texts) if config.labelled else []
    pairs: list[str] | None = (list(train.pairs or []) if config.labelled else []) if task.pair else None
    own, repeated, scored = len(texts), 0, 0
    held = {bytes(one) for name in splits if name != "train" for one in _hashes(splits[name])}
    seen = {bytes(one) for one in _hashes(train)} if config.labelled else set()
    for path in config.transfer:
        text, pair = (config.transfer_text, config.transfer_pair) if path.suffix != ".txt" else (None, None)
        for chunk in stream_rows(path, text=text, pair=pair):
            if task.pair != (chunk[1] is not None):
                wanted, got = ("two texts", "one") if task.pair else ("one text", "two")
                raise DataError(f"{path}: the task has rows of {wanted}, these rows have {got}; say --transfer-text "
                                "or --transfer-pair COLUMN")  # fmt: skip
            for i, one in enumerate(map(bytes, hashes_of(*chunk))):
                repeated, scored = repeated + (one in seen), scored + (one in held)
                if one in seen or one in held:
                    continue
                seen.add(one)
                texts.append(chunk[0][i])
                if pairs is not None and chunk[1] is not None:
                    pairs.append(chunk[1][i])
    if scored:
        watch.note(f"transfer: {scored:,} texts are in the dev set too; they are not learnt from")
    if repeated:
        watch.note(f"transfer: {repeated:,} texts are there already; each is learnt from once")
    if not texts:
        raise DataError(f"{', '.join(map(str, config.transfer))}: no text is left to learn from")
    source = ", ".join(map(str, [*([train.source] if config.labelled else []), *config.transfer]))
    labels = _with_hidden(train.labels, own, len(texts))
    ids = [str(i) for i in range(len(texts))]
    checksum = hashlib.sha256(hashes_of(texts, pairs).tobytes() + labels.tobytes()).hexdigest()
    counts = {"labelled": own, "transfer": len(texts) - own, "repeated": repeated, "in_dev": scored}
    return Examples(texts, pairs, labels, ids, source, checksum), counts


def _check_can_answer(teachers: Sequence[Teacher]) -> None:
    for teacher in teachers:
        if isinstance(teacher, FileTeacher):
            raise ConfigError(
                f"{teacher.about.teachers[0]['name']}: a file has no answers to texts that are made now; augment needs "
                "the teacher itself (--teacher FOLDER)"
            )


def _joined(source: Examples, made: Examples) -> Examples:
    """Put texts without labels behind those there are."""
    pairs = None if source.pairs is None else source.pairs + (made.pairs or [])
    labels = _with_hidden(source.labels, len(source), len(source) + len(made))
    ids = [str(i) for i in range(len(source) + len(made))]
    checksum = hashlib.sha256((source.checksum + made.checksum).encode()).hexdigest()
    return Examples(source.texts + made.texts, pairs, labels, ids, f"{source.source}, {made.source}", checksum)


def _hashes(examples: Examples) -> Any:
    return hashes_of(examples.texts, examples.pairs)


def _with_hidden(labels: np.ndarray | None, own: int, rows: int) -> np.ndarray:
    """Return the labels of the first rows, and hidden ones for the others."""
    assert labels is not None
    hidden = math.nan if labels.dtype.kind == "f" else -1
    out = np.full((rows, *labels.shape[1:]), hidden, labels.dtype)
    out[:own] = labels[:own]
    return out


def _checksum(source: Examples, config: DistillConfig, teachers: Sequence[Mapping[str, Any]]) -> str:
    """Return what must be the same when a run is resumed: texts, labels and who answered."""
    who = [str(teacher["sha256"]) for teacher in teachers]
    return hashlib.sha256("\n".join([source.checksum, *who]).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------- the answers


def _answers(teachers: Sequence[Teacher], about: About, examples: Examples, watch: Watch) -> Floats:
    """Return the teachers' mean answer [N, C] in the order of `about`; NaN where one does not know a text."""
    found = [_from_files(teacher, about, examples, watch) for teacher in teachers]
    return answers_of(found, about, (examples.texts, examples.pairs))


def _from_files(teacher: Teacher, about: About, examples: Examples, watch: Watch) -> Teacher:
    """Let a model answer once; the answers are kept in the cache for other students and other settings.

    Of several processes that ask for the same answers at once, one works and the others wait for it.
    """
    if isinstance(teacher, FileTeacher):
        return teacher
    facts = teacher.about.teachers[0]
    key = hashlib.sha256(f"1 {facts['sha256']} {facts['max_length']} {about.document()}".encode())
    key.update(_hashes(examples).tobytes())
    path = cache_folder() / "teachers" / f"{key.hexdigest()}.parquet"
    if not path.is_file():
        with locked(path):
            if not path.is_file():
                watch.note(f"{facts['name']} answers {len(examples):,} texts, once; they are kept in {path}")
                rows = functools.partial(rows_of, examples.texts, examples.pairs)
                label_rows([teacher], about, rows, path, watch, resume=True)
    return FileTeacher(path, about.kind)


# ---------------------------------------------------------------------------------------------------- reports


def _far(data: Mapping[str, Dataset], rows: slice, unknown: int, watch: Watch) -> None:
    """Warn where the texts of the transfer files look unlike those of the task."""
    transfer, own = _looks(data["train"], rows, unknown), slice(rows.start)
    task = _looks(data["dev"], slice(None), unknown) if "dev" in data else _looks(data["train"], own, unknown)
    if transfer is None or task is None:
        return
    (share, length), (usual, usual_length) = transfer, task
    if share > usual + _UNKNOWN:
        watch.warn(
            f"transfer: {share:.1%} of the pieces are unknown to the vocabulary, {usual:.1%} in the task's texts; the "
            "texts are far from the task (another language, another alphabet?)"
        )
    if not 1 / _LONGER < length / usual_length < _LONGER:
        watch.warn(
            f"transfer: {length:.0f} pieces a text on average, {usual_length:.0f} in the task's texts; texts of the "
            "task's length teach more"
        )


def _looks(data: Dataset, rows: slice, unknown: int) -> tuple[float, float] | None:
    """Return the share of unknown pieces and the mean length of these rows; None where there are none."""
    lengths = data.lengths[rows]
    if not len(lengths):
        return None
    first = int(data.offsets[rows.start or 0])
    ids = data.ids[first : first + int(lengths.sum())]
    return float((ids == unknown).mean()), float(lengths.mean())


def _standing(
    teachers: Sequence[Teacher], about: About, task: Task, splits: Mapping[str, Examples], watch: Watch
) -> dict[str, float]:
    """Score the teachers on dev and warn where they have nothing to teach."""
    dev = splits.get("dev")
    if dev is None or dev.labels is None:
        return {}
    logits = _answers(teachers, about, dev, watch)
    unknown = int(np.isnan(logits).any(1).sum())
    if unknown:
        watch.note(f"the teachers' score is not known: {unknown:,} of {len(dev):,} dev texts have no answer")
        return {}
    scores = metrics.score(task.metrics, task.kind, logits, dev.labels)
    watch.note("teacher: dev " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
    said = metrics.degenerate(task.kind, logits, dev.labels, task.labels), order_warning(task, logits, dev.labels)
    for sentence in filter(None, said):
        watch.warn(f"teacher: {sentence}")
    return scores
