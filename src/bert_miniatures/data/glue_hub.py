"""GLUE from the Hugging Face Hub: one task's Parquet files -> its folder in the official layout, in our cache.

The Parquet files stay in the Hub's own cache; what that cache has is not asked for again. The task's folder appears
whole or not at all. Where the network may not be used no socket is opened.
"""

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bert_miniatures.data.glue_parquet import HUB, Damaged, hub_split, write_official
from bert_miniatures.data.tasks import Task
from bert_miniatures.errors import DataError, DownloadFailed, Offline
from bert_miniatures.files import atomic_folder, disk_full_is_an_error, is_offline, read_json, sha256_of, write_json
from bert_miniatures.hub import LIBRARY, TIMEOUT, hub_errors, hub_folder, snapshots
from bert_miniatures.transfer import locked, say

__all__ = ["REPOSITORY", "fetch_task", "origin"]

REPOSITORY = "nyu-mll/glue"
_ARCHIVES = "https://dl.fbaipublicfiles.com/glue/data"
_ORIGIN = "hub.json"  # beside the official files: where they are from
_SHA256 = re.compile("[0-9a-f]{64}")

Names = Mapping[str, list[str]]  # split -> names of its Parquet files in the repository


@dataclass(frozen=True)
class _Version:
    """One version of the repository, and which of its files a task needs."""

    revision: str
    names: Names

    def files(self) -> list[str]:
        return [name for names in self.names.values() for name in names]


def fetch_task(task: Task, target: Path) -> None:
    """Put the folder of a GLUE task at `target`, from what the Hub's cache has or from the Hub.

    Args:
        task: a row of `TASKS`.
        target: where the folder appears, whole or not at all.

    Raises:
        Offline: the files are not on this machine and the network is forbidden.
        Unreachable: the Hub does not answer.
        DownloadFailed: the Hub refuses, or what it has is damaged.
        DataError: the files are not those of the task; or the Hub's cache is damaged, and the network is forbidden.
        DiskFull: no space left.
    """
    version = _held(task)
    if version is None and is_offline():
        raise _offline(task, target)
    with locked(target):
        if target.is_dir():  # another process was faster
            return
        for leftover in target.parent.glob(f".{target.name}.*.tmp"):  # of a process that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        if version is None:
            version = _fetched(task, target)
        else:
            say(f"{task.title} is in the Hub's cache, {hub_folder(REPOSITORY, 'dataset')}")
        try:
            _write(task, version, target)
        except Damaged as error:
            if is_offline():
                raise DataError(f"{error}; remove it, and it is fetched again where there is a network") from None
            say(f"{error}; fetching it again")
            _repair(task, error.path, target)


def origin(folder: Path) -> tuple[str, int]:
    """Return where a task's folder is from, and how many of its texts had a tab or the end of a line in them.

    Args:
        folder: a task's folder; ("", 0) where it was not `fetch_task` that made it.
    """
    if not (folder / _ORIGIN).is_file():
        return "", 0
    kept = read_json(folder / _ORIGIN)
    try:
        return f"{kept['address']}, version {kept['revision'][:12]}", int(kept["changed"])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{folder / _ORIGIN}: expected address, revision and changed; remove {folder}") from None


# ------------------------------------------------------------------------------------------------ which files


def _held(task: Task) -> _Version | None:
    """Return the first version in the Hub's cache that has all files of the task."""
    for snapshot in snapshots(hub_folder(REPOSITORY, "dataset")):
        there = [path for path in snapshot.glob(f"{task.name}/*.parquet") if path.is_file()]
        names, lacks = _choose(task, [path.relative_to(snapshot).as_posix() for path in there])
        if not lacks:
            return _Version(snapshot.name, names)
    return None


def _choose(task: Task, there: Iterable[str]) -> tuple[Names, list[str]]:
    """Return the files of each split, and the splits that are not there with all their parts."""
    chosen: dict[str, list[str]] = {}
    for split in task.splits:
        pattern = re.compile(rf"{task.name}/{hub_split(split)}-(\d+)-of-(\d+)\.parquet")
        parts = [found for name in sorted(there) if (found := pattern.fullmatch(name))]
        if parts and [int(part[1]) for part in parts] == list(range(int(parts[0][2]))):
            chosen[split] = [part[0] for part in parts]
    return chosen, [f"{task.name}/{hub_split(split)}-*.parquet" for split in task.splits if split not in chosen]


