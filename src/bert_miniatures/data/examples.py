"""Examples: the rows of a GLUE split or of an own file, as columns, with label numbers and a checksum."""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bert_miniatures.data.columns import find_columns
from bert_miniatures.data.glue import glue_file, glue_rows
from bert_miniatures.data.labels import RawRows, encode_labels, infer_kind, label_names
from bert_miniatures.data.stream import stream_rows
from bert_miniatures.data.tables import Table, open_table, text_of
from bert_miniatures.data.tasks import KINDS, OWN_METRICS, Columns, Task
from bert_miniatures.errors import ConfigError, DataError, UnknownName

__all__ = ["Examples", "own_task", "read_file", "read_glue", "stream_rows"]


@dataclass(frozen=True, eq=False)
class Examples:
    """Rows of one split, as columns.

    Attributes:
        texts: first texts [N].
        pairs: second texts [N]; None for single texts.
        labels: classification int64 [N], -1 = hidden; regression float64 [N], NaN = hidden; multilabel int64 [N, C] of
            0 and 1, -1 = hidden; None where there never were labels.
        row_ids: what the official file calls the row, else its position in the file, from 0.
        source: the file they come from.
        checksum: SHA-256 of texts and labels, hexadecimal.
        warnings: what a user should know, a sentence each.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: np.ndarray | None
    row_ids: list[str]
    source: str
    checksum: str
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def hidden(self) -> int:
        """Number of rows whose label is hidden: they can be predicted, never scored."""
        if self.labels is None:
            return len(self)
        rows = self.labels if self.labels.ndim == 1 else self.labels.min(axis=1, initial=0)
        return int(np.isnan(rows).sum() if rows.dtype.kind == "f" else (rows < 0).sum())

    def take(self, rows: Sequence[int] | np.ndarray) -> "Examples":
        """Return these rows, in this order, with their own checksum; `row_ids` still tell where they come from."""
        chosen = [int(i) for i in rows]
        texts = [self.texts[i] for i in chosen]
        pairs = None if self.pairs is None else [self.pairs[i] for i in chosen]
        labels = None if self.labels is None else self.labels[chosen]
        ids = [self.row_ids[i] for i in chosen]
        return Examples(texts, pairs, labels, ids, self.source, _checksum(texts, pairs, labels), self.warnings)


def read_glue(task: Task, glue: Path, split: str, rows: int | None = None) -> Examples:
    """Read one split of a GLUE task from a folder in the official layout.

    Args:
        task: a row of `TASKS`.
        glue: folder that holds the tasks' folders.
        split: `train`, `dev`, `test`; of MNLI `dev_matched` …, where `dev` means `dev_matched`.
        rows: read the first so many rows; None for all.

    Returns:
        The rows. Where the number of rows is not the official one, a warning says so.

    Raises:
        UnknownName: the task has no such split.
        DataError: no such folder or file, or a damaged one; the message begins with `file:line:`.
    """
    _check_rows(rows)
    split = task.split_named(split)
    path = glue_file(task, glue, split)
    raw, warnings = glue_rows(task, path, split, rows)
    return _examples(task, raw, path, lambda i: f"{path}:{raw.numbers[i]}", warnings, official=True)


def own_task(
    train: Path, *, text: str | None = None, pair: str | None = None, label: str | None = None, kind: str | None = None
) -> Task:
    """Make a task from a training file of the user's own: which columns, which kind, which labels.

    Args:
        train: a .csv, .tsv, .jsonl or .parquet file.
        text, pair, label: names of the columns; guessed by name where None. With `text` alone, rows are single texts.
        kind: "classification", "regression" or "multilabel"; inferred from the labels where None.

    Returns:
        The task; `notes` names every guess.

    Raises:
        UnknownName: no such column or kind.
        DataError: the file cannot be read, a guess would be a draw, a label is missing, or there is one class only.

    Example:
        >>> import tempfile
        >>> train = Path(tempfile.mkdtemp()) / "train.csv"
        >>> _ = train.write_text("review,stars\\nfine,good\\nbroken,bad\\n")
        >>> task = own_task(train)
        >>> task.kind, task.labels, task.columns.text
        ('classification', ('bad', 'good'), 'review')
        >>> read_file(train, task).labels
        array([1, 0])
    """
    if kind is not None and kind not in KINDS:
        raise UnknownName("kind", kind, KINDS)
    table = open_table(train)
    columns, notes = find_columns(table.path, table.columns, text=text, pair=pair, label=label)
    numbers, cells = [], []
    for number, row in table.rows([str(columns.label)]):
        numbers.append(number)
        cells.append(row[0])
    if kind is None:
        try:
            kind, why = infer_kind(cells)
        except ValueError as error:
            raise DataError(f"{table.path}: {error}") from None
        notes += (f"{table.path.name}: {why}",) if why else ()
    names = label_names(kind, cells, lambda i: table.at(numbers[i]))
    return Task("own", kind, names, OWN_METRICS[kind], pair=columns.pair is not None, columns=columns, notes=notes)


def read_file(
    path: Path,
    task: Task,
    *,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    rows: int | None = None,
    allow_hidden: bool = False,
) -> Examples:
    """Read an own file for a task.

    Args:
        path: a .csv, .tsv, .jsonl or .parquet file.
        task: says what the labels are and, unless it is a GLUE task, which columns hold what.
        text, pair, label: names of the columns, where they differ from the task's.
        rows: read the first so many rows; None for all.
        allow_hidden: take an empty label, or a file without the label column, as hidden labels. (An empty cell of a
            multilabel .csv or .tsv still means "no label applies"; hidden is null in .jsonl and .parquet.)

    Returns:
        The rows, `row_ids` being positions from 0.

    Raises:
        UnknownName: no such column.
        DataError: the file cannot be read or a label does not fit the task; the message begins with `file:line:`.
    """
    _check_rows(rows)
    table = open_table(path)
    columns, notes = _columns_for(task, table, text, pair, label, allow_hidden=allow_hidden)
    wanted = [name for name in (columns.text, columns.pair, columns.label) if name is not None]
    numbers: list[int] = []
    found: list[Sequence[Any]] = []
    for number, row in table.rows(wanted):
        if len(found) == rows:
            break
        numbers.append(number)
        found.append(row)

    def at(i: int) -> str:
        return table.at(numbers[i])

    raw = RawRows(
        texts=[text_of(row[0], at(i)) for i, row in enumerate(found)],
        pairs=[text_of(row[1], at(i)) for i, row in enumerate(found)] if columns.pair else None,
        labels=[row[-1] for row in found] if columns.label else None,
        numbers=numbers,
        ids=[str(i) for i in range(len(found))],
    )
    return _examples(task, raw, table.path, at, notes, allow_hidden=allow_hidden)


def _check_rows(rows: int | None) -> None:
    if rows is not None and rows < 1:
        raise ConfigError(f"rows is {rows}; expected 1 or more")


def _columns_for(
    task: Task, table: Table, text: str | None, pair: str | None, label: str | None, *, allow_hidden: bool
) -> tuple[Columns, tuple[str, ...]]:
    """Find the columns of a file for a task: those named, then the task's own, then by name."""
    known = task.columns
    if known is not None:
        text, pair, label = text or known.text, pair or known.pair, label or known.label
        if allow_hidden and label == known.label and label not in table.columns:
            label = None
    wants = "optional" if allow_hidden else "needed"
    columns, notes = find_columns(table.path, table.columns, text=text, pair=pair, label=label, wants_label=wants)
    if task.pair and columns.pair is None:
        listed = ", ".join(table.columns[:12])
        raise DataError(f"{table.path}:1: the task compares two texts; say --pair COLUMN; the columns are {listed}")
    if columns.pair is not None and not task.pair:
        names = f"'{columns.text}' and '{columns.pair}'"
        raise DataError(f"{table.path}:1: {names} look like two texts, the task has one; say --text COLUMN")
    return columns, notes


