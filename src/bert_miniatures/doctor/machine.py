"""Checks of the machine and of the environment that decides how its cores are used."""

import os
import platform
from collections.abc import Iterator

from bert_miniatures import machine
from bert_miniatures.doctor.subject import Finding, Found, Subject
from bert_miniatures.memory import available

__all__ = ["facts", "gpu_unused", "little_memory", "no_avx2", "pinned", "quota", "thread_numbers", "threads"]

LEAST_MEMORY = 2**30  # a tiny run takes about half of it
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_PINS = {
    "OMP_PROC_BIND": {"true", "close", "spread", "master", "primary"},
    "GOMP_CPU_AFFINITY": None,
    "KMP_AFFINITY": None,
}


def facts(subject: Subject) -> Iterator[str]:
    """Say what the machine gives."""
    cores, limit = machine.cores(subject.root), machine.quota(subject.root)
    yield f"{cores} of {machine.allowed()} cores, the cgroup's quota is {limit:g}" if limit else f"{cores} cores"
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    if load > cores / 2:
        yield f"other work runs here (load {load:.1f}): times are longer than they need be"
    free = available(subject.root)
    yield "memory: unknown" if free is None else f"{free / 2**30:.1f} GiB of memory free"
    told = machine.instruction_sets(subject.root)
    vnni = any("vnni" in flag or "amx" in flag for flag in told)
    if told:
        shown = [name for name in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp") if name in told]
        yield f"{platform.machine()} {' '.join(shown)}"
        if platform.machine() in {"x86_64", "AMD64"} and not vnni:
            yield "no VNNI: int8 exports get 7 bits here"
    count = len(_gpus(subject))
    yield f"{count} NVIDIA GPU{'' if count == 1 else 's'}" if count else "no NVIDIA GPU"


def _gpus(subject: Subject) -> list[str]:
    folder = subject.root / "proc/driver/nvidia/gpus"
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def quota(subject: Subject) -> Found:
    """Less than a whole core."""
    limit = machine.quota(subject.root)
    if limit is not None and limit < 1:
        yield Finding(
            f"the container may use {limit:g} of a core",
            "it is stopped for a part of every tenth of a second, and what runs then waits that long",
            "give it a whole core: docker run --cpus 1 ..., or limits.cpu: '1' in Kubernetes",
        )


def little_memory(subject: Subject) -> Found:
    """Not enough memory for the smallest run."""
    free = available(subject.root)
    if free is not None and free < LEAST_MEMORY:
        yield Finding(
            f"{free / 2**20:.0f} MiB of memory are free",
            "torch and numba alone take 440 MiB; a run that does not fit is killed without a word",
            "end other processes, or give the container more: docker run --memory 2g ...",
        )


def no_avx2(subject: Subject) -> Found:
    """An x86 processor, or an emulated one, without AVX2."""
    told = machine.instruction_sets(subject.root)
    if "sse2" in told and "avx2" not in told:
        yield Finding(
            "the processor says that it has no AVX2",
            "matrix products then take several times as long; on a virtual machine it is often only not passed on",
            "on a virtual machine choose the processor type 'host'; otherwise prefer 2/128 and 4/128",
        )


def gpu_unused(subject: Subject) -> Found:
    """A GPU, and a torch that cannot use it."""
    torch = subject.installed.get("torch")
    if _gpus(subject) and torch is not None and torch.version.endswith("+cpu"):
        yield Finding(
            f"there is a GPU, and torch {torch.version} is a build without CUDA",
            "training runs on the processor alone",
            "pip install --force-reinstall torch with the CUDA line that pytorch.org/get-started shows",
        )


def thread_numbers(subject: Subject) -> Found:
    """A number of threads that is none: libraries then take all cores of the machine, in silence."""
    for name in _THREADS:
        value = os.environ.get(name)
        if value is not None and not (value.isdecimal() and int(value) > 0):
            yield Finding(
                f"{name} is '{value}', which is no number of threads",
                "libraries ignore it in silence and start a thread for every core of the machine",
                f"unset {name}",
            )


def threads(subject: Subject) -> Found:
    """More threads than cores."""
    cores = machine.cores(subject.root)
    given = {name: os.environ.get(name, "") for name in _THREADS} | {"train.threads": str(subject.train.threads)}
    beside = os.environ.get("LOCAL_WORLD_SIZE", "1")
    local = int(beside) if beside.isdecimal() and int(beside) > 0 else 1
    for name, value in given.items():
        if value.isdecimal() and int(value) * local > cores:
            each = f" in each of {local} processes" if local > 1 else ""
            better = max(1, cores // local)
            yield Finding(
                f"{name} is {value}{each}, and this process may use {cores} cores",
                "threads that wait for each other's core make small models slower, not faster",
                f"--set train.threads={better}" if name == "train.threads" else f"export {name}={better}",
            )


def pinned(subject: Subject) -> Found:
    """Threads that are bound to cores: those of several processes then share the first ones."""
    for name, values in _PINS.items():
        value = os.environ.get(name, "").casefold()
        if value and (value in values if values is not None else value not in {"none", "disabled"}):
            yield Finding(
                f"{name} is '{os.environ[name]}'",
                "the processes of a sweep or a service are bound to the same cores, and the other cores stay idle",
                f"unset {name}",
            )