def _published(task: Task) -> _Version:
    """Ask the Hub which version there is and what it holds."""
    from huggingface_hub import HfApi

    say(f"fetching {task.title} from {_address()}")
    info = HfApi(library_name=LIBRARY).dataset_info(REPOSITORY, timeout=TIMEOUT)
    names, lacks = _choose(task, [file.rfilename for file in info.siblings or []])
    if lacks or not info.sha:
        raise DownloadFailed(f"{_address()}: has no {' and no '.join(lacks) or 'version'}")
    return _Version(info.sha, names)


# ------------------------------------------------------------------------------------------------ their bytes


def _path(version: _Version, name: str) -> Path:
    return hub_folder(REPOSITORY, "dataset") / "snapshots" / version.revision / name


def _download(version: _Version, name: str, *, again: bool = False) -> None:
    from huggingface_hub import hf_hub_download

    hf_hub_download(
        REPOSITORY, name, repo_type="dataset", revision=version.revision, library_name=LIBRARY, force_download=again
    )


def _fetched(task: Task, target: Path) -> _Version:
    """Fetch what the Hub's cache lacks of the published version."""
    with _errors(task, target):
        version = _published(task)
        for name in version.files():
            _download(version, name)
    return version


def _repair(task: Task, damaged: Path, target: Path) -> None:
    """Fetch the files again that are not what the Hub said they are, and write once more."""
    version = _fetched(task, target)
    with _errors(task, target):
        for name in version.files():
            if _path(version, name) == damaged or not _is_intact(_path(version, name)):
                _download(version, name, again=True)
    try:
        _write(task, version, target)
    except Damaged as error:
        raise DownloadFailed(f"{_address()}: {error}; fetched twice") from None


def _write(task: Task, version: _Version, target: Path) -> None:
    """Write the official files, and beside them where they are from."""
    parts = {split: [_path(version, name) for name in names] for split, names in version.names.items()}
    for paths in parts.values():
        for path in paths:
            if not _is_intact(path):
                raise Damaged(path, "its SHA-256 is not the one that the Hub said")
    with atomic_folder(target) as folder:
        changed = write_official(task, parts, folder)
        document = {"address": _address(), "revision": version.revision, "files": version.files(), "changed": changed}
        write_json(folder / _ORIGIN, document)


def _is_intact(path: Path) -> bool:
    """Compare a large file with its name among the blobs, which is its SHA-256; without such a name it is believed.

    Only the first link counts: the blob may be a link itself, to a store where names are other checksums.
    """
    name = path.readlink().name if path.is_symlink() else ""
    return not _SHA256.fullmatch(name) or sha256_of(path) == name


# ------------------------------------------------------------------------------------------------ what to say


def _address() -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/datasets/{REPOSITORY}"


@contextmanager
def _errors(task: Task, target: Path) -> Iterator[None]:
    """Say beside what went wrong what else can be done."""
    errors = hub_errors(_address(), lambda: _offline(task, target))
    try:
        with disk_full_is_an_error(hub_folder(REPOSITORY, "dataset")), errors:
            yield
    except DownloadFailed as error:
        raise type(error)(_missing(task, target, f"it could not be fetched ({error})")) from error


def _offline(task: Task, target: Path) -> Offline:
    return Offline(_missing(task, target, "--offline or HF_HUB_OFFLINE forbids to fetch it"))


def _missing(task: Task, target: Path, reason: str) -> str:
    """Say what is missing, where it was looked for, and how to bring it here."""
    cache, archive = hub_folder(REPOSITORY, "dataset"), HUB[task.name].archive
    file = f"{task.folder}/{next(iter(task.splits.values())).file}"
    place = f"which is to be DIR/{file}" if archive.endswith(".tsv") else f"whose content is to be in DIR/{task.folder}"
    official = f"get {_ARCHIVES}/{archive}, {place}, or\n  " if archive else ""
    return (
        f"{task.title} is not on this machine, and {reason}; looked in\n"
        f"  $GLUE_DIR: not set\n  {target}: not there\n"
        f"  {cache}: {'not all of it' if cache.is_dir() else 'not there'}\n"
        f"Add --glue DIR where GLUE is on this machine, as DIR/{file}; else, where there is a network,\n"
        f"  {official}type hf download {REPOSITORY} --repo-type dataset --include '{task.name}/*'\n"
        f"  and copy the folder {cache.name} that it makes to {cache.parent} here ({_address()})"
    )
