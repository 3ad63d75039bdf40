"""Text for pre-training: files of any size to documents, in bounded memory.

A document is a list of paragraphs. In text files a paragraph is a line and an empty line ends a document; in .jsonl and
.parquet each row is a document and its lines are its paragraphs. A document of more than 4 MiB is divided into several
at a paragraph's end, and a line of more than 16 MiB is an error, so that memory does not depend on what a file holds.
"""

import gzip
import hashlib
import io
import json
import lzma
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO, Literal

from bert_miniatures.data.lines import existing_file, reading
from bert_miniatures.errors import DataError, UnknownName
from bert_miniatures.files import sha256_of

__all__ = ["EncodingErrors", "Faults", "Source", "document_hash", "documents", "open_corpus"]

EncodingErrors = Literal["error", "replace", "skip"]

_LONGEST_LINE = 16 * 2**20  # bytes
_LONGEST_DOCUMENT = 4 * 2**20  # characters
_PARQUET_ROWS = 16  # read at once
_MAGIC = {".gz": b"\x1f\x8b", ".xz": b"\xfd7zXZ\x00", ".zst": b"\x28\xb5\x2f\xfd"}
_PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True)
class Source:
    """A file of a corpus, checked from the outside.

    Attributes:
        path: the file.
        kind: ".txt", ".jsonl" or ".parquet".
        packing: ".gz", ".xz", ".zst" or "".
        column: the key or column with the text; None: "text", or the only column of a .parquet that has texts.
        sha256: of the file's bytes.
    """

    path: Path
    kind: str
    packing: str
    column: str | None
    sha256: str


@dataclass
class Faults:
    """What was not UTF-8 and was put up with: how many lines, and where the first was."""

    lines: int = 0
    first: str = ""

    def add(self, where: str) -> None:
        """Count a line."""
        self.lines += 1
        self.first = self.first or where


def open_corpus(paths: Sequence[Path | str], *, column: str | None = None) -> list[Source]:
    """Check the files of a corpus, compute their checksums and put them in an order of their own.

    The order is that of the checksums: names and order of the files do not matter, only what is in them.

    Args:
        paths: .txt, .jsonl (each also as .gz, .xz, .zst) or .parquet files; .gz, .xz, .zst alone count as text.
        column: the key or column that has the text, in .jsonl and .parquet.

    Raises:
        DataError: no such file, an unknown file type, a file that is not what its name says, or one given twice.
    """
    if not paths:
        raise DataError("the corpus has no files; give at least one .txt, .jsonl or .parquet")
    sources: dict[str, Source] = {}
    for path in map(Path, paths):
        source = _source(path, column)
        if other := sources.get(source.sha256):
            raise DataError(f"{path}: has the same bytes as {other.path}; each text may be given once")
        sources[source.sha256] = source
    return [sources[key] for key in sorted(sources)]


def _source(path: Path, column: str | None) -> Source:
    suffixes = [suffix.casefold() for suffix in path.suffixes[-2:]]
    packing = suffixes.pop() if suffixes and suffixes[-1] in _MAGIC else ""
    kind = suffixes[-1] if suffixes and suffixes[-1] in _READERS else ".txt" if packing else ""
    if not kind or (packing and kind == ".parquet"):
        listed = " ".join(_READERS)
        hint = "; .parquet is compressed inside" if packing else ""
        raise DataError(
            f"{path}: unknown file type '{path.suffix}', expected {listed}, or text with {' '.join(_MAGIC)}{hint}"
        )
    with reading(path):
        _check_magic(existing_file(path), packing or kind)
        return Source(path, kind, packing, column, sha256_of(path))


