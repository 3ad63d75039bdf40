"""Teachers: whoever answers texts with logits, be it a model or a file of answers."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from bert_miniatures.auto_teacher import AutoTeacher, is_foreign
from bert_miniatures.checkpoint import read_folder
from bert_miniatures.data.labels import label_map
from bert_miniatures.data.probabilities import read_probabilities
from bert_miniatures.errors import CheckpointError, ConfigError, LabelError
from bert_miniatures.files import sha256_of
from bert_miniatures.models import resolve
from bert_miniatures.outputs import Labels
from bert_miniatures.predict import Predictor, engine_of
from bert_miniatures.soft_labels import About, Lookup, hashes_of, is_soft_labels, mean_of, read
from bert_miniatures.watch import Watch

__all__ = ["FileTeacher", "FolderTeacher", "Teacher", "answers_of", "bytes_of", "open_teachers", "order_of"]

Chunk = tuple[Sequence[str], Sequence[str] | None]
Floats = npt.NDArray[np.float32]


class Teacher(Protocol):
    """Whoever answers texts with logits."""

    about: About

    def answer(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Floats:
        """Return [N, C]; rows of NaN for texts that it does not know."""


class FolderTeacher:
    """A BERT classifier, or a deploy folder; see `Predictor`."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        if engine_of(folder) == "onnx":
            labels = self.predictor.labels
            facts = _facts_of_graph(folder) | {"max_length": labels.max_length}
        else:
            labels, facts = _facts_of_model(folder)
        self.about = About(labels.kind, labels.names, ({"name": name, **facts},))

    @functools.cached_property
    def predictor(self) -> Predictor:
        """The model, opened when it is asked for the first time."""
        return Predictor(self.folder)

    def answer(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Floats:
        """Return the logits [N, C]."""
        return self.predictor.logits(texts, pairs)


def _facts_of_model(folder: Path) -> tuple[Labels, dict[str, Any]]:
    found = read_folder(folder, labels_needed=True)
    assert found.labels is not None
    length = min(found.labels.max_length, found.config.max_position_embeddings)
    size = sum(weight.size for weight in found.weights.values())
    facts = {"sha256": found.fingerprint, "parameters": size, "bytes": bytes_of(folder), "max_length": length}
    return found.labels, facts


def _facts_of_graph(folder: Path) -> dict[str, Any]:
    graph = folder / "onnx" / "model.onnx"
    return {"sha256": sha256_of(graph), "bytes": graph.stat().st_size}


class FileTeacher:
    """A file of soft labels, or of probabilities that something else produced."""

    def __init__(self, path: Path, kind: str | None) -> None:
        if path.suffix == ".parquet" and is_soft_labels(path):
            found = read(path)
        else:
            found = read_probabilities(path, kind=kind)
        self.lookup, self.about = Lookup(found), found.about
        self.fingerprint = sha256_of(path)

    def answer(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Floats:
        """Return the logits [N, C] that the file has for these texts."""
        logits, known = self.lookup.find(hashes_of(texts, pairs))
        logits[~known] = np.nan
        return logits


def bytes_of(folder: Path) -> int:
    """Return the size of a model's weights on the disk."""
    found = [folder / name for name in ("model.safetensors", "pytorch_model.bin") if (folder / name).is_file()]
    files = found[:1] or ([folder] if folder.is_file() else [path for path in folder.rglob("*") if path.is_file()])
    return sum(path.stat().st_size for path in files)


def open_teachers(names: Sequence[str], watch: Watch, kind: str | None = None) -> list[Teacher]:
    """Open the teachers; all have the labels of the first, in any order.

    Args:
        names: model folders, runs, files of soft labels (.parquet) or of probabilities (.jsonl, .parquet).
        kind: of the task, where it is known.

    Raises:
        LabelError: two teachers answer different questions.
        CheckpointError: a folder has no classifier, or no names for its labels.
        MissingExtra: a folder is no BERT, and transformers is not installed.
        DataError: a file is damaged.
    """
    found: list[Teacher] = []
    for name in names:
        path = Path(name)
        if path.is_file() and path.suffix.casefold() in {".parquet", ".jsonl"}:
            teacher: Teacher = _from_file(path, kind, watch)
        else:
            teacher = _from_folder(name)
            _check_named(teacher.about, name)
        if found:
            order_of(teacher, found[0].about, name)
        found.append(teacher)
    if not found:
        raise ConfigError("no teacher: give a model folder, a run, or a file of its answers")
    return found


def _from_folder(name: str) -> Teacher:
    if engine_of(name) == "onnx":
        return FolderTeacher(name, Path(name))
    folder = resolve(name)
    return AutoTeacher(name, folder) if is_foreign(folder) else FolderTeacher(name, folder)


def _from_file(path: Path, kind: str | None, watch: Watch) -> FileTeacher:
    found = FileTeacher(path, kind)
    if found.lookup.conflicts:
        said = f"{found.lookup.conflicts:,} texts are there more than once with different answers"
        watch.warn(f"{path}: {said}; they are averaged")
    return found


def _check_named(about: About, name: str) -> None:
    """Refuse LABEL_0, LABEL_1 …: which is which would be a guess."""
    if about.labels and all(label.upper().startswith("LABEL_") for label in about.labels):
        raise CheckpointError(
            f"{name}: its labels have no names ({', '.join(about.labels)}); write them into id2label of config.json, "
            "in the order of the outputs"
        )


def order_of(teacher: Teacher, about: About, name: str) -> npt.NDArray[np.int64] | None:
    """Return where the labels of `about` stand in the teacher's answers; None where they are the same.

    Raises:
        LabelError: kinds, labels or the number of texts differ.
    """
    own = teacher.about
    if own.kind != about.kind:
        raise LabelError(f"{name}: answers {own.kind}, expected {about.kind}")
    if own.kind == "regression":
        return None
    return label_map(own.labels, about.labels, name)


def answers_of(teachers: Sequence[Teacher], about: About, chunk: Chunk) -> Floats:
    """Return the teachers' mean answer [N, C], columns in the order of `about`; NaN where one does not know a text."""
    found = []
    for teacher in teachers:
        order = order_of(teacher, about, str(teacher.about.teachers[0]["name"]))
        logits = teacher.answer(*chunk)
        found.append(logits if order is None else logits[:, order])
    return mean_of(about.kind, found)
