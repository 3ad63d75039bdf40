"""Archives from elsewhere, opened without trusting them: `.zip` and `.tar.gz`.

Every entry is judged before a byte is written: names that leave the folder, links and devices are refused, and so is
what declares or turns out to be larger than a model can be. Everything goes to a temporary folder that gets its name
when the last checksum has been right, so a damaged archive leaves nothing behind.
"""

import contextlib
import errno
import gzip
import io
import itertools
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

from bert_miniatures.errors import CheckpointError, UserError
from bert_miniatures.files import atomic_folder, writable_folder
from bert_miniatures.zoo import Miniature

__all__ = ["ENTRIES", "LIMIT", "find_model", "names", "unpack"]

LIMIT = 2 * 1024**3  # bytes of one unpacked model; the largest of the 24 with both heads is 0.45 GB
ENTRIES = 10_000  # all 24 models as folders make about 120
RATIO, RATIO_FLOOR = 200, 64 * 1024**2  # trained weights shrink to nine tenths; below the floor any ratio will do
_CHUNK = 1024**2
_BLOCK = 16 * 1024**2  # no single structure of an archive (a name, a pax header) is that large
_PER_ENTRY = 46 + 1024  # bytes of the zip directory that an entry may take on average
_USEFUL = ("*.json", "*.txt", "*.safetensors", "*.bin", "*.index", "*.data-?????-of-?????")
_CONFIGS = ("bert_config.json", "config.json")
_DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, struct.error, EOFError,
    RuntimeError, ValueError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True)
class _Member:
    """An entry whose name and kind have been judged: a regular file or a folder, inside the target."""

    path: PurePosixPath
    size: int
    folder: bool
    open: Callable[[], IO[bytes]]


def unpack(
    archive: Path,
    target: Path,
    *,
    wanted: Callable[[str], bool] | None = None,
    limit: int = LIMIT,
    entries: int = ENTRIES,
    overwrite: bool = False,
) -> None:
    """Unpack a `.zip` or `.tar.gz` into a folder, whole or not at all.

    Args:
        archive: the file; its kind is told by its first bytes.
        target: the folder to make.
        wanted: takes an entry's name, says whether to write it; unsafe names are refused even where not wanted.
        limit: most bytes that may be written in all.
        entries: most entries that the archive may have.

    Raises:
        CheckpointError: damaged, cut short, unsafe or too large.
        OutputExists: `target` is not empty and `overwrite` is false.
        DiskFull: no space left on the device.
    """
    archive = Path(archive)
    room = min(limit, max(RATIO_FLOOR, RATIO * _size(archive)))
    with atomic_folder(target, overwrite=overwrite) as folder, _damage_is_an_error(archive):
        written = 0
        for member in _members(archive, entries, limit):
            if member.folder or not (wanted is None or wanted(str(member.path))):
                continue
            written += member.size
            if written > room:
                raise CheckpointError(
                    f"{archive}: unpacks to more than {room:,} bytes, and a model to less; nothing was kept"
                )
            _write(archive, member, folder)


def names(archive: Path, *, entries: int = ENTRIES, limit: int = LIMIT) -> list[str]:
    """List the files in an archive, folders left out.

    Raises:
        CheckpointError: damaged, unsafe, or with more than `entries` entries.
    """
    archive = Path(archive)
    with _damage_is_an_error(archive):
        return [str(member.path) for member in _members(archive, entries, limit) if not member.folder]


def find_model(source: Path, model: Miniature, scratch: Path, *, limit: int = LIMIT) -> Path:
    """Return a folder with the files of one model, taken from an archive or a folder that may hold several.

    Both layouts of `all_bert_models.zip` are understood: a folder per model and an archive per model.

    Args:
        source: `.zip`, `.tar.gz` or folder.
        model: which of the 24; its official name is looked for where there is a choice.
        scratch: where to unpack; not used for a folder that holds plain files.
        limit: most bytes that one model may unpack to.

    Raises:
        CheckpointError: no such model in there, or the archive is damaged or unsafe.
    """
    source = Path(source)
    listed = _names_on_disk(source) if source.is_dir() else names(source)
    found = _pick(listed, model, source)
    if _is_archive(found):
        with tempfile.TemporaryDirectory(dir=writable_folder(scratch.parent), prefix=".nested.") as nest:
            return _from_nested(source, found, model, scratch, Path(nest), limit)
    if source.is_dir():
        return source / found
    unpack(source, scratch, wanted=_files_of(found), limit=limit, overwrite=True)
    return scratch / found


