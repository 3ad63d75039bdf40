"""Texts of a file of any size, or of standard input, in chunks: what prediction reads."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from bert_miniatures.data.columns import find_columns
from bert_miniatures.data.lines import existing_file, reading, stream_lines
from bert_miniatures.data.tables import SUFFIXES, open_table, text_of
from bert_miniatures.errors import ConfigError, DataError

__all__ = ["stream_rows"]

Chunk = tuple[list[str], list[str] | None]


def stream_rows(
    source: Path | str | BinaryIO, *, text: str | None = None, pair: str | None = None, chunk: int = 1024
) -> Iterator[Chunk]:
    """Yield the texts of a file in chunks, in order, in memory for one chunk.

    Args:
        source: a .csv, .tsv, .jsonl or .parquet file; a .txt file with a text on each line; "-" for such lines from
            standard input; or such lines as an open binary file.
        text, pair: names of the columns; guessed by name where None.
        chunk: rows per chunk.

    Returns:
        An iterator of (texts, second texts or None). The file is opened and its columns are found at once; damaged rows
        are errors when they are reached.

    Raises:
        UnknownName: no such column.
        ConfigError: columns were named and lines have none.
        DataError: the file cannot be read; the message begins with `file:line:` where there is a line.

    Example:
        >>> import io
        >>> list(stream_rows(io.BytesIO(b"fine\\nbad\\n"), chunk=1))
        [(['fine'], None), (['bad'], None)]
    """
    if chunk < 1:
        raise ConfigError(f"chunk is {chunk}; expected 1 or more rows")
    lines = _lines_of(source)
    if lines is not None:
        if text or pair:
            raise ConfigError(f"{source}: lines of text have no columns; leave --text and --pair out")
        return _chunks(lines, chunk, has_pairs=False)
    path = Path(str(source))
    table = open_table(path)
    columns, _ = find_columns(path, table.columns, text=text, pair=pair, wants_label="ignored")
    wanted = [columns.text] if columns.pair is None else [columns.text, columns.pair]
    rows = ([text_of(cell, table.at(number)) for cell in row] for number, row in table.rows(wanted))
    return _chunks(rows, chunk, has_pairs=columns.pair is not None)


def _lines_of(source: Path | str | BinaryIO) -> Iterator[Sequence[str]] | None:
    """Return the lines of a source that has no columns, None for a table."""
    if not isinstance(source, str | Path):
        return _line_rows(source, str(getattr(source, "name", "input")))
    if str(source) == "-":
        return _line_rows(sys.stdin.buffer, "<stdin>")
    path = Path(source)
    suffix = path.suffix.casefold()
    if suffix == ".txt":
        with reading(path):
            return _txt_rows(existing_file(path))
    if suffix not in SUFFIXES:
        raise DataError(f"{path}: unknown file type '{path.suffix}', expected {' '.join(SUFFIXES)} .txt or - for stdin")
    return None


def _chunks(rows: Iterator[Sequence[str]], size: int, *, has_pairs: bool) -> Iterator[Chunk]:
    texts: list[str] = []
    pairs: list[str] = []
    for row in rows:
        texts.append(row[0])
        if has_pairs:
            pairs.append(row[1])
        if len(texts) == size:
            yield texts, pairs if has_pairs else None
            texts, pairs = [], []
    if texts:
        yield texts, pairs if has_pairs else None


def _line_rows(file: BinaryIO, name: str) -> Iterator[Sequence[str]]:
    """Give a text for each line; an empty line is an empty text, so that lines of the output match."""
    empty = True
    for line in stream_lines(file, name):
        empty = False
        yield (line.removesuffix("\n").removesuffix("\r"),)
    if empty:
        raise DataError(f"{name}: the input is empty")


def _txt_rows(path: Path) -> Iterator[Sequence[str]]:
    with reading(path), path.open("rb") as file:
        yield from _line_rows(file, str(path))
