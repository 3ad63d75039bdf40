"""A sweep on disk: the plan, a run folder per cell, which cells are done, failed or begun, and a lock."""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from bert_miniatures.config import FinetuneConfig, write_toml
from bert_miniatures.distill_config import run_settings
from bert_miniatures.errors import ConfigError, DataError, OutputExists, WorkFailed
from bert_miniatures.files import RunFolder, read_json, writable_folder, write_json
from bert_miniatures.plan import SweepConfig

__all__ = ["Status", "SweepFolder"]

Status = Literal["done", "failed", "begun", "missing"]
_NOT_COMPARED: dict[str, Any] = {"train": {"save_every", "log_every", "threads"}, "finetune": True, "compare": True}


class SweepFolder:
    """The folder of a sweep.

    Args:
        path: the folder.

    Attributes:
        plan: sweep.toml, the plan of the latest call.
        forecast: forecast.json, measured costs.
        log: workers.log, what the workers' libraries print.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.plan = self.path / "sweep.toml"
        self.forecast = self.path / "forecast.json"
        self.log = self.path / "workers.log"

    def cell(self, name: str) -> RunFolder:
        """Return the run folder of a cell."""
        return RunFolder(self.path / name)

    def status(self, name: str) -> Status:
        """Tell how far a cell is."""
        run = self.cell(name)
        if run.is_finished():
            return "done"
        if (run.path / "failed.json").is_file():
            return "failed"
        return "begun" if run.is_run() else "missing"

    def fail(self, name: str, reason: str, exit_code: int) -> None:
        """Record why a cell failed."""
        write_json(self.cell(name).path / "failed.json", {"reason": reason, "exit": exit_code})

    def forgive(self, name: str) -> None:
        """Forget that a cell failed: it has finished since."""
        (self.cell(name).path / "failed.json").unlink(missing_ok=True)

    def failure(self, name: str) -> str:
        """Return the recorded reason."""
        try:
            return str(read_json(self.cell(name).path / "failed.json")["reason"])
        except (DataError, KeyError, TypeError):
            return "for a reason that was not recorded"

    def result(self, name: str) -> dict[str, Any]:
        """Return what result.json of a finished cell says."""
        found: dict[str, Any] = read_json(self.cell(name).result)
        return found

    def take(self, plan: SweepConfig, cells: Mapping[str, FinetuneConfig]) -> None:
        """Check the cells against what is here, then write the plan.

        Raises:
            ConfigError: a cell of this name was run or begun with other settings.
            OutputExists: the folder holds something else.
        """
        if self.path.is_dir() and not self.plan.is_file():
            strangers = sorted(entry.name for entry in self.path.iterdir() if not entry.name.startswith("."))
            if strangers:
                raise OutputExists(f"{self.path} has {strangers[0]} and is no sweep's folder; give another --out")
        for name, config in cells.items():
            run = self.cell(name)
            if run.is_run():
                before = run_settings(run.config)
                _refuse_other_settings(name, run.config, before, config)
        writable_folder(self.path)
        write_toml(self.plan, plan)

    @contextmanager
    def locked(self, patience: float = 60.0) -> Iterator[int]:
        """Hold the folder's lock, so that two sweeps never work in one folder; yield its descriptor.

        Workers inherit the descriptor. The lock is free when the sweep and all of its workers have ended, so that
        after kill -9 of a sweep the next one waits until the orphaned workers have saved.

        Raises:
            OutputExists: another sweep is at work here.
            WorkFailed: the workers of a killed sweep do not end.
        """
        import fcntl

        writable_folder(self.path)
        with (self.path / ".lock").open("a+", encoding="utf-8") as file:
            until = time.monotonic() + patience
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    self._wait_or_refuse(until)
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield file.fileno()

    def _wait_or_refuse(self, until: float) -> None:
        holder = (self.path / ".lock").read_text(encoding="utf-8").strip()
        if _is_alive(holder):
            raise OutputExists(f"{self.path}: another sweep works here (process {holder}); wait, or give another --out")
        if time.monotonic() > until:
            raise WorkFailed(f"{self.path}: workers of a sweep that was killed still run; 'fuser {self.path}/.lock'")
        time.sleep(0.1)


def _is_alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except (ValueError, PermissionError):  # not written yet; or alive and another user's
        return True
    return True


def _refuse_other_settings(name: str, where: Path, before: FinetuneConfig, now: FinetuneConfig) -> None:
    old, new = (config.model_dump(mode="json", exclude=_NOT_COMPARED) for config in (before, now))
    for section in new:
        pair = (old[section], new[section])
        nested = isinstance(new[section], dict)
        differing = [key for key in pair[1] if pair[0][key] != pair[1][key]] if nested else [""]
        if pair[0] != pair[1]:
            key = differing[0]
            values = [part[key] if key else part for part in pair]
            raise ConfigError(
                f"cell '{name}' is here with other settings: {where} has {section}{'.' if key else ''}{key} = "
                f"{values[0]}, now it is {values[1]}; give another --out"
            )