def _from_nested(source: Path, found: PurePosixPath, model: Miniature, scratch: Path, nest: Path, limit: int) -> Path:
    """Take the archive `found` out of `source`, then the model out of it; there is no third level."""
    inner = source / found
    if not source.is_dir():
        unpack(source, nest / "outer", wanted=lambda name: name == str(found), limit=limit)
        inner = nest / "outer" / found
    folder = _pick(names(inner), model, inner)
    if _is_archive(folder):
        raise CheckpointError(f"{source}: '{found}' holds an archive again; unpack it first")
    unpack(inner, scratch, wanted=_files_of(folder), limit=limit, overwrite=True)
    return scratch / folder


def _pick(listed: Iterable[str], model: Miniature, source: Path) -> PurePosixPath:
    """Return the folder or the nested archive that is the model: by its name, else the only one there is."""
    paths = [PurePosixPath(name) for name in listed]
    folders = sorted({path.parent for path in paths if path.name in _CONFIGS})
    archives = sorted({path for path in paths if _is_archive(path)})
    titled = [path for path in folders + archives if model.official.casefold() in str(path).casefold()]
    choices = folders or archives
    if titled or len(choices) == 1 or PurePosixPath() in folders:
        return (titled or choices)[0]  # the folder itself sorts first
    if not choices:
        raise CheckpointError(f"{source}: no model in there; expected bert_config.json or config.json and weights")
    listing = ", ".join(map(str, choices[:3])) + (f" and {len(choices) - 3} more" if len(choices) > 3 else "")
    raise CheckpointError(f"{source}: holds {len(choices)} models, none named {model.official}: {listing}")


def _files_of(folder: PurePosixPath) -> Callable[[str], bool]:
    def wanted(name: str) -> bool:
        path = PurePosixPath(name)
        return path.parent == folder and any(fnmatch(path.name, pattern) for pattern in _USEFUL)

    return wanted


def _is_archive(path: PurePosixPath) -> bool:
    return path.name.casefold().endswith((".zip", ".tar.gz", ".tgz"))


def _names_on_disk(folder: Path) -> list[str]:
    """List files down to the fourth level: `models/uncased_.../bert_config.json` and the layout of the Hub's cache."""
    found = itertools.chain.from_iterable(folder.glob(depth) for depth in ("*", "*/*", "*/*/*", "*/*/*/*"))
    return [path.relative_to(folder).as_posix() for path in itertools.islice(found, ENTRIES) if path.is_file()]


# ------------------------------------------------------------------------------------------- entries, judged


def _members(archive: Path, entries: int, limit: int) -> Iterator[_Member]:
    """Yield the entries in the archive's order; raise at the first that is not a plain file or folder inside."""
    reader = _zip_members if _kind(archive) == "zip" else _tar_members
    for count, member in enumerate(reader(archive, entries, limit), start=1):
        if count > entries:
            raise CheckpointError(f"{archive}: more than {entries:,} entries; a model has about 5")
        yield member


def _zip_members(archive: Path, entries: int, limit: int) -> Iterator[_Member]:
    with archive.open("rb") as file:
        if _directory_bytes(file) > entries * _PER_ENTRY:  # zipfile reads the whole directory into memory
            raise CheckpointError(f"{archive}: its directory has room for more than {entries:,} entries")
        with zipfile.ZipFile(file) as bundle:
            for info in bundle.infolist():
                mode = info.external_attr >> 16
                if stat.S_IFMT(mode) not in {0, stat.S_IFREG, stat.S_IFDIR}:
                    raise CheckpointError(f"{archive}: '{info.filename}' is a link or a device; only files are taken")
                if info.flag_bits & 0x1:
                    raise CheckpointError(f"{archive}: '{info.filename}' is encrypted; unpack it with its password")
                # bzip2 and LZMA give zipfile no way to bound what one read unpacks
                if info.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
                    raise CheckpointError(
                        f"{archive}: '{info.filename}' is packed by method {info.compress_type}; "
                        "expected stored or deflate"
                    )
                path = _safe(archive, info.orig_filename)
                yield _Member(path, info.file_size, info.is_dir(), partial(bundle.open, info))


def _tar_members(archive: Path, entries: int, limit: int) -> Iterator[_Member]:
    with gzip.open(archive) as plain:
        bounded: Any = _Bounded(plain, archive, 8 * limit + _BLOCK)
        with tarfile.open(fileobj=bounded, mode="r:") as bundle:
            for info in bundle:
                if not (info.isreg() or info.isdir()):
                    raise CheckpointError(f"{archive}: '{info.name}' is a link or a device; only files are taken")
                yield _Member(_safe(archive, info.name), info.size, info.isdir(), partial(_body, bundle, info))
        while bounded.read(_CHUNK):  # the checksum of gzip comes last
            pass


