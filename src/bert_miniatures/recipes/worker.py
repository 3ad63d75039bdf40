"""A worker of a sweep: trains the cells it is handed, one after the other (see pool.py for what it hears and says).

Parsed data and parent weights stay in memory between cells of the same model and task, and torch is imported once.
"""

import json
import os
import queue
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import IO, Any

from bert_miniatures.config import FinetuneConfig
from bert_miniatures.distill_config import DistillConfig, inputs_key, recipe_settings
from bert_miniatures.errors import CheckpointError, Diverged, MiniaturesError
from bert_miniatures.files import DISK_FULL, RunFolder, read_json
from bert_miniatures.recipes.distill import run_distill
from bert_miniatures.recipes.finetune import run_finetune
from bert_miniatures.recipes.loading import Inputs, load_inputs
from bert_miniatures.recipes.soft_loading import load_soft_inputs
from bert_miniatures.state import load_state
from bert_miniatures.watch import Watch

__all__ = ["SharedInputs", "answer", "main"]

_PROBE_STEPS, _PROBE_SECONDS, _NOT_COUNTED = 20, 5.0, 3
_KEPT_INPUTS = 2


class SharedInputs:
    """Reads inputs, and keeps those of the last two models and data; what was said is said again."""

    def __init__(self) -> None:
        self.is_warm = False
        self._kept: OrderedDict[str, tuple[Inputs, _Said]] = OrderedDict()

    def loaded(self, config: FinetuneConfig, watch: Watch | None = None) -> "tuple[Inputs, _Said]":
        """Return the inputs of a run and what was said about them, read now or kept from before.

        Args:
            watch: hears how far a teacher is that has to answer first.
        """
        if not self.holds(config):
            said = _Said(watch)
            self.hold(config, _read(config, said), said)
            said.hears = None
        key = inputs_key(config)
        self._kept.move_to_end(key)
        return self._kept[key]

    def holds(self, config: FinetuneConfig) -> bool:
        """Tell whether the inputs of a run are in memory."""
        return inputs_key(config) in self._kept

    def hold(self, config: FinetuneConfig, inputs: Inputs, said: "_Said") -> None:
        """Keep inputs that were read elsewhere."""
        self._kept[inputs_key(config)] = (inputs, said)
        while len(self._kept) > _KEPT_INPUTS:
            self._kept.popitem(last=False)

    def __call__(self, config: FinetuneConfig, watch: Watch) -> Any:
        """Return the inputs of a run, as `load_inputs` does."""
        inputs, said = self.loaded(config)
        for text in said.notes:
            watch.note(text)
        for text in said.warnings:
            watch.warn(text)
        return inputs


def _read(config: FinetuneConfig, watch: Watch) -> Inputs:
    return load_soft_inputs(config, watch) if isinstance(config, DistillConfig) else load_inputs(config, watch)


def _runner(config: FinetuneConfig) -> Callable[..., dict[str, Any]]:
    """Return the recipe of a cell; speeds are not measured where others work beside it."""
    return partial(run_distill, measure=False) if isinstance(config, DistillConfig) else run_finetune


class _Said(Watch):
    def __init__(self, hears: Watch | None = None) -> None:
        super().__init__()
        self.notes: list[str] = []
        self.hears = hears

    def progress(self, done: int, total: int, text: str = "", left: float | None = None) -> None:
        if self.hears is not None:
            self.hears.progress(done, total, text, left)

    def note(self, text: str) -> None:
        self.notes.append(text)


class _Reporting(Watch):
    """Sends progress to the parent, five times a second at most."""

    def __init__(self, channel: IO[str]) -> None:
        super().__init__()
        self._channel, self._last = channel, 0.0

    def progress(self, done: int, total: int, text: str = "", left: float | None = None) -> None:
        now = time.monotonic()
        if now - self._last >= 0.2 or done == total:
            self._last = now
            _send(self._channel, {"progress": [done, total]})


def answer(request: Mapping[str, Any], load: SharedInputs, watch: Watch) -> dict[str, Any]:
    """Do a job and say how it went; an error of the job is an answer, and never ends the worker.

    Args:
        request: `{"config": …, "out": folder, "until": update or None}` runs a cell, `{"config": …, "probe": true}`
            times a few updates, `{"config": …, "prepare": true}` lets teachers answer what they have not answered yet.

    Returns:
        `{"done": …}`, `{"paused": …}`, `{"cost": …}`, `{"prepared": true}`, `{"failed": reason, "exit": code,
        "code": …}` or `{"stopped": true}`.
    """
    try:
        config = recipe_settings(request["config"])
        if request.get("prepare"):
            load.loaded(config, watch)
            return {"prepared": True}
        if request.get("probe"):
            return {"cost": _probe(config, load)}
        return _run(config, Path(request["out"]), request.get("until"), load, watch)
    except KeyboardInterrupt:
        return {"stopped": True}
    except MiniaturesError as error:
        return {"failed": str(error), "exit": error.exit_code, "code": error.code}
    except MemoryError:
        return {"failed": "out of memory; a smaller batch or train.micro_batch_size needs less", "exit": 1, "code": ""}
    except OSError as error:
        full = error.errno in DISK_FULL
        reason = f"{error.filename or request.get('out')}: {error.strerror or error}"
        return {"failed": reason, "exit": 1, "code": "disk-full" if full else ""}
    except Exception as error:  # a fault of one cell must not end the others; the log has the traceback
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}", "exit": 1, "code": ""}


