"""A Ray cluster: joining it, sending files to its nodes, handing out jobs.

Nodes need this package and nothing else: files that a node lacks are sent to it once, through Ray's object store.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from bert_miniatures.errors import ConfigError, MissingExtra, OutputExists
from bert_miniatures.files import atomic_folder, cache_folder, sha256_of
from bert_miniatures.pool import Event, Job

__all__ = ["RETRIES", "RayPool", "Sent", "cluster", "connect", "cores_of", "on_this_node", "sent"]

RETRIES = 3  # of a task whose node or process was lost


def cluster() -> Any:
    """Return the module of Ray.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return import_module("ray")
    except ModuleNotFoundError:
        raise MissingExtra("--engine ray", "scale") from None


def connect() -> int:
    """Join the cluster that `RAY_ADDRESS` names or that runs on this machine; return its cores.

    Raises:
        MissingExtra: Ray is not installed.
        ConfigError: there is no cluster.
    """
    ray = cluster()
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS", "auto")
        try:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"no Ray cluster at '{address}' ({str(error).splitlines()[0]}); start one with 'ray start --head', or "
                "name one in RAY_ADDRESS"
            ) from None
    return cores_of(ray)


def cores_of(ray: Any) -> int:
    """Return the cores that the cluster has now."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


class RayPool:
    """Hands out jobs to the cluster, as `pool.Pool` does to processes of this machine.

    Args:
        start: begins a job, with up to `RETRIES` retries; returns Ray's reference to what it will have returned.
        ended: makes the answer of a job from what it returned.
        limit: how many jobs at once; None takes the cluster's cores.
    """

    def __init__(
        self, start: Callable[[Job], Any], ended: Callable[[Job, Any], Mapping[str, Any]], limit: int | None = None
    ) -> None:
        self._ray, self._begin, self._end, self._limit = cluster(), start, ended, limit
        self._queue: deque[Job] = deque()
        self._running: dict[Any, Job] = {}

    def __enter__(self) -> "RayPool":
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
            while self._queue and len(self._running) < (self._limit or cores_of(self._ray)):
                job = self._queue.popleft()
                try:
                    self._running[self._begin(job)] = job
                except Exception as error:
                    yield Event(job, answer=_failure(error))
            ready, _ = self._ray.wait(list(self._running), timeout=1.0) if self._running else ([], [])
            for task in ready:
                yield self._ended(task, self._running.pop(task))

    def _ended(self, task: Any, job: Job) -> Event:
        try:
            returned = self._ray.get(task)
        except self._ray.exceptions.RayError as error:
            said = str(error).strip().splitlines()[0]
            return Event(job, answer={"failed": f"lost {RETRIES + 1} times by the cluster ({said})", "exit": 1})
        return Event(job, answer=self._end(job, returned))


def _failure(error: Exception) -> dict[str, Any]:
    """Return what is answered where the inputs of a job cannot be read."""
    return {"failed": str(error), "exit": getattr(error, "exit_code", 1), "code": getattr(error, "code", "")}


# ---- files


class Sent(NamedTuple):
    """A file or folder of the user's: where it is, its checksum, and file name -> Ray's reference to what it holds."""

    path: str
    sha256: str
    files: dict[str, Any]


def sent(path: Path) -> Sent:
    """Put a file, or the files of a folder and of those in it, into Ray's object store."""
    ray = cluster()
    return Sent(str(path), _checksum(path), {name: ray.put(file.read_bytes()) for name, file in _files(path).items()})


def on_this_node(one: Sent) -> Path:
    """Return where a file or folder is on this node; write it into the cache where there is none with that content."""
    if (one.path, one.sha256) not in _KNOWN:
        _KNOWN[one.path, one.sha256] = _placed(one)
    return _KNOWN[one.path, one.sha256]


_KNOWN: dict[tuple[str, str], Path] = {}  # of this process, in which Ray runs many tasks


def _placed(one: Sent) -> Path:
    path = Path(one.path)
    if path.exists() and _checksum(path) == one.sha256:
        return path
    kept = cache_folder() / "ray" / one.sha256
    if not kept.exists():
        ray = cluster()
        with suppress(OutputExists), atomic_folder(kept) as temporary:  # another process of this node may be quicker
            for name, content in one.files.items():
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                (temporary / name).write_bytes(ray.get(content))
    return kept / path.name if (kept / path.name).is_file() else kept


def _files(path: Path) -> dict[str, Path]:
    if path.is_file():
        return {path.name: path}
    return {inner.relative_to(path).as_posix(): inner for inner in sorted(path.rglob("*")) if inner.is_file()}


def _checksum(path: Path) -> str:
    """Return a checksum of a file, or of the names and contents of the files of a folder."""
    lines = [f"{name} {sha256_of(file)}" for name, file in _files(path).items()]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
