"""Work done beside the main thread: by a forked copy of this process, or by a thread where there is no fork.

A small model's operations take microseconds. Two threads that start them wait for Python's interpreter lock a fifth of
the time; two processes do not. The copy sees what either process writes into tensors made by `shared_zeros`, and it
needs no copy of the data set.
"""

import contextlib
import mmap
import multiprocessing as mp
import os
import select
import signal
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any, Protocol

import torch
from torch import Tensor

from bert_miniatures.errors import ProcessLost

__all__ = ["Beside", "Process", "Thread", "Work", "can_fork", "shared_zeros"]

Work = Mapping[str, Callable[..., Any]]

_AWAKE = 0.002  # seconds to look for a message before sleeping; to be woken takes longer than most waits of an update


def shared_zeros(count: int) -> Tensor:
    """Return float32 zeros [count] that a forked process shares; pages that nobody writes take no memory."""
    return torch.frombuffer(mmap.mmap(-1, max(4, 4 * count)), dtype=torch.float32)[:count]


def can_fork() -> bool:
    """Tell whether a forked copy of this process may compute: on Linux, where this process may have children."""
    return sys.platform == "linux" and not mp.current_process().daemon


class Beside(Protocol):
    """Somebody who does one of several named pieces of work at a time."""

    def ask(self, name: str, *arguments: Any) -> None:
        """Begin a piece of work."""

    def answer(self) -> Any:
        """Wait until it is done; return what it returned or raise what it raised."""

    def close(self) -> None:
        """End."""


class Thread:
    """Does the work in a thread of this process."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.threads = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
        self.future: Future[Any] | None = None

    def ask(self, name: str, *arguments: Any) -> None:
        self.future = self.threads.submit(self.work[name], *arguments)

    def answer(self) -> Any:
        assert self.future is not None
        return self.future.result()

    def close(self) -> None:
        self.threads.shutdown()


class Process:
    """Does the work in a forked copy of this process, which ends when this one ends, however that may be."""

    def __init__(self, work: Work) -> None:
        context = mp.get_context("fork")
        self.pipe, far = context.Pipe()
        self.process = context.Process(target=_serve, args=(far, self.pipe, work), daemon=True)
        with warnings.catch_warnings():  # Python 3.12 warns of forking while other threads run; the copy starts none
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process.start()
        far.close()
        self.messages = _Messages(self.pipe)

    def ask(self, name: str, *arguments: Any) -> None:
        with self._alive():
            self.pipe.send((name, arguments))

    def answer(self) -> Any:
        with self._alive():
            done, value = self.messages.next()
        if not done:
            raise value
        return value

    @contextlib.contextmanager
    def _alive(self) -> Any:
        try:
            yield
        except (EOFError, ConnectionError):
            self.process.join(5)
            raise ProcessLost(
                f"a process that computes a part of each batch ended with exit code {self.process.exitcode}; where "
                "memory runs out the system kills processes: go on with --resume, or use one: --set train.threads=1"
            ) from None

    def close(self) -> None:
        if self.pipe.closed:
            return
        try:
            self.pipe.send(None)  # closing is not enough: later copies of this process hold this end too
            self.pipe.close()
            self.process.join()
        except (OSError, AttributeError):
            pass  # it is gone; or Python shuts down, has ended it, and half of the modules are None, contextlib too


class _Messages:
    """Receives from a pipe; awake for a while, then asleep."""

    def __init__(self, pipe: Connection) -> None:
        self.pipe, self.arrived = pipe, select.poll()
        self.arrived.register(pipe, select.POLLIN)

    def next(self) -> Any:
        end = time.perf_counter() + _AWAKE
        while not self.arrived.poll(0) and time.perf_counter() < end:
            pass
        return self.pipe.recv()


def _serve(pipe: Connection, other_end: Connection, work: Work) -> None:
    other_end.close()  # so that reading ends when the other process does
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the other process says when to end
    torch.set_num_threads(1)
    messages = _Messages(pipe)
    while True:
        try:
            request = messages.next()
        except (EOFError, ConnectionError):
            request = None
        if request is None:
            os._exit(0)  # nothing of the other process's is flushed or cleaned up here
        name, arguments = request
        try:
            answer = (True, work[name](*arguments))
        except Exception as error:  # raised where the answer is read
            answer = (False, error)
        with contextlib.suppress(ConnectionError):
            pipe.send(answer)
