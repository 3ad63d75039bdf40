"""GLUE as the Hub has it, Parquet with label numbers, rewritten as the official tab-separated files.

Source: the columns, label names and splits of the data set `nyu-mll/glue` on the Hugging Face Hub; the headers of the
official archives of Wang et al. 2019, "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language
Understanding", arXiv 1804.07461.
"""

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_miniatures.data.tasks import SplitFile, Task
from bert_miniatures.errors import DataError

__all__ = ["HUB", "Damaged", "HubTask", "hub_split", "write_official"]

_BATCH = 4096  # rows in memory
_UNKNOWN = "n/a"  # in the official columns that the Hub does not have and no reader of GLUE needs
_BREAKS = re.compile("[\t\n\r]")
_ROW, _LABEL = "idx", "label"  # columns that every task has

Headers = Mapping[str, str]


@dataclass(frozen=True)
class HubTask:
    """A task as the Hub has it.

    Attributes:
        texts: names of the text columns.
        headers: "train", "dev", "test" -> first line of the official file, commas for tabs; "" for none.
        labels: label names in the order of their numbers; the task's own order where empty.
        archive: the official file under `https://dl.fbaipublicfiles.com/glue/data/`; "" where there is none.
    """

    texts: tuple[str, ...]
    headers: Headers
    archive: str
    labels: tuple[str, ...] = ()


def _headers(labelled: str, test: str, dev: str = "") -> Headers:
    return {"train": labelled, "dev": dev or labelled, "test": test}


_PAIR = ("sentence1", "sentence2")
_NLI = ("premise", "hypothesis")
_RTE = _headers("index,sentence1,sentence2,label", "index,sentence1,sentence2")
_STSB = "index,genre,filename,year,old_index,source1,source2,sentence1,sentence2"
_MNLI = (
    "index,promptID,pairID,genre,sentence1_binary_parse,sentence2_binary_parse,sentence1_parse,sentence2_parse,"
    "sentence1,sentence2"
)
_MNLI_DEV = f"{_MNLI},label1,label2,label3,label4,label5,gold_label"
_MRPC = "#1 ID,#2 ID,#1 String,#2 String"

HUB: dict[str, HubTask] = {
    "cola": HubTask(("sentence",), _headers("", "index,sentence"), "CoLA.zip"),
    "sst2": HubTask(("sentence",), _headers("sentence,label", "index,sentence"), "SST-2.zip"),
    "mrpc": HubTask(_PAIR, _headers(f"Quality,{_MRPC}", f"index,{_MRPC}"), ""),
    "stsb": HubTask(_PAIR, _headers(f"{_STSB},score", _STSB), "STS-B.zip"),
    "qqp": HubTask(
        ("question1", "question2"),
        _headers("id,qid1,qid2,question1,question2,is_duplicate", "id,question1,question2"),
        "QQP-clean.zip",
    ),
    "mnli": HubTask(_NLI, _headers(f"{_MNLI},label1,gold_label", _MNLI, _MNLI_DEV), "MNLI.zip"),
    "qnli": HubTask(
        ("question", "sentence"),
        _headers("index,question,sentence,label", "index,question,sentence"),
        "QNLIv2.zip",
    ),
    "rte": HubTask(_PAIR, _RTE, "RTE.zip"),
    "wnli": HubTask(_PAIR, _RTE, "WNLI.zip", labels=("not_entailment", "entailment")),
    "ax": HubTask(_NLI, _RTE, "AX.tsv"),
}


