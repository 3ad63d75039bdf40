"""Bytes of a file -> decoded lines, with errors that name the line; helpers that name what is there instead.

Only "\n" ends a line (a "\r" before it is dropped). `str.splitlines` would also cut at U+0085, U+2028 and others, which
occur inside real texts.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from bert_miniatures.errors import DataError, nearest

__all__ = ["LONGEST_LINE", "existing_file", "read_text", "reading", "stream_lines"]

# A line, or a field with quotes around several lines, is held in memory; a longer one is a file without line ends or
# a quote that was never closed.
LONGEST_LINE = 64 * 2**20

_OTHER_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn the system's reasons for not reading `path` into one sentence."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def existing_file(path: Path) -> Path:
    """Return `path` if it is a file.

    Raises:
        DataError: there is no such file; the nearest name in the folder, or the nearest folder that exists, is named.
    """
    if path.is_file():
        return path
    if path.is_dir():
        raise DataError(f"{path}: is a folder, expected a file")
    folder = path.parent
    if not folder.is_dir():
        raise DataError(f"{path}: no such file; there is no folder {folder}, {_nearest_folder(folder)} exists")
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    guess = nearest(path.name, names)
    listed = ", ".join(names[:8]) or "no files"
    tail = f"did you mean '{guess}'?" if guess else f"{folder} has {listed}"
    raise DataError(f"{path}: no such file; {tail}")


def _nearest_folder(folder: Path) -> Path:
    return next((parent for parent in folder.absolute().parents if parent.is_dir()), Path("/"))


def read_text(path: Path) -> list[str]:
    """Return the lines of a whole file, without line ends and without empty lines at the end.

    Raises:
        DataError: no such file, nothing in it, UTF-16, or bytes that are not UTF-8.
    """
    with reading(path):
        data = existing_file(path).read_bytes()
    _refuse_other_encodings(data, str(path))
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise _not_utf8(str(path), line, error.start, data[error.start]) from None
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    if not lines:
        raise DataError(f"{path}: the file is empty")
    return lines


def stream_lines(file: BinaryIO, name: str) -> Iterator[str]:
    """Yield the lines of an open file one by one, line ends included, in memory for one line.

    Args:
        file: open for reading bytes.
        name: what errors call it.

    Raises:
        DataError: UTF-16, bytes that are not UTF-8, a NUL byte, or a line over 64 MiB.
    """
    number = offset = 0
    while data := file.readline(LONGEST_LINE + 1):
        number += 1
        if number == 1:
            _refuse_other_encodings(data, name)
        if len(data) > LONGEST_LINE:
            raise DataError(f"{name}:{number}: a line of more than {LONGEST_LINE >> 20} MiB; is this a text file?")
        try:
            line = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(name, number, offset + error.start, data[error.start]) from None
        if "\0" in line:
            at = offset + data.index(b"\0")
            raise DataError(f"{name}:{number}: a NUL byte (byte {at} of the file); the file is damaged or not text")
        offset += len(data)
        yield line.removeprefix("\ufeff") if number == 1 else line


def _refuse_other_encodings(data: bytes, name: str) -> None:
    encoding = _OTHER_ENCODINGS.get(data[:2])
    if encoding:
        raise DataError(f"{name}:1: {encoding} text, expected UTF-8; save the file as UTF-8")


def _not_utf8(name: str, line: int, offset: int, byte: int) -> DataError:
    return DataError(
        f"{name}:{line}: not UTF-8 (byte 0x{byte:02x} at byte {offset} of the file); save the file as UTF-8"
    )
