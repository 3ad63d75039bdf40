"""One file to carry to another machine: a model or a run as a zip, with a checksum of every file.

A bundle holds one folder and bundle.json beside it. It is made the same, byte for byte, from the same files.
"""

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bert_miniatures.archive import names, unpack
from bert_miniatures.errors import CheckpointError, OutputExists, UserError
from bert_miniatures.files import RunFolder, atomic_folder, atomic_write, read_json, sha256_of, writable_folder
from bert_miniatures.models import resolve

__all__ = ["FORMAT", "MANIFEST", "bundle", "unbundle"]

FORMAT = 1
MANIFEST = "bundle.json"
_DENSE = {".safetensors", ".onnx", ".bin", ".parquet"}  # trained weights shrink by a tenth and take a minute for it
_EARLY = (1980, 1, 1, 0, 0, 0)  # the first day that a zip knows; when a file was written says nothing here


def bundle(source: str | Path, out: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Pack a model or a finished run into one zip and return what its bundle.json says.

    Args:
        source: any MODEL of the command line, a deploy folder, or a run folder: all of it but resumable state.
        out: the zip; it appears whole or not at all.

    Raises:
        UnknownName: neither a model nor a folder.
        CheckpointError: the run is not finished, or the folder holds no model.
        OutputExists: `out` is there and `overwrite` is false.

    Example:
        >>> bundle("runs/first", "first.zip")["kind"]  # doctest: +SKIP
        'run'
    """
    folder, kind = _folder(str(source))
    target = Path(out)
    if target.exists() and not overwrite:
        raise OutputExists(f"{target} exists; give another -o or --overwrite")
    if target.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{target} is inside {folder}, which it would hold; give an -o elsewhere")
    root = folder.resolve().name
    listed: dict[str, dict[str, Any]] = {}
    with atomic_write(target) as temporary, zipfile.ZipFile(temporary, "w") as packed:
        for file in _files(folder):
            name = file.relative_to(folder).as_posix()
            listed[name] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
            _add(packed, f"{root}/{name}", file)
        document = {"format": FORMAT, "kind": kind, "name": root, "files": listed}
        packed.writestr(_entry(MANIFEST), json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    return document


def _folder(source: str) -> tuple[Path, str]:
    """Return the folder to pack and what it is."""
    run = RunFolder(Path(source))
    if run.is_finished():
        return run.path, "run"
    if run.is_run():
        raise CheckpointError(f"{source}: the run is not finished; --resume of its command finishes it")
    if (Path(source) / "onnx").is_dir():
        return Path(source), "deploy"
    return resolve(source), "model"


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files below, in order, links as what they lead to; hidden files and resumable state are left out."""
    for place, inside, found in os.walk(folder):
        top = Path(place) == folder
        inside[:] = sorted(name for name in inside if not name.startswith(".") and not (top and name == "state"))
        yield from (Path(place) / name for name in sorted(found) if not name.startswith("."))


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, _EARLY)
    entry.compress_type = zipfile.ZIP_STORED if Path(name).suffix in _DENSE else zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry


def _add(packed: zipfile.ZipFile, name: str, file: Path) -> None:
    entry = _entry(name)
    entry.file_size = file.stat().st_size  # tells zipfile whether the large form is needed
    with file.open("rb") as source, packed.open(entry, "w") as sink:
        shutil.copyfileobj(source, sink, 1024**2)


def unbundle(file: str | Path, out: str | Path, *, overwrite: bool = False) -> dict[str, Any]:
    """Unpack a bundle into a folder, whole or not at all, and return what its bundle.json says.

    Raises:
        CheckpointError: no bundle, damaged, or a file is not the one that was packed.
        OutputExists: the folder is not empty and `overwrite` is false.
    """
    source, target = Path(file), Path(out)
    if MANIFEST not in names(source):
        raise CheckpointError(
            f"{source}: no bundle, for there is no {MANIFEST} in it; an archive of one of the 24 needs its name: "
            f"miniatures fetch MODEL --archive {source}"
        )
    beside = writable_folder(target.absolute().parent)
    with (
        atomic_folder(target, overwrite=overwrite) as folder,
        tempfile.TemporaryDirectory(dir=beside, prefix=".bundle.") as scratch,
    ):
        inside = Path(scratch) / "all"
        unpack(source, inside)
        document = _checked(source, inside)
        for name in document["files"]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (inside / document["name"] / name).rename(folder / name)
    return document


def _checked(source: Path, inside: Path) -> dict[str, Any]:
    """Compare what was unpacked with the manifest, both ways."""
    document = read_json(inside / MANIFEST)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        said = document.get("format") if isinstance(document, dict) else None
        raise CheckpointError(f"{source}: bundle format {said}, this version reads format {FORMAT}")
    listed, root = document.get("files"), document.get("name")
    if not isinstance(listed, dict) or not isinstance(root, str):
        raise CheckpointError(f"{source}: {MANIFEST} does not list the files")
    there = {path.relative_to(inside).as_posix() for path in inside.rglob("*") if path.is_file()} - {MANIFEST}
    wanted = {f"{root}/{name}" for name in listed}
    if there != wanted:
        odd = sorted(there ^ wanted)[0]
        raise CheckpointError(f"{source}: '{odd}' is {'not listed' if odd in there else 'missing'}; get it again")
    for name, facts in listed.items():
        if sha256_of(inside / root / name) != facts.get("sha256"):
            raise CheckpointError(f"{source}: '{name}' is not the file that was packed (SHA-256); get it again")
    return document
