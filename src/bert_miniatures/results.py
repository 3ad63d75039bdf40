"""Finished runs, found on disk: what result.json and run.toml say, without a model or torch."""

import json
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pydantic

from bert_miniatures.data.tasks import TASKS
from bert_miniatures.errors import DataError, UnknownName
from bert_miniatures.files import RunFolder, read_json
from bert_miniatures.watch import Watch
from bert_miniatures.zoo import ZOO, lookup

__all__ = ["RunResult", "collect", "runs_below", "title"]

# Settings that a cell's repeats may differ in: the seed, where things are, and what leaves the mathematics alone.
_NO_MATTER = {"train.seed", "train.threads", "train.log_every", "train.save_every", "train.micro_batch_size"}
_NO_MATTER |= {"train.exact_speedups", "data.glue", "data.train", "data.dev", "model"}
_NO_MATTER |= {"compare", *(key.replace("train.", "finetune.") for key in _NO_MATTER)}  # of a distillation


class RunResult(pydantic.BaseModel):
    """What result.json of a run says, and where it is.

    Attributes:
        path: the run folder.
        scores: split -> metric -> fraction; None where it is not defined; empty where the run failed.
        finding: why the run went nowhere, a sentence.
        settings: the other settings in run.toml that decide the result, as sorted "key = value".
        data: the own training file, as in run.toml; "" for a GLUE task.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())

    path: Path
    task: str
    metric: str
    model: str
    scores: dict[str, dict[str, float | None]]
    seed: int
    batch_size: int
    learning_rate: float
    epochs: int
    layers: int = 0
    width: int = 0
    labels: tuple[str, ...] = ()
    rows: dict[str, int] = {}
    data_sha256: dict[str, str] = {}
    parent_sha256: str = ""
    finding: str | None = None
    settings: tuple[str, ...] = ()
    data: str = ""

    @property
    def score(self) -> float | None:
        """The task's first metric on dev; None where there is none."""
        return self.scores.get("dev", {}).get(self.metric)

    @property
    def name(self) -> str:
        """The model, the same for all names of one of the 24: its size, or the path as the run has it."""
        try:
            return lookup(self.model).size
        except UnknownName:
            return self.model

    @property
    def subject(self) -> str:
        """What was learnt: a GLUE task's name, or "own" and the training file."""
        if self.task in TASKS:
            return self.task
        return f"{self.task}: {self.data or self.data_sha256.get('train', '')[:12] or 'unknown data'}"


def title(model: str) -> str:
    """Return what a model is called in tables: BERT-Tiny, BERT 6/512, or the path of a folder.

    Example:
        >>> title("2/128"), title("6/512")
        ('BERT-Tiny', 'BERT 6/512')
    """
    if model not in ZOO:
        return model
    nickname = ZOO[model].nickname
    return f"BERT-{nickname.capitalize()}" if nickname else f"BERT {model}"


def collect(folders: Iterable[Path], watch: Watch | None = None) -> list[RunResult]:
    """Return the finished runs in and below these folders, by path.

    Runs that are not finished or whose result.json is damaged are left out, and `watch` hears a warning about each.

    Raises:
        DataError: one of the folders does not exist.

    Example:
        >>> [run.path.name for run in collect([Path("runs")])]  # doctest: +SKIP
        ['bs32-lr1e-4-seed1', 'bs32-lr3e-4-seed1']
    """
    watch = watch or Watch()
    found: dict[Path, RunResult] = {}
    for folder in folders:
        if not Path(folder).is_dir():
            raise DataError(f"{folder}: no such folder")
        for run in runs_below(Path(folder)):
            try:
                found.setdefault(run.path.resolve(), _read(run))
            except DataError as error:
                watch.warn(f"{error}; left out")
    return sorted(found.values(), key=lambda run: run.path)


def runs_below(folder: Path) -> Iterable[RunFolder]:
    """Yield the runs in and below a folder, by path, whether or not they are finished."""
    for place, inside, _ in os.walk(folder):
        run = RunFolder(Path(place))
        is_run = run.is_finished() or run.is_run()
        parts = {"model", "state", "predictions"} if is_run else set()
        inside[:] = sorted(name for name in inside if name not in parts and not name.startswith("."))
        if is_run:
            yield run


def _read(run: RunFolder) -> RunResult:
    if not run.is_finished():
        raise DataError(f"{run.path}: {_why_not(run)}")
    document = read_json(run.result)
    if not isinstance(document, dict):
        raise DataError(f"{run.result}: expected an object with the run's scores")
    settings = _settings(run)
    if "data.corpus" in settings:
        raise DataError(f"{run.path}: a pre-training run, which has no task")
    kept = tuple(sorted(f"{key} = {value}" for key, value in settings.items() if key not in _NO_MATTER))
    try:
        known = {"path": run.path, "settings": kept, "data": settings.get("data.train", "")}
        return RunResult(**(document | known))
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{run.result}: '{where}': {first['msg'].lower()}") from None


def _why_not(run: RunFolder) -> str:
    """Say why a run has no result: a sweep leaves failed.json where a cell failed."""
    try:
        return f"failed ({read_json(run.path / 'failed.json')['reason']})"
    except (DataError, KeyError, TypeError):
        return "not finished"


def _settings(run: RunFolder) -> dict[str, str]:
    """Return run.toml as "section.key" -> value; empty where there is none."""
    try:
        document = tomllib.loads(run.config.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{run.config}: {error}") from None
    return dict(_flat(document))


def _flat(document: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, str]]:
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield path + key, value if isinstance(value, str) else json.dumps(value, default=str)
