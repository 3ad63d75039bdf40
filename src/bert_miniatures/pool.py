"""Worker processes that take one job after another, and are replaced when they die.

A worker is a command that reads JSON lines from its standard input and writes JSON lines to its standard output:

    to the worker     {"job": request}      one at a time
                      {"stop": true}        end as soon as nothing is lost; so does the end of its input
    from the worker   {"progress": [3, 9]}  any number of them
                      {"answer": {...}}     the job is finished, one way or the other

Nothing is pickled, the parent never imports torch, and a worker whose parent died sees the end of its input. Workers
have a session of their own: Ctrl-C is heard by the parent alone, and it asks them to stop.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from bert_miniatures.errors import WorkFailed

__all__ = ["Event", "Job", "Pool", "terminated_is_interrupted"]

_TRIES = 2


@dataclass(frozen=True)
class Job:
    """What a worker is asked to do.

    Attributes:
        name: for events.
        request: anything JSON holds.
    """

    name: str
    request: Mapping[str, Any]


@dataclass(frozen=True)
class Event:
    """Something happened to a job.

    Attributes:
        job: which one.
        answer: the worker's last word, or {"failed": reason, "exit": code} of a worker that died twice; None before.
        progress: (done, total), as the worker counts.
        note: what a user should know.
    """

    job: Job
    answer: Mapping[str, Any] | None = None
    progress: tuple[int, int] | None = None
    note: str | None = None


@dataclass
class _Worker:
    process: "subprocess.Popen[bytes]"
    job: Job | None = None
    heard: bytes = b""

    def say(self, message: Mapping[str, Any]) -> None:
        """Send a line; a worker that died is noticed when its output ends."""
        assert self.process.stdin is not None
        left = memoryview(json.dumps(message).encode() + b"\n")
        with contextlib.suppress(OSError):
            while left:  # a signal that is heard meanwhile ends a write before its end
                left = left[self.process.stdin.write(left) :]


@dataclass
class Pool:
    """A number of workers and a queue.

    Args:
        command: starts a worker.
        count: how many at once; each is started when there is work for it.
        environment: variables added to the workers'.
        log: where their standard error goes.
        keep: descriptors that workers inherit.

    Example:
        >>> with Pool(command, count=2, log=Path("log")) as pool:  # doctest: +SKIP
        ...     pool.submit(Job("a", {}))
        ...     for event in pool.events():
        ...         print(event.job.name, event.answer)
    """

    command: Sequence[str]
    count: int
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    keep: Sequence[int] = ()
    _workers: list[_Worker] = field(default_factory=list)
    _queue: deque[Job] = field(default_factory=deque)
    _deaths: dict[str, int] = field(default_factory=dict)

    def __enter__(self) -> "Pool":
        self._selector = selectors.DefaultSelector()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._selector.close()

    def submit(self, job: Job, *, first: bool = False) -> None:
        """Add a job to the queue: at its end, or at its front."""
        (self._queue.appendleft if first else self._queue.append)(job)

    @property
    def processes(self) -> list[int]:
        """Process numbers of the workers that are alive."""
        return [worker.process.pid for worker in self._workers]

    def events(self) -> Iterator[Event]:
        """Hand out jobs and yield what happens to them until none is left; jobs may be submitted meanwhile."""
        while True:
            self._hand_out()
            if not any(worker.job for worker in self._workers):
                return
            for key, _ in self._selector.select(timeout=1.0):
                yield from self._hear(key.data)

    def stop(self, patience: float = 60.0) -> None:
        """Ask all workers to save and end; kill those that have not ended after `patience` seconds."""
        self._queue.clear()
        try:
            for worker in self._workers:
                worker.say({"stop": True})
                _close(worker.process.stdin)
            until = time.monotonic() + patience
            for worker in self._workers:
                _wait(worker.process, until - time.monotonic())
        finally:
            for worker in list(self._workers):
                worker.process.kill()
                self._forget(worker)

    def _hand_out(self) -> None:
        while self._queue:
            worker = next((worker for worker in self._workers if worker.job is None), None)
            if worker is None:
                if len(self._workers) >= self.count:
                    return
                worker = self._start()
            worker.job = self._queue.popleft()
            worker.say({"job": dict(worker.job.request)})

    def _start(self) -> _Worker:
        try:
            with self.log.open("ab") as log:
                process = subprocess.Popen(
                    self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, bufsize=0,
                    env={**os.environ, **self.environment}, pass_fds=self.keep, start_new_session=True,
                )  # fmt: skip
        except OSError as error:
            raise WorkFailed(f"a worker cannot be started ({error.strerror})") from error
        worker = _Worker(process)
        assert process.stdout is not None
        self._selector.register(process.stdout, selectors.EVENT_READ, worker)
        self._workers.append(worker)
        return worker

    def _hear(self, worker: _Worker) -> Iterator[Event]:
        assert worker.process.stdout is not None
        raw = os.read(worker.process.stdout.fileno(), 65_536)
        if not raw:
            yield from self._died(worker)
            return
        *lines, worker.heard = (worker.heard + raw).split(b"\n")
        for line in lines:
            message, job = json.loads(line), worker.job
            if job is None:
                continue
            if "progress" in message:
                yield Event(job, progress=tuple(message["progress"]))
            else:
                worker.job = None
                self._deaths.pop(job.name, None)
                yield Event(job, answer=message["answer"])

    def _died(self, worker: _Worker) -> Iterator[Event]:
        code, job = worker.process.wait(), worker.job
        self._forget(worker)
        if job is None:
            return
        self._deaths[job.name] = self._deaths.get(job.name, 0) + 1
        reason = self._reason(code)
        if self._deaths[job.name] < _TRIES:
            self._queue.append(job)
            yield Event(job, note=f"{job.name}: the worker {reason}; it is tried again")
        else:
            yield Event(job, answer={"failed": f"the worker {reason}, {_TRIES} times", "exit": code})

    def _reason(self, code: int) -> str:
        if code == -signal.SIGKILL:
            return "was killed by signal 9; most likely out of memory"
        if code < 0:
            return f"was killed by signal {-code} ({signal.Signals(-code).name})"
        with self.log.open("rb") as log:
            log.seek(max(0, self.log.stat().st_size - 4096))
            last = log.read().decode(errors="replace").strip().splitlines()[-1:]
        return f"ended with exit code {code} ({' '.join(last) or 'it said nothing'})"

    def _forget(self, worker: _Worker) -> None:
        worker.process.wait()
        self._selector.unregister(worker.process.stdout)  # type: ignore[arg-type]
        for stream in (worker.process.stdin, worker.process.stdout):
            _close(stream)
        self._workers.remove(worker)


@contextlib.contextmanager
def terminated_is_interrupted() -> Iterator[None]:
    """Hear SIGTERM as Ctrl-C inside the block; in the main thread only, for others cannot hear signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def hear(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _close(stream: Any) -> None:
    with contextlib.suppress(OSError):  # what was not sent to a worker that died
        stream.close()


def _wait(process: "subprocess.Popen[bytes]", seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.1, seconds))
