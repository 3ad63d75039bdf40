"""Answer the GLUE test sets with the chosen runs; what was answered once is read again."""

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bert_miniatures import predictions
from bert_miniatures.config import read_toml
from bert_miniatures.data.examples import Examples, read_glue
from bert_miniatures.data.glue_find import find_glue
from bert_miniatures.data.labels import label_map
from bert_miniatures.data.tasks import TASKS, Submission, Task
from bert_miniatures.errors import CheckpointError, DataError, DownloadFailed, Offline
from bert_miniatures.files import RunFolder, sha256_of
from bert_miniatures.predict import Predictor
from bert_miniatures.predictions import Predictions
from bert_miniatures.submission import FILES, missing_sentence
from bert_miniatures.watch import Watch

__all__ = ["answer_tests", "fingerprint", "test_folder"]

_CHUNK = 4096  # rows between two words about progress


@dataclass(frozen=True, eq=False)
class _Job:
    """One file of the submission: the rows to answer, the run that answers them, and where the answers are kept."""

    file: str
    task: Task
    run: RunFolder
    examples: Examples
    stored: Path


def answer_tests(
    runs: Mapping[str, Path], glue: Path | None, watch: Watch | None = None, *, allow_missing: bool = False
) -> dict[str, Predictions]:
    """Answer the official test rows of every task that has a run.

    The answers are kept in the run, `predictions/test.parquet`, and read again while the model folder and the test rows
    are the same; those of AX are kept in the MNLI run, `predictions/ax.parquet`.

    Args:
        runs: task name -> the finished run that answers it; the MNLI run answers AX too.
        glue: the folder with GLUE in the official layout; None looks for each task, as training does.
        watch: hears which files are missing, and how far the work is.
        allow_missing: go on where a run, a test file or a part of its rows is missing.

    Returns:
        File name in the submission -> predictions, ready for `submission.write_submission`.

    Raises:
        DataError: something is missing; all of it is named, and `watch` heard why, before the work begins.
        CheckpointError, LabelError: a run's model is damaged or has other labels than the task.

    Example:
        >>> found = answer_tests({"cola": Path("runs/cola")}, Path("glue"), allow_missing=True)  # doctest: +SKIP
        >>> found["CoLA.tsv"].logits.shape  # doctest: +SKIP
        (1063, 2)
    """
    watch = watch or Watch()
    jobs: list[_Job] = []
    missing: dict[str, str] = {}

    @functools.cache
    def find(name: str) -> Path | str:
        try:
            return find_glue(TASKS[name], glue, watch)
        except (DataError, DownloadFailed, Offline) as error:
            return str(error)

    for file, (task, row) in FILES.items():
        found = _job(file, task, row, runs, find)
        if isinstance(found, str):
            missing[file] = found
        else:
            jobs.append(found)
    for file, reason in missing.items():
        watch.warn(f"{file} is missing: {reason}")
    if missing and not (allow_missing and jobs):
        raise DataError(missing_sentence(tuple(missing)))
    return {job.file: _answered(job, watch) for job in jobs}


def _job(
    file: str, task: Task, row: Submission, runs: Mapping[str, Path], find: Callable[[str], Path | str]
) -> _Job | str:
    """Return what is to be done for one file, or why it cannot be done."""
    source = task.predicted_by or task.name
    if source not in runs:
        return f"no run on {source} with a score"
    run = RunFolder(runs[source])
    if not (run.model / "config.json").is_file():
        return f"{run.path} keeps no model"
    glue = find(task.name)
    if isinstance(glue, str):
        return glue
    try:
        examples = read_glue(task, glue, row.split)
    except DataError as error:
        return str(error)
    official = task.splits[row.split].rows
    if len(examples) != official:
        return f"{examples.source} has {len(examples):,} rows, the official file has {official:,}"
    return _Job(file, task, run, examples, run.predictions / f"{task.name if task.predicted_by else row.split}.parquet")


def _answered(job: _Job, watch: Watch) -> Predictions:
    model = fingerprint(job.run.model)
    before = _stored(job)
    if before is not None and (before.model, before.checksum) == (model, job.examples.checksum):
        watch.note(f"{job.file}: read from {job.stored}")
        return before
    watch.note(f"{job.file}: {len(job.examples):,} rows are answered by {job.run.path}")
    found = Predictions(
        job.examples.row_ids, _logits(job, watch), job.task.labels, None, job.task.name, job.examples.checksum, model
    )
    predictions.write(job.stored, found)
    return found


def _stored(job: _Job) -> Predictions | None:
    try:
        return predictions.read(job.stored)
    except DataError:  # none yet, or damaged: answered again
        return None


def _logits(job: _Job, watch: Watch) -> np.ndarray:
    """Return the outputs [N, C] for the test rows, columns in the task's order of labels."""
    predictor, rows = Predictor(job.run.model), job.examples
    labels = predictor.labels
    if labels.kind != job.task.kind:
        raise CheckpointError(f"{job.run.model}: the model is for {labels.kind}, {job.task.title} is {job.task.kind}")
    order = None if job.task.kind == "regression" else label_map(labels.names, job.task.labels, str(job.run.model))
    parts = []
    for start in range(0, len(rows), _CHUNK):
        pairs = None if rows.pairs is None else rows.pairs[start : start + _CHUNK]
        parts.append(predictor.logits(rows.texts[start : start + _CHUNK], pairs))
        watch.progress(min(start + _CHUNK, len(rows)), len(rows), job.file)
    logits = np.concatenate(parts)
    return logits if order is None else logits[:, order]


def test_folder(glue: Path | None, runs: Mapping[str, Path]) -> Path | None:
    """Return the folder with GLUE's test files: the one given, or that of the first run that names one.

    None says that there is neither, and each task is to be looked for.
    """
    for run in runs.values() if glue is None else ():
        config = RunFolder(run).config
        said = read_toml(config).get("data", {}).get("glue") if config.is_file() else None
        if said and Path(said).is_dir():
            return Path(said)
    return glue


def fingerprint(model: Path) -> str:
    """Return a SHA-256 over all files of a model folder that decide its answers: all but the card."""
    found = hashlib.sha256()
    for file in sorted(path for path in model.iterdir() if path.is_file() and path.suffix != ".md"):
        found.update(f"{file.name} {sha256_of(file)}\n".encode())
    return found.hexdigest()