class Damaged(DataError):
    """A Parquet file whose bytes are not what they were.

    Args:
        path: the file.
        reason: what is wrong with it.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path


def hub_split(split: str) -> str:
    """Return the Hub's name of a split.

    Example:
        >>> hub_split("dev_matched")
        'validation_matched'
    """
    return re.sub("^dev", "validation", split)


def write_official(task: Task, parts: Mapping[str, Sequence[Path]], folder: Path) -> int:
    """Write the official files of a task.

    A tab or the end of a line inside a text would shift the columns, for the official files have no quoting; each
    becomes a space, which is the same to WordPiece.

    Args:
        task: a GLUE task.
        parts: split -> its Parquet files, in order.
        folder: an existing folder, where the files go.

    Returns:
        How many texts had a tab or the end of a line in them.

    Raises:
        Damaged: the bytes of a Parquet file are not whole.
        DataError: a column is missing, a text or label is not what it should be; the message names file and row.
    """
    changed = 0
    for split, paths in parts.items():
        layout, header = task.splits[split], HUB[task.name].headers[split.split("_")[0]]
        count = 0
        with (folder / layout.file).open("w", encoding="utf-8", newline="\n") as file:
            file.write(header.replace(",", "\t") + "\n" if layout.header else "")
            for path in paths:
                for cells, breaks in _rows(task, layout, path):
                    file.write("\t".join(cells) + "\n")
                    changed += breaks
                    count += 1
        if not count:
            raise DataError(f"{paths[0]}: has columns and no rows")
    return changed


def _rows(task: Task, layout: SplitFile, path: Path) -> Iterator[tuple[list[str], int]]:
    """Yield the cells of each official row, and how many of its texts were changed."""
    texts = HUB[task.name].texts
    wanted = [*texts, *([_LABEL] if layout.label is not None else []), *([_ROW] if layout.index is not None else [])]
    number = 0
    with _open(path) as file:
        missing = [name for name in wanted if name not in file.schema_arrow.names]
        if missing:
            listed = ", ".join(file.schema_arrow.names)
            raise DataError(f"{path}: expected the columns {', '.join(wanted)}; got {listed}")
        said = _label_writer(task, file.schema_arrow, path) if layout.label is not None else str
        for batch in file.iter_batches(_BATCH, columns=wanted):
            columns = [batch.column(name).to_pylist() for name in wanted]
            for values in zip(*columns, strict=True):
                number += 1
                row = dict(zip(wanted, values, strict=True))
                try:
                    found = _cells(layout, [row[name] for name in texts], row, said)
                except ValueError as error:
                    raise DataError(f"{path}: row {number}: {error}") from None
                yield found


def _cells(
    layout: SplitFile, texts: Iterable[Any], row: Mapping[str, Any], said: Callable[[Any], str]
) -> tuple[list[str], int]:
    cells, changed = [_UNKNOWN] * layout.columns, 0
    for at, text in zip(layout.text, texts, strict=True):
        if not isinstance(text, str):
            raise ValueError(f"expected a text, got {text!r}")
        cells[at], breaks = _BREAKS.subn(" ", text)
        changed += breaks > 0
    if layout.label is not None:
        cells[layout.label] = said(row[_LABEL])
    if layout.index is not None:
        if not isinstance(row[_ROW], int):
            raise ValueError(f"expected a number in column '{_ROW}', got {row[_ROW]!r}")
        cells[layout.index] = str(row[_ROW])
    return cells, changed


def _label_writer(task: Task, schema: Any, path: Path) -> Callable[[Any], str]:
    """Return the function that writes a label as the official file does: by its name, whatever its number is."""
    if task.kind == "regression":
        return _score_writer(schema.field(_LABEL).type)
    names = _names_in(schema) or HUB[task.name].labels or task.labels
    if set(names) != set(task.labels):
        raise DataError(f"{path}: the labels are {', '.join(names)}; expected {', '.join(task.labels)}")
    official = {name: raw for raw, name in task.raw_labels.items()}
    known = {number: official[name] for number, name in enumerate(names)}

    def said(value: Any) -> str:
        if value not in known:
            raise ValueError(f"label {value!r} is not one of {', '.join(map(str, known))}")
        return known[value]

    return said


def _score_writer(kind: Any) -> Callable[[Any], str]:
    """Return the function that writes a score with the digits that its type has: 3.8, not 3.799999952316284."""
    import numpy as np

    single = str(kind) == "float"

    def said(value: Any) -> str:
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"score {value!r} is not a finite number")
        return str(np.float32(value) if single else float(value))

    return said


def _names_in(schema: Any) -> tuple[str, ...]:
    """Return the label names that the library `datasets` writes beside the columns; () where there are none."""
    try:
        said = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"][_LABEL]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(map(str, said))


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (pyarrow.ArrowException, UnicodeDecodeError, EOFError) as error:
        raise Damaged(path, f"not a whole Parquet file ({next(iter(str(error).splitlines()), '')})") from None
    except OSError as error:
        if error.errno is not None:
            raise
        raise Damaged(path, f"not a whole Parquet file ({next(iter(str(error).splitlines()), '')})") from None
