"""What fine-tuning and pre-training do alike: begin or resume a run folder, average losses between two records."""

from collections.abc import Generator, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from bert_miniatures.config import Settings, TrainConfig, read_toml
from bert_miniatures.errors import ConfigError
from bert_miniatures.files import RunFolder, read_json
from bert_miniatures.objectives import Objective
from bert_miniatures.train import Progress, Source, TrainState, train
from bert_miniatures.watch import Watch

__all__ = ["Window", "begun", "updating"]

# Settings that may change when a run is resumed.
_FREE = frozenset(
    f"{section}.{name}" for section in ("train", "finetune") for name in ("save_every", "log_every", "threads")
)


def begun(
    config: Settings,
    run: RunFolder,
    watch: Watch,
    *,
    resume: bool,
    overwrite: bool,
    free: Set[str] = frozenset(),
) -> dict[str, Any] | None:
    """Check the run folder; return the result of a run that is resumed and has one.

    Args:
        free: settings that may change when a run is resumed, beside those of saving and logging.

    Raises:
        ConfigError: the run was begun with other settings.
        OutputExists: there is something, and it is neither to be resumed nor overwritten.
    """
    RunFolder.create(run.path, resume=resume, overwrite=overwrite)
    if not (resume and run.is_run()):
        return None
    before = type(config).of(read_toml(run.config), where=str(run.config)).model_dump()
    for key, old, new in _differences(before, config.model_dump()):
        if key not in _FREE | free:
            raise ConfigError(f"{run.config} has {key} = {old}, now it is {new}; a run is resumed as it was begun")
    if not run.is_finished():
        return None
    watch.note(f"{run.path} is finished already")
    found: dict[str, Any] = read_json(run.result)
    return found


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], path: str = "") -> list[tuple[str, Any, Any]]:
    out: list[tuple[str, Any, Any]] = []
    for key in new:
        if isinstance(new[key], dict) and isinstance(old[key], dict):
            out += _differences(old[key], new[key], f"{path}{key}.")
        elif old[key] != new[key]:
            out.append((path + key, old[key], new[key]))
    return out


@dataclass
class Window:
    """Losses since the last record in metrics.jsonl, kept on the device until they are read."""

    total: Any = 0.0
    norm: Any = 0.0
    count: int = 0
    kinds: dict[str, tuple[Any, int]] = field(default_factory=dict)

    def add(self, progress: Progress, kind: str = "") -> None:
        """Take an update, and what it learns where not all learn the same."""
        if kind:
            total, count = self.kinds.get(kind, (0.0, 0))
            self.kinds[kind] = (total + progress.loss, count + 1)
        self.total, self.norm, self.count = self.total + progress.loss, progress.gradient_norm, self.count + 1

    def read(self) -> tuple[float, float]:
        """Return the mean loss and the last gradient norm; this waits for the device."""
        return float(self.total) / self.count, float(self.norm)

    def losses(self) -> dict[str, float]:
        """Return the mean loss of each kind, where there are several; this waits for the device."""
        return {kind: float(total) / count for kind, (total, count) in sorted(self.kinds.items())}


@contextmanager
def updating(
    state: TrainState, objective: Objective, batches: Source, config: TrainConfig, steps: int
) -> Iterator[Iterator[Progress]]:
    """Yield what `train` yields; where the block is left the processes beside this one end."""
    found = train(state, objective, batches, config, steps)
    try:
        yield found
    finally:
        assert isinstance(found, Generator)
        found.close()
