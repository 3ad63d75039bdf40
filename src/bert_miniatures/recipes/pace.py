"""How fast a run is: tokens a second, the share of what this machine can do, and how long an update will take."""

import time
from collections.abc import Callable

import torch

from bert_miniatures.config import TrainConfig
from bert_miniatures.distributed import Team
from bert_miniatures.objectives import Objective
from bert_miniatures.recipes.course import Course
from bert_miniatures.recipes.running import updating
from bert_miniatures.train import TrainState

__all__ = ["Speed", "gemm_peak", "seconds_of_updates"]

_SECONDS = 0.15  # that the measurement of the peak takes, about
_SIZES = {"cpu": 1024, "cuda": 8192}
_NO_END = 10**9  # updates of a trial: so many that its learning rate is next to nothing
_SKIPPED, _FEWEST, _MOST = 3, 2, 20  # updates of a trial: not measured, measured


class Speed:
    """Counts what was done, and the seconds that updates alone took."""

    def __init__(self) -> None:
        self.tokens, self.work, self.updates, self.seconds = 0, 0.0, 0, 0.0

    def add(self, tokens: int, work: float, updates: int = 1, seconds: float = 0.0) -> None:
        """Take some updates: their tokens and floating-point operations."""
        self.tokens, self.work = self.tokens + tokens, self.work + work
        self.updates, self.seconds = self.updates + updates, self.seconds + seconds

    def per_second(self) -> tuple[float, float]:
        """Return tokens and floating-point operations a second."""
        return self.tokens / max(1e-9, self.seconds), self.work / max(1e-9, self.seconds)


def gemm_peak(device: torch.device, *, mixed: bool = False) -> float:
    """Return the floating-point operations a second of a square matrix product, the best of a few.

    Args:
        device: on a CPU all of torch's threads are used.
        mixed: in bf16 instead of fp32.
    """
    size, kind = _SIZES[device.type], torch.bfloat16 if mixed else torch.float32
    a, b = (torch.ones(size, size, dtype=kind, device=device) for _ in range(2))
    best, end = 0.0, time.perf_counter() + _SECONDS
    while best == 0.0 or time.perf_counter() < end:
        started = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the device
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def seconds_of_updates(
    state: TrainState,
    objective: Objective,
    course: Course,
    config: TrainConfig,
    team: Team,
    *,
    limit: float,
    asked: Callable[[], bool],
) -> list[float]:
    """Return the seconds of an update for each length, from a few updates that the caller undoes.

    Args:
        limit: seconds for each length, beyond the fewest updates that say anything.
        asked: whether the user wants to stop.

    Raises:
        KeyboardInterrupt: the user wants to stop.
    """
    found = []
    for phase in range(len(course.phases)):
        course.long_begins, times = (state.step if phase else _NO_END), [0.0]
        with updating(state, objective, course, config, _NO_END) as updates:
            for count, progress in enumerate(updates, start=1):
                float(progress.loss)  # waits for the device
                times.append(time.monotonic())
                measured = count - _SKIPPED
                enough = measured >= _MOST or (measured >= _FEWEST and times[-1] - times[1] > limit)
                if team.any(asked()):
                    raise KeyboardInterrupt
                if team.any(enough and team.first):
                    break
        found.append((times[-1] - times[_SKIPPED]) / (len(times) - 1 - _SKIPPED))
    return found
