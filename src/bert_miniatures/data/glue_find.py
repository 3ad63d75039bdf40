"""Where a GLUE task is: the folder that was given, `$GLUE_DIR`, our cache, the Hub, in this order."""

import os
from pathlib import Path

from bert_miniatures.data.glue import task_folder
from bert_miniatures.data.glue_hub import fetch_task, origin
from bert_miniatures.data.tasks import Task
from bert_miniatures.errors import ConfigError
from bert_miniatures.files import cache_folder
from bert_miniatures.watch import Watch

__all__ = ["find_glue"]


def find_glue(task: Task, glue: Path | None, watch: Watch) -> Path:
    """Return the folder that holds the folder of a task; fetch it from the Hub where nothing else has it.

    A folder that is named, by `glue` or by `$GLUE_DIR`, is taken whatever it lacks, so that a slip in its name is an
    error and not other data.

    Args:
        task: a row of `TASKS`.
        glue: the folder that the user named.
        watch: hears where the data come from.

    Raises:
        ConfigError: `$GLUE_DIR` names no folder.
        Offline: the task is not on this machine and the network is forbidden.
        DownloadFailed: the Hub does not answer, or refuses.

    Example:
        >>> find_glue(TASKS["cola"], None, Watch())  # doctest: +SKIP
        PosixPath('/home/me/.cache/bert-miniatures/glue')
    """
    if glue is not None:
        return Path(glue)
    named = os.environ.get("GLUE_DIR")
    if named:
        if not Path(named).is_dir():
            raise ConfigError(f"$GLUE_DIR is {named}, and there is no such folder; set it right, or unset it")
        watch.note(f"{task.title} is read from $GLUE_DIR, {named}")
        return Path(named)
    cache = cache_folder() / "glue"
    if task_folder(task, cache) is None:
        fetch_task(task, cache / task.folder)
    _tell(task, task_folder(task, cache) or cache / task.folder, watch)
    return cache


def _tell(task: Task, folder: Path, watch: Watch) -> None:
    source, changed = origin(folder)
    watch.note(f"{task.title} is read from {folder}{', fetched from ' if source else ''}{source}")
    if changed:
        texts = "1 text" if changed == 1 else f"{changed:,} texts"
        watch.warn(f"{task.title}: {texts} had a tab or the end of a line inside; each is a space now")
