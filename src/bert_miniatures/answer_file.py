"""Answers on their way into a file: a partial file that an interrupted run goes on from, then the format asked for.

Answers are written as JSON lines to `OUT.partial`, after a line that says of what. When the last one is there, OUT is
made of them in one step. What a killed process leaves is cut back to whole chunks, so that a resumed run batches the
rest as the uninterrupted one does and its answers are the same.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

from bert_miniatures.errors import ConfigError, DiskFull, OutputExists
from bert_miniatures.files import atomic_write, disk_full_is_an_error

__all__ = ["FORMATS", "AnswerFile", "estimated_rows", "sketch"]

Answer = dict[str, Any]

FORMATS = (".jsonl", ".csv", ".tsv", ".parquet")
_ENDS = 2**20  # bytes at each end of a file that a sketch reads
_BLOCK = 4096  # answers in memory while the format is changed
_JOINED = "|"  # between the labels of one row, as own data has it


def sketch(path: Path) -> str:
    """Return a checksum of a file's size and both its ends: enough to tell that it was exchanged, and fast."""
    size = path.stat().st_size
    with path.open("rb") as file:
        ends = file.read(_ENDS)
        file.seek(max(0, size - _ENDS))
        ends += file.read(_ENDS)
    return hashlib.sha256(b"%d " % size + ends).hexdigest()


def estimated_rows(path: Path) -> int:
    """Return about how many rows a file has, for telling how far the work is: read, or the lines of its beginning."""
    if path.suffix.casefold() == ".parquet":
        from pyarrow import parquet

        return int(parquet.read_metadata(path).num_rows)
    with path.open("rb") as file:
        begin = file.read(16 * _ENDS)
    return max(1, round(begin.count(b"\n") * path.stat().st_size / max(1, len(begin))))


class AnswerFile:
    """Takes the answers of a file in order and writes them all, or leaves what an interrupted run goes on from.

    Args:
        out: .jsonl, .csv, .tsv or .parquet.
        about: what the answers are of (model, file, settings), as JSON; a run goes on only where it is the same.
        chunk: rows that are answered together.
        resume: go on from what an interrupted run left; where there is nothing, begin.

    Attributes:
        done: rows that need no answer any more.

    Raises:
        ConfigError: another format; or what was left is of another model, file or setting.
        OutputExists: something of the same was left and `resume` is false.
    """

    def __init__(self, out: Path, about: Mapping[str, Any], *, chunk: int, resume: bool) -> None:
        if out.suffix.casefold() not in FORMATS:
            raise ConfigError(f"{out}: unknown file type '{out.suffix}', expected {' '.join(FORMATS)}")
        self.out, self.partial, self.done = out, out.with_name(f"{out.name}.partial"), 0
        head = json.dumps(dict(about), ensure_ascii=False, sort_keys=True).encode() + b"\n"
        if self.partial.exists() and resume:
            self.done = _cut_back(self.partial, head, chunk)
        elif self.partial.exists() and _first_line(self.partial) == head:  # of anything else nobody could go on from it
            raise OutputExists(
                f"{self.partial} is what an interrupted run left; --resume goes on from it, or remove it"
            )
        with disk_full_is_an_error(self.partial):
            self.partial.parent.mkdir(parents=True, exist_ok=True)
            if not self.done:
                self.partial.write_bytes(head)

    def write(self, chunks: Iterable[list[Answer]]) -> None:
        """Write answers as they come; an error of whoever gives them leaves those that came before."""
        rows = self.done
        try:
            with disk_full_is_an_error(self.out), self.partial.open("ab") as file:
                for answers in chunks:
                    lines = (json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)
                    file.write("".join(lines).encode())
                    file.flush()
                    rows += len(answers)
        except DiskFull as error:
            if not rows:
                raise
            left = f"{rows:,} rows are in {self.partial.name}, --resume goes on from them"
            raise DiskFull(f"{self.out}: no space left on the device; {left}") from error
        finally:
            if not rows:
                self.partial.unlink(missing_ok=True)

    def finish(self) -> None:
        """Make the file that was asked for."""
        with atomic_write(self.out) as temporary:
            _WRITERS[self.out.suffix.casefold()](temporary, self._answers())
        self.partial.unlink()

    def _answers(self) -> Iterator[Answer]:
        with self.partial.open("rb") as file:
            next(file)
            for line in file:
                yield json.loads(line)


def _first_line(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.readline()


def _cut_back(partial: Path, head: bytes, chunk: int) -> int:
    """Cut a partial file back to whole chunks; return how many rows it then has."""
    with partial.open("r+b") as file:
        found = file.readline()
        if found != head:
            raise ConfigError(f"{partial} is of {_difference(found, head)}; remove it to begin again")
        rows, end = 0, len(head)
        kept = (rows, end)
        for line in file:
            rows, end = rows + line.endswith(b"\n"), end + len(line)
            if rows % chunk == 0 and line.endswith(b"\n"):
                kept = (rows, end)
        file.truncate(kept[1])
    return kept[0]


def _difference(found: bytes, expected: bytes) -> str:
    """Say in which point a partial file's first line is not the expected one."""
    try:
        before, now = json.loads(found), json.loads(expected)
        key = next(key for key in now if before.get(key) != now[key])
        return f"another {key}"
    except (ValueError, AttributeError, StopIteration):
        return "another run"


def _flat(answer: Answer) -> Answer:
    """Return an answer as cells: several labels joined, their scores as columns `score of NAME`."""
    if "scores" not in answer:
        return answer
    scores = {f"score of {name}": value for name, value in answer["scores"].items()}
    return {"labels": _JOINED.join(answer["labels"]), **scores}


def _write_lines(path: Path, answers: Iterator[Answer]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(answer, ensure_ascii=False) + "\n" for answer in answers)


def _write_cells(path: Path, answers: Iterator[Answer], delimiter: str) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        for number, answer in enumerate(map(_flat, answers)):
            if not number:
                writer.writerow(answer)
            writer.writerow(answer.values())


def _write_parquet(path: Path, answers: Iterator[Answer]) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    first = next(answers)
    types: dict[str, Any] = {"label": pa.string(), "score": pa.float64(), "labels": pa.list_(pa.string())}
    types["scores"] = pa.struct([(name, pa.float64()) for name in first.get("scores", {})])
    schema = pa.schema([(name, types[name]) for name in first])
    rows = chain([first], answers)
    with path.open("wb") as file, parquet.ParquetWriter(file, schema) as writer:
        while block := list(islice(rows, _BLOCK)):
            writer.write_table(pa.Table.from_pylist(block, schema=schema))


_WRITERS: dict[str, Callable[[Path, Iterator[Answer]], None]] = {
    ".jsonl": _write_lines,
    ".csv": lambda path, answers: _write_cells(path, answers, ","),
    ".tsv": lambda path, answers: _write_cells(path, answers, "\t"),
    ".parquet": _write_parquet,
}
