"""Optimizers over two flat parameters: all weights that decay, and all that do not.

The model's parameters and gradients are views into two long vectors. Clipping, the update, saving and the exchange of
gradients between processes are then one operation on a vector, whatever the number of layers.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from bert_miniatures.beside import Beside, shared_zeros
from bert_miniatures.config import TrainConfig

__all__ = ["Optimizer", "decay_so_far", "learning_rate"]


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Return the learning rate of update `step` (counted from 0) of `steps`: linear rise, then linear fall to 0.

    Source: google-research/bert `optimization.py`, create_optimizer.
    """
    warmup = int(steps * config.warmup)
    if step < warmup:
        return config.learning_rate * step / warmup
    return config.learning_rate * max(0.0, (steps - step) / max(1, steps - warmup))


def decay_so_far(config: TrainConfig, done: int, steps: int) -> float:
    """Return what weight decay alone makes of a weight in the first `done` updates.

    Both optimizers multiply a decaying weight that never has a gradient by 1 - learning rate x decay at each update.
    """
    factors = (1.0 - learning_rate(config, step, steps) * config.weight_decay for step in range(done))
    return math.prod(factors)


class Optimizer:
    """AdamW or BertAdam, with clipping by the global norm.

    Args:
        model: its parameters become views into the flat vectors.
        config: optimizer, decay, betas, epsilon, clip.
        pieces: in how many pieces the weights can be updated side by side; the numbers do not depend on it.

    Source: AdamW is torch.optim.AdamW (Loshchilov and Hutter 2019). BertAdam is google-research/bert
    `optimization.py`: no bias correction, epsilon outside the root, decay added to the update.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, pieces: int = 1) -> None:
        self.config = config
        split = _split(model)
        self.flat = [_flatten(parameters) for parameters in split]
        rule: type[_AdamW] | type[_BertAdam] = _AdamW if config.optimizer == "adamw" else _BertAdam
        self.moments = [(_zeros(flat), _zeros(flat)) for flat in self.flat]
        decays, others = self.flat
        self.table = _table(model)  # of words: the first of the weights that decay
        bounds = [decays.numel() * i // pieces for i in range(pieces + 1)]
        spans = [(0, slice(*pair), config.weight_decay) for pair in pairwise(bounds)]
        self.rules: list[_AdamW | _BertAdam] = []
        for which, span, decay in [*spans, (1, slice(0, others.numel()), 0.0)]:
            tensors = [self.flat[which].data, self.gradients()[which], *self.moments[which]]
            self.rules.append(rule(_Piece(*(tensor[span] for tensor in tensors)), config, decay))

    def gradients(self) -> list[Tensor]:
        """Return the flat gradients."""
        return [flat.grad for flat in self.flat if flat.grad is not None]

    def gradients_of(self, twin: nn.Module) -> list[Tensor]:
        """Give the parameters of a twin gradients of their own; return these as flat vectors like `gradients()`."""
        return [_views_of(_zeros(flat), parameters) for flat, parameters in zip(self.flat, _split(twin), strict=True)]

    def square(self, words: Tensor | None = None) -> Tensor:
        """Return the squared norm of the gradients, a scalar tensor.

        Args:
            words: the rows of the word table whose gradients may not be zero; None means all. Most of a small model's
                weights are that table, and most of its rows are not in a batch.
        """
        decays, others = self.gradients()
        parts = [decays, others]
        if words is not None:
            parts = [self.table.index_select(0, words).view(-1), decays[self.table.numel() :], others]
        return torch.stack([torch.dot(part, part) for part in parts]).sum()  # a third faster than their norms

    def step(self, learning_rate: float, weight: Tensor, square: Tensor, beside: Sequence[Beside] = ()) -> Tensor:
        """Divide the summed gradients by `weight`, clip them, and update. The gradients are left as they come out.

        Args:
            learning_rate: of this update.
            weight: what turns the sums into means, a scalar tensor.
            square: squared norm of the gradients.
            beside: who does `update` for a piece each; the numbers do not depend on it.

        Returns:
            The global norm before clipping, a scalar tensor.
        """
        norm: Tensor = square.sqrt() / weight
        divisor = weight
        if self.config.clip:
            divisor = weight * ((norm + 1e-6) / self.config.clip).clamp(min=1.0)
        here = list(range(len(self.rules)))
        for other in beside:
            other.ask("update", here.pop(0), learning_rate, float(divisor))
        for index in here:
            self.update(index, learning_rate, divisor)
        for other in beside:
            other.answer()
        return norm

    def update(self, index: int, learning_rate: float, divisor: Tensor | float) -> None:
        """Update one piece of the vectors."""
        rule = self.rules[index]
        rule.update(learning_rate, torch.as_tensor(divisor, dtype=torch.float32, device=rule.piece.weights.device))

    def tensors(self) -> dict[str, Tensor]:
        """Return the state: weights and both moments, by name."""
        out: dict[str, Tensor] = {}
        for name, flat, (first, second) in zip(("decayed", "other"), self.flat, self.moments, strict=True):
            out |= {f"{name}.weights": flat.data, f"{name}.first": first, f"{name}.second": second}
        return out

    def load(self, tensors: dict[str, Tensor], done: int) -> None:
        """Take the state that `tensors` returned after `done` updates."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
        for rule in self.rules:
            rule.done(done)