def _examples(
    task: Task,
    raw: RawRows,
    path: Path,
    at: Callable[[int], str],
    warnings: tuple[str, ...],
    *,
    official: bool = False,
    allow_hidden: bool = False,
) -> Examples:
    if raw.labels is None:
        labels = _all_hidden(task, len(raw.texts))
    else:
        labels = encode_labels(task, raw.labels, at, official=official, allow_hidden=allow_hidden)
    both = zip(raw.texts, raw.pairs or raw.texts, strict=True)
    empty = sum(1 for first, second in both if not first.strip() or not second.strip())
    if empty:
        what = "1 row has" if empty == 1 else f"{empty:,} rows have"
        warnings += (f"{path}: {what} an empty text (of {len(raw.texts):,}); kept",)
    checksum = _checksum(raw.texts, raw.pairs, labels)
    return Examples(raw.texts, raw.pairs, labels, raw.ids, str(path), checksum, warnings)


def _all_hidden(task: Task, count: int) -> np.ndarray:
    if task.kind == "regression":
        return np.full(count, math.nan)
    shape = (count, len(task.labels)) if task.kind == "multilabel" else (count,)
    return np.full(shape, -1, dtype=np.int64)


def _checksum(texts: list[str], pairs: list[str] | None, labels: np.ndarray | None) -> str:
    """Hash lengths, then characters, so that no other division into rows has the same checksum."""
    found = hashlib.sha256()
    for column in (texts, pairs):
        if column is not None:
            found.update(np.array([len(column), *map(len, column)], dtype="<i8").tobytes())
            found.update("".join(column).encode("utf-8"))
    if labels is not None:
        found.update(labels.astype("<f8" if labels.dtype.kind == "f" else "<i8").tobytes())
    return found.hexdigest()
