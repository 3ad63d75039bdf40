"""Cells as tasks of a Ray cluster: data are shipped once to a node, run folders come back, lost cells run again.

Nodes need this package and nothing else: neither the data, nor the model, nor a shared file system.
"""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bert_miniatures.distill_config import inputs_key, recipe_settings
from bert_miniatures.files import RunFolder, atomic_write
from bert_miniatures.pool import Job
from bert_miniatures.ray_cluster import RETRIES, RayPool, cluster
from bert_miniatures.recipes.worker import SharedInputs, answer
from bert_miniatures.watch import Watch

__all__ = ["cells_on_cluster"]

_HELD = SharedInputs()  # of this process: Ray runs many tasks in one


def cells_on_cluster(limit: int | None = None) -> RayPool:
    """Return what hands out cells to the cluster that this process has joined.

    Args:
        limit: how many at once; None takes the cluster's cores.
    """
    shipped: dict[str, Any] = {}

    def start(job: Job) -> Any:
        config = recipe_settings(job.request["config"])
        key = inputs_key(config)
        if key not in shipped:
            shipped[key] = cluster().put(_HELD.loaded(config))
        threads = config.train.threads or 1
        task = cluster().remote(_work).options(num_cpus=threads, max_retries=RETRIES, name=job.name)
        out = job.request.get("out")
        begun = _read(Path(out)) if out else {}
        return task.remote(dict(job.request), begun, [shipped[key]])  # in a list, Ray leaves it where it is

    return RayPool(start, _ended, limit)


def _ended(job: Job, returned: tuple[dict[str, Any], dict[str, bytes]]) -> dict[str, Any]:
    found, files = returned
    if job.request.get("out"):
        _write(Path(job.request["out"]), files)
    return found


def _work(
    request: dict[str, Any], begun: dict[str, bytes], inputs: list[Any]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Do a job on a node: in a folder of its own, whose files go back."""
    config = recipe_settings(request["config"])
    if not _HELD.holds(config):
        _HELD.hold(config, *cluster().get(inputs[0]))
    folder = Path(tempfile.mkdtemp(prefix="cell-"))
    try:
        _write(folder, begun)
        found = answer(request | {"out": str(folder)}, _HELD, Watch())
        return found, {} if "probe" in request or "prepare" in request else _read(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _read(folder: Path) -> dict[str, bytes]:
    """Return the files of a run folder; what is half-written or only of the sweep stays behind."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes()
        for name, path in found.items()
        if name != "failed.json" and not any(part.startswith(".") for part in Path(name).parts)
    }


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files, result.json last: a folder that has it is whole."""
    for name in sorted(files, key=lambda name: name == "result.json"):
        with atomic_write(folder / name) as temporary:
            temporary.write_bytes(files[name])
    if "result.json" in files:
        shutil.rmtree(RunFolder(folder).state, ignore_errors=True)
