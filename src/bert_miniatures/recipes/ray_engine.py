"""Cells as tasks of a Ray cluster: data are shipped once to a node, run folders come back, lost cells run again.

Nodes need this package and nothing else: neither the data, nor the model, nor a shared file system.
"""

import os
import shutil
import tempfile
from collections import deque
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from bert_miniatures.distill_config import inputs_key, recipe_settings
from bert_miniatures.errors import ConfigError, MissingExtra
from bert_miniatures.files import RunFolder, atomic_write
from bert_miniatures.pool import Event, Job
from bert_miniatures.recipes.worker import SharedInputs, answer
from bert_miniatures.watch import Watch

__all__ = ["RayEngine", "connect"]

_RETRIES = 3  # of a task whose node or process was lost
_HELD = SharedInputs()  # of this process: Ray runs many tasks in one


def connect() -> int:
    """Join the cluster that `RAY_ADDRESS` names or that runs on this machine; return its cores.

    Raises:
        MissingExtra: Ray is not installed.
        ConfigError: there is no cluster.
    """
    ray = _ray()
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "auto")
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"no Ray cluster at '{address}' ({str(error).splitlines()[0]}); start one with 'ray start --head', or "
                "name one in RAY_ADDRESS"
            ) from None
    return _cores(ray)


class RayEngine:
    """Hands out jobs to the cluster, as `pool.Pool` does to processes of this machine.

    Args:
        limit: how many tasks at once; None takes the cluster's cores.
    """

    def __init__(self, limit: int | None = None) -> None:
        self._ray, self._limit = _ray(), limit
        self._queue: deque[Job] = deque()
        self._running: dict[Any, Job] = {}
        self._shipped: dict[str, Any] = {}

    def __enter__(self) -> "RayEngine":
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.clear()
        for task in self._running:
            self._ray.cancel(task, force=True)
        self._running.clear()

    def submit(self, job: Job, *, first: bool = False) -> None:
        """Add a job to the queue: at its end, or at its front."""
        (self._queue.appendleft if first else self._queue.append)(job)

    def events(self) -> Iterator[Event]:
        """Hand out jobs and yield their answers until none is left; jobs may be submitted meanwhile."""
        while self._queue or self._running:
            while self._queue and len(self._running) < (self._limit or _cores(self._ray)):
                job = self._queue.popleft()
                try:
                    self._running[self._start(job)] = job
                except Exception as error:
                    yield Event(job, answer=_failure(error))
            ready, _ = self._ray.wait(list(self._running), timeout=1.0) if self._running else ([], [])
            for task in ready:
                yield self._ended(task, self._running.pop(task))

    def _start(self, job: Job) -> Any:
        config = recipe_settings(job.request["config"])
        key = inputs_key(config)
        if key not in self._shipped:
            self._shipped[key] = self._ray.put(_HELD.loaded(config))
        threads = config.train.threads or 1
        task = self._ray.remote(_work).options(num_cpus=threads, max_retries=_RETRIES, name=job.name)
        out = job.request.get("out")
        begun = _read(Path(out)) if out else {}
        return task.remote(dict(job.request), begun, [self._shipped[key]])  # in a list, Ray leaves it where it is

    def _ended(self, task: Any, job: Job) -> Event:
        try:
            found, files = self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            said = str(error).strip().splitlines()[0]
            return Event(job, answer={"failed": f"lost {_RETRIES + 1} times by the cluster ({said})", "exit": 1})
        if job.request.get("out"):
            _write(Path(job.request["out"]), files)
        return Event(job, answer=found)


def _work(
    request: dict[str, Any], begun: dict[str, bytes], inputs: list[Any]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Do a job on a node: in a folder of its own, whose files go back."""
    config = recipe_settings(request["config"])
    if not _HELD.holds(config):
        _HELD.hold(config, *_ray().get(inputs[0]))
    folder = Path(tempfile.mkdtemp(prefix="cell-"))
    try:
        _write(folder, begun)
        found = answer(request | {"out": str(folder)}, _HELD, Watch())
        return found, {} if "probe" in request or "prepare" in request else _read(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read(folder: Path) -> dict[str, bytes]:
    """Return the files of a run folder; what is half-written or only of the sweep stays behind."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes()
        for name, path in found.items()
        if name != "failed.json" and not any(part.startswith(".") for part in Path(name).parts)
    }


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files, result.json last: a folder that has it is whole."""
    for name in sorted(files, key=lambda name: name == "result.json"):
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(files[name])
    if "result.json" in files:
        shutil.rmtree(RunFolder(folder).state, ignore_errors=True)


def _failure(error: Exception) -> dict[str, Any]:
    """Return what is answered where the inputs of a job cannot be read."""
    return {"failed": str(error), "exit": getattr(error, "exit_code", 1), "code": getattr(error, "code", "")}


def _cores(ray: Any) -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def _ray() -> Any:
    try:
        return import_module("ray")
    except ModuleNotFoundError:
        raise MissingExtra("--engine ray", "scale") from None
