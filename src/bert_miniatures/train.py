"""train(): a generator that yields after every update. Evaluating, logging, keeping and saving are the caller's.

The noise of an update (dropout) is a pure function of (seed, update), as the order of the batches is one of (seed,
epoch). A state is therefore the weights, the moments and a number, and an interrupted run that is resumed equals the
uninterrupted one bit for bit on a CPU with the same number of threads.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from bert_miniatures.config import TrainConfig
from bert_miniatures.data.batches import Batches
from bert_miniatures.model import Bert
from bert_miniatures.objectives import Objective
from bert_miniatures.optim import Optimizer, learning_rate

__all__ = ["Progress", "TrainState", "train"]


@dataclass(frozen=True)
class Progress:
    """What is known after an update.

    Attributes:
        step: updates done, counted from the start of the run.
        steps: updates of the whole run.
        epoch: passes over the data that are complete or under way, counted from 1.
        epoch_ended: this was the last update of its epoch.
        loss: mean loss of the batch, a scalar on the model's device (reading it waits for the device).
        gradient_norm: global norm before clipping, a scalar on the model's device.
        learning_rate: of this update.
        examples: examples of this update, over all processes.
    """

    step: int
    steps: int
    epoch: int
    epoch_ended: bool
    loss: Tensor
    gradient_norm: Tensor
    learning_rate: float
    examples: int


class TrainState:
    """All that a run needs to go on: weights and moments (in the optimizer) and the number of updates done.

    Args:
        model: where it should be trained, its device included.
        config: of the optimizer.
    """

    def __init__(self, model: Bert, config: TrainConfig) -> None:
        self.model = model
        self.optimizer = Optimizer(model, config)
        self.step = 0

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to save, by name."""
        return self.optimizer.tensors()

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        """Take a saved state."""
        self.optimizer.load(tensors, step)
        self.step = step


def train(state: TrainState, objective: Objective, batches: Batches, config: TrainConfig) -> Iterator[Progress]:
    """Update the model until `config.epochs` passes are done, from wherever `state` stands.

    Args:
        state: model and optimizer; changed in place.
        objective: maps (model, micro-batch) to a summed loss and its weight.
        batches: the training set in its order.

    Yields:
        Progress after each update. Where torch.distributed is up, each process computes its share of every batch and
        all yield the same.
    """
    model, device = state.model, next(state.model.parameters()).device
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    mixed = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
    steps = batches.per_epoch * config.epochs
    model.train()
    while state.step < steps:
        epoch, done = divmod(state.step, batches.per_epoch)
        for index, rows in enumerate(batches.rows(epoch)[done:], start=done):
            rate = learning_rate(config, state.step, steps)
            torch.manual_seed(_noise(config.seed, state.step, rank))
            state.optimizer.zero()
            total, weight = torch.zeros((), device=device), torch.zeros((), device=device)
            for batch in batches.micro(rows[rank::world], config.micro_batch_size):
                with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
                    loss = objective(model, batch.to(device))
                loss.total.backward()  # type: ignore[no-untyped-call]
                total += loss.total.detach()
                weight += loss.weight.to(device)
            if world > 1:
                for tensor in (*state.optimizer.gradients(), total, weight):
                    dist.all_reduce(tensor)
            norm = state.optimizer.step(rate, weight)
            state.step += 1
            ended = index + 1 == batches.per_epoch
            yield Progress(state.step, steps, epoch + 1, ended, total / weight, norm, rate, len(rows))
            model.train()  # the caller may have evaluated


def _noise(seed: int, step: int, rank: int) -> int:
    digest = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
