"""What this machine gives to a process: cores, instruction sets, and other processes that share its work."""

import math
import os
import platform
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LINGERING", "Launch", "adds_in_32_bits", "allowed", "cores", "instruction_sets", "instructions", "launch",
           "quota"]  # fmt: skip

_ROOT = Path("/")  # where `proc` and `sys` are

LINGERING = 1.0  # seconds that a process waits before it ends in silence, because another one says why


@dataclass(frozen=True)
class Launch:
    """How a launcher such as torchrun started this process.

    Attributes:
        rank: its number among all processes, from 0.
        world: how many there are.
        local: how many of them are on this machine.
        restarts: how often the launcher started all of them again.
    """

    rank: int = 0
    world: int = 1
    local: int = 1
    restarts: int = 0


def launch() -> Launch:
    """Read torchrun's environment; without RANK, or with a WORLD_SIZE of 1, this is one process alone."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT")
    rank, world, local, restarts = (os.environ.get(name, "") for name in names)
    if not rank.isdecimal() or not world.isdecimal():
        return Launch()
    if int(world) <= 1:
        return Launch(restarts=int(restarts or 0))
    return Launch(int(rank), int(world), int(local or world), int(restarts or 0))


def allowed() -> int:
    """Return how many cores the affinity mask has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota(root: Path = _ROOT) -> float | None:
    """Return the cgroup's CPU quota in cores, or None where there is none (cgroup v2, then v1)."""
    base = root / "sys/fs/cgroup"
    try:
        limit, period = (base / "cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        limit_us = int((base / "cpu/cpu.cfs_quota_us").read_text())
        return limit_us / int((base / "cpu/cpu.cfs_period_us").read_text()) if limit_us > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None


def cores(root: Path = _ROOT) -> int:
    """Return how many cores this process may use: the affinity mask, cut to the cgroup's quota."""
    limit = quota(root)
    return max(1, min(allowed(), math.ceil(limit))) if limit else allowed()


# ------------------------------------------------------------------------------------------ instruction sets


def instruction_sets(root: Path = _ROOT) -> list[str]:
    """Return the names that Linux has for the processor's instruction sets; none on other systems."""
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return next((line.split(":")[-1].split() for line in lines if line.startswith(("flags", "Features"))), [])


_TOLD = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")


def instructions() -> str:
    """Return the processor's architecture and which of the instructions it has that decide 8-bit products.

    Example:
        >>> instructions()  # doctest: +SKIP
        'x86_64 avx2 avx512f avx512_vnni'
    """
    found = instruction_sets()
    return " ".join([platform.machine(), *(name for name in _TOLD if name in found)])


def adds_in_32_bits(told: str | None = None) -> bool:
    """Tell whether 8-bit products cannot overflow on a processor; None means this one.

    x86 without VNNI adds two products of 8 by 8 bits into 16 bits and cuts what does not fit.

    Args:
        told: what `instructions` says of it.
    """
    found = (told or instructions()).split()
    return found[0].lower() not in {"x86_64", "amd64"} or any("vnni" in flag or "amx" in flag for flag in found)
