"""Files that are whole or absent: the cache folder, atomic writes, checksums and the run folder.

Nothing here is written in place. A file is written beside its name, flushed to the disk and renamed; a folder is
written beside its name and renamed when every file in it is whole. After `kill -9` or a full disk there is the old
content or the new, and never a mixture that looks complete.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bert_miniatures.errors import DataError, DiskFull, MissingExtra, OutputExists, UserError

__all__ = [
    "DISK_FULL",
    "RunFolder",
    "atomic_folder",
    "atomic_write",
    "cache_folder",
    "disk_full_is_an_error",
    "is_offline",
    "read_json",
    "sha256_of",
    "training_extra",
    "writable_folder",
    "write_json",
]

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def cache_folder() -> Path:
    """Return the folder for downloads and encoded data: `$MINIATURES_HOME`, else `$XDG_CACHE_HOME/bert-miniatures`."""
    home = os.environ.get("MINIATURES_HOME")
    if home:
        return Path(home).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).expanduser() / "bert-miniatures"


def is_offline() -> bool:
    """Tell whether `HF_HUB_OFFLINE` (set by `--offline` too) or `TRANSFORMERS_OFFLINE` forbids the network."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in names)


@contextlib.contextmanager
def disk_full_is_an_error(path: Path) -> Iterator[None]:
    """Turn "no space left" and "not permitted" from inside the block into one sentence about `path`."""
    try:
        yield
    except (OSError, DiskFull) as error:
        if isinstance(error, DiskFull) or error.errno in DISK_FULL:  # of a file that was to be part of `path`
            raise DiskFull(f"{path}: no space left on the device; nothing half-written was kept") from error
        if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}:
            raise UserError(f"{path}: cannot be written ({os.strerror(error.errno)})") from error
        raise


@contextlib.contextmanager
def atomic_write(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the same folder; rename it to `path` if the block succeeds, remove it if not.

    Args:
        path: where the file appears, whole or not at all.
        durable: flush to the disk before the rename, so that the promise holds through a power cut too.

    Raises:
        DiskFull: no space left on the device.
        UserError: the folder cannot be written to.
    """
    path = Path(path)
    with disk_full_is_an_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(path)
        temporary.touch(exist_ok=False)  # as a file of the user's own: the umask decides who may read it
        try:
            yield temporary
            if durable:
                _flush(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` if the block succeeds, remove it if not.

    Raises:
        OutputExists: `path` is there, not empty, and `overwrite` is false.
        DiskFull: no space left on the device.
    """
    path = Path(path) if Path(path).name not in {"", ".."} else Path(os.path.abspath(path))  # "." has no name
    if not overwrite:
        _refuse_existing(path, "give another path or --overwrite")
    with disk_full_is_an_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(path)
        temporary.mkdir()
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _flush(file)
            _replace_folder(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path) -> Path:
    """Return a name for what is on its way to be `path`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _replace_folder(new: Path, path: Path) -> None:
    """Put folder `new` where `path` is; a folder cannot be replaced in one step, so the old one steps aside first."""
    old = new.with_name(new.name + ".old")
    if path.exists():
        path.rename(old)
    new.rename(path)
    shutil.rmtree(old, ignore_errors=True)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _refuse_existing(path: Path, advice: str) -> None:
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise OutputExists(f"{path} exists and is not empty; {advice}")


def _check_writable(folder: Path) -> None:
    """Say before the work begins that its result could not be written."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise UserError(f"{there} is a file; expected a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{folder}: cannot be written (no permission to write into {there})")


def writable_folder(path: Path) -> Path:
    """Make the folder if it is missing and return it.

    Raises:
        UserError: it cannot be made or written to.
    """
    with disk_full_is_an_error(path):
        path.mkdir(parents=True, exist_ok=True)
    return path


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path) -> Any:
    """Read a JSON document.

    Raises:
        DataError: the file is missing, not UTF-8 or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason} at byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}: not JSON ({error.msg})") from None


def write_json(path: Path, document: Any) -> None:
    """Write a JSON document atomically. NaN and infinity are refused, for no other reader takes them."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    with atomic_write(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


@contextlib.contextmanager
def training_extra(what: str) -> Iterator[None]:
    """Turn a missing torch, scikit-learn or scipy inside the block into one sentence.

    Raises:
        MissingExtra: `what` needs the 'train' extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("bert_miniatures"):
            raise
        raise MissingExtra(what, "train") from None


class RunFolder:
    """A run on disk. `result.json` is written last, so a folder with it is a finished run and one without it is not.

    Args:
        path: the folder.

    Attributes:
        state: folder of the resumable state; gone when the run is finished.
        model: the model folder that the run keeps.
        predictions: logits in data-set order, a file per split.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.config = self.path / "run.toml"
        self.metrics = self.path / "metrics.jsonl"
        self.state = self.path / "state"
        self.model = self.path / "model"
        self.predictions = self.path / "predictions"
        self.result = self.path / "result.json"

    @classmethod
    def create(cls, path: Path, *, resume: bool = False, overwrite: bool = False) -> "RunFolder":
        """Return the folder for a run, checked and not yet made.

        Raises:
            OutputExists: it is not empty and neither `resume` nor `overwrite` was given.
            UserError: it cannot be made or written to.
        """
        run = cls(path)
        if not run.is_finished() or overwrite:
            _check_writable(run.path)
        if overwrite and run.path.is_dir() and not resume:
            if any(run.path.iterdir()) and not run.is_run():
                raise OutputExists(f"{run.path} is not empty and not a run folder; --overwrite only replaces runs")
            run.clear()
        if not resume:
            _refuse_existing(run.path, "give --resume to continue it, --overwrite to replace it, or another --out")
        return run

    def clear(self) -> None:
        """Remove the run, what makes it a finished one first and what makes it a run last, lest a part look whole."""
        with disk_full_is_an_error(self.path):
            self.result.unlink(missing_ok=True)
            for entry in self.path.iterdir():
                if entry.is_dir() and not entry.is_symlink():
                    shutil.rmtree(entry)
                elif entry != self.config:
                    entry.unlink()
            self.config.unlink(missing_ok=True)

    def is_run(self) -> bool:
        """Tell whether a run was begun here."""
        return self.config.is_file()

    def is_finished(self) -> bool:
        """Tell whether the run here is complete."""
        return self.result.is_file()

    def log(self, **record: Any) -> None:
        """Append one JSON object to metrics.jsonl."""
        with disk_full_is_an_error(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=True) + "\n")

    def records(self) -> list[dict[str, Any]]:
        """Return the objects of metrics.jsonl; a last line that a crash cut short is left out."""
        if not self.metrics.is_file():
            return []
        found = []
        for line in self.metrics.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):
                found.append(json.loads(line))
        return found

    def rewind(self, step: int) -> None:
        """Drop the records of steps after `step`: what a resumed run will write again."""
        kept = [record for record in self.records() if record.get("step", 0) <= step]
        with atomic_write(self.metrics) as temporary:
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json and remove the resumable state, and what a process that was killed left half-written."""
        write_json(self.result, result)
        shutil.rmtree(self.state, ignore_errors=True)
        for leftover in (*self.path.glob(".*.tmp"), *self.path.glob(".*.tmp.old"), *self.path.glob("*/.*.tmp")):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
