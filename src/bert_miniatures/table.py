"""Tables of runs: GLUE in the published layout, ours beside the published row, and a plain one for own data.

Numbers are per cent. Ours are dev scores, means over the seeds of the best cell; the published ones are test scores.
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bert_miniatures import predictions
from bert_miniatures.choice import Choice, choose
from bert_miniatures.data.tasks import TASKS, Task
from bert_miniatures.errors import DataError, LabelError, MissingExtra, UnknownName
from bert_miniatures.files import RunFolder
from bert_miniatures.results import RunResult, collect, title
from bert_miniatures.traps import order_warning
from bert_miniatures.zoo import ZOO, lookup

__all__ = [
    "FORMATS",
    "Row",
    "Table",
    "choose",
    "collect",
    "glue_score",
    "glue_table",
    "order_warnings",
    "own_table",
    "render",
]

Numbers = tuple[float | None, ...]  # one number, or the two of a pair; None is blank
Value = Numbers | int | str | None


@dataclass(frozen=True)
class _Column:
    """A column of the published table: which task, which dev split, and which of a task's numbers (None: all)."""

    heading: str
    task: str
    split: str = "dev"
    half: int | None = None

    def of(self, numbers: Mapping[str, Numbers]) -> Numbers:
        """Return the column's part of a row such as those of `zoo.PUBLISHED`; () where the task is missing."""
        found = numbers.get(self.task, ())
        return found if self.half is None else found[self.half : self.half + 1]


_COLUMNS = (
    _Column("CoLA", "cola"),
    _Column("SST-2", "sst2"),
    _Column("MRPC", "mrpc"),
    _Column("STS-B", "stsb"),
    _Column("QQP", "qqp"),
    _Column("MNLI-m", "mnli", "dev", 0),
    _Column("MNLI-mm", "mnli", "dev_mismatched", 1),
    _Column("QNLI(v2)", "qnli"),
    _Column("RTE", "rte"),
    _Column("WNLI", "wnli"),
    _Column("AX", "ax"),
)
_SCORED = tuple(dict.fromkeys(column.task for column in _COLUMNS if not TASKS[column.task].predicted_by))


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        model: as it is called in the table, such as BERT-Tiny.
        what: what the numbers are, such as "ours, dev"; "" where there is nothing to tell apart.
        values: a value per column after the first; a tuple holds per cent, None is blank.
    """

    model: str
    what: str
    values: tuple[Value, ...]


@dataclass(frozen=True)
class Table:
    """Rows under headings, and what must be said with them.

    Attributes:
        columns: headings; the first one is that of the model.
        rows: ordered by model.
        notes: what the numbers are, a sentence each.
        warnings: what makes a number doubtful, a sentence each.
    """

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def markdown(self) -> str:
        """Return a Markdown table with the notes below it."""
        lines = [self.columns, tuple(["---"] * len(self.columns)), *self._texts()]
        table = "\n".join(f"|{'|'.join(cell.replace('|', chr(92) + '|') for cell in line)}|" for line in lines)
        notes = "\n".join(f"- {note}" for note in self.notes)
        return f"{table}\n\n{notes}\n" if notes else f"{table}\n"

    def csv(self) -> str:
        """Return the rows as comma-separated values; notes and warnings have no place there."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.columns, *self._texts()])
        return text.getvalue()

    def document(self) -> dict[str, Any]:
        """Return what the JSON form holds: numbers are not rounded, blank is None, pairs are lists."""
        rows = [
            {"model": row.model, "row": row.what}
            | {name: _plain(value) for name, value in zip(self.columns[1:], row.values, strict=True)}
            for row in self.rows
        ]
        said = {"notes": list(self.notes), "warnings": list(self.warnings)}
        return {"unit": "per cent", "columns": list(self.columns), "rows": rows} | said

    def _texts(self) -> list[tuple[str, ...]]:
        return [
            (f"{row.model} ({row.what})" if row.what else row.model, *(_text(value, row) for value in row.values))
            for row in self.rows
        ]


FORMATS = ("md", "csv", "json")


def render(tables: Mapping[str, Table], form: str) -> str:
    """Return tables as text.

    Args:
        tables: "glue" and "own" -> table; those without rows are left out, of JSON too.
        form: one of `FORMATS`. Markdown and CSV have a blank line between two tables, JSON is one object.

    Raises:
        UnknownName: no such format.
    """
    if form not in FORMATS:
        raise UnknownName("format", form, FORMATS)
    full = {name: table for name, table in tables.items() if table.rows}
    if form == "json":
        document = {name: table.document() for name, table in full.items()}
        return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    return "\n".join(table.markdown() if form == "md" else table.csv() for table in full.values())


_DIFFERENCE = "difference"


