"""Some updates of a planned run, thrown away afterwards."""

import math
import time
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise

import torch

from bert_miniatures.config import FinetuneConfig
from bert_miniatures.data.batches import Batches
from bert_miniatures.evaluation import prior_loss
from bert_miniatures.forecast import Cost, seconds_of, updates_of
from bert_miniatures.objectives import Objective
from bert_miniatures.recipes.loading import Inputs, load_inputs, starting_point
from bert_miniatures.recipes.method import labels_of, model_of, narrow, objective_of, set_threads, standard
from bert_miniatures.train import TrainState, train
from bert_miniatures.watch import Watch

__all__ = ["Probed", "probe"]

STEPS, LEAST, SECONDS, WARM = 40, 8, 6.0, 3  # the first updates also load libraries and are not timed


@dataclass(frozen=True)
class Probed:
    """What a few updates showed.

    Attributes:
        step: seconds of one update.
        seconds: of the whole run, estimated.
        updates: of the whole run.
        losses: of the updates that were made, at the full learning rate after a short warm-up.
        prior: the loss of a model that knows only how frequent each label is.
    """

    step: float
    seconds: float
    updates: int
    losses: tuple[float, ...]
    prior: float

    @property
    def diverged(self) -> bool:
        """Whether the loss is no number any more, or ends at twice what guessing would give."""
        last = self.losses[-max(1, len(self.losses) // 4) :]
        return not all(map(math.isfinite, self.losses)) or sum(last) / len(last) > 2 * max(self.prior, 0.3)


def probe(config: FinetuneConfig) -> Probed:
    """Make 8 to 40 updates, as many as 6 seconds give, and keep nothing.

    They have a schedule of their own: 4 updates of warm-up, so that the full learning rate is seen at once.

    Raises:
        UserError: the run could not begin.
    """
    began = time.monotonic()
    inputs = load_inputs(config, Watch())
    loaded = time.monotonic()
    state, batches, objective = _prepared(config, inputs)
    losses, times = [], [time.monotonic()]
    steps = min(STEPS, batches.per_epoch * config.train.epochs)
    with closing(train(state, objective, batches, config.train, steps=steps)) as updates:  # type: ignore[type-var]
        for progress in updates:
            losses.append(float(progress.loss))
            times.append(time.monotonic())
            late = times[-1] - times[0] > SECONDS and len(losses) >= LEAST
            if late or not math.isfinite(losses[-1]):
                break
    waits = [after - before for before, after in pairwise(times)]
    timed = waits[WARM:] or waits
    rows = {name: len(examples) for name, examples in inputs.splits.items()}
    cost = Cost(
        step=sum(timed) / len(timed),
        start=times[0] - loaded,
        load=loaded - began,
        steps=len(timed),
        train_rows=rows["train"],
        dev_rows=sum(count for name, count in rows.items() if name != "train"),
    )
    prior = prior_loss(inputs.task.kind, labels_of(inputs.data["train"]))
    seconds = seconds_of(config, cost) + cost.load
    return Probed(cost.step, seconds, updates_of(config, cost), tuple(losses), prior)


def _prepared(config: FinetuneConfig, inputs: Inputs) -> tuple[TrainState, Batches, Objective]:
    """Make what training needs, as fine-tuning does."""
    task, data = inputs.task, inputs.data["train"]
    set_threads(config.train)
    objective = objective_of(task, data, config.train, *standard(task, data, config.train))
    full, classes = starting_point(inputs.parent, task, Watch())
    used, narrowed = narrow(inputs.data, config.train)
    model = model_of(inputs.parent, full, used, classes, config.train)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    state = TrainState(model.to(device), config.train)
    return state, Batches(narrowed["train"], config.train.batch_size, config.train.seed), objective
