"""Labelling: teachers answer every text once, and any number of students read the answers."""

import functools
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bert_miniatures.data.examples import read_glue
from bert_miniatures.data.glue_find import find_glue
from bert_miniatures.data.stream import stream_rows
from bert_miniatures.data.tasks import Task, task_named
from bert_miniatures.errors import ConfigError, DataError, OutputExists
from bert_miniatures.files import read_json, writable_folder, write_json
from bert_miniatures.recipes.teachers import FileTeacher, Teacher, answers_of, open_teachers, order_of
from bert_miniatures.soft_labels import About, Hashes, SoftLabels, hashes_of, merge, read, write
from bert_miniatures.transfer import locked
from bert_miniatures.watch import Watch

__all__ = ["label", "label_rows", "missing_said", "rows_of"]

PART = 1024  # rows between two files on the disk: what kill -9 can cost
MISSING = 0.01  # share of texts that a file of answers may lack

Chunk = tuple[Sequence[str], Sequence[str] | None]


# ---------------------------------------------------------------------------------------------------- one pass


def label_rows(
    teachers: Sequence[Teacher],
    about: About,
    chunks: Callable[[], Iterable[Chunk]],
    out: Path,
    watch: Watch,
    *,
    resume: bool = False,
) -> dict[str, Any]:
    """Let teachers answer rows, write the answers, and return what was done.

    Rows are read in chunks of `PART`, and each chunk's answers are a file in `<out>.parts` until all are there; what is
    there is not computed again, and its hashes are compared with the texts.

    Args:
        about: kind and labels of the answers, in their order.
        chunks: gives the rows from the start, each time it is called: they are counted first.
        resume: go on with what a process that was stopped has left.

    Raises:
        DataError: the texts changed since, or more than `MISSING` of them are unknown to a file of answers.
    """
    started, parts = time.monotonic(), out.with_name(out.name + ".parts")
    about = About(about.kind, about.labels, tuple(t for one in teachers for t in one.about.teachers))
    total, missing = _counted(teachers, chunks())
    missing_said(missing, total, about, watch)
    _begin(parts, about.document() | {"rows": total}, resume=resume)
    files: list[Path] = []
    done, computed = 0, False
    for number, (texts, pairs) in enumerate(chunks()):
        files.append(parts / f"{number:06d}.parquet")
        if not _is_answered(files[-1], hashes := hashes_of(texts, pairs)):
            if not computed:  # the pace is that of the work, not of reading what is there
                watch.progress(done, total, "texts")
            computed = True
            write(files[-1], SoftLabels(about, hashes, answers_of(teachers, about, (texts, pairs))))
        done += len(texts)
        if computed:
            watch.progress(done, total, "texts")
    rows = merge(files, out, about)
    shutil.rmtree(parts, ignore_errors=True)
    seconds = round(time.monotonic() - started, 3)
    return {"rows": rows, "missing": missing, "seconds": seconds} | about.document()


def _counted(teachers: Sequence[Teacher], chunks: Iterable[Chunk]) -> tuple[int, int]:
    """Return how many rows there are, and how many of them a file of answers lacks."""
    files = [teacher for teacher in teachers if isinstance(teacher, FileTeacher)]
    total, missing = 0, 0
    for texts, pairs in chunks:
        total += len(texts)
        if files:
            known = [~np.isnan(teacher.answer(texts, pairs)).any(1) for teacher in files]
            missing += int((~np.all(known, axis=0)).sum())
    return total, missing


def _begin(parts: Path, begun: dict[str, Any], *, resume: bool) -> None:
    """Make the folder of parts, or check that what is there belongs to this work."""
    if not (resume and (parts / "about.json").is_file()):
        shutil.rmtree(parts, ignore_errors=True)
        write_json(writable_folder(parts) / "about.json", begun)
    elif read_json(parts / "about.json") != begun:
        raise ConfigError(f"{parts} was begun with other teachers, labels or texts; --overwrite starts it anew")


def _is_answered(part: Path, hashes: Hashes) -> bool:
    if not part.is_file():
        return False
    if not np.array_equal(read(part).hashes, hashes):
        raise DataError(f"{part}: the texts changed since the labelling was begun; --overwrite starts it anew")
    return True


def missing_said(missing: int, total: int, about: About, watch: Watch, allowed: float = MISSING) -> None:
    """Say how many texts have no answer.

    Raises:
        DataError: a larger share than `allowed`.
    """
    if not missing:
        return
    names = ", ".join(str(teacher["name"]) for teacher in about.teachers)
    said = f"{names}: {missing:,} of {total:,} texts ({missing / total:.1%}) have no answer"
    if missing > allowed * total:
        raise DataError(
            f"{said}, more than {allowed:.0%}; the answers are of other texts or of another version of them: "
            "'miniatures label' makes them anew"
        )
    watch.warn(f"{said}; they are left out")