def _text(value: Value, row: Row) -> str:
    if isinstance(value, tuple):
        sign = "+" if row.what == _DIFFERENCE else ""
        return "/".join("-" if v is None else f"{round(v, 1) + 0.0:{sign}.1f}" for v in value)
    return "" if value is None else str(value)


def _plain(value: Value) -> Any:
    if isinstance(value, tuple):
        return value[0] if len(value) == 1 else list(value)
    return value


# ------------------------------------------------------------------------------------------------------- GLUE


def glue_score(row: Mapping[str, Numbers]) -> float | None:
    """Return the GLUE score: the mean over the nine tasks, pairs averaged first, AX left out.

    Args:
        row: task -> per cent, as the rows of `zoo.PUBLISHED`.

    Returns:
        Per cent; None where a task or half a pair is missing, for a mean of fewer tasks is another number.

    Source: the model card of google-research/bert, whose four scores this gives within 0.1 from their rounded rows.

    Example:
        >>> from bert_miniatures.zoo import PUBLISHED
        >>> round(glue_score(PUBLISHED["medium"]), 1)
        73.5
    """
    means = []
    for task in _SCORED:
        found = [value for value in row.get(task, ()) if value is not None]
        if not found or len(found) != len(row[task]):
            return None
        means.append(sum(found) / len(found))
    return sum(means) / len(means)


def glue_table(results: Iterable[RunResult]) -> Table:
    """Return the GLUE runs in the published layout: ours, the published row of the same model, the difference.

    Below them stand the standard deviation over seeds, how many cells and seeds each number was chosen from, and the
    best cell. Runs on own data are left out; `own_table` has them.

    Example:
        >>> print(glue_table(collect([Path("runs")])).markdown())  # doctest: +SKIP
    """
    chosen = choose(run for run in results if run.task in TASKS)
    rows: list[Row] = []
    notes: list[str] = []
    for model in sorted({choice.model for choice in chosen}, key=_by_size):
        mine = {choice.subject: choice for choice in chosen if choice.model == model}
        rows += _model_rows(model, mine)
        notes += _model_notes(model, mine)
    if chosen:
        notes = [*_GENERAL, *notes, *(note for task in TASKS if _is_there(task, chosen) for note in TASKS[task].notes)]
    columns = ("Model", "Score", *(column.heading for column in _COLUMNS))
    warnings = [text for choice in chosen for text in choice.warnings] + order_warnings(chosen)
    return Table(columns, tuple(rows), tuple(dict.fromkeys(notes)), tuple(warnings))


_GENERAL = (
    "ours: dev scores, means over the seeds of the best cell of each task; published: test scores of the GLUE server, "
    "so a difference is not only the model's",
    "CoLA Matthews; MRPC and QQP F1/accuracy; STS-B Pearson/Spearman; the others accuracy; all in per cent; AX has no "
    "public labels, so ours is blank",
    "Score: mean over the nine tasks, pairs averaged first, AX left out; blank where a task is missing",
    "standard error: of the task's first metric, from the deviation of seeds where there are several, else from the "
    "number of dev rows",
    "best cell: batch size, learning rate, epochs; the one with the highest mean of the task's first metric",
)


def _is_there(task: str, chosen: Sequence[Choice]) -> bool:
    return any(choice.subject == task for choice in chosen)


def _by_size(model: str) -> tuple[int, str]:
    return (ZOO[model].parameters if model in ZOO else 0, model)


def _model_rows(model: str, mine: Mapping[str, Choice]) -> list[Row]:
    name, ours = title(model), {task: _ours(task, choice) for task, choice in mine.items()}
    score = glue_score(ours)
    mean = None if score is None else (score,)
    rows = [Row(name, "ours, dev", (mean, *(_part(ours, column) for column in _COLUMNS)))]
    published, size = _published(model, mine)
    if published is not None:
        theirs = (published["score"], *(_part(published, column) for column in _COLUMNS))
        same = "" if size == model else f" {title(size)}, the same size"
        rows.append(Row(name, f"published{same}, test", theirs))
        rows.append(Row(name, _DIFFERENCE, tuple(map(_minus, rows[0].values, theirs))))
    for what, how in (("standard deviation of seeds", "deviation"), ("standard error", "error")):
        if any(getattr(choice, how) is not None for choice in mine.values()):
            rows.append(Row(name, what, (None, *(_spread(column, mine, how) for column in _COLUMNS))))
    rows.append(Row(name, "cells", (None, *(_count(c, mine, "cells") for c in _COLUMNS))))
    rows.append(Row(name, "seeds", (None, *(_count(c, mine, "seeds") for c in _COLUMNS))))
    rows.append(Row(name, "best cell", (None, *(_count(c, mine, "label") for c in _COLUMNS))))
    return rows


def _part(numbers: Mapping[str, Numbers], column: _Column) -> Value:
    """Return a column's part of a task's numbers; None where there is none."""
    found = column.of(numbers)
    return found if any(value is not None for value in found) else None


