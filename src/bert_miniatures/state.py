"""The resumable state of a run: one file, replaced in one step, with a checksum of every tensor."""

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import google_crc32c
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from bert_miniatures.errors import CheckpointError
from bert_miniatures.files import atomic_write

__all__ = ["Stop", "load_state", "save_state", "stop_requests"]

FORMAT = 1


def save_state(path: Path, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    """Write tensors and facts (anything JSON holds) to one file, whole or not at all.

    Raises:
        DiskFull: no space left; the state before is still there.
    """
    at_hand = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    sums = {name: _checksum(tensor) for name, tensor in at_hand.items()}
    document = json.dumps({"format": FORMAT, "facts": facts, "crc32c": sums})
    with atomic_write(path) as temporary:
        # Written from here and not by the library: its own errors do not tell a full disk from anything else.
        temporary.write_bytes(save(at_hand, metadata={"state": document}))


def load_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Read a saved state; None where there is none.

    Raises:
        CheckpointError: the file is damaged or of another version.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            document = json.loads((file.metadata() or {})["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path}: the saved state is damaged ({error}); --overwrite starts the run anew"
        ) from None
    if document.get("format") != FORMAT:
        raise CheckpointError(f"{path}: state format {document.get('format')}, this version reads format {FORMAT}")
    for name, tensor in tensors.items():
        if document["crc32c"].get(name) != _checksum(tensor):
            raise _damaged(path, f"'{name}'")
    return tensors, document["facts"]


def _damaged(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: the saved state is damaged ({what}); --overwrite starts the run anew")


def _checksum(tensor: Tensor) -> int:
    return int(google_crc32c.value(tensor.numpy().tobytes()))


class Stop:
    """Whether the user asked to stop."""

    asked = False


@contextmanager
def stop_requests() -> Iterator[Stop]:
    """Note the first Ctrl-C or SIGTERM instead of breaking off in the middle of an update; the second one breaks off.

    Only the main thread can hear signals; elsewhere nothing is changed. A signal that the process was started to
    ignore, as Ctrl-C is by a job in the background of a script, stays ignored.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: handler for number, handler in before.items() if handler is not signal.SIG_IGN}

    def hear(number: int, frame: FrameType | None) -> None:
        if stop.asked:
            raise KeyboardInterrupt
        stop.asked = True

    for number in before:
        signal.signal(number, hear)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
