"""Submissions to the GLUE server: 11 tab-separated files in a flat zip, written and checked from the task table."""

import io
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bert_miniatures import metrics
from bert_miniatures.data.labels import label_map
from bert_miniatures.data.tasks import TASKS, Submission, Task, fold
from bert_miniatures.errors import DataError, UnknownName, nearest
from bert_miniatures.files import atomic_write
from bert_miniatures.predictions import Predictions

__all__ = ["FILES", "HEADER", "check_submission", "missing_sentence", "write_submission"]

# file name -> its task and its row of the task table
FILES: dict[str, tuple[Task, Submission]] = {
    row.file: (task, row) for task in TASKS.values() for row in task.submission
}
HEADER = "index\tprediction"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time that a zip can say, so that equal answers are equal bytes
_WHOLE = re.compile(r"0|[1-9]\d*", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_LIMIT = 16 << 20  # bytes of the zip, and of each file in it; the largest, QQP.tsv, has 4 MB
# What zipfile raises over bytes that somebody cut, changed or made up.
_DAMAGE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, OverflowError, RuntimeError, ValueError)


def write_submission(
    predictions: Mapping[str, Predictions], out: Path, *, allow_missing: bool = False
) -> tuple[str, ...]:
    """Write the zip for the GLUE server: whole or not at all, and the same bytes for the same predictions.

    Args:
        predictions: file name in the zip (a key of `FILES`, as in "MNLI-mm.tsv") -> what the model said about the
            official test rows.
        out: the zip; one that is there is replaced.
        allow_missing: write the files that can be written.

    Returns:
        The names of the files that are missing.

    Raises:
        DataError: files are missing, rows are not the official ones, or an output is NaN.
        LabelError: the predictions' labels are not those of the task.
        UnknownName: no such file in a submission.

    Source: Wang et al. 2019, arXiv 1804.07461; the submission page of the GLUE server.

    Example:
        >>> write_submission(predictions, Path("glue.zip"))  # doctest: +SKIP
        ()
    """
    for name in predictions:
        if name not in FILES:
            raise UnknownName("file of a submission", name, FILES)
    missing = tuple(name for name in FILES if name not in predictions)
    if missing and not (allow_missing and predictions):
        raise DataError(missing_sentence(missing))
    texts = {name: _text(name, predictions[name]) for name in FILES if name in predictions}
    with atomic_write(Path(out)) as temporary:
        temporary.write_bytes(_zipped(texts))
    return missing


def missing_sentence(missing: tuple[str, ...]) -> str:
    """Name all missing files in one sentence."""
    if len(missing) == len(FILES):
        return "there are no predictions, so there is nothing to submit"
    return f"the submission lacks {', '.join(missing)}; --allow-missing writes the rest"


