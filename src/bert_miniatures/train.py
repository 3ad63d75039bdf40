"""train(): a generator that yields after every update. Evaluating, logging, keeping and saving are the caller's.

The noise of an update (dropout) is a pure function of (seed, update), as the order of the batches is one of (seed,
epoch). A state is therefore the weights, the moments and a number, and an interrupted run that is resumed equals the
uninterrupted one bit for bit on a CPU with the same number of threads.
"""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor

from bert_miniatures.beside import Beside, Process, Thread, Work, can_fork
from bert_miniatures.config import TrainConfig
from bert_miniatures.fused import one_blas_thread
from bert_miniatures.model import Bert, twin
from bert_miniatures.objectives import Objective
from bert_miniatures.optim import Optimizer, learning_rate

__all__ = ["Progress", "Source", "TrainState", "train"]

_SMALLEST = 2  # rows of a part; fewer are not worth a process
_MOST = 4  # parts
_NONE = torch.empty(0, dtype=torch.int64)
_CACHED = 131_072  # numbers: two such spans fit into the second-level cache of a core
_SMALL = 32_000_000  # weights beside the word table; many threads can share the operations of larger models


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

    Attributes:
        parts: in how many parts a batch is computed side by side: the number of torch's threads when this is made, at
            most 4; 1 on a GPU, for large models with more threads than that, and where torch.distributed is up. Dropout
            depends on it.
    """

    def __init__(self, model: Bert, config: TrainConfig) -> None:
        self.model = model
        self.parts = _parts(model, config)
        self.optimizer = Optimizer(model, config, self.parts)
        self.step = 0

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors to save, by name."""
        return self.optimizer.tensors()

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        """Take a saved state."""
        self.optimizer.load(tensors, step)
        self.step = step


class Source(Protocol):
    """Training batches in their order: Batches, or PretrainBatches."""

    per_epoch: int

    def rows(self, epoch: int) -> Sequence[npt.NDArray[np.int64]]:
        """Return the rows of each batch of an epoch."""

    def micro(self, rows: npt.NDArray[np.int64], size: int | None) -> Iterator[Any]:
        """Collate rows, at most `size` at a time."""


def train(
    state: TrainState, objective: Objective, batches: Source, config: TrainConfig, steps: int | None = None
) -> Iterator[Progress]:
    """Update the model until `config.epochs` passes are done, from wherever `state` stands.

    Args:
        state: model and optimizer; changed in place.
        objective: maps (model, micro-batch) to a summed loss and its weight.
        batches: the training set in its order.
        steps: updates of the whole run, which set the schedule; None means `config.epochs` passes.

    Yields:
        Progress after each update. Where torch.distributed is up, each process computes its share of every batch and
        all yield the same.
    """
    steps = batches.per_epoch * config.epochs if steps is None else steps
    gc.freeze()  # a collection would look at every object of every imported module, a twentieth of the time
    with _Gradients(state, objective, batches, config) as gradients:
        while state.step < steps:
            begun = state.step
            epoch, done = divmod(begun, batches.per_epoch)
            for index, rows in enumerate(batches.rows(epoch)[done : done + steps - state.step], start=done):
                rate = learning_rate(config, state.step, steps)
                if not state.model.training:  # the caller has evaluated
                    state.model.train()
                with gradients.threads():
                    total, weight, square = gradients.of(rows)
                    norm = state.optimizer.step(rate, weight, square, [one.beside for one in gradients.twins])
                state.step += 1
                ended = index + 1 == batches.per_epoch
                yield Progress(state.step, steps, epoch + 1, ended, total / weight, norm, rate, len(rows))
            if state.step == begun:  # a sequence that raises IndexError looks like one that ends; do not ask for ever
                raise RuntimeError(f"epoch {epoch + 1} has fewer than the {batches.per_epoch} batches that it promised")


