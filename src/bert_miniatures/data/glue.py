"""Official GLUE folders: find the file, split it at tabs, nothing else. There is no quoting in these files at all."""

from pathlib import Path
from typing import NoReturn

from bert_miniatures.data.labels import RawRows
from bert_miniatures.data.lines import read_text, reading
from bert_miniatures.data.tasks import SplitFile, Task, fold
from bert_miniatures.errors import DataError, nearest

__all__ = ["glue_file", "glue_rows", "task_folder"]


def glue_file(task: Task, glue: Path, split: str) -> Path:
    """Return the path of an official file; the task's folder is found in any spelling (`SST-2`, `sst2`, `sst_2`).

    Args:
        task: a GLUE task.
        glue: folder that holds the tasks' folders.
        split: split name, as `Task.split_named` takes it.

    Raises:
        UnknownName: the task has no such split.
        DataError: there is no such folder or file; what is there instead is named.
    """
    name = task.splits[task.split_named(split)].file
    glue = Path(glue)
    with reading(glue):
        folder = task_folder(task, glue) or _no_folder(task, glue)
        path = folder / name
        if not path.is_file():
            there = sorted(entry.name for entry in folder.iterdir())
            raise DataError(f"{path}: no such file; {folder} has {', '.join(there[:8]) or 'no files'}")
    return path


def task_folder(task: Task, glue: Path) -> Path | None:
    """Return the task's folder in any spelling, or None where there is none."""
    if (glue / task.folder).is_dir():
        return glue / task.folder
    wanted = _spellings(task)
    folders = sorted(entry for entry in glue.iterdir() if entry.is_dir()) if glue.is_dir() else []
    return next((folder for folder in folders if fold(folder.name) in wanted), None)


def _spellings(task: Task) -> set[str]:
    return {fold(name) for name in (task.folder, task.name, *task.aliases)}


def _no_folder(task: Task, glue: Path) -> NoReturn:
    if not glue.is_dir():
        parent = next((parent for parent in glue.absolute().parents if parent.is_dir()), Path("/"))
        guess = nearest(glue.name, (entry.name for entry in parent.iterdir() if entry.is_dir()))
        tail = f"; did you mean {parent / guess}?" if guess else ""
        raise DataError(f"{glue}: no such folder; {parent} is the nearest that exists{tail}")
    folders = sorted(entry.name for entry in glue.iterdir() if entry.is_dir())
    listed = ", ".join(folders[:12]) or "no folders"
    inside = fold(glue.absolute().name) in _spellings(task)
    hint = f"; give the folder above it: {glue.absolute().parent}" if inside else ""
    raise DataError(f"{glue / task.folder}: no such folder; {glue} has {listed}{hint}")


def glue_rows(task: Task, path: Path, split: str, rows: int | None = None) -> tuple[RawRows, tuple[str, ...]]:
    """Read an official file; return its rows and what a user should know about them.

    Args:
        task: a GLUE task.
        path: the file.
        split: one of `task.splits`.
        rows: keep the first so many rows; None for all.

    Raises:
        DataError: empty file, not UTF-8, no header where one belongs, a ragged row.
    """
    layout = task.splits[split]
    lines = read_text(path)
    first = 2 if layout.header else 1
    _check_first_line(task, layout, path, lines[0])
    found, short = _cells(layout, path, lines[first - 1 :], first, rows)
    if not found:
        raise DataError(f"{path}: has a header and no rows")
    cells = [row for _, row in found]
    second = layout.text[1] if len(layout.text) > 1 else None
    raw = RawRows(
        texts=[row[layout.text[0]] for row in cells],
        pairs=None if second is None else [row[second] for row in cells],
        labels=None if layout.label is None else [row[layout.label] for row in cells],
        numbers=[number for number, _ in found],
        ids=[str(i) for i in range(len(cells))] if layout.index is None else [row[layout.index] for row in cells],
    )
    return raw, _warnings(task, split, len(found), short, limited=rows is not None)


def _cells(
    layout: SplitFile, path: Path, lines: list[str], first: int, limit: int | None
) -> tuple[list[tuple[int, list[str]]], int]:
    """Split lines at tabs; return (line number, cells) of each row and how many short rows were left out."""
    found: list[tuple[int, list[str]]] = []
    short = 0
    for number, line in enumerate(lines, first):
        if len(found) == limit:
            break
        row = line.split("\t")
        if len(row) == layout.columns:
            found.append((number, row))
        elif len(row) < layout.columns and layout.skips_short:
            short += 1
        else:
            raise DataError(f"{path}:{number}: expected {layout.columns} columns, got {len(row)}")
    return found, short


def _check_first_line(task: Task, layout: SplitFile, path: Path, line: str) -> None:
    """Refuse a file whose header is missing, for its first row would be lost."""
    row = line.split("\t")
    if len(row) != layout.columns:
        raise DataError(f"{path}:1: expected {layout.columns} columns, got {len(row)}")
    if layout.label is None:
        is_data = layout.index is not None and row[layout.index].strip().isdigit()
    elif task.raw_labels:
        is_data = row[layout.label] in task.raw_labels
    else:
        is_data = row[layout.label].strip()[:1].isdigit()
    if layout.header and is_data:
        raise DataError(f"{path}:1: expected a header line, got a row")


def _warnings(task: Task, split: str, count: int, short: int, *, limited: bool) -> tuple[str, ...]:
    official, warnings = task.splits[split].rows, []
    if short:
        rows = "1 short row was" if short == 1 else f"{short:,} short rows were"
        warnings.append(f"{task.title} {split}: {rows} left out, as every reader of the official file does")
    if count != official and not limited:
        what = "partial data" if count < official else "not the official data"
        rows = "1 row" if count == 1 else f"{count:,} rows"
        differs = f"{task.title} {split} has {rows}, the official file has {official:,}"
        warnings.append(f"{differs}: {what}, a submission would be refused")
    return tuple(warnings)
