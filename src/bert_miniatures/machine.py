"""What this machine gives to a process: cores, and the other processes that share its work."""

import math
import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["LINGERING", "Launch", "cores", "launch"]

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


def cores() -> int:
    """Return how many cores this process may use: the affinity mask, cut to the cgroup's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota()
    return max(1, min(allowed, math.ceil(quota))) if quota else allowed


def _cgroup_quota() -> float | None:
    """Return the CPU quota in cores, or None where there is none (cgroup v2, then v1)."""
    try:
        limit, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):
        pass
    try:
        base = Path("/sys/fs/cgroup/cpu")
        limit_us = int((base / "cpu.cfs_quota_us").read_text())
        return limit_us / int((base / "cpu.cfs_period_us").read_text()) if limit_us > 0 else None
    except (OSError, ValueError):
        return None