def _split(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the parameters that decay and those that do not, in the model's order."""
    decays: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        (others if name.endswith("bias") or "norm" in name else decays).append(parameter)
    return decays, others


def _table(model: nn.Module) -> Tensor:
    """Return the gradient of the word table [V, D]; empty where the first of the weights that decay is another one."""
    name, parameter = next(iter(model.named_parameters()))
    gradient = parameter.grad
    assert gradient is not None
    return gradient if name == "embed.word.weight" else gradient.new_empty(0, 1)


def _flatten(parameters: list[nn.Parameter]) -> nn.Parameter:
    """Move parameters into one vector; they become views of it, and their gradients views of its gradient."""
    whole = torch.cat([parameter.detach().reshape(-1) for parameter in parameters])
    flat = nn.Parameter(_zeros(whole).copy_(whole))
    start = 0
    for parameter in parameters:
        end = start + parameter.numel()
        parameter.data = flat.data[start:end].view(parameter.shape)
        start = end
    flat.grad = _views_of(_zeros(whole), parameters)
    return flat


def _views_of(gradient: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """Make the parameters' gradients views of one vector; return it."""
    start = 0
    for parameter in parameters:
        end = start + parameter.numel()
        parameter.grad = gradient[start:end].view(parameter.shape)
        start = end
    return gradient


def _zeros(like: Tensor) -> Tensor:
    """Return zeros of this size; on a CPU in memory that a forked process shares."""
    return shared_zeros(like.numel()) if like.device.type == "cpu" else torch.zeros_like(like.data)


class _Piece(NamedTuple):
    """A span of the flat vectors: weights, gradient, and the two moments."""

    weights: Tensor
    gradient: Tensor
    first: Tensor
    second: Tensor


class _AdamW:
    """torch's fused AdamW, called without the object around it, which costs more than the update of a small model."""

    def __init__(self, piece: _Piece, config: TrainConfig, decay: float) -> None:
        self.piece = piece
        self.constants: dict[str, Any] = {"beta1": config.beta1, "beta2": config.beta2, "eps": config.epsilon or 1e-8}
        self.constants |= {"weight_decay": decay, "amsgrad": False, "maximize": False, "fused": True}
        self.constants["found_inf"] = torch.zeros((), device=piece.weights.device)
        self.done(0)

    def done(self, updates: int) -> None:
        self.count = torch.tensor(float(updates), device=self.piece.weights.device)

    @torch.no_grad()
    def update(self, learning_rate: float, divisor: Tensor) -> None:
        weights, gradient, first, second = self.piece
        more: dict[str, Any] = {"lr": learning_rate, "grad_scale": divisor} | self.constants
        adamw([weights], [gradient], [first], [second], [], [self.count], **more)


class _BertAdam:
    def __init__(self, piece: _Piece, config: TrainConfig, decay: float) -> None:
        self.piece, self.decay = piece, decay
        self.beta1, self.beta2, self.epsilon = config.beta1, config.beta2, config.epsilon or 1e-6

    def done(self, updates: int) -> None:
        """Nothing here depends on the number of updates."""

    @torch.no_grad()
    def update(self, learning_rate: float, divisor: Tensor) -> None:
        weights, gradient, first, second = self.piece
        gradient.div_(divisor)
        first.lerp_(gradient, 1 - self.beta1)
        second.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        change = first / second.sqrt().add_(self.epsilon)
        if self.decay:
            change.add_(weights, alpha=self.decay)
        weights.add_(change, alpha=-learning_rate)
