"""The records of runs in TensorBoard or trackio.

A run writes metrics.jsonl and knows of no tracker. What is here reads those files, while the run goes on or afterwards:
a tracker that is slow, full or gone cannot harm a run, and nothing is on unless somebody asks for it.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bert_miniatures.errors import DataError, MissingExtra, OutputExists, UnknownName
from bert_miniatures.files import RunFolder
from bert_miniatures.results import runs_below
from bert_miniatures.watch import Watch

__all__ = ["TRACKERS", "Tracker", "track", "values_of"]

_PLACE = {"step", "epoch", "split", "max_length"}  # keys of a record that say where it belongs
_PAUSE = 1.0  # seconds between two looks at the files


Rows = Sequence[tuple[int, Mapping[str, float]]]  # numbers of an update, by name


class Tracker(Protocol):
    """Where the numbers of one run go."""

    def write(self, rows: Rows) -> None:
        """Take some more."""

    def close(self) -> None:
        """Take no more: everything is kept when this returns."""


@dataclass(frozen=True)
class Place:
    """Where trackers keep what they are given.

    Attributes:
        folder: of TensorBoard's files.
        project: of trackio.
    """

    folder: Path
    project: str


class _TensorBoard:
    """A folder with one event file for each run."""

    def __init__(self, name: str, place: Place) -> None:
        try:
            from tensorboard.summary import Writer
        except ImportError:
            raise MissingExtra("TensorBoard", "track") from None
        folder = place.folder / name
        if folder.is_dir() and any(folder.iterdir()):
            raise OutputExists(f"{folder} holds this run already; give another --out, or remove it")
        self._writer = Writer(str(folder))

    def write(self, rows: Rows) -> None:
        for step, values in rows:
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, step)

    def close(self) -> None:
        self._writer.close()


class _Trackio:
    """A run of a project in trackio's store. It has one open at a time: each is opened for what there is to write."""

    def __init__(self, name: str, place: Place) -> None:
        try:
            import trackio
        except ImportError:
            raise MissingExtra("trackio", "track") from None
        self._trackio: Any = trackio
        self._name, self._place, self._resume = name, place, "never"

    def write(self, rows: Rows) -> None:
        with contextlib.redirect_stdout(sys.stderr):  # it prints
            # Without statistics of the machine: those of this process are not those of the run.
            run = self._trackio.init(self._place.project, name=self._name, resume=self._resume, embed=False,
                                     auto_log_gpu=False, auto_log_cpu=False)  # fmt: skip
            for step, values in rows:
                self._trackio.log(dict(values), step=step)
            self._trackio.finish()
        self._name, self._resume = run.name, "allow"

    def close(self) -> None:
        """Do nothing: everything is kept already."""


# name on the command line -> what opens it for a run
TRACKERS: dict[str, Callable[[str, Place], Tracker]] = {"tensorboard": _TensorBoard, "trackio": _Trackio}


def values_of(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a record of metrics.jsonl under the names that trackers show.

    Example:
        >>> values_of({"step": 9, "loss": 0.5, "losses": {"pairs": 0.7}})
        {'train/loss': 0.5, 'train/losses/pairs': 0.7}
        >>> values_of({"step": 9, "split": "dev", "scores": {"f1": 0.8, "accuracy": None}})
        {'dev/f1': 0.8}
    """
    found = {}
    for key, value in record.items():
        inside = value if isinstance(value, Mapping) else {"": value}
        for name, number in inside.items():
            parts = [str(record.get("split", "train")), key if key != "scores" else "", name]
            if key not in _PLACE and isinstance(number, int | float):
                found["/".join(part for part in parts if part)] = float(number)
    return found


class _Follower:
    """Reads what is new in one run's metrics.jsonl.

    A resumed run takes back the records of updates that it repeats (in a new file under the old name) and writes them
    again with the same numbers: each record is handed on once.
    """

    def __init__(self, run: RunFolder, tracker: Tracker) -> None:
        self.run, self.tracker = run, tracker
        self._file, self._offset = 0, 0
        self._known: set[tuple[int, str]] = set()

    def read(self) -> None:
        """Hand on the records that are new; a line that is still being written waits."""
        if not self.run.metrics.is_file():
            return
        with self.run.metrics.open("rb") as file:
            number = os.fstat(file.fileno()).st_ino
            if number != self._file:
                self._file, self._offset = number, 0
            file.seek(self._offset)
            *lines, rest = file.read().split(b"\n")
            self._offset = file.tell() - len(rest)
        rows = []
        for record in (_parsed(line, self.run.metrics) for line in lines):
            key = (int(record.get("step", 0)), str(record.get("split")))
            if key not in self._known:
                self._known.add(key)
                rows.append((key[0], values_of(record)))
        if rows:
            self.tracker.write(rows)


def _parsed(line: bytes, file: Path) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        raise DataError(f"{file}: not a line of JSON: {line[:60]!r}") from None
    if not isinstance(record, dict):
        raise DataError(f"{file}: expected an object in each line, found {line[:60]!r}")
    return record


def track(
    folders: Iterable[Path],
    to: str,
    *,
    out: Path = Path("tensorboard"),
    project: str = "bert-miniatures",
    follow: bool = False,
    watch: Watch | None = None,
) -> int:
    """Hand the records of all runs in and below these folders to a tracker.

    Args:
        to: a name of `TRACKERS`.
        out: folder of TensorBoard's files; a folder in it for each run.
        project: of trackio.
        follow: go on until each run is finished, with those that begin meanwhile; otherwise what is there now.

    Returns:
        How many runs there were.

    Raises:
        UnknownName: no such tracker.
        MissingExtra: the tracker is not installed.
        DataError: a folder does not exist or has no run, or a record cannot be read.
        OutputExists: TensorBoard's folder holds a run already.

    Example:
        >>> track([Path("runs")], "tensorboard")  # doctest: +SKIP
        20
    """
    if to not in TRACKERS:
        raise UnknownName("tracker", to, list(TRACKERS))
    folders, watch, place = [Path(folder) for folder in folders], watch or Watch(), Place(out, project)
    followers: dict[Path, _Follower] = {}
    try:
        while True:
            runs = {run.path: (run, name) for folder in folders for run, name in _named(folder, len(folders) > 1)}
            ended = all(
                run.is_finished() for run, _ in runs.values()
            )  # before reading: nothing comes after result.json
            for path, (run, name) in runs.items():
                if path not in followers:
                    followers[path] = _Follower(run, TRACKERS[to](name, place))
                    watch.note(f"{path} as {name}")
                followers[path].read()
            if runs and (ended or not follow):
                return len(runs)
            if not runs and not follow:
                raise DataError(f"{', '.join(map(str, folders))}: no runs; a run folder has run.toml or result.json")
            time.sleep(_PAUSE)
    finally:
        for one in followers.values():
            one.tracker.close()


def _named(folder: Path, several: bool) -> Iterator[tuple[RunFolder, str]]:
    """Yield the runs in and below a folder, named by its path from there; behind the name of one of several."""
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder")
    for run in runs_below(folder):
        inside = run.path.relative_to(folder).as_posix()
        own = folder.resolve().name
        yield run, own if inside == "." else f"{own}/{inside}" if several else inside