def _run(config: FinetuneConfig, out: Path, until: int | None, load: SharedInputs, watch: Watch) -> dict[str, Any]:
    _sweep_up(RunFolder(out))
    try:
        result = _runner(config)(config, out, resume=True, watch=watch, until=until, load=load)
    except Diverged:
        result = read_json(out / "result.json")
    return {"paused" if "paused" in result else "done": result}


def _sweep_up(run: RunFolder) -> None:
    """Remove what a killed worker left half-written, and a saved state that is damaged: the cell starts anew."""
    for folder in (run.path, run.predictions, run.state):
        for path in folder.glob(".*.tmp*") if folder.is_dir() else ():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    try:
        for file in run.state.glob("*.safetensors"):
            load_state(file)
    except CheckpointError:
        shutil.rmtree(run.state)


class _EnoughError(Exception):
    """The probe has timed enough steps."""


class _Stopwatch(Watch):
    """Notes when each update of the first epoch ended."""

    def __init__(self, epochs: int, enough: int) -> None:
        super().__init__()
        self.times: list[float] = []
        self._epochs, self._enough = epochs, enough

    def progress(self, done: int, total: int, text: str = "", left: float | None = None) -> None:
        self.times.append(time.monotonic())
        long = len(self.times) > 1 and self.times[-1] - self.times[0] > _PROBE_SECONDS
        if long or len(self.times) >= self._enough or done * self._epochs >= total:
            raise _EnoughError


def _probe(config: FinetuneConfig, load: SharedInputs) -> dict[str, Any]:
    """Time updates of a run in a folder that is thrown away; the first three are not counted where there are more."""
    began = time.monotonic()
    inputs = load(config, Watch())
    loaded = time.monotonic()
    if not load.is_warm:  # what a process does once, such as loading libraries, is no cost of a cell
        _timed_updates(config, load, _Stopwatch(1, enough=1))
        load.is_warm = True
    ready, watch = time.monotonic(), _Stopwatch(config.train.epochs, enough=_NOT_COUNTED + _PROBE_STEPS + 1)
    _timed_updates(config, load, watch)
    counted = watch.times[max(0, min(_NOT_COUNTED, len(watch.times) - 2)) :]
    step = (counted[-1] - counted[0]) / (len(counted) - 1) if len(counted) > 1 else counted[0] - ready
    rows = {name: len(examples.texts) for name, examples in inputs.splits.items()}
    return {
        "step": step,
        "start": max(0.0, watch.times[0] - ready - step),
        "load": loaded - began,
        "steps": len(counted) - 1,
        "train_rows": rows["train"],
        "dev_rows": sum(count for name, count in rows.items() if name != "train"),
    }


def _timed_updates(config: FinetuneConfig, load: SharedInputs, watch: Watch) -> None:
    timed = config.train.model_copy(update={"log_every": 1, "save_every": 1e9})
    with tempfile.TemporaryDirectory(prefix="probe-") as folder, suppress(_EnoughError, Diverged):
        _runner(config)(config.model_copy(update={"train": timed}), Path(folder) / "run", watch=watch, load=load)


# -------------------------------------------------------------------------------------------------- the process


def main() -> None:
    """Answer requests until the input ends. While a cell runs, the end of the input is heard as SIGTERM: it saves."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    requests: queue.Queue[dict[str, Any] | None] = queue.Queue()
    busy = threading.Event()
    threading.Thread(target=_listen, args=(requests, busy), daemon=True).start()
    load = SharedInputs()
    while (request := requests.get()) is not None:
        found = answer(request, load, _Reporting(channel))
        _send(channel, {"answer": found})
        busy.clear()
        if "stopped" in found:
            return


def _listen(requests: "queue.Queue[dict[str, Any] | None]", busy: threading.Event) -> None:
    for line in sys.stdin.buffer:
        message = json.loads(line)
        if "stop" in message:
            break
        busy.set()
        requests.put(message["job"])
    requests.put(None)
    if busy.is_set():
        os.kill(os.getpid(), signal.SIGTERM)


def _send(channel: IO[str], message: Mapping[str, Any]) -> None:
    try:
        channel.write(json.dumps(message) + "\n")
        channel.flush()
    except OSError:  # the parent is gone; the end of the input says so too, and is acted on
        pass


if __name__ == "__main__":
    main()