def _check_magic(path: Path, suffix: str) -> None:
    """Compare the first bytes with the name."""
    with path.open("rb") as file:
        head = file.read(8)
    if not head:
        raise DataError(f"{path}: the file is empty")
    known = _MAGIC | {".parquet": _PARQUET_MAGIC}
    if suffix in known and not head.startswith(known[suffix]):
        raise DataError(
            f"{path}: is no {suffix} file (it begins with the bytes {head.hex(' ')}); name it as what it is"
        )
    for other, magic in known.items():
        if other != suffix and head.startswith(magic):
            raise DataError(f"{path}: is a {other} file by its first bytes; name it so")


def document_hash(paragraphs: Sequence[str]) -> int:
    """Return 64 bits that depend on the text of a document alone."""
    digest = hashlib.blake2b("\n".join(paragraphs).encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def documents(
    source: Source,
    *,
    on_errors: EncodingErrors = "error",
    faults: Faults | None = None,
    heard: Callable[[int], None] | None = None,
) -> Iterator[list[str]]:
    """Yield the documents of a file, each a list of paragraphs without empty ones.

    Args:
        source: from `open_corpus`.
        on_errors: what to do with a line (.jsonl, .parquet: a row) that is not UTF-8: "error", "replace" the bytes by
            U+FFFD, or "skip" the line. Both of the last count in `faults`.
        faults: counts lines that were not UTF-8.
        heard: is told, at each document, how many bytes of the file are read.

    Raises:
        DataError: damaged or truncated, a NUL byte, a line over 16 MiB, not JSON, not a text, not UTF-8; the message
            begins with `file:line:` where there is a line.
        UnknownName: there is no such column.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "two.txt"
        >>> _ = path.write_text("One. Two.\\nThree.\\n\\nFour.\\n")
        >>> list(documents(*open_corpus([path])))
        [['One. Two.', 'Three.'], ['Four.']]
    """
    decode = _Decoder(on_errors, faults if faults is not None else Faults())
    with reading(source.path), source.path.open("rb") as raw:
        for paragraphs in _READERS[source.kind](source, raw, decode):
            if heard is not None:
                heard(raw.tell())
            yield from _divided(paragraphs)


def _divided(paragraphs: list[str]) -> Iterator[list[str]]:
    """Divide a document that is too long at the ends of paragraphs."""
    part: list[str] = []
    size = 0
    for paragraph in paragraphs:
        part.append(paragraph)
        size += len(paragraph)
        if size > _LONGEST_DOCUMENT:
            yield part
            part, size = [], 0
    if part:
        yield part


# ---- bytes to text


@dataclass
class _Decoder:
    rule: EncodingErrors
    faults: Faults = field(default_factory=Faults)

    def __call__(self, data: bytes, where: str) -> str | None:
        """Return the text of a line, or None where it is to be skipped."""
        if b"\0" in data:
            encoding = "UTF-16 text, expected UTF-8" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "a NUL byte"
            raise DataError(f"{where}: {encoding}; the file is damaged or no UTF-8 text")
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError as error:
            if self.rule == "error":
                raise DataError(
                    f"{where}: not UTF-8 (byte 0x{data[error.start]:02x} at byte {error.start} of the line); "
                    "save the file as UTF-8, or give --encoding-errors replace or skip"
                ) from None
        self.faults.add(where)
        return data.decode("utf-8", "replace") if self.rule == "replace" else None


@contextmanager
def _whole(path: Path, packing: str) -> Iterator[None]:
    """Turn what the decompressors raise into one sentence."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: the {packing} file is damaged or cut short ({error})") from None
    except OSError as error:
        if error.errno is not None or not packing:
            raise
        raise DataError(f"{path}: the {packing} file is damaged or cut short ({error})") from None


def _unpacked(raw: BinaryIO, packing: str) -> IO[bytes] | gzip.GzipFile:
    if packing == ".gz":
        return gzip.GzipFile(fileobj=raw)
    if packing == ".xz":
        return lzma.LZMAFile(raw)
    if packing == ".zst":
        import pyarrow

        stream: Any = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd")
        return io.BufferedReader(stream)
    return raw


def _lines(source: Source, raw: BinaryIO, decode: _Decoder) -> Iterator[tuple[str, str]]:
    """Yield ("file:line", text) for each line."""
    with _whole(source.path, source.packing):
        file, number = _unpacked(raw, source.packing), 0
        while data := file.readline(_LONGEST_LINE + 1):
            number += 1
            where = f"{source.path}:{number}"
            if len(data) > _LONGEST_LINE:
                raise DataError(
                    f"{where}: a line of more than {_LONGEST_LINE >> 20} MiB; a paragraph a line is expected"
                )
            text = decode(data.removeprefix(b"\xef\xbb\xbf") if number == 1 else data, where)
            if text is not None:
                yield where, text.strip()


# ---- the formats: each yields documents


def _text_documents(source: Source, raw: BinaryIO, decode: _Decoder) -> Iterator[list[str]]:
    paragraphs: list[str] = []
    size = 0
    for _, line in _lines(source, raw, decode):
        size += len(line)
        if line:
            paragraphs.append(line)
        if paragraphs and (not line or size > _LONGEST_DOCUMENT):
            yield paragraphs
            paragraphs, size = [], 0
    if paragraphs:
        yield paragraphs


def _paragraphs(text: str) -> list[str]:
    return [line for line in map(str.strip, text.split("\n")) if line]


def _jsonl_documents(source: Source, raw: BinaryIO, decode: _Decoder) -> Iterator[list[str]]:
    key = source.column or "text"
    for where, line in _lines(source, raw, decode):
        if not line:
            continue
        try:
            found = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
            raise DataError(f"{where}: not JSON ({reason})") from None
        if not isinstance(found, dict):
            raise DataError(f'{where}: expected an object such as {{"text": "…"}}, got {line:.40}')
        if key not in found:
            raise UnknownName(f"key in {where}:", key, map(str, found), "--text names the key")
        if (text := found[key]) is None:
            continue
        if not isinstance(text, str):
            raise DataError(f"{where}: expected a text in '{key}', got {text!r:.40}")
        # "\ud800" in JSON is half a character: bytes that are not UTF-8, as in any other file
        decoded = decode(text.encode("utf-8", "surrogatepass"), where)
        if decoded is not None and (paragraphs := _paragraphs(decoded)):
            yield paragraphs


def _parquet_documents(source: Source, raw: BinaryIO, decode: _Decoder) -> Iterator[list[str]]:
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(raw, pre_buffer=False, buffer_size=2**20) as file:
            column = _text_column(source, file.schema_arrow)
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[column]):
                for cell in batch.column(0).cast(pyarrow.large_binary()).to_pylist():
                    number += 1
                    where = f"{source.path}: row {number}"
                    if cell is not None and len(cell) > _LONGEST_LINE:
                        raise DataError(f"{where}: a text of more than {_LONGEST_LINE >> 20} MiB")
                    text = decode(cell, where) if cell else None
                    if text is not None and (paragraphs := _paragraphs(text)):
                        yield paragraphs
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{source.path}: not a whole Parquet file ({str(error).splitlines()[0]})") from None


def _text_column(source: Source, schema: Any) -> str:
    import pyarrow.types as types

    texts = [item.name for item in schema if types.is_string(item.type) or types.is_large_string(item.type)]
    wanted = source.column or ("text" if "text" in texts else texts[0] if len(texts) == 1 else None)
    if wanted is None:
        raise DataError(
            f"{source.path}: which column has the text? It has {', '.join(schema.names)}; say --text COLUMN"
        )
    if wanted not in schema.names:
        raise UnknownName(f"column in {source.path}:", wanted, schema.names)
    if wanted not in texts:
        raise DataError(f"{source.path}: column '{wanted}' has no texts but {schema.field(wanted).type}")
    return wanted


_READERS: dict[str, Callable[[Source, BinaryIO, _Decoder], Iterator[list[str]]]] = {
    ".txt": _text_documents,
    ".jsonl": _jsonl_documents,
    ".parquet": _parquet_documents,
}
