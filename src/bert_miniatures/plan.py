"""The plan of a sweep: models x tasks x grid x seeds. `expand` is pure and gives a name and settings for each cell."""

import itertools
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pydantic
from pydantic import Field

from bert_miniatures.config import BATCH_SIZES, LEARNING_RATES, DataConfig, FinetuneConfig, Settings, TrainConfig
from bert_miniatures.data.tasks import task_named
from bert_miniatures.distill_config import GRID, DistillConfig, DistillSettings
from bert_miniatures.errors import ConfigError, UnknownName
from bert_miniatures.zoo import lookup

__all__ = ["PUBLISHED_GRID", "SweepConfig", "expand", "group_of", "places", "short", "without_seed"]

PUBLISHED_GRID: dict[str, tuple[Any, ...]] = {
    "batch_size": BATCH_SIZES,
    "learning_rate": LEARNING_RATES,
    "epochs": (4,),
}
_ALWAYS_NAMED = {"batch_size": "bs", "learning_rate": "lr"}


class SweepConfig(Settings):
    """A sweep: `miniatures sweep`. Each combination of model, task, grid values and seed is a cell.

    Attributes:
        models: any MODEL of the command line.
        tasks: GLUE tasks; empty for own files, which `data` names.
        grid: a setting of `train` -> its values; the published grid where nothing is said. Of a distillation also those
            of `distill_config.GRID`.
        seeds: how many; the first one is `train.seed`.
        data: settings that all cells share; `task` is left to `tasks`.
        train: settings of `train` that are not in the grid.
        keep: as in `FinetuneConfig`.
        distill: makes the cells distillations; "{task}" in the name of a teacher or a file is the task's name.
    """

    models: tuple[str, ...] = Field(min_length=1)
    tasks: tuple[str, ...] = ()
    grid: dict[str, tuple[Any, ...]] = PUBLISHED_GRID
    seeds: int = Field(default=1, gt=0)
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    keep: Literal["last", "best"] = "last"
    distill: DistillSettings | None = None

    @pydantic.field_validator("grid", mode="before")
    @classmethod
    def _one_value_is_a_list(cls, grid: Any) -> Any:
        if not isinstance(grid, Mapping):
            return grid
        return {key: tuple(v) if isinstance(v, list | tuple) else (v,) for key, v in grid.items()}


def expand(plan: SweepConfig) -> dict[str, FinetuneConfig]:
    """Return the cells of a plan: name -> settings, in the order of tasks, models, grid values and seeds.

    A name is the cell's folder below the sweep's: `tiny/mrpc/bs16-lr3e-5-seed1`. It has the batch size, the learning
    rate and the seed, and each other setting of the grid where its value is not the usual one. A cell's name does not
    depend on what else is in the plan, so that a larger plan finds the cells of a smaller one.

    Raises:
        UnknownName: no such setting or task; names the nearest.
        ConfigError: an impossible value, an empty list, or two cells with one name.

    Example:
        >>> plan = SweepConfig(models=("tiny",), tasks=("mrpc",), grid={"batch_size": (8, 16)}, seeds=2)
        >>> list(expand(plan))
        ['tiny/mrpc/bs8-lr1e-4-seed1', 'tiny/mrpc/bs8-lr1e-4-seed2', 'tiny/mrpc/bs16-lr1e-4-seed1', \
'tiny/mrpc/bs16-lr1e-4-seed2']
    """
    _check_grid(plan)
    cells: dict[str, FinetuneConfig] = {}
    for data, model in itertools.product(_data_of(plan), plan.models):
        for train, more in _trainings(plan):
            config = FinetuneConfig(model=model, data=data, train=train, keep=plan.keep)
            if plan.distill is not None:
                config = _distillation(config, plan.distill, more)
            name = f"{_model_name(model)}/{_task_name(data)}/{_settings_name(config, plan.grid)}-seed{train.seed}"
            if name in cells:
                raise ConfigError(f"two cells are named '{name}': {_why(cells[name], config)}")
            cells[name] = config
    return cells


def group_of(cell: str) -> str:
    """Return the part of a cell's name that says model and task: cells of one group compete.

    Example:
        >>> group_of("tiny/mrpc/bs16-lr3e-5-seed1")
        'tiny/mrpc'
    """
    return cell.rsplit("/", 1)[0]


def without_seed(cell: str) -> str:
    """Return a cell's name without its seed: cells that differ in nothing else are repeats.

    Example:
        >>> without_seed("tiny/mrpc/bs16-lr3e-5-seed1")
        'tiny/mrpc/bs16-lr3e-5'
    """
    return cell.rpartition("-seed")[0]


def short(value: float) -> str:
    """Write a number as people write learning rates; different numbers stay different.

    Example:
        >>> short(3e-5), short(0.0015), short(0.2), short(16)
        ('3e-5', '1.5e-3', '0.2', '16')
    """
    if isinstance(value, bool) or value != value or 0.1 <= abs(value) < 100_000 or value == 0:
        return f"{value!r}".removesuffix(".0")
    digits, _, exponent = f"{Decimal(repr(value)).normalize():e}".partition("e")
    return f"{digits}e{int(exponent)}"