def rows_of(texts: Sequence[str], pairs: Sequence[str] | None) -> Iterator[Chunk]:
    """Cut rows into chunks."""
    for start in range(0, len(texts), PART):
        yield texts[start : start + PART], None if pairs is None else pairs[start : start + PART]


# ---------------------------------------------------------------------------------------------------- the recipe


def label(
    teachers: str | Path | Sequence[str | Path],
    out: str | Path,
    *,
    files: Sequence[str | Path] = (),
    task: str | None = None,
    glue: str | Path | None = None,
    splits: Sequence[str] = (),
    text: str | None = None,
    pair: str | None = None,
    kind: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Run a teacher once over texts and write its logits.

    Args:
        teachers: a model folder of ours or Hugging Face's with a classifier, a run, a file of soft labels or of
            probabilities; or several, whose answers are averaged.
        out: the .parquet file to write.
        files: .csv .tsv .jsonl .parquet .txt with texts, labelled or not.
        task, glue: a GLUE task and its folder; the labels are then in the task's order.
        splits: of the task; train and the dev splits by default.
        text, pair: columns of the files; guessed by name where None.
        kind: "multilabel" for a file of probabilities whose labels do not exclude each other.
        resume: go on where a labelling that was stopped had come to.
        overwrite: replace `out`.

    Returns:
        What was done: rows, missing, seconds, kind, labels, teachers.

    Raises:
        UserError: the input is wrong; the sentence says what and where.

    Example:
        >>> label("runs/teacher", "logits.parquet", files=["reviews.txt"])["rows"]  # doctest: +SKIP
        1000000
    """
    watch, out = watch or Watch(), Path(out)
    _check_out(out, files, resume=resume, overwrite=overwrite)
    if not files and task is None:
        raise ConfigError("no texts: give files, or --task TASK")
    if any(str(file) == "-" for file in files):
        raise ConfigError("texts are read twice, which standard input cannot be; give a file")
    names = [teachers] if isinstance(teachers, str | Path) else teachers
    known = task_named(task) if task else None
    opened = open_teachers([str(name) for name in names], watch, kind or (known.kind if known else None))
    about = opened[0].about
    if known is not None:
        about = About(known.kind, known.labels if known.kind != "regression" else ())
        order_of(opened[0], about, str(names[0]))
    sources = [*_splits(known, glue, splits, watch), *_files(files, text, pair)]
    with locked(out):
        _check_out(out, files, resume=resume, overwrite=overwrite)  # another process may have written it meanwhile
        return label_rows(opened, about, functools.partial(_each, sources), out, watch, resume=resume)


def _check_out(out: Path, files: Sequence[str | Path], *, resume: bool, overwrite: bool) -> None:
    if out.suffix.casefold() != ".parquet":
        raise ConfigError(f"{out}: soft labels are written as .parquet")
    if any(Path(file).resolve() == out.resolve() for file in files):
        raise ConfigError(f"{out} is a file to read; the answers need another name")
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other: one keeps what is there, the other does not")
    if out.exists() and not overwrite:
        raise OutputExists(f"{out} exists; give --overwrite or another name")
    parts = out.with_name(out.name + ".parts")
    if parts.exists() and not (resume or overwrite):
        raise OutputExists(f"{parts} has the answers of a labelling that was stopped; give --resume or --overwrite")


Source = Callable[[], Iterable[Chunk]]


def _splits(task: Task | None, glue: str | Path | None, splits: Sequence[str], watch: Watch) -> list[Source]:
    if task is None:
        if splits or glue:
            raise ConfigError("--split and --glue need --task TASK")
        return []
    folder = find_glue(task, Path(glue) if glue else None, watch)
    wanted = list(splits) or ["train", *(name for name in task.splits if name.startswith("dev"))]
    found = [read_glue(task, folder, name) for name in wanted]
    return [functools.partial(rows_of, examples.texts, examples.pairs) for examples in found]


def _files(files: Sequence[str | Path], text: str | None, pair: str | None) -> list[Source]:
    return [functools.partial(stream_rows, Path(file), text=text, pair=pair, chunk=PART) for file in files]


def _each(sources: Sequence[Source]) -> Iterator[Chunk]:
    for source in sources:
        yield from source()
