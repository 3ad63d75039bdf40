"""The labelled rows that an 8-bit model is judged on: a file, the dev split of a GLUE task, or that of a run."""

from dataclasses import replace
from pathlib import Path

from bert_miniatures.checkpoint import ModelFolder
from bert_miniatures.config import FinetuneConfig, read_toml
from bert_miniatures.data.examples import Examples, read_file, read_glue
from bert_miniatures.data.glue_find import find_glue
from bert_miniatures.data.labels import label_map
from bert_miniatures.data.tables import SUFFIXES
from bert_miniatures.data.tasks import OWN_METRICS, TASKS, Task, task_named
from bert_miniatures.errors import DataError, UserError
from bert_miniatures.files import RunFolder
from bert_miniatures.outputs import Labels
from bert_miniatures.quantise import Check
from bert_miniatures.recipes.loading import load_splits, task_of
from bert_miniatures.watch import Watch

__all__ = ["load_check"]


def load_check(
    model: str | Path,
    found: ModelFolder,
    data: str | Path | None,
    max_length: int,
    *,
    glue: Path | None = None,
    columns: dict[str, str | None] | None = None,
    watch: Watch,
) -> Check:
    """Read the rows.

    Args:
        model: as the user named it; a run folder has a dev split of its own.
        found: that model.
        data: a .csv, .tsv, .jsonl or .parquet file, or the name of a GLUE task; None means the run's own dev split.
        max_length: in word pieces, where texts are cut.
        glue: folder with GLUE.
        columns: names of the file's columns: text, pair, label; guessed where missing.

    Raises:
        UserError: no data, and the model is no run.
        DataError: no rows, or hidden labels.
        LabelError: the labels of data and model disagree.
    """
    assert found.labels is not None
    task, examples = _examples(model, found.labels, data, glue, columns or {}, watch)
    if examples.hidden or examples.labels is None or not len(examples):
        raise DataError(
            f"{examples.source}: {examples.hidden or 'all'} labels are hidden; int8 is judged on known ones"
        )
    order = None
    if task.kind != found.labels.kind:
        raise UserError(f"{examples.source}: the data is {task.kind}, the model answers {found.labels.kind}")
    if task.kind != "regression":
        order = label_map(found.labels.names, task.labels, str(model))
    rows = found.tokenizer.encode(examples.texts, examples.pairs, max_length=max_length)
    return Check(task.kind, task.metrics[0], rows, examples.labels, order, found.tokenizer.pad_id, examples.source)


def _examples(
    model: str | Path,
    labels: Labels,
    data: str | Path | None,
    glue: Path | None,
    columns: dict[str, str | None],
    watch: Watch,
) -> tuple[Task, Examples]:
    run = RunFolder(Path(model))
    if data is None and not run.is_run():
        raise UserError(
            "--int8 is judged by the task's metric: give --check FILE, or --check TASK for GLUE's dev split"
        )
    if data is None:
        config = FinetuneConfig.of(read_toml(run.config), where=str(run.config))
        task = task_of(config.data)
        splits = load_splits(task, config.data, watch, only="dev")
        if "dev" not in splits:  # nothing was held out
            raise UserError(f"{run.path}: the run has no dev rows to judge int8 on; give --check FILE")
        return task, splits["dev"]
    if Path(data).suffix.casefold() in SUFFIXES:
        task = Task("own", labels.kind, labels.names, OWN_METRICS[labels.kind], pair=labels.pair)
        if labels.task in TASKS:
            task = replace(task, metrics=TASKS[labels.task].metrics)
        return task, read_file(
            Path(data), task, text=columns.get("text"), pair=columns.get("pair"), label=columns.get("label")
        )
    task = task_named(str(data))
    return task, read_glue(task, find_glue(task, glue, watch), "dev")
