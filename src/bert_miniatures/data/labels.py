"""Labels travel as names: cells of a file -> names -> numbers, and the labels of a model against those of the data."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bert_miniatures.data.tasks import Task
from bert_miniatures.errors import DataError, LabelError, nearest

__all__ = ["RawRows", "encode_labels", "infer_kind", "label_map", "label_names"]

_WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_NOT_FINITE = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
_GENERIC = re.compile(r"label_?\d+", re.IGNORECASE)
MANY = 20


@dataclass(frozen=True)
class RawRows:
    """Rows of one file as it says them, before labels have numbers.

    Attributes:
        texts: first texts.
        pairs: second texts; None for single texts.
        labels: label cells; None where the file has no label column.
        numbers: line (or row) number of each row, for errors.
        ids: the row's own number in the official file, else its position.
    """

    texts: list[str]
    pairs: list[str] | None
    labels: list[Any] | None
    numbers: list[int]
    ids: list[str]


def _is_empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _name(cell: Any) -> str:
    """Return the label name in a cell; "" where the cell is empty."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    return str(cell).strip()


def _names_of_row(cell: Any) -> list[str]:
    """Return the label names in a cell that may hold several: a list, or names with `|` between them."""
    parts = cell if isinstance(cell, list) else _name(cell).split("|")
    return list(dict.fromkeys(name for name in map(_name, parts) if name))


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Sort names: as numbers if all are numbers, else as text. The order does not depend on the order of the rows."""
    names = list(names)
    if all(_NUMBER.fullmatch(name) for name in names):
        return tuple(sorted(names, key=lambda name: (float(name), name)))
    return tuple(sorted(names))


def infer_kind(cells: Sequence[Any]) -> tuple[str, str]:
    """Tell from the label cells what kind of task this is.

    Returns:
        The kind, and a sentence that says why ("" where there was nothing to guess).

    Raises:
        ValueError: it can be read in two ways; the message says which.
    """
    if any(isinstance(cell, list) for cell in cells):
        return "multilabel", "the labels are lists, so a row can have several: read as multilabel"
    names = {_name(cell) for cell in cells} - {""}
    if names and all(_NUMBER.fullmatch(name) for name in names):
        return _kind_of_numbers(names)
    if any("|" in name for name in names):
        return "classification", "some labels contain '|': say --kind multilabel if a row can have several labels"
    if len(names) > max(MANY, len(cells) // 2):
        return (
            "classification",
            f"the label column has {len(names):,} different values in {len(cells):,} rows; is it the label?",
        )
    return "classification", ""


def _kind_of_numbers(names: set[str]) -> tuple[str, str]:
    if all(_WHOLE.fullmatch(name) for name in names):
        ordered = _in_order(names)
        which = f"{ordered[0]} to {ordered[-1]}" if len(ordered) > 1 else ordered[0]
        stress = f"{len(names)} different numbers look like scores: " if len(names) > MANY else ""
        classes = "1 class" if len(names) == 1 else f"{len(names)} classes"
        why = f"the labels are whole numbers, {which}: read as {classes}"
        return "classification", f"{why}; {stress}say --kind regression if they are scores"
    if any(not float(name).is_integer() for name in names):
        return "regression", "the labels are numbers with decimals: read as regression"
    raise ValueError(
        "the labels are whole numbers written with decimals, such as "
        f"'{_in_order(names)[0]}': classes or scores? say --kind classification or --kind regression"
    )


def label_names(kind: str, cells: Sequence[Any], at: Callable[[int], str]) -> tuple[str, ...]:
    """Return the label names of a training file in a fixed order; () for regression.

    Args:
        kind: "classification", "regression" or "multilabel".
        cells: the label column.
        at: position in `cells` -> "file:line".

    Raises:
        DataError: a label is missing or of the wrong form, or there is nothing to tell apart.
    """
    file = at(0).rpartition(":")[0]
    if kind == "regression":
        scores = {_score(cell, at, i, None) for i, cell in enumerate(cells)}
        if len(scores) == 1:
            raise DataError(f"{file}: every score is {scores.pop():g}; there is nothing to learn")
        return ()
    if kind == "multilabel":
        rows = [frozenset(_names_of_row(cell)) for cell in cells]
        names = _in_order(frozenset().union(*rows))
        if len(set(rows)) == 1:
            raise DataError(
                f"{file}: every row has the same labels ({', '.join(names) or 'none'}); nothing to tell apart"
            )
        return names
    for i, cell in enumerate(cells):
        _refuse_list_or_nothing(cell, at, i)
    names = _in_order({_name(cell) for cell in cells})
    if len(names) == 1:
        raise DataError(f"{file}: every row has the label '{names[0]}'; at least two classes are needed")
    return names


def _refuse_list_or_nothing(cell: Any, at: Callable[[int], str], i: int) -> None:
    if isinstance(cell, list | dict):
        raise DataError(f"{at(i)}: expected one label, got {cell!r:.60}; --kind multilabel takes several")
    if not _name(cell):
        raise DataError(f"{at(i)}: the label is missing")


def encode_labels(
    task: Task, cells: Sequence[Any], at: Callable[[int], str], *, official: bool = False, allow_hidden: bool = False
) -> np.ndarray:
    """Turn label cells into numbers.

    Args:
        task: says the kind and the label names.
        cells: the label column.
        at: position in `cells` -> "file:line".
        official: the cells are those of an official GLUE file, which says "1" for "positive".
        allow_hidden: take an empty cell as a hidden label.

    Returns:
        Classification int64 [N], -1 = hidden; regression float64 [N], NaN = hidden; multilabel int64 [N, C] of 0 and 1.

    Raises:
        DataError: a label that is missing, unknown, not a number, not finite or out of range.
    """
    if task.kind == "regression":
        scores = [
            math.nan if allow_hidden and _is_empty(cell) else _score(cell, at, i, task.score_range)
            for i, cell in enumerate(cells)
        ]
        return np.array(scores, dtype=np.float64)
    if task.kind == "multilabel":
        return _encode_sets(task.labels, cells, at, allow_hidden=allow_hidden)
    position = {name: i for i, name in enumerate(task.labels)}
    known = {said: position[name] for said, name in task.raw_labels.items()} if official else position
    found = [_known(cell, known, at, i, allow_hidden=allow_hidden) for i, cell in enumerate(cells)]
    return np.array(found, dtype=np.int64)


def _known(cell: Any, known: Mapping[str, int], at: Callable[[int], str], i: int, *, allow_hidden: bool) -> int:
    number = known.get(cell) if isinstance(cell, str) else None
    if number is not None:
        return number
    if allow_hidden and _is_empty(cell):
        return -1
    _refuse_list_or_nothing(cell, at, i)
    name = _name(cell)
    if name not in known:
        raise DataError(f"{at(i)}: {_unknown(name, known)}")
    return known[name]


def _unknown(name: str, known: Iterable[str]) -> str:
    names = list(known)
    listed = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    guess = nearest(name, names)
    return f"label '{name:.80}' is not one of {listed}" + (f"; did you mean '{guess}'?" if guess else "")


def _encode_sets(
    labels: tuple[str, ...], cells: Sequence[Any], at: Callable[[int], str], *, allow_hidden: bool
) -> np.ndarray:
    position = {name: i for i, name in enumerate(labels)}
    out = np.zeros((len(cells), len(labels)), dtype=np.int64)
    for i, cell in enumerate(cells):
        if cell is None and allow_hidden:
            out[i] = -1
            continue
        for name in _names_of_row(cell):
            if name not in position:
                raise DataError(f"{at(i)}: {_unknown(name, position)}")
            out[i, position[name]] = 1
    return out


def _score(cell: Any, at: Callable[[int], str], i: int, span: tuple[float, float] | None) -> float:
    name = str(cell).strip() if isinstance(cell, float) else _name(cell)
    if not name:
        raise DataError(f"{at(i)}: the score is missing")
    if _NOT_FINITE.fullmatch(name):
        raise DataError(f"{at(i)}: score '{name}' is not a finite number")
    if not _NUMBER.fullmatch(name):
        raise DataError(f"{at(i)}: score '{name:.80}' is not a number")
    value = float(name)
    if not math.isfinite(value):
        raise DataError(f"{at(i)}: score '{name:.80}' is not a finite number")
    if span is not None and not span[0] <= value <= span[1]:
        raise DataError(f"{at(i)}: score {name} is outside {span[0]:g} to {span[1]:g}")
    return value


def label_map(model_labels: Sequence[str], data_labels: Sequence[str], where: str) -> np.ndarray | None:
    """Match the labels of a model to those of the data by name; case, spaces, `-` and `_` do not matter.

    Args:
        model_labels: names in the order of the model's outputs.
        data_labels: names in the order of the data's numbers.
        where: the model, as errors call it.

    Returns:
        None where the order is the same, else int64 [C] so that `logits[:, found]` [N, C] is in the data's order.

    Raises:
        LabelError: the names differ, or the model only has names such as LABEL_0, so that the order would be a guess.
            A wrong guess is silent: an MNLI model of 90 % accuracy scores 4 %.

    Example:
        >>> label_map(["contradiction", "entailment"], ["entailment", "contradiction"], "model")
        array([1, 0])
    """
    model, data = [_folded(name) for name in model_labels], [_folded(name) for name in data_labels]
    if len(set(model)) != len(model) or len(set(data)) != len(data):  # names that differ in case only
        model, data = list(model_labels), list(data_labels)
    if model == data:
        return None
    if set(model) == set(data) and len(model) == len(data):
        return np.array([model.index(name) for name in data], dtype=np.int64)
    raise LabelError(_disagreement(model_labels, data_labels, where))


def _folded(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip()).casefold()


def _disagreement(model: Sequence[str], data: Sequence[str], where: str) -> str:
    """Say which labels do not agree and what to do."""
    names = f"the model's labels are {', '.join(model)}, the data's are {', '.join(data)}"
    if len(model) != len(data):
        return f"{where}: {names}; {len(model)} labels cannot answer {len(data)}"
    if all(_GENERIC.fullmatch(name) for name in model):
        return (
            f"{where}: {names}; the order of {model[0]} … is not known and is not guessed: write the names into "
            f"id2label of the model's config.json, in the order of its outputs"
        )
    pairs = [(name, nearest(name, data)) for name in model if _folded(name) not in map(_folded, data)]
    near = ", ".join(f"'{name}' may be '{guess}'" for name, guess in pairs if guess)
    return f"{where}: {names}" + (f"; {near}" if near else "") + "; rename the labels in id2label of config.json"