def _ours(task: str, choice: Choice) -> Numbers:
    """Return our numbers in the places of the published row: metrics of dev, or dev and further dev splits."""
    splits = [column.split for column in _COLUMNS if column.task == task]
    found = [choice.scores.get(split, {}).get(metric) for split in splits for metric in TASKS[task].metrics]
    return tuple(None if value is None else 100 * value for value in found)


def _published(model: str, mine: Mapping[str, Choice]) -> tuple[Mapping[str, Numbers] | None, str]:
    """Return the published row of the model, or of the one of its size, and that one's size."""
    run = next(iter(mine.values())).run
    size = model if model in ZOO else f"{run.layers}/{run.width}"
    try:
        return lookup(size).published, size
    except UnknownName:
        return None, size


def _minus(ours: Value, theirs: Value) -> Value:
    if not isinstance(ours, tuple) or not isinstance(theirs, tuple):
        return None
    found = tuple(None if a is None or b is None else a - b for a, b in zip(ours, theirs, strict=True))
    return found if any(value is not None for value in found) else None


def _spread(column: _Column, mine: Mapping[str, Choice], what: str) -> Value:
    choice = mine.get(column.task)
    return None if choice is None or column.split != "dev" else _percent(getattr(choice, what))


def _count(column: _Column, mine: Mapping[str, Choice], what: str) -> Value:
    choice = mine.get(column.task)
    found: Value = None if choice is None else getattr(choice, what)
    return found


def _model_notes(model: str, mine: Mapping[str, Choice]) -> list[str]:
    """Say why there is no Score, and which numbers come from part of the official data."""
    notes = []
    ours = {task: _ours(task, choice) for task, choice in mine.items()}
    lacking = [c.heading for c in _COLUMNS if c.task in _SCORED and None in (c.of(ours) or (None,))]
    if lacking:
        are = "is" if len(lacking) == 1 else "are"
        notes.append(f"{title(model)}: no Score, for {', '.join(lacking)} {are} missing")
    for name, choice in mine.items():
        parts = _partial(TASKS[name], choice.run.rows)
        if parts:
            notes.append(f"{title(model)}: {TASKS[name].title} is partial data: {', '.join(parts)}")
    return notes


def _partial(task: Task, rows: Mapping[str, int]) -> list[str]:
    """Return the splits that are not the whole official ones, in words."""
    official = {name: task.splits.get(task.main_split.get(name, name)) for name in rows}
    return [
        f"{rows[name]:,} of {file.rows:,} {name} rows"
        for name, file in official.items()
        if file is not None and file.rows != rows[name]
    ]


def order_warnings(chosen: Iterable[Choice]) -> list[str]:
    """Look through the stored dev predictions of the chosen runs for labels in another order than the data's.

    Runs that kept no predictions are passed over; where scipy is not installed, one sentence says so.
    """
    found = []
    for choice in chosen:
        path = RunFolder(choice.run.path).predictions / "dev.parquet"
        task = TASKS.get(choice.subject)
        if task is None or not path.is_file():
            continue
        try:
            stored = predictions.read(path)
            known = stored.gold is not None and tuple(stored.labels) == task.labels
            said = order_warning(task, stored.logits, stored.gold) if known and stored.gold is not None else None
        except MissingExtra as error:
            return [f"the order of labels was not checked: {error}"]
        except (DataError, LabelError) as error:
            said = str(error)
        if said:
            found.append(f"{choice.run.path}: {said}")
    return found


# -------------------------------------------------------------------------------------------------- own data


def own_table(results: Iterable[RunResult]) -> Table:
    """Return the runs on own data as a plain table: model, task, a column per metric, cells and seeds, best cell."""
    chosen = choose(run for run in results if run.task not in TASKS)
    metrics = tuple(dict.fromkeys(name for choice in chosen for name in choice.scores.get("dev", {})))
    rows = [
        Row(
            title(choice.model),
            "",
            (
                choice.subject,
                *(_percent(choice.scores.get("dev", {}).get(name)) for name in metrics),
                _percent(choice.deviation),
                _percent(choice.error),
                choice.cells,
                choice.seeds,
                choice.label,
            ),
        )
        for choice in sorted(chosen, key=lambda choice: (choice.subject, _by_size(choice.model)))
    ]
    spreads = ("standard deviation of seeds", "standard error")
    columns = ("Model", "Task", *metrics, *spreads, "Cells", "Seeds", "Best cell")
    notes = ("dev scores in per cent, means over the seeds of the best cell",) if rows else ()
    return Table(columns, tuple(rows), notes, tuple(text for choice in chosen for text in choice.warnings))


def _percent(value: float | None) -> Value:
    return None if value is None else (100 * value,)