class _Part:
    """Computes the summed gradient of some rows of a batch, with a model and gradients of its own.

    Args:
        alone: it computes in one thread, where the layers themselves write their gradients.

    Attributes:
        words: rows of the word table whose gradients may not be 0; None means all.
    """

    def __init__(
        self, number: int, model: Bert, objective: Objective, batches: Source, config: TrainConfig, alone: bool
    ) -> None:
        self.number, self.model, self.objective, self.batches, self.config = number, model, objective, batches, config
        self.device = model.embed.word.weight.device
        self.mixed = config.precision == "bf16" or (config.precision == "auto" and self.device.type == "cuda")
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        model.accumulate_in_place()
        here = model.exact_speedups and self.device.type == "cpu"
        # Only where words are looked up by fused_ends.py, and no masked-language head uses their table, are the rows
        # that were looked up all of its gradient.
        self.dense = "mlm" in model.groups or not here
        self.words: Tensor | None = None
        self.layers = model.layer_sums() if alone and not self.mixed else []
        written = {id(matrix) for layer in self.layers for matrix in layer.matrices}
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        self.table, *others = gradients  # of words: the first parameter
        self.added = [gradient for gradient in others if id(gradient) not in written]

    def gradients(self, step: int, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Compute the gradients of the model; return the summed loss and its weight."""
        model, device = self.model, self.device
        model.noise.seed(self.config.seed, step, self.rank, self.number)
        self._forget()
        total, weight = torch.zeros((), device=device), torch.zeros((), device=device)
        for batch in self.batches.micro(rows, self.config.micro_batch_size):
            with torch.autocast(device.type, torch.bfloat16, enabled=self.mixed):
                loss = self.objective(model, batch.to(device))
            loss.total.backward()  # type: ignore[no-untyped-call]
            total += loss.total.detach()
            weight += loss.weight.to(device)
        for layer in self.layers:
            layer.settle()
        found = model.embed.looked_up
        self.words = None if self.dense or not found else _union(found)
        return total, weight

    def _forget(self) -> None:
        """Set the gradients of the last step to zero, or have them written upon."""
        torch._foreach_zero_(self.added)
        for layer in self.layers:
            layer.forgotten = True
        if self.words is None:
            self.table.zero_()
        else:
            self.table.index_fill_(0, self.words, 0.0)
        self.model.embed.looked_up.clear()


class _Sums:
    """Adds the gradients of all parts, and squares the sums while they are in the cache; a span in each process.

    Args:
        gradients: the flat vectors of each part. The sums are where those of the first part are.
        skipped: how many numbers of the first vector are not added: those of a word table that has few rows.
    """

    def __init__(self, gradients: Sequence[Sequence[Tensor]], skipped: int) -> None:
        decays = [each[0][skipped:] for each in gradients]
        bounds = [decays[0].numel() * i // len(decays) for i in range(len(decays) + 1)]
        self.spans = [[torch.split(whole[a:b], _CACHED) for whole in decays] for a, b in pairwise(bounds)]
        self.spans[0] = [(*span, each[1]) for span, each in zip(self.spans[0], gradients, strict=True)]

    def add(self, index: int, parts: int) -> float:
        """Add those of the first `parts` in a span; return the sum of the squares."""
        square = 0.0
        for whole, *others in zip(*self.spans[index][:parts], strict=True):
            for other in others:
                whole.add_(other)
            square += float(torch.dot(whole, whole))
        return square


class _Twin:
    """Computes a part of each batch beside the main thread, into gradients of its own."""

    def __init__(self, part: _Part, sums: _Sums, optimizer: Optimizer) -> None:
        self.part = part
        work: Work = {"gradients": self.gradients, "add": sums.add, "update": optimizer.update}
        self.beside: Beside = Process(work) if can_fork() else Thread(work)

    def gradients(self, step: int, rows: npt.NDArray[np.int64]) -> tuple[float, float, npt.NDArray[np.int64]]:
        """Compute beside the main thread; return the summed loss, its weight, and which words were looked up."""
        total, weight = self.part.gradients(step, rows)
        words = self.part.words
        return float(total), float(weight), (_NONE if words is None else words).numpy()


class _Gradients:
    """Computes the summed gradient of a batch; on a CPU several processes compute a part of a small model's batch each.

    The operations of a small model are too short to be shared by threads. Each part has its dropout and its gradients;
    they are added in the order of the parts. The numbers depend on the number of parts, not on who computes them.
    """

    def __init__(self, state: TrainState, objective: Objective, batches: Source, config: TrainConfig) -> None:
        self.state = state
        models = [state.model, *(twin(state.model) for _ in range(1, state.parts))]
        gradients = [state.optimizer.gradients(), *map(state.optimizer.gradients_of, models[1:])]
        self.available = torch.get_num_threads()
        self.alone = _alone(state)
        self.part, *others = [_Part(i, model, objective, batches, config, self.alone) for i, model in enumerate(models)]
        self.sums = _Sums(gradients, 0 if self.part.dense else self.part.table.numel())
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        with self.threads():  # which forked processes keep
            self.twins = [_Twin(part, self.sums, state.optimizer) for part in others]

    def __enter__(self) -> "_Gradients":
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.twins:
            one.beside.close()

    @contextmanager
    def threads(self) -> Iterator[None]:
        """Keep single operations from being shared among threads where the parts are the parallel work."""
        if not self.alone:
            yield
            return
        torch.set_num_threads(1)
        try:
            with one_blas_thread() if self.part.layers else nullcontext():
                yield
        finally:
            torch.set_num_threads(self.available)  # for what the caller does between updates

    def of(self, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the summed loss and its weight over all processes, and the squared norm of the gradients.

        The gradients are in the optimizer.
        """
        mine, step = rows[self.rank :: self.world], self.state.step
        twins = self.twins[: max(0, len(mine) // _SMALLEST - 1)]
        for number, one in enumerate(twins, start=1):
            one.beside.ask("gradients", step, mine[number :: len(twins) + 1])
        total, weight = self.part.gradients(step, mine[:: len(twins) + 1])
        words = []
        for one in twins:
            more_total, more_weight, found = one.beside.answer()
            total += more_total
            weight += more_weight
            words.append(torch.from_numpy(found))
        if self.world > 1:
            self.part.words = None  # those of the other processes are not known
            for tensor in (*self.state.optimizer.gradients(), total, weight):
                dist.all_reduce(tensor)
        return total, weight, self._added(words) if words else self.state.optimizer.square(self.part.words)

    def _added(self, words: Sequence[Tensor]) -> Tensor:
        """Add the gradients of the twins that have computed, which looked these words up; return the squared norm."""
        for number, one in enumerate(self.twins, start=1):
            one.beside.ask("add", number, len(words) + 1)
        square = self.sums.add(0, len(words) + 1)
        if self.part.words is not None:
            for one, found in zip(self.twins, words, strict=False):
                self.part.table.index_add_(0, found, one.part.table[found])
            self.part.words = _union([self.part.words, *words])
            square += float(self.part.table[self.part.words].square().sum())
        return torch.tensor(square + sum(one.beside.answer() for one in self.twins))


def _union(words: Sequence[Tensor]) -> Tensor:
    every: Tensor = torch.cat(tuple(words)).unique()  # type: ignore[no-untyped-call]
    return every


def _alone(state: TrainState) -> bool:
    """Tell whether each part is computed in one thread of a CPU, with the exact speed-ups."""
    model, single = state.model, state.parts > 1 or torch.get_num_threads() == 1
    return model.exact_speedups and model.embed.word.weight.device.type == "cpu" and single


def _parts(model: Bert, config: TrainConfig) -> int:
    """Return in how many parts a batch is computed side by side."""
    device = next(model.parameters()).device
    if not config.exact_speedups or device.type != "cpu" or (dist.is_initialized() and dist.get_world_size() > 1):
        return 1
    weights = sum(p.numel() for p in model.parameters()) - model.embed.word.weight.numel()
    threads = torch.get_num_threads()
    return min(threads, _MOST) if weights <= _SMALL or threads <= _MOST else 1