def _zipped(texts: Mapping[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, text in texts.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type, entry.create_system, entry.external_attr = zipfile.ZIP_DEFLATED, 3, 0o100644 << 16
            archive.writestr(entry, text.encode("ascii"))
    return buffer.getvalue()


def _text(name: str, found: Predictions) -> str:
    """Return the content of one file, rows in index order."""
    task, row = FILES[name]
    order = _order(name, found, task.splits[row.split].rows)
    logits = np.asarray(found.logits)[order]
    broken = int((~np.isfinite(logits)).any(axis=1).sum())
    if broken:
        raise DataError(f"{name}: the outputs of {broken:,} of {len(logits):,} rows are NaN or infinite")
    answers = _scores(task, row, logits) if task.kind == "regression" else _names(name, task, row, found, logits)
    return "\n".join((HEADER, *(f"{i}\t{answer}" for i, answer in enumerate(answers)))) + "\n"


def _order(name: str, found: Predictions, official: int) -> np.ndarray:
    """Return where the row with index 0, 1, 2, … stands, and refuse rows that are not the official ones."""
    rows = len(found.row_ids)
    if rows != official:
        what = "the test data is partial" if rows < official else "this is not the official test data"
        raise DataError(f"{name}: {rows:,} predictions, the server expects {official:,}: {what}")
    bad = next((i for i in found.row_ids if not _WHOLE.fullmatch(i)), None)
    if bad is not None:
        raise DataError(
            f"{name}: row '{bad:.40}' of the test file is not numbered; the server wants 0 to {official - 1}"
        )
    index = np.array([int(i) for i in found.row_ids])
    order = np.argsort(index, kind="stable")
    wrong = np.flatnonzero(index[order] != np.arange(official))
    if len(wrong):
        raise DataError(f"{name}: the test rows are not 0 to {official - 1}: {wrong[0]} is not there exactly once")
    return order


def _scores(task: Task, row: Submission, logits: np.ndarray) -> list[str]:
    assert task.score_range is not None
    clipped = np.clip(metrics.predictions(task.kind, logits), *task.score_range) + 0.0  # -0.0 + 0.0 is 0.0
    return [f"{score:.{row.decimals}f}" for score in clipped]


def _names(name: str, task: Task, row: Submission, found: Predictions, logits: np.ndarray) -> list[str]:
    """Turn the largest output of each row into what the server calls that label."""
    order = label_map(found.labels, task.labels, name)
    best = metrics.predictions(task.kind, logits if order is None else logits[:, order])
    answers = [row.answers[label] for label in task.labels]
    return [answers[i] for i in best]


# ----------------------------------------------------------------------------------------------------- checking


def check_submission(path: Path, *, allow_missing: bool = False) -> list[str]:
    """Return every fault of a submission, a line each; none for a zip that the server would take.

    Whatever made the zip, nothing in it is trusted: it is read in bounded memory and nothing is unpacked.

    Args:
        path: the zip.
        allow_missing: files that are not there are no fault.

    Example:
        >>> check_submission(Path("glue.zip"))  # doctest: +SKIP
        ['MNLI-m.tsv:7: prediction '0' is not one of entailment, neutral, contradiction (and 9,795 more)']
    """
    path, head = Path(path), b""
    try:
        if path.stat().st_size > _LIMIT:
            return [f"{path}: {path.stat().st_size:,} bytes; a submission has less than {_LIMIT:,}"]
        with path.open("rb") as file:
            head = file.read(4)
        with zipfile.ZipFile(path) as archive:
            return _faults(archive, allow_missing=allow_missing)
    except FileNotFoundError:
        return [f"{path}: no such file"]
    except (IsADirectoryError, PermissionError) as error:
        return [f"{path}: cannot be read ({error.strerror})"]
    except _DAMAGE as error:
        whole = "the zip is cut short or damaged" if head == b"PK\x03\x04" else "not a zip file"
        return [f"{path}: {whole} ({error})"]


def _faults(archive: zipfile.ZipFile, *, allow_missing: bool) -> list[str]:
    """Check the names, then the content of each file that is there."""
    faults: list[str] = []
    flat, folders = _by_folder(archive)
    for folder, inside in folders.items():
        files = "1 file is" if len(inside) == 1 else f"{len(inside)} files are"
        faults.append(f"{folder}/: the zip must be flat, {files} in this folder" if inside else f"{folder}/: a folder")
    there: dict[str, zipfile.ZipInfo] = {}
    for name, entries in flat.items():
        known = name if name in FILES else _meant(name, flat)
        if name not in FILES:
            faults.append(f"{_shown(name)}: unknown name" + (f"; did you mean {known}?" if known else ""))
        if len(entries) > 1:
            faults.append(f"{_shown(name)}: {len(entries)} times in the zip")
        if known:
            there.setdefault(known, entries[0])
    for entry in (entry for inside in folders.values() for entry in inside):
        there.setdefault(_base(entry.filename), entry)
    for name in FILES:
        if name in there:
            faults += _entry_faults(archive, there[name], name)
        elif not allow_missing:
            faults.append(f"{name}: missing")
    return faults


def _meant(name: str, flat: Mapping[str, object]) -> str:
    """Return which file that is not there this one seems to be, so that a misnamed file is not missing too."""
    absent = {fold(file.removesuffix(".tsv")): file for file in FILES if file not in flat}
    return absent.get(nearest(fold(name.removesuffix(".tsv")), absent) or "", "")


def _base(name: str) -> str:
    return re.split(r"[/\\]", name)[-1]


def _shown(name: str) -> str:
    """Return a name out of the zip so that it stays one line."""
    return name if name.isprintable() and len(name) <= 80 else ascii(name[:80])


def _by_folder(archive: zipfile.ZipFile) -> tuple[dict[str, list[zipfile.ZipInfo]], dict[str, list[zipfile.ZipInfo]]]:
    """Return the entries outside folders by name, and those inside by the outermost folder."""
    flat: dict[str, list[zipfile.ZipInfo]] = {}
    folders: dict[str, list[zipfile.ZipInfo]] = {}
    for entry in archive.infolist():
        base = _base(entry.filename)
        if base == entry.filename:
            flat.setdefault(base, []).append(entry)
            continue
        inside = folders.setdefault(_shown(re.split(r"[/\\]", entry.filename)[0]), [])
        if base:
            inside.append(entry)
    return flat, folders


def _entry_faults(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, file: str) -> list[str]:
    """Unpack one file into bounded memory and check it as `file` of `FILES`."""
    name = _shown(entry.filename)
    if entry.flag_bits & 1:
        return [f"{name}: encrypted"]
    if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        return [f"{name}: compressed by method {entry.compress_type}; expected stored or deflated"]
    if entry.file_size > _LIMIT:
        return [f"{name}: {entry.file_size:,} bytes unpacked; a file of a submission has less than {_LIMIT:,}"]
    try:
        raw = archive.read(entry)
    except _DAMAGE as error:
        return [f"{name}: damaged ({error})"]
    return _content_faults(name, raw, *FILES[file])


def _content_faults(name: str, raw: bytes, task: Task, row: Submission) -> list[str]:
    official = task.splits[row.split].rows
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        return [f"{name}:{line}: not UTF-8 ({error.reason})"]
    faults = []
    if text.startswith("\ufeff"):
        faults.append(f"{name}: begins with a byte order mark; expected none")
        text = text[1:]
    if "\r" in text:
        faults.append(f"{name}: lines end with a carriage return (CR LF); expected LF alone")
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        return [*faults, f"{name}: empty file"]
    if text.count("\n") > 2 * official + 1_000:  # far too many to look at one by one
        return [*faults, f"{name}: {text.count(chr(10)):,} lines, expected {official + 1:,}"]
    lines = text.removesuffix("\n").split("\n")
    faults += _header_faults(name, lines[0])
    first = 1 if _is_row(lines[0]) else 2
    numbered = list(enumerate(lines[first - 1 :], first))
    faults += _said(name, [(n, "empty line") for n, line in numbered if not line.strip()])
    cells = [(n, line.split("\t", 2)) for n, line in numbered if line.strip()]
    ragged = [(n, f"{lines[n - 1].count(chr(9)) + 1} columns, expected 2") for n, row in cells if len(row) != 2]
    faults += _said(name, ragged)
    faults += _order_faults(name, cells, official)
    answers = [(n, row[1]) for n, row in cells if len(row) == 2]
    return faults + (_score_faults if task.kind == "regression" else _label_faults)(name, answers, task, row)


def _is_row(line: str) -> bool:
    return line.split("\t")[0].strip().isdigit()


def _header_faults(name: str, line: str) -> list[str]:
    if line == HEADER:
        return []
    got = "no header" if _is_row(line) else f"header {line[:80]!r}"
    return [f"{name}:1: {got}, expected {HEADER!r}"]


def _said(name: str, found: list[tuple[int, str]]) -> list[str]:
    """Return one line for faults of one sort: the first, and how many more there are."""
    more = f" (and {len(found) - 1:,} more)" if len(found) > 1 else ""
    return [f"{name}:{found[0][0]}: {found[0][1]}{more}"] if found else []


def _order_faults(name: str, cells: list[tuple[int, list[str]]], official: int) -> list[str]:
    """Return one line about number and order of the rows: a row left out is said once, not for all that follow."""
    for i, (number, row) in enumerate(cells[:official]):
        if len(row) == 2 and row[0] != str(i):
            where = f"line {number} has index {row[0][:40]!r}, expected {i}"
            break
    else:
        where = ""
    if len(cells) != official:
        return [f"{name}: {len(cells):,} rows, expected {official:,}" + (f"; {where}" if where else "")]
    return [f"{name}: {where} (rows in index order, 0 to {official - 1})"] if where else []


def _label_faults(name: str, answers: list[tuple[int, str]], task: Task, row: Submission) -> list[str]:
    allowed = [row.answers[label] for label in task.labels]
    expected = f"is not one of {', '.join(allowed)}"
    return _said(name, [(n, f"prediction {cell[:40]!r} {expected}") for n, cell in answers if cell not in allowed])


def _score_faults(name: str, answers: list[tuple[int, str]], task: Task, row: Submission) -> list[str]:
    assert task.score_range is not None
    low, high = task.score_range
    expected = f"is not a number such as {high / 2:.{row.decimals}f}"
    odd = [(n, f"prediction {cell[:40]!r} {expected}") for n, cell in answers if not _NUMBER.fullmatch(cell)]
    outside = [
        (n, f"prediction {cell[:40]} is outside {low:g} to {high:g}")
        for n, cell in answers
        if _NUMBER.fullmatch(cell) and not low <= float(cell) <= high
    ]
    return _said(name, odd) + _said(name, outside)
