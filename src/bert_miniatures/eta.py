"""When the rest of a sweep will be done: from forecast costs, corrected by what was measured."""

import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Eta"]


@dataclass
class _Work:
    """A job: forecast seconds, how much of it is asked for, what was done before, what is done now (0 to 1)."""

    seconds: float
    target: float
    before: float | None  # None: begun in an earlier call, how far is not known yet
    share: float = 0.0
    updates: tuple[int, int] = (0, 0)


class Eta:
    """Adds up the work of jobs that run side by side.

    Args:
        workers: how many run at once.
        now: the clock, in seconds.

    Attributes:
        later: forecast seconds of work that no job stands for yet.
    """

    def __init__(self, workers: int, now: Callable[[], float] = time.monotonic) -> None:
        self.workers, self.later, self._now = max(1, workers), 0.0, now
        self._began, self._jobs = now(), dict[str, _Work]()

    def expect(self, job: str, seconds: float, target: float = 1.0, *, begun: bool = False) -> None:
        """Add a job, or ask for more of one.

        Args:
            job: its name.
            seconds: forecast for all of it.
            target: the share of it that is asked for.
            begun: an earlier call did some of it.
        """
        work = self._jobs.setdefault(job, _Work(seconds, target, None if begun else 0.0))
        work.target = target

    def heard(self, job: str, done: int, total: int) -> None:
        """Take a worker's word about a job; what an earlier call did is not counted as work of this one."""
        work, share = self._jobs[job], done / max(1, total)
        if work.before is None:
            work.before, work.updates = share, (done, done)
        work.share, work.updates = share, (work.updates[0], done)

    def ended(self, job: str) -> None:
        """Take the end of a job: it did what was asked for, or will not do it."""
        work = self._jobs[job]
        work.before, work.share = work.before or 0.0, work.target

    def left(self) -> float:
        """Return the seconds until all is done: the forecast of what is left, times how true the forecast was so far.

        It is never less than what the longest job has left.
        """
        jobs = self._jobs.values()
        done = sum(work.seconds * max(0.0, work.share - (work.before or 0.0)) for work in jobs)
        rest = [work.seconds * max(0.0, work.target - work.share) for work in jobs]
        passed = self._now() - self._began
        trust = passed * min(self.workers, len(rest)) / done if done > 0 and passed > 5 else 1.0
        return trust * max([(sum(rest) + self.later) / self.workers, *rest])

    def rate(self) -> float:
        """Return updates per second, all workers together."""
        updates = sum(last - first for first, last in (work.updates for work in self._jobs.values()))
        return updates / max(1e-9, self._now() - self._began)
