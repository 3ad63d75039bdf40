"""What commands that train have in common: torchrun's processes, and settings from a file with options on top."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bert_miniatures.machine import Launch

__all__ = ["Recipe", "processes", "run_as_told", "settings_of"]

Recipe = Callable[..., dict[str, Any]]  # of the run folder, resume=, overwrite=, watch=
Prepared = Callable[[dict[str, Any], list[str], str], Recipe]  # of settings, key=value on top, and their file's name


@contextmanager
def processes(what: str) -> Iterator["Launch"]:
    """Join the other processes of torchrun, where there are some.

    Args:
        what: the work, as in "fine-tuning".
    """
    from bert_miniatures.files import training_extra
    from bert_miniatures.machine import launch

    started = launch()
    if started.world == 1:
        yield started
        return
    with training_extra(what):
        from bert_miniatures.distributed import joined
    with joined(started):
        yield started


def run_as_told(
    what: str,
    prepared: Prepared,
    given: Mapping[str, Any],
    out: Path,
    *,
    config: Path | None,
    settings: list[str] | None,
    resume: bool,
    overwrite: bool,
    engine: str = "local",
    workers: int | None = None,
) -> dict[str, Any] | None:
    """Run a recipe, in torchrun's processes where there are some; return its result, None in all but the first.

    Args:
        what: the work, as in "fine-tuning".
        prepared: checks the settings (a document, `key=value` on top, the name of the file) and imports the recipe.
        given: what the command line says; see `settings_of`.
        engine: "local", or "ray" for a Ray cluster that shares each batch.
        workers: processes on a Ray cluster; None is one on each node.
    """
    from bert_miniatures.cli.console import ConsoleWatch
    from bert_miniatures.errors import ConfigError
    from bert_miniatures.files import RunFolder, training_extra

    def run() -> dict[str, Any] | None:
        with processes(what) as started:
            again = bool(started.restarts) and RunFolder(out).is_run()  # all were started again because one was lost
            how = {"resume": resume or again, "overwrite": overwrite and not again}
            document = settings_of(given, config, out, **how)
            recipe = prepared(document, settings or [], str(config or ""))
            with ConsoleWatch() as watch:
                result = recipe(out, **how, watch=watch)
            return result if started.rank == 0 else None

    if engine == "local":
        if workers is not None:
            raise ConfigError("--workers is for --engine ray; on one machine the cores share a batch by themselves")
        return run()
    if engine != "ray":
        raise ConfigError(f"unknown engine '{engine}'; it is one of local, ray")
    from bert_miniatures.config import overridden

    with training_extra(what):
        from bert_miniatures.recipes.ray_processes import shared_by_cluster
    document = overridden(settings_of(given, config, out, resume=resume, overwrite=overwrite), settings or [])
    prepared(document, [], str(config or ""))  # what is wrong with the settings is said before anything starts
    with ConsoleWatch() as watch:
        return shared_by_cluster(run, partial(_share, prepared), document, watch, workers)


def _share(prepared: Prepared, document: dict[str, Any], scratch: Path) -> None:
    """Take part in a run as one of its further processes, which write nothing."""
    prepared(document, [], "")(scratch)


def settings_of(
    given: Mapping[str, Any], config: Path | None, out: Path, *, resume: bool, overwrite: bool
) -> dict[str, Any]:
    """Return the settings of the file, or of the run that is resumed, with the options of the command line on top.

    Args:
        given: what the command line says; None where it says nothing. Mappings are sections.
    """
    from bert_miniatures.config import read_toml
    from bert_miniatures.errors import ConfigError
    from bert_miniatures.files import RunFolder

    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other: one keeps what is in --out, the other does not")
    document: dict[str, Any] = read_toml(config) if config else {}
    if resume and not config and RunFolder(out).is_run():
        document = read_toml(RunFolder(out).config)
    for key, value in given.items():
        if isinstance(value, Mapping):
            if not isinstance(document.get(key, {}), dict):
                raise ConfigError(f"{config}: {key} is a section, [{key}], not a value")
            said = {name: inner for name, inner in value.items() if inner is not None}
            document[key] = dict(document.get(key, {})) | said
        elif value is not None:
            document[key] = value
    if "model" not in document and resume:
        raise ConfigError(f"{out}: there is no run to resume; to begin one give --model and data too")
    if "model" not in document:
        raise ConfigError("no model: give --model, as in --model tiny ('miniatures models' lists them)")
    return document
