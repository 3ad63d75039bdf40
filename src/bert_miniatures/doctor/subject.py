"""What the doctor looks at. Each part is read when a check asks for it, once; nothing is fetched or written."""

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name

from bert_miniatures.config import DataConfig, TrainConfig
from bert_miniatures.data.examples import Examples, own_task, read_file, read_glue
from bert_miniatures.data.glue import task_folder
from bert_miniatures.data.tasks import Task, task_named
from bert_miniatures.download import hub_snapshot
from bert_miniatures.errors import UnknownName
from bert_miniatures.files import cache_folder, read_json
from bert_miniatures.models import STARTER, converted, is_model
from bert_miniatures.tokenizer import Encoded, Tokenizer
from bert_miniatures.zoo import Miniature, lookup

__all__ = ["Finding", "Found", "Subject"]

READ_LENGTH = 2048  # word pieces of a text that are counted
READ_ROWS = 5000  # of a split, whose pieces are counted


@dataclass(frozen=True)
class Finding:
    """Something that should be otherwise.

    Attributes:
        what: is wrong, and where.
        why: it matters.
        type: what the user types or changes.
        repair: does it, and returns a sentence; only where nothing can be lost.
    """

    what: str
    why: str
    type: str
    repair: Callable[[], str] | None = None


Found = Iterator[Finding]


@dataclass(frozen=True)
class Subject:
    """What is examined.

    Attributes:
        model: any MODEL of the command line; None: no model.
        data: which data, if any.
        train: the settings of a run.
        planned: whether the user plans a run.
        root: where `proc` and `sys` are.
        paths: where Python finds packages.
    """

    model: str | None = None
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    planned: bool = False
    root: Path = Path("/")
    paths: tuple[str, ...] = field(default_factory=lambda: tuple(sys.path))

    @cached_property
    def installed(self) -> dict[str, Distribution]:
        """Installed packages by their normal names; where one is there twice, that which Python imports."""
        found: dict[str, Distribution] = {}
        for one in distributions(path=list(self.paths)):
            name = one.metadata["Name"]
            if name:
                found.setdefault(canonicalize_name(name), one)
        return found

    # ---------------------------------------------------------------------------------------------- the model

    @cached_property
    def published(self) -> Miniature | None:
        """Which of the 24 the model is, by its name; None for a folder.

        Raises:
            UnknownName: neither one of the 24 nor a folder.
        """
        try:
            return lookup(self.model or "")
        except UnknownName:
            if self.model == "starter" or Path(self.model or "").exists():
                return None
            raise

    @cached_property
    def folder(self) -> Path | None:
        """The model's folder on this machine: a model folder, a run's, a deploy folder; None where it is not here."""
        if self.model is None:
            return None
        if self.published is not None:
            own = converted(self.published)
            return own if is_model(own) else hub_snapshot(self.published)
        path = STARTER if self.model == "starter" else Path(self.model)
        inner = path / "model"
        return inner if not (path / "config.json").is_file() and (inner / "config.json").is_file() else path

    @cached_property
    def is_deployed(self) -> bool:
        """Whether the model is a deploy folder."""
        return self.folder is not None and (self.folder / "onnx").is_dir() and not any(self.weight_files)

    @cached_property
    def weight_files(self) -> list[Path]:
        """The files with weights, the one that is read first."""
        names = ("model.safetensors", "pytorch_model.bin")
        return [] if self.folder is None else [self.folder / n for n in names if (self.folder / n).is_file()]

    def document(self, name: str) -> dict[str, Any] | None:
        """Return a JSON object of the model folder, None where there is no such file.

        Raises:
            DataError: it is no JSON.
        """
        if self.folder is None or not (self.folder / name).is_file():
            return None
        found = read_json(self.folder / name)
        return found if isinstance(found, dict) else {}

    @cached_property
    def positions(self) -> int | None:
        """How many word pieces the model can read, as config.json says it."""
        found = (self.document("config.json") or self.document("bert_config.json") or {}).get("max_position_embeddings")
        return found if isinstance(found, int) else None

    @cached_property
    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer; None where there is no model here."""
        return None if self.folder is None else Tokenizer.from_folder(self.folder)

    # ---------------------------------------------------------------------------------------------- the data

    @cached_property
    def has_data(self) -> bool:
        """Whether the user named data."""
        return self.data.task is not None or self.data.train is not None

    @cached_property
    def glue(self) -> Path | None:
        """The folder of GLUE on this machine: that which was named, `$GLUE_DIR`, our cache."""
        if self.data.task is None:
            return None
        places = [self.data.glue, os.environ.get("GLUE_DIR"), cache_folder() / "glue"]
        first = next(Path(place) for place in places if place)
        return first if task_folder(task_named(self.data.task), first) is not None else None

    @cached_property
    def is_here(self) -> bool:
        """Whether there are data to look at on this machine."""
        return self.data.train is not None if self.data.task is None else self.glue is not None

    @cached_property
    def task(self) -> Task:
        """The GLUE task, or what the own training file shows."""
        if self.data.task is not None:
            return task_named(self.data.task)
        assert self.data.train is not None
        named = {name: getattr(self.data, name) for name in ("text", "pair", "label", "kind")}
        return own_task(self.data.train, **named)

    @cached_property
    def splits(self) -> dict[str, Examples]:
        """Train, and dev where there is one."""
        limits = {"train": self.data.train_rows, "dev": self.data.dev_rows}
        if self.glue is not None:
            return {name: read_glue(self.task, self.glue, name, rows) for name, rows in limits.items()}
        files = {"train": self.data.train, "dev": self.data.dev}
        return {name: read_file(path, self.task, rows=limits[name]) for name, path in files.items() if path}

    @cached_property
    def encoded(self) -> Encoded | None:
        """The first training rows in word pieces, longer than any model reads; None without a tokenizer."""
        if self.tokenizer is None:
            return None
        train = self.splits["train"]
        pairs = None if train.pairs is None else train.pairs[:READ_ROWS]
        return self.tokenizer.encode(train.texts[:READ_ROWS], pairs, max_length=READ_LENGTH)
