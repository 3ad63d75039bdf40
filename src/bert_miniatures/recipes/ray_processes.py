"""A run whose batches several machines of a Ray cluster share: what torchrun starts by hand on each, Ray starts.

The process that the user started is the first one: it alone writes the run folder, and speaks. Ray starts the others,
one on each further node or as many as are asked for, and they join it as torchrun's processes do (distributed.py).
Nodes need this package and nothing else (ray_cluster.py). Where a node is lost all begin again from the last saved
state, with the nodes that are left.
"""

import os
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from bert_miniatures.errors import ConfigError, MiniaturesError, ProcessLost
from bert_miniatures.files import cache_folder
from bert_miniatures.machine import launch
from bert_miniatures.ray_cluster import Sent, connect, on_this_node, sent
from bert_miniatures.watch import Watch

__all__ = ["shared_by_cluster"]

T = TypeVar("T")
_RESTARTS = 3
_PATIENCE = 120.0  # seconds until all nodes must have answered
_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT",
              "TORCHELASTIC_RESTART_COUNT", "GLOO_SOCKET_IFNAME")  # fmt: skip

Recipe = Callable[[Mapping[str, Any], Path], Any]


def shared_by_cluster(
    run: Callable[[], T], recipe: Recipe, document: Mapping[str, Any], watch: Watch, workers: int | None = None
) -> T:
    """Return what `run` returns, with other processes of the cluster sharing its batches.

    Args:
        run: the run in this process; it joins the others as under torchrun.
        recipe: the same run in the others, from the settings and a folder that it may write to; taken to them by name.
        document: the settings. Strings that name files or folders of this machine are taken along.
        watch: hears how many there are.
        workers: processes, this one included; None is one on each node.

    Raises:
        MissingExtra: Ray is not installed.
        ConfigError: there is no cluster, or it has one node and `workers` does not say more.
        ProcessLost: processes were lost again and again.
    """
    connect()
    ray = import_module("ray")
    files = [sent(path) for path in _named(document)]
    for restart in range(_RESTARTS + 1):
        places = _answering(ray, workers)
        if not places and not restart:
            raise ConfigError("the Ray cluster has one node; --workers N starts several processes on it")
        watch.note(f"{len(places) + 1} processes on the Ray cluster")
        try:
            with _others(ray, partial(_work, recipe, dict(document), files), places, restart):
                return run()
        except ProcessLost as error:
            if restart == _RESTARTS:
                raise
            watch.warn(f"{str(error).split(';')[0]}; all begin again from the last saved state")
    raise AssertionError


def _answering(ray: Any, workers: int | None) -> list[dict[str, Any]]:
    """Return the places of the further processes, where all of them answer: Ray knows late that a node is gone."""
    end = time.monotonic() + _PATIENCE
    while True:
        places = _places(ray, workers)
        asked = [ray.remote(_pid).options(max_retries=0, **place).remote() for place in places]
        try:
            ray.get(asked, timeout=max(1.0, end - time.monotonic()))
            return places
        except (ray.exceptions.RayError, TimeoutError) as error:
            if time.monotonic() >= end:
                raise ProcessLost("nodes of the Ray cluster do not answer; 'ray status' shows them") from error
            time.sleep(1)


def _places(ray: Any, workers: int | None) -> list[dict[str, Any]]:
    """Return what Ray is told about each further process: where it may run, and how many cores it takes."""
    here = ray.get_runtime_context().get_node_id()
    nodes = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]}
    if workers is not None:
        workers = min(workers, max(1, sum(nodes.values())))  # nodes may have been lost
        cores = max(1, sum(nodes.values()) // workers)
        return [{"num_cpus": cores, "scheduling_strategy": "SPREAD"}] * (workers - 1)
    affine = import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
    further = sorted((node, cores) for node, cores in nodes.items() if cores and node != here)
    return [{"num_cpus": cores, "scheduling_strategy": affine(node, soft=False)} for node, cores in further]


@contextmanager
def _others(ray: Any, work: Callable[..., Any], places: list[dict[str, Any]], restart: int) -> Iterator[None]:
    """Start the other processes; have the environment say that this one is the first. End them with the block."""
    address = ray.util.get_node_ip_address()
    common = {"WORLD_SIZE": str(len(places) + 1), "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    common |= {"MASTER_ADDR": address, "MASTER_PORT": str(_free_port(address))}
    common |= {"TORCHELASTIC_RESTART_COUNT": str(restart)}
    tasks, before = [], {name: os.environ.get(name) for name in _VARIABLES}
    for rank, place in enumerate(places, start=1):
        variables = common | {"RANK": str(rank), "OMP_NUM_THREADS": str(place["num_cpus"])}
        options = {"max_retries": 0, "runtime_env": {"env_vars": variables}, **place}
        tasks.append(ray.remote(max_calls=1)(_in_cluster).options(**options).remote(work))
    os.environ.update(common | {"RANK": "0"} | _interface(address))
    try:
        yield
        _raise_first(ray, tasks)
    except ProcessLost:
        _raise_first(ray, tasks)  # why, where one of them knows
        raise
    finally:
        for task in tasks:
            ray.cancel(task, force=True)
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _raise_first(ray: Any, tasks: list[Any]) -> None:
    """Raise the error of the user's that one of the processes ended with; a process that was lost has none."""
    for task in tasks:
        try:
            said = ray.get(task, timeout=30)
        except (ray.exceptions.RayError, TimeoutError):
            continue
        if isinstance(said, MiniaturesError):
            raise said


def _pid() -> int:
    return os.getpid()


def _in_cluster(work: Callable[[], MiniaturesError | None]) -> MiniaturesError | None:
    os.environ.update(_interface(import_module("ray").util.get_node_ip_address()))
    return work()


def _work(recipe: Recipe, document: dict[str, Any], files: list[Sent]) -> MiniaturesError | None:
    """Do this process's share; return the error that it ended with and that is its own."""
    from bert_miniatures.distributed import joined

    names = {one.path: str(on_this_node(one)) for one in files}
    try:
        with joined(launch()):
            recipe(_renamed(document, names), cache_folder() / "ray" / "run")
    except MiniaturesError as error:
        return error
    except SystemExit:  # another process has said why
        return None
    return None


def _named(document: Any) -> list[Path]:
    """Return the files and folders of this machine that strings of a document name."""
    if isinstance(document, Mapping):
        return [path for value in document.values() for path in _named(value)]
    if isinstance(document, list | tuple):
        return [path for value in document for path in _named(value)]
    return [Path(document)] if isinstance(document, str | Path) and document and Path(document).exists() else []


def _renamed(document: Any, names: Mapping[str, str]) -> Any:
    """Return a document with other names for files."""
    if isinstance(document, Mapping):
        return {key: _renamed(value, names) for key, value in document.items()}
    if isinstance(document, list | tuple):
        return [_renamed(value, names) for value in document]
    return names.get(str(document), document) if isinstance(document, str | Path) else document


def _free_port(address: str) -> int:
    with socket.socket() as one:
        one.bind((address, 0))
        return int(one.getsockname()[1])


def _interface(address: str) -> dict[str, str]:
    """Have gloo use the interface with the address that Ray uses; its own guess is what the host's name resolves to."""
    if sys.platform != "linux":
        return {}
    fcntl = import_module("fcntl")
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, suppress(OSError):
            found = fcntl.ioctl(one.fileno(), 0x8915, struct.pack("256s", name.encode()[:15]))  # SIOCGIFADDR
            if socket.inet_ntoa(found[20:24]) == address:
                return {"GLOO_SOCKET_IFNAME": name}
    return {}
