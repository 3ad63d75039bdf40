"""Own files as tables: .csv, .tsv, .jsonl, .parquet. Rows come one by one, in bounded memory, with line numbers."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_miniatures.data.lines import LONGEST_LINE, existing_file, reading, stream_lines
from bert_miniatures.errors import DataError

__all__ = ["SUFFIXES", "Table", "open_table", "text_of"]

# (line number, one cell for each wanted column)
Rows = Iterator[tuple[int, Sequence[Any]]]


@dataclass(frozen=True)
class Table:
    """An own file that was opened once to see its columns.

    Attributes:
        path: the file.
        columns: their names, in the order of the file (.jsonl: of the first line).
    """

    path: Path
    columns: list[str]

    def at(self, number: int) -> str:
        """Return how errors call a row: `file:line`, for Parquet `file: row`, both counted from 1."""
        return f"{self.path}:{'' if _FORMATS[_suffix(self.path)].has_lines else ' row '}{number}"

    def rows(self, wanted: Sequence[str]) -> Rows:
        """Yield (line number, cells of the wanted columns).

        Raises:
            DataError: no rows, a ragged or damaged row, a key that is missing, bytes that are not UTF-8.
        """
        empty = True
        with reading(self.path):
            for row in _FORMATS[_suffix(self.path)].rows(self, wanted):
                empty = False
                yield row
        if empty:
            raise DataError(f"{self.path}: has columns ({', '.join(self.columns)}) and no rows")


@dataclass(frozen=True)
class _Format:
    columns: Callable[[Path], list[str]]
    rows: Callable[[Table, Sequence[str]], Rows]
    has_lines: bool = True


def open_table(path: Path) -> Table:
    """Open an own file and read the names of its columns.

    Raises:
        DataError: no such file, an unknown file type, an empty file, or two columns of the same name.
    """
    path = Path(path)
    kind = _FORMATS[_suffix(path)]
    with reading(path):
        columns = kind.columns(existing_file(path))
    for name in columns:
        if columns.count(name) > 1:
            raise DataError(f"{path}:1: column '{name}' is there {columns.count(name)} times")
    return Table(path, columns)


def _suffix(path: Path) -> str:
    suffix = path.suffix.casefold()
    if suffix not in _FORMATS:
        hint = "; one JSON object a line goes into .jsonl" if suffix == ".json" else ""
        raise DataError(f"{path}: unknown file type '{path.suffix}', expected {' '.join(_FORMATS)}{hint}")
    return suffix


def text_of(cell: Any, where: str) -> str:
    """Return the text in a cell; nothing (null) is an empty text.

    Args:
        cell: what the file has.
        where: "file:line" of the row.

    Raises:
        DataError: a number or a list, half of a surrogate pair, a NUL character.
    """
    if cell is None:
        return ""
    if not isinstance(cell, str):
        raise DataError(f"{where}: expected a text, got {cell!r:.40}")
    if not cell.isascii():
        try:
            cell.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{where}: half a character (U+{ord(cell[error.start]):04X} alone) in the text") from None
    if "\0" in cell:
        raise DataError(f"{where}: a NUL character in the text")
    return cell


# ---- .csv and .tsv: RFC 4180, with a comma or a tab


def _records(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (number of its first line, cells) of every record, the header too; blank lines are no records."""
    csv.field_size_limit(LONGEST_LINE)  # the module's 128 KiB is shorter than a text of 100,000 words
    with path.open("rb") as file:
        delimiter = "\t" if _suffix(path) == ".tsv" else ","
        reader = csv.reader(stream_lines(file, str(path)), delimiter=delimiter, strict=True)
        while True:
            number = reader.line_num + 1
            try:
                record = next(reader, None)
            except csv.Error as error:
                raise DataError(f"{path}:{number}: {_reason(str(error))}") from None
            if record is None:
                return
            if record:
                yield number, record


def _reason(message: str) -> str:
    """Say in plain words what the csv module found wrong."""
    if "unexpected end" in message:
        return "a quote that opens in this row is never closed"
    if "expected after" in message:
        return 'text after a closing quote; inside quotes a quote is written twice ("")'
    if "field limit" in message:
        return f"a cell of more than {LONGEST_LINE >> 20} MiB; is a quote never closed?"
    if "new-line character" in message:
        return "a carriage return inside a row; save the file with ordinary line ends"
    return f"not valid CSV ({message})"


def _csv_columns(path: Path) -> list[str]:
    for _, record in _records(path):
        return [name.strip() for name in record]
    raise DataError(f"{path}: the file is empty")


def _csv_rows(table: Table, wanted: Sequence[str]) -> Rows:
    width, places = len(table.columns), [table.columns.index(name) for name in wanted]
    records = _records(table.path)
    next(records)
    for number, record in records:
        if len(record) != width:
            listed = ", ".join(table.columns[:8])
            hint = "; a text with the separator in it needs quotes" if len(record) > width else ""
            raise DataError(f"{table.at(number)}: expected {width} columns ({listed}), got {len(record)}{hint}")
        yield number, [record[place] for place in places]


# ---- .jsonl: an object a line


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with path.open("rb") as file:
        for number, line in enumerate(stream_lines(file, str(path)), 1):
            if not line.strip():
                continue
            try:
                found = json.loads(line)
            except (json.JSONDecodeError, RecursionError) as error:
                reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
                raise DataError(f"{path}:{number}: not JSON ({reason})") from None
            if not isinstance(found, dict):
                example = '{"text": "…", "label": "…"}'
                raise DataError(f"{path}:{number}: expected an object such as {example}, got {line.strip():.40}")
            yield number, found


def _jsonl_columns(path: Path) -> list[str]:
    for _, found in _objects(path):
        return list(found)
    raise DataError(f"{path}: the file is empty")


def _jsonl_rows(table: Table, wanted: Sequence[str]) -> Rows:
    for number, found in _objects(table.path):
        for name in wanted:
            if name not in found:
                listed = ", ".join(list(found)[:8]) or "nothing"
                raise DataError(f"{table.at(number)}: the key '{name}' is missing; this line has {listed}")
        yield number, [found[name] for name in wanted]


# ---- .parquet


@contextmanager
def _arrow_errors(path: Path) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: not a whole Parquet file ({reason})") from None


def _parquet_columns(path: Path) -> list[str]:
    import pyarrow.parquet

    with _arrow_errors(path), pyarrow.parquet.ParquetFile(path) as file:
        return list(file.schema_arrow.names)


def _parquet_rows(table: Table, wanted: Sequence[str]) -> Rows:
    import pyarrow.parquet

    number = 0
    with _arrow_errors(table.path), pyarrow.parquet.ParquetFile(table.path) as file:
        for batch in file.iter_batches(batch_size=1024, columns=list(wanted)):
            columns = {name: batch.column(name).to_pylist() for name in wanted}
            for cells in zip(*(columns[name] for name in wanted), strict=True):
                number += 1
                yield number, cells


_FORMATS = {
    ".csv": _Format(_csv_columns, _csv_rows),
    ".tsv": _Format(_csv_columns, _csv_rows),
    ".jsonl": _Format(_jsonl_columns, _jsonl_rows),
    ".parquet": _Format(_parquet_columns, _parquet_rows, has_lines=False),
}
SUFFIXES = tuple(_FORMATS)