def _body(bundle: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    return bundle.extractfile(info) or io.BytesIO()


class _Bounded:
    """A file that refuses to read much at once or far: tarfile believes the sizes that headers declare."""

    def __init__(self, file: gzip.GzipFile, archive: Path, limit: int) -> None:
        self.file, self.archive, self.limit = file, archive, limit

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= _BLOCK:
            raise CheckpointError(f"{self.archive}: a header of {size:,} bytes; nothing was kept")
        data = self.file.read(size)
        if self.file.tell() > self.limit:
            raise CheckpointError(f"{self.archive}: unpacks to more than {self.limit:,} bytes; nothing was kept")
        return data

    def seek(self, position: int, whence: int = 0) -> int:
        if whence or position > self.limit:
            raise CheckpointError(f"{self.archive}: unpacks to more than {self.limit:,} bytes; nothing was kept")
        return self.file.seek(position)

    def tell(self) -> int:
        return self.file.tell()


def _safe(archive: Path, name: str) -> PurePosixPath:
    """Return the entry's path below the target, or raise where it points elsewhere or to a name no system takes."""
    parts = [part for part in name.split("/") if part not in {"", "."}]
    odd = name.startswith("/") or ".." in parts or any(char in "\\:" or ord(char) < 32 for char in name)
    if odd or not (parts or name) or len(name) > 1000 or any(len(part.encode()) > 255 for part in parts):
        raise CheckpointError(f"{archive}: unsafe name {name[:120]!r} in the archive; nothing was unpacked")
    return PurePosixPath(*parts)


def _directory_bytes(file: BinaryIO) -> int:
    """Return the size in bytes that a zip declares for its directory.

    Source: APPNOTE.TXT 4.3.14 to 4.3.16, end of central directory, its zip64 form and locator.
    """
    file.seek(max(0, file.seek(0, 2) - 65_536 - 22 - 20 - 56))
    tail = file.read()
    file.seek(0)
    at = len(tail) - 22 if tail[-22:-18] == b"PK\5\6" and tail[-2:] == b"\0\0" else tail.rfind(b"PK\5\6")
    if at < 0 or at + 22 > len(tail):
        raise zipfile.BadZipFile("the directory at its end is missing")
    size = int(struct.unpack_from("<L", tail, at + 12)[0])
    if tail[max(0, at - 20) : at][:4] != b"PK\6\7":
        return size
    wide = tail.rfind(b"PK\6\6", 0, at)
    if wide < 0:
        raise zipfile.BadZipFile("the zip64 directory at its end is missing")
    return int(struct.unpack_from("<Q", tail, wide + 40)[0])


# ------------------------------------------------------------------------------------------------ the file itself


def _size(archive: Path) -> int:
    if not archive.is_file():
        raise UserError(f"{archive}: no such file")
    return archive.stat().st_size


def _kind(archive: Path) -> str:
    if not _size(archive):
        raise CheckpointError(f"{archive}: the file is empty")
    with archive.open("rb") as file:
        start = file.read(4)
    if start[:2] == b"PK":
        return "zip"
    if start[:2] == b"\x1f\x8b":
        return "tar"
    looks = "a web page, not an archive" if start.lstrip()[:1] == b"<" else f"not a .zip or .tar.gz (begins {start!r})"
    raise CheckpointError(f"{archive}: {looks}")


def _write(archive: Path, member: _Member, folder: Path) -> None:
    """Write one file and count its bytes; the reader checks its CRC at the end."""
    path = folder / member.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        sink = path.open("xb")
    except (FileExistsError, NotADirectoryError):
        raise CheckpointError(f"{archive}: '{member.path}' is there twice; nothing was kept") from None
    written = 0
    with sink, member.open() as source:
        while chunk := source.read(_CHUNK):
            written += len(chunk)
            if written > member.size:
                break
            sink.write(chunk)
    if written != member.size:
        got = "more" if written > member.size else f"{written:,}"
        raise CheckpointError(f"{archive}: '{member.path}' declares {member.size:,} bytes and has {got}; damaged")


@contextlib.contextmanager
def _damage_is_an_error(archive: Path) -> Iterator[None]:
    """Turn what zipfile, tarfile, gzip and zlib raise for damaged bytes into one sentence."""
    try:
        yield
    except _DAMAGE as error:
        raise CheckpointError(f"{archive}: damaged or cut short ({error}); get it again") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # zipfile seeks where damaged offsets point
            raise
        raise CheckpointError(f"{archive}: damaged or cut short ({error}); get it again") from error
