"""Probabilities that something else produced, as .jsonl or .parquet: text, label -> probability."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_miniatures.data.columns import find_columns
from bert_miniatures.data.tables import open_table, text_of
from bert_miniatures.errors import DataError
from bert_miniatures.files import sha256_of
from bert_miniatures.soft_labels import About, SoftLabels, hashes_of, logits_from

__all__ = ["read_probabilities"]

_NAMES = ("probabilities", "probs", "scores")  # of the column with label -> probability
_SLACK = 0.01  # probabilities that were written with few digits still sum to one within this


def read_probabilities(
    path: Path, *, kind: str | None = None, text: str | None = None, pair: str | None = None
) -> SoftLabels:
    """Read a file of probabilities as a teacher.

    Each row has a text (and a second one), and `probabilities`: label -> probability; or a column for each label; or
    `score`, a number, for regression.

    Args:
        path: .jsonl or .parquet.
        kind: "multilabel" where each label is on its own; else the probabilities of a row sum to one.
        text, pair: names of the columns; guessed by name where None.

    Raises:
        DataError: a row without a text, a probability that is negative, above one or no number, a sum that is not one,
            or rows with different labels; the message begins with `file:line:`.
    """
    table = open_table(path)
    columns, _ = find_columns(path, table.columns, text=text, pair=pair, wants_label="ignored")
    texts, pairs, rows, at = [], [], [], []
    wanted = [columns.text] + ([columns.pair] if columns.pair else [])
    others = [name for name in table.columns if name not in wanted]
    for number, row in table.rows(wanted + others):
        where = table.at(number)
        texts.append(text_of(row[0], where))
        if columns.pair:
            pairs.append(text_of(row[1], where))
        rows.append(dict(_answer(dict(zip(others, row[len(wanted) :], strict=True)), where)))
        at.append(where)
    kind, labels, shares = _matrix(rows, at, kind)
    name = {"name": str(path), "sha256": sha256_of(path)}
    about = About(kind, labels, (name,))
    return SoftLabels(about, hashes_of(texts, pairs if columns.pair else None), logits_from(kind, shares))


def _answer(cells: Mapping[str, Any], where: str) -> Iterator[tuple[str, float]]:
    """Yield the labels of a row with their numbers."""
    inner = next((cells[name] for name in _NAMES if isinstance(cells.get(name), dict | list)), cells)
    if isinstance(inner, list):  # how Parquet gives a map
        inner = dict(inner)
    for name, value in inner.items():
        if value is None and inner is not cells:  # a Parquet struct has every key of the file
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise DataError(f"{where}: expected a number for '{name}', got {value!r:.40}")
        yield str(name), float(value)


def _matrix(
    rows: Sequence[Mapping[str, float]], at: Sequence[str], kind: str | None
) -> tuple[str, tuple[str, ...], Any]:
    """Return kind, labels and probabilities [N, C]."""
    labels = tuple(sorted(rows[0]))
    for row, where in zip(rows, at, strict=True):
        if tuple(sorted(row)) != labels:
            given, expected = ", ".join(sorted(row)) or "none", ", ".join(labels) or "none"
            raise DataError(f"{where}: expected the labels {expected}, as in the first row, got {given}")
    if not labels:
        raise DataError(f'{at[0]}: no probabilities; expected {{"text": …, "probabilities": {{label: number}}}}')
    shares = np.array([[row[name] for name in labels] for row in rows], np.float64)
    if labels == ("score",):
        return "regression", (), shares
    outside = ((shares < 0) | (shares > 1)).any(1)
    if outside.any():
        bad = int(outside.argmax())
        name, value = next(pair for pair in zip(labels, shares[bad], strict=True) if not 0 <= pair[1] <= 1)
        raise DataError(f"{at[bad]}: the probability of '{name}' is {value:g}, not between 0 and 1")
    if kind == "multilabel":
        return "multilabel", labels, shares
    sums = shares.sum(1)
    off = np.abs(sums - 1) > _SLACK
    if off.any():
        bad = int(off.argmax())
        hint = "" if len(labels) == 1 else "; --kind multilabel takes labels that do not exclude each other"
        raise DataError(f"{at[bad]}: the probabilities sum to {sums[bad]:.4g}, expected 1{hint}")
    return "classification", labels, shares / sums[:, None]
