"""A worker's end of pool.py: take one job after another until the input ends."""

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import IO, Any

from bert_miniatures.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DiskFull,
    MiniaturesError,
    UserError,
    WorkFailed,
)
from bert_miniatures.pool import terminated_is_interrupted

__all__ = ["attempted", "raise_for", "serve"]

Say = Callable[[int, int], None]
Work = Callable[[dict[str, Any], Say], Mapping[str, Any] | None]

_KINDS: dict[str, type[MiniaturesError]] = {
    kind.code: kind for kind in (CheckpointError, ConfigError, DataError, DiskFull)
}


def serve(work: Work) -> None:
    """Do the jobs that are asked for; the end of the input, also while one is done, ends this process.

    Args:
        work: does a request and returns what the parent is answered, if anything; the second argument tells the
            parent how far it is, (done, total). An error of the project's tree becomes the answer; any other ends the
            process.
    """
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    requests: queue.Queue[dict[str, Any] | None] = queue.Queue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    with terminated_is_interrupted(), suppress(KeyboardInterrupt):
        while (request := requests.get()) is not None:
            say = partial(_say_progress, channel)
            _say(channel, {"answer": attempted(work, request, say)})


def attempted(work: Work, request: dict[str, Any], say: Say = lambda done, total: None) -> dict[str, Any]:
    """Do a request; return its answer, or the error of the project's tree that it ended with, for `raise_for`."""
    try:
        return dict(work(request, say) or {})
    except MiniaturesError as error:
        return {"error": str(error), "code": error.code, "exit": error.exit_code}


def raise_for(name: str, answer: Any, what: str) -> None:
    """Raise what an answer of `serve` says; nothing where the job was done.

    Args:
        what: the work, as in "tokenised".
    """
    if "failed" in answer:
        raise WorkFailed(f"{name}: could not be {what}: {answer['failed']}")
    if "error" in answer:
        raise _KINDS.get(answer["code"], UserError if answer["exit"] == 2 else WorkFailed)(answer["error"])


def _listen(requests: "queue.Queue[dict[str, Any] | None]") -> None:
    for line in sys.stdin.buffer:
        message = json.loads(line)
        if "stop" in message:
            break
        requests.put(message["job"])
    requests.put(None)
    os.kill(os.getpid(), signal.SIGTERM)


def _say_progress(channel: IO[str], done: int, total: int) -> None:
    _say(channel, {"progress": [done, total]})


def _say(channel: IO[str], message: dict[str, Any]) -> None:
    with suppress(OSError):  # the parent is gone; the end of the input says so too
        channel.write(json.dumps(message) + "\n")
        channel.flush()
