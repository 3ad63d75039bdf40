"""train(): a generator that yields after every update. Evaluating, logging, keeping and saving are the caller's.

The noise of an update (dropout) is a pure function of (seed, update), as the order of the batches is one of (seed,
epoch). A state is therefore the weights, the moments and a number, and an interrupted run that is resumed equals the
uninterrupted one bit for bit on a CPU with the same number of threads.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from bert_miniatures.config import TrainConfig
from bert_miniatures.data.batches import Batches
from bert_miniatures.model import Bert
from bert_miniatures.objectives import Objective
from bert_miniatures.optim import Optimizer, learning_rate

__all__ = ["Progress", "TrainState", "train"]

_Lookups = list[tuple[Tensor, Tensor]]
_SMALLEST = 4  # rows; fewer are not worth two threads


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
    device = next(state.model.parameters()).device
    steps = batches.per_epoch * config.epochs
    with _Gradients(state, objective, batches, config, device) as gradients:
        while state.step < steps:
            epoch, done = divmod(state.step, batches.per_epoch)
            for index, rows in enumerate(batches.rows(epoch)[done:], start=done):
                rate = learning_rate(config, state.step, steps)
                state.model.train()  # the caller may have evaluated
                with gradients.threads():
                    total, weight = gradients.of(rows)
                    norm = state.optimizer.step(rate, weight, gradients.halves)
                state.step += 1
                ended = index + 1 == batches.per_epoch
                yield Progress(state.step, steps, epoch + 1, ended, total / weight, norm, rate, len(rows))


class _Gradients:
    """Computes the summed gradient of a batch; on a CPU two threads compute a half each.

    The operations of a small model are too short to be split: two threads that share each operation are less than
    twice as fast as one, two that have half of the batch each are nearly so. Both add into the same gradients, and
    a sum of two does not depend on which came first. Rows of the word table are added afterwards, in a fixed order.
    """

    def __init__(
        self, state: TrainState, objective: Objective, batches: Batches, config: TrainConfig, device: torch.device
    ) -> None:
        self.state, self.objective, self.batches, self.config = state, objective, batches, config
        self.device = device
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.mixed = config.precision == "bf16" or (config.precision == "auto" and device.type == "cuda")
        self.available = torch.get_num_threads()
        self.collects = config.exact_speedups and device.type == "cpu"
        self.halves = ThreadPoolExecutor(2) if self.collects and self.available > 1 else None

    def __enter__(self) -> "_Gradients":
        return self

    def __exit__(self, *_: object) -> None:
        if self.halves is not None:
            self.halves.shutdown()

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Keep torch from sharing single operations of this thread where the two halves are the parallel work."""
        if self.halves is None:
            yield
            return
        torch.set_num_threads(max(1, self.available // 2))
        try:
            yield
        finally:
            torch.set_num_threads(self.available)  # for what the caller does between updates

    def of(self, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return the summed loss and its weight over all processes; the gradients are in the optimizer."""
        self.state.optimizer.zero()
        mine = rows[self.rank :: self.world]
        if self.halves is None or len(mine) < _SMALLEST:
            parts = [self._part(mine, 0)]
        else:
            work = [self.halves.submit(self._half, mine[part::2], part) for part in (0, 1)]
            parts = [one.result() for one in work]
        total = torch.stack([part[0] for part in parts]).sum()
        weight = torch.stack([part[1] for part in parts]).sum()
        if self.collects:
            self._add_lookups([lookup for part in parts for lookup in part[2]])
        if self.world > 1:
            for tensor in (*self.state.optimizer.gradients(), total, weight):
                dist.all_reduce(tensor)
        return total, weight

    def _half(self, rows: npt.NDArray[np.int64], part: int) -> tuple[Tensor, Tensor, _Lookups]:
        torch.set_num_threads(max(1, self.available // 2))  # of this thread alone
        return self._part(rows, part)

    def _part(self, rows: npt.NDArray[np.int64], part: int) -> tuple[Tensor, Tensor, _Lookups]:
        model, device = self.state.model, self.device
        model.noise.seed(self.config.seed, self.state.step, self.rank, part)
        total, weight = torch.zeros((), device=device), torch.zeros((), device=device)
        collecting: AbstractContextManager[_Lookups] = model.embed.word.collecting()
        with collecting if self.collects else nullcontext(_Lookups()) as lookups:
            for batch in self.batches.micro(rows, self.config.micro_batch_size):
                with torch.autocast(device.type, torch.bfloat16, enabled=self.mixed):
                    loss = self.objective(model, batch.to(device))
                loss.total.backward()  # type: ignore[no-untyped-call]
                total += loss.total.detach()
                weight += loss.weight.to(device)
        return total, weight, lookups

    @torch.no_grad()
    def _add_lookups(self, lookups: _Lookups) -> None:
        table = self.state.model.embed.word.weight.grad
        assert table is not None
        for ids, rows in lookups:
            assert rows.grad is not None
            table.index_add_(0, ids.reshape(-1), rows.grad.reshape(-1, rows.shape[-1]))
