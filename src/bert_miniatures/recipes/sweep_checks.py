"""What is checked before a sweep begins: that models and data are there, and how many workers the memory bears."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from bert_miniatures.config import DataConfig, FinetuneConfig, ModelConfig
from bert_miniatures.data.examples import own_task
from bert_miniatures.data.glue import glue_file
from bert_miniatures.data.glue_find import find_glue
from bert_miniatures.data.tasks import task_named
from bert_miniatures.distill_config import DistillConfig
from bert_miniatures.errors import DataError
from bert_miniatures.files import read_json
from bert_miniatures.machine import cores
from bert_miniatures.memory import available, run_bytes
from bert_miniatures.models import resolve
from bert_miniatures.watch import Watch

__all__ = ["check_data", "check_models", "workers_that_fit"]

_USED = 0.9  # of the free memory
_TEXT = 200  # bytes of a text that is made, about


def check_models(cells: Iterable[FinetuneConfig]) -> dict[str, ModelConfig]:
    """Find each model, fetching it where it must be, before several workers would; return model -> sizes.

    Raises:
        UserError: no such model, or not one that can be read.
    """
    found = {}
    for model in dict.fromkeys(config.model for config in cells):
        folder = resolve(model)
        file = next((folder / n for n in ("config.json", "bert_config.json") if (folder / n).is_file()), folder)
        found[model] = ModelConfig.of(read_json(file), str(file))
    return found


def check_data(cells: Iterable[FinetuneConfig], watch: Watch) -> dict[DataConfig, int]:
    """Find the files of each data set, fetched where they must be, before several workers would; return data -> bytes.

    Raises:
        DataError: a file is missing; of GLUE, every task of the plan is looked for before the first one is begun.
        UserError: the columns of an own file cannot be told.
        Offline, DownloadFailed: a GLUE task is not on this machine and cannot be fetched.
    """
    configs = list(cells)
    for config in configs:
        if isinstance(config, DistillConfig):
            _check_teachers(config)
    sets = dict.fromkeys(config.data for config in configs)
    return {data: sum(file.stat().st_size for file in _files(data, watch)) for data in sets}


def _check_teachers(config: DistillConfig) -> None:
    """Find teachers and transfer files; what is in them is checked when they are read."""
    for path in config.transfer:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
    for name in config.teacher:
        if not Path(name).is_file() and not (Path(name) / "onnx").is_dir():
            resolve(name)


def _more_bytes(config: FinetuneConfig) -> int:
    """Return what a distillation holds besides its labelled data: texts, and a teacher that is looked into."""
    if not isinstance(config, DistillConfig):
        return 0
    size = sum(path.stat().st_size for path in config.transfer) + _TEXT * config.augment
    if config.is_guided:
        folder = resolve(config.states_of or config.teacher[0])
        size += sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return size


def _files(data: DataConfig, watch: Watch) -> list[Path]:
    if data.train is not None:
        own_task(data.train, text=data.text, pair=data.pair, label=data.label, kind=data.kind)
        if data.dev is not None and not data.dev.is_file():
            raise DataError(f"{data.dev}: no such file")
        return [path for path in (data.train, data.dev) if path is not None]
    task = task_named(data.task or "")
    folder = find_glue(task, data.glue, watch)
    return [glue_file(task, folder, split) for split in task.splits if split.startswith(("train", "dev"))]


def workers_that_fit(
    cells: Iterable[FinetuneConfig], sizes: Mapping[str, ModelConfig], data: Mapping[DataConfig, int], watch: Watch,
    wanted: int | None = None,
) -> int:  # fmt: skip
    """Return the number of workers: a core each, fewer where the memory is short.

    Args:
        wanted: what the user asked for; it is kept, with a warning where the memory looks short.
    """
    configs = list(cells)
    count = min(wanted or cores(), len(configs))
    need = max(run_bytes(config, sizes[config.model], data[config.data] + _more_bytes(config)) for config in configs)
    free = available()
    if free is None or count * need <= _USED * free:
        return count
    said = f"a cell needs up to {need / 2**30:.1f} GiB (docs/sweep.md has the formula), {free / 2**30:.1f} GiB are free"
    fits = max(1, int(_USED * free / need))
    if wanted:
        watch.warn(f"{said}: {wanted} workers may be too many, {fits} would fit")
        return count
    watch.note(f"{said}: {fits} of {count} workers")
    return fits
