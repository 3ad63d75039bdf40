"""How long a pre-training run is: the number of updates, which a budget of time decides and corrects on the way.

The learning rate, the lengths of the texts and the moments of validation are functions of an update's number and of the
updates of the whole run. A budget is turned into such a number before the first update, and into another one where the
machine turns out slower or faster. Each number is an event that is kept with the state, so that a run can be resumed
and repeated exactly, whatever the clock says.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

__all__ = ["Horizon", "Pace"]

_EVALUATIONS = 10  # of a run, where the settings do not say how often
_TOLERATED = 0.05  # of the updates that are left; a smaller correction is not worth another schedule


class Pace(NamedTuple):
    """Seconds of an update at the first length and at the second one, and of a validation."""

    short: float
    long: float
    evaluation: float = 0.0


@dataclass(frozen=True)
class Horizon:
    """The length of a run.

    Attributes:
        events: (update, updates of the whole run known from there on), ascending from update 0.
        long_share: the last updates, this share of all, read longer texts.
        eval_every: updates between two validations; None means a tenth of the run.

    Example:
        >>> run = Horizon(((0, 1000), (400, 900)), long_share=0.1)
        >>> run.steps, run.long_begins
        (900, 810)
    """

    events: tuple[tuple[int, int], ...]
    long_share: float = 0.0
    eval_every: int | None = None

    @property
    def steps(self) -> int:
        """Updates of the whole run, as far as is known."""
        return self.events[-1][1]

    def cut(self, step: int) -> int:
        """Return until which update `train` may be called with the number of updates that is known at `step`."""
        return next((at for at, _ in self.events if at > step), self.steps)

    def known_at(self, step: int) -> int:
        """Return the updates of the whole run that are known at `step`."""
        return [steps for at, steps in self.events if at <= step][-1]

    @property
    def long_begins(self) -> int:
        """The first update with longer texts; once they have begun they stay. Without any, beyond the end."""
        if not self.long_share:
            return self.steps
        for at, steps in self.events:
            first = max(at, math.ceil(steps * (1 - self.long_share)))
            if first < self.cut(at):
                return first
        return self.steps

    def is_due(self, step: int) -> bool:
        """Tell whether validation follows after this many updates: every so often, and at the end."""
        steps = self.known_at(step - 1)
        if step == self.steps:
            return True
        if self.eval_every:
            return step % self.eval_every == 0
        return step * _EVALUATIONS // steps > (step - 1) * _EVALUATIONS // steps

    def evaluations_after(self, step: int) -> int:
        """Return how many validations are left."""
        if self.eval_every:
            return -(-self.steps // self.eval_every) - step // self.eval_every
        return _EVALUATIONS - step * _EVALUATIONS // self.steps

    def begun(self, seconds: float, pace: Pace) -> "Horizon":
        """Decide the number of updates, before the first one.

        Args:
            seconds: that are left.
            pace: as measured.
        """
        first = replace(self, events=((0, max(1, self._fit(0, seconds, pace))),))
        left = seconds - first.evaluations_after(0) * pace.evaluation
        return replace(self, events=((0, max(1, self._fit(0, left, pace))),))

    def corrected(self, step: int, seconds: float, pace: Pace) -> "Horizon":
        """Correct the number of updates after `step` of them, where it is off by more than a twentieth of the rest."""
        found = self._fit(step, seconds - self.evaluations_after(step) * pace.evaluation, pace)
        if abs(found - self.steps) <= max(1.0, _TOLERATED * (self.steps - step)):
            return self
        return replace(self, events=(*self.events, (step, found)))

    def _fit(self, done: int, seconds: float, pace: Pace) -> int:
        """Return the updates of a run that has so many seconds left."""
        seconds = max(0.0, seconds)
        if done and done >= self.long_begins:
            return done + int(seconds / pace.long)
        short = 1 - self.long_share
        steps = int((seconds + done * pace.short) / (short * pace.short + self.long_share * pace.long))
        return steps if steps * short >= done else done + int(seconds / pace.long)