def places(cells: Mapping[str, FinetuneConfig]) -> dict[str, tuple[tuple[int, int], ...]]:
    """Return where each cell is in the grid: for each setting with several values, the value's position and how many.

    Example:
        >>> plan = SweepConfig(models=("tiny",), tasks=("rte",), grid={"batch_size": (8, 16), "epochs": (4, 2, 3)})
        >>> list(places(expand(plan)).values())
        [((0, 2), (2, 3)), ((0, 2), (0, 3)), ((0, 2), (1, 3)), ((1, 2), (2, 3)), ((1, 2), (0, 3)), ((1, 2), (1, 3))]
    """
    settings = {name: config.train.model_dump(exclude={"seed"}) | config.model_dump(include=set(GRID))
                for name, config in cells.items()}  # fmt: skip
    found: dict[str, list[tuple[int, int]]] = {name: [] for name in cells}
    for key in (name for name in (*TrainConfig.model_fields, *GRID) if name != "seed"):
        values = {repr(setting.get(key)): setting.get(key) for setting in settings.values()}
        if len(values) > 1:
            ordered = sorted(values, key=lambda text: (0, values[text]) if _is_number(values[text]) else (1, text))
            for name, setting in settings.items():
                found[name].append((ordered.index(repr(setting.get(key))), len(ordered)))
    return {name: tuple(place) for name, place in found.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_grid(plan: SweepConfig) -> None:
    for key, values in plan.grid.items():
        if key == "seed":
            raise ConfigError("grid.seed: seeds are not part of the grid; say how many with seeds = 3 or --seeds 3")
        known = [*TrainConfig.model_fields, *(GRID if plan.distill else ())]
        if key in GRID and not plan.distill:
            raise ConfigError(f"grid.{key} is of a distillation; name its teacher with --teacher or in [distill]")
        if key not in known:
            raise UnknownName("setting", f"grid.{key}", [f"grid.{name}" for name in known])
        if not values:
            raise ConfigError(f"grid.{key} is empty; it needs one value or more")


def _data_of(plan: SweepConfig) -> list[DataConfig]:
    """Return the data of each task, or the own data."""
    if plan.data.task:
        raise ConfigError(f"data.task = '{plan.data.task}': the tasks of a sweep are named in tasks = [...] or --task")
    if not plan.tasks:
        if plan.data.train is None:
            raise ConfigError("no data: give --task TASK --glue DIR, or --train FILE")
        return [plan.data]
    if plan.data.train or plan.data.dev:
        raise ConfigError("give either --task with a GLUE folder, or own files with --train, not both")
    found = []
    for name in plan.tasks:
        task = task_named(name)
        if task.predicted_by:
            raise ConfigError(f"{task.title} has no training data; fine-tune on '{task.predicted_by}' instead")
        found.append(plan.data.model_copy(update={"task": task.name}))
    return found


def _trainings(plan: SweepConfig) -> Iterator[tuple[TrainConfig, dict[str, Any]]]:
    """Yield the settings of a group of cells: grid values in the order given, then seeds. One thread each.

    The second part are the values of the grid that are of a distillation.
    """
    base = {"threads": 1} | plan.train.model_dump(exclude_none=True)
    for values in itertools.product(*plan.grid.values()):
        every = dict(zip(plan.grid, values, strict=True))
        more = {key: value for key, value in every.items() if key in GRID}
        chosen = {key: value for key, value in every.items() if key not in GRID}
        for seed in range(plan.train.seed, plan.train.seed + plan.seeds):
            yield TrainConfig.of(base | chosen | {"seed": seed}, where="grid"), more


def _distillation(config: FinetuneConfig, settings: DistillSettings, more: Mapping[str, Any]) -> DistillConfig:
    """Make the settings of a distillation from those of a fine-tuning."""
    own = settings.model_dump(mode="json", exclude_none=True)
    task = _task_name(config.data)
    for key in ("teacher", "transfer"):
        own[key] = [name.replace("{task}", task) for name in own[key]]
    return DistillConfig.of(config.model_dump(exclude_none=True) | own | dict(more), where="distill")


def _model_name(model: str) -> str:
    """Return the folder's name for a model, the same for all names of one of the 24."""
    try:
        known = lookup(model)
    except UnknownName:
        path = Path(model)
        return _plain(path.parent.name if path.name == "model" and path.parent.name else path.name or model)
    return known.nickname or f"{known.layers}-{known.width}"


def _task_name(data: DataConfig) -> str:
    return data.task or _plain(Path(data.train or "own").stem)


def _settings_name(config: FinetuneConfig, grid: Mapping[str, Any]) -> str:
    parts = ["distilled"] if isinstance(config, DistillConfig) else []
    parts += [f"{short_name}{short(getattr(config.train, key))}" for key, short_name in _ALWAYS_NAMED.items()]
    usual = {name: field.default for name, field in (TrainConfig.model_fields | DistillSettings.model_fields).items()}
    for key in sorted(set(grid) - set(_ALWAYS_NAMED)):
        value = getattr(config if key in GRID else config.train, key)
        if value != usual[key]:
            parts.append(_plain(f"{key}{short(value)}" if _is_number(value) else f"{key}-{value}"))
    return "-".join(parts)


def _plain(text: str) -> str:
    """Replace what is awkward in a folder's name."""
    return re.sub(r"[^A-Za-z0-9._+]+", "-", text).strip("-.") or "x"


def _why(first: FinetuneConfig, second: FinetuneConfig) -> str:
    if first.model != second.model:
        return f"models '{first.model}' and '{second.model}' have one name; sweep them into two folders"
    if first.data != second.data:
        return "two data sets have one name; sweep them into two folders"
    if first == second:
        return "a model, a task or a value of the grid is listed twice"
    return "two values of the grid are written alike"
