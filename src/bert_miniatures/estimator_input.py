"""What scikit-learn's callers hand over, as texts and targets: lists, numpy, pandas, polars, Arrow."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_miniatures.errors import DataError
from bert_miniatures.files import training_extra

with training_extra("the scikit-learn estimators"):
    from sklearn.utils import assert_all_finite, column_or_1d

__all__ = ["BadInput", "Texts", "target_of", "texts_of"]

Texts = tuple[list[str], list[str] | None]


class BadInput(DataError, ValueError):
    """Texts or targets that cannot be used; a ValueError too, which is what callers of scikit-learn expect."""


def _values(column: Any) -> list[Any]:
    """Return a column of pandas, polars, Arrow or numpy, or a plain sequence, as a list."""
    for method in ("to_pylist", "to_list", "tolist"):
        if hasattr(column, method):
            return list(getattr(column, method)())
    return list(column)


def _columns(rows: Any) -> list[list[Any]]:
    """Return X as columns, whatever it is."""
    names = getattr(rows, "column_names", None)
    names = getattr(rows, "columns", None) if names is None else names
    if names is not None:
        listed = [str(name) for name in names]
        if not 1 <= len(listed) <= 2 or len(set(listed)) != len(listed):
            raise BadInput(f"X has the columns {', '.join(listed)}; choose one text column, or two of pairs: X[['a']]")
        return [_values(rows[name]) for name in names]
    if isinstance(rows, str | bytes) or not hasattr(rows, "__len__") or isinstance(rows, Mapping | set | frozenset):
        raise BadInput(
            f"X is a {type(rows).__name__}; expected a list of texts or of pairs, or columns of a data frame"
        )
    if hasattr(rows, "toarray") or getattr(rows, "ndim", 1) not in {1, 2}:
        raise BadInput(f"X is a {type(rows).__name__} of shape {rows.shape}; expected texts, one or two in a row")
    values = _values(rows)
    if values and isinstance(values[0], list | tuple):
        width = len(values[0])
        uneven = next(
            (i for i, row in enumerate(values) if not isinstance(row, list | tuple) or len(row) != width), None
        )
        if uneven is not None or not 1 <= width <= 2:
            at = uneven or 0
            raise BadInput(f"X[{at}] is {values[at]!r:.60}; expected a text, or a pair of texts in every row")
        return [list(column) for column in zip(*values, strict=True)]
    return [values]


def texts_of(rows: Any) -> Texts:
    """Return texts and, where rows are pairs, second texts.

    Args:
        rows: a list of str or of pairs; a numpy array, [N], [N, 1] or [N, 2]; a column or a data frame of one or two
            columns of pandas, polars or Arrow.

    Raises:
        BadInput: something else, no rows, or a row that is no text.

    Example:
        >>> texts_of([("a man eats", "he is eating"), ("a man eats", "it rains")])
        (['a man eats', 'a man eats'], ['he is eating', 'it rains'])
    """
    columns = _columns(rows)
    if not columns[0]:
        raise BadInput("Found array with 0 sample(s) while a minimum of 1 is required: X has no rows")
    for column in columns:
        bad = next((i for i, text in enumerate(column) if not isinstance(text, str)), None)
        if bad is not None:
            what = f"{type(column[bad]).__name__} {column[bad]!r:.40}"
            raise BadInput(f"X[{bad}]: expected a text, got {what}; turn what is missing into '' or leave the row out")
    first, *second = [[str(text) for text in column] for column in columns]
    return first, second[0] if second else None


def target_of(y: Any, name: str) -> npt.NDArray[Any]:
    """Return y as an array [N] of finite values."""
    if y is None:
        raise BadInput(f"This {name} requires y to be passed, but the target y is None")
    if hasattr(y, "to_pylist") or type(y).__module__.startswith("polars"):
        y = np.asarray(_values(y))
    found: npt.NDArray[Any] = column_or_1d(y, warn=True)
    assert_all_finite(found, input_name="y")
    if found.dtype == object and any(value is None for value in found):
        raise BadInput("Input y contains None; every row needs a label")
    return found
