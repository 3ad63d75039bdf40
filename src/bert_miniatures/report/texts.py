"""The texts behind a run's dev predictions, where its data are still at hand. Nothing is fetched for it."""

import os
from pathlib import Path

from bert_miniatures.config import DataConfig, read_toml
from bert_miniatures.data.examples import Examples
from bert_miniatures.errors import MiniaturesError, MissingExtra
from bert_miniatures.files import RunFolder
from bert_miniatures.watch import Watch

__all__ = ["dev_rows"]


def dev_rows(run: RunFolder, checksum: str) -> tuple[Examples | None, str]:
    """Return the rows of a run's dev split, or None and why they are not there.

    Args:
        run: the run, whose run.toml names the data.
        checksum: of the rows that were predicted; other rows are not these.
    """
    try:
        config = DataConfig.of(read_toml(run.config).get("data", {}), where=str(run.config))
        if not _at_hand(config):
            return None, "the data are not where run.toml says"
        from bert_miniatures.recipes.loading import load_splits, task_of

        found = load_splits(task_of(config), config, Watch(), only="dev")["dev"]
    except ModuleNotFoundError:
        return None, str(MissingExtra("reading the texts", "train"))
    except (MiniaturesError, OSError, KeyError) as error:
        return None, f"the data cannot be read ({error})"
    if found.checksum != checksum:
        return None, "the data have changed since the run"
    return found, ""


def _at_hand(config: DataConfig) -> bool:
    if config.task:
        folder = config.glue or os.environ.get("GLUE_DIR")
        return bool(folder) and Path(str(folder)).is_dir()
    return config.train is not None and config.train.is_file()
