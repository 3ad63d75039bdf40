"""Checks of folders and addresses: our cache, the Hub's, GLUE, mirrors, and what offline means for the plan."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from bert_miniatures.doctor.subject import Finding, Found, Subject
from bert_miniatures.files import cache_folder, is_offline

__all__ = ["addresses", "facts", "glue_folder", "not_here", "offline_values", "space", "writable"]

_FOLDERS = ("HF_HOME", "HF_HUB_CACHE")
_ADDRESSES = ("HF_ENDPOINT", "MINIATURES_GOOGLE_URL")
_SWITCHES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_YES_NO = {"1", "ON", "YES", "TRUE", "0", "OFF", "NO", "FALSE", ""}
LEAST_SPACE = 10**9  # bytes


def facts(subject: Subject) -> Iterator[str]:
    """Say where things are kept, and whether the network may be used."""
    folder = cache_folder()
    kept = sorted(path.name for path in (folder / "models").glob("*") if (path / "config.json").is_file())
    yield f"cache: {folder}" + (f" with {', '.join(kept)}" if kept else ", no models in it yet")
    yield "offline: no socket is opened" if is_offline() else "online: what is not here is fetched"


def _there(path: Path) -> Path:
    """Return the path, or the nearest folder above it that exists."""
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def writable(subject: Subject) -> Found:
    """A cache that cannot be written to."""
    places = {"MINIATURES_HOME": cache_folder()}
    places |= {name: Path(os.environ[name]).expanduser() for name in _FOLDERS if os.environ.get(name)}
    for name, path in places.items():
        there = _there(path)
        if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
            kind = "is a file" if not there.is_dir() else "cannot be written to"
            yield Finding(
                f"the cache {path}: {there} {kind}",
                "models are fetched and encoded data are kept there; every command that needs them fails",
                f"export {name}=FOLDER, one that you may write to",
            )


def space(subject: Subject) -> Found:
    """Too little space for what is fetched and kept."""
    size = subject.published.parameters * 4 if subject.model is not None and subject.published else 0
    needed = max(LEAST_SPACE, 3 * size)  # the archive, what is in it, the converted folder
    there = _there(cache_folder())
    free = shutil.disk_usage(there).free
    if free < needed:
        yield Finding(
            f"{there} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed",
            "a download or a run that fills the disk fails at its end",
            "make room, or export MINIATURES_HOME=FOLDER on another disk",
        )


def offline_values(subject: Subject) -> Found:
    """A switch with a value that means nothing."""
    for name in _SWITCHES:
        value = os.environ.get(name, "")
        if value.upper() not in _YES_NO:
            yield Finding(
                f"{name} is '{value}', which means neither yes nor no",
                "it does not switch the network off",
                f"export {name}=1, or unset {name}",
            )


def addresses(subject: Subject) -> Found:
    """An address that is none."""
    for name in _ADDRESSES:
        value = os.environ.get(name, "")
        parts = urlsplit(value)
        if value and (parts.scheme not in {"http", "https"} or not parts.netloc):
            yield Finding(
                f"{name} is '{value}', which is no address",
                "nothing can be fetched from there",
                f"export {name}=https://{value.split('://')[-1].lstrip('/')}",
            )


def glue_folder(subject: Subject) -> Found:
    """`$GLUE_DIR` that names no folder."""
    value = os.environ.get("GLUE_DIR")
    if value and not Path(value).is_dir():
        yield Finding(
            f"$GLUE_DIR is {value}, and there is no such folder",
            "--task stops there rather than take other data",
            "export GLUE_DIR=FOLDER, the one with the tasks' folders, or unset GLUE_DIR",
        )


def not_here(subject: Subject) -> Found:
    """Something that must be fetched, offline."""
    if not is_offline():
        return
    if subject.model is not None and subject.published and subject.folder is None:
        name = subject.published.official
        yield Finding(
            f"{name} is not on this machine, and the network is forbidden",
            "every command that needs it fails",
            f"where there is a network: miniatures fetch {subject.model}; or here: "
            f"miniatures fetch {subject.model} --archive {name}.zip",
        )
    if subject.data.task is not None and subject.glue is None:
        yield Finding(
            f"GLUE's {subject.data.task} is not on this machine, and the network is forbidden",
            "the run cannot begin",
            "--glue FOLDER, the one with the tasks' folders",
        )
