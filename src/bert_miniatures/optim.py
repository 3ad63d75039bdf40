"""Optimizers over two flat parameters: all weights that decay, and all that do not.

The model's parameters and gradients are views into two long vectors. Clipping, the update, saving and the exchange of
gradients between processes are then one operation on a vector, whatever the number of layers.
"""

import math
from concurrent.futures import Executor

import torch
from torch import Tensor, nn

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

    Source: AdamW is torch.optim.AdamW (Loshchilov and Hutter 2019). BertAdam is google-research/bert
    `optimization.py`: no bias correction, epsilon outside the root, decay added to the update.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.config = config
        decays: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in model.named_parameters():
            (others if name.endswith("bias") or "norm" in name else decays).append(parameter)
        self.flat = [_flatten(decays), _flatten(others)]
        rule: type[_AdamW] | type[_BertAdam] = _AdamW if config.optimizer == "adamw" else _BertAdam
        self.moments = [(torch.zeros_like(flat.data), torch.zeros_like(flat.data)) for flat in self.flat]
        middle = self.flat[0].numel() // 2
        pieces = [(0, slice(0, middle), config.weight_decay), (0, slice(middle, None), config.weight_decay)]
        self.rules: list[_AdamW | _BertAdam] = []
        for which, span, decay in [*pieces, (1, slice(None), 0.0)]:
            first, second = self.moments[which]
            self.rules.append(rule(_piece(self.flat[which], span), first[span], second[span], config, decay))

    def zero(self) -> None:
        """Set all gradients to zero."""
        for gradient in self.gradients():
            gradient.zero_()

    def gradients(self) -> list[Tensor]:
        """Return the flat gradients."""
        return [flat.grad for flat in self.flat if flat.grad is not None]

    def step(self, learning_rate: float, weight: Tensor, threads: Executor | None = None) -> Tensor:
        """Divide the summed gradients by `weight`, clip them and update.

        Args:
            learning_rate: of this update.
            weight: what turns the sums into means, a scalar tensor.
            threads: where the pieces of the vectors are updated side by side; the numbers do not depend on it.

        Returns:
            The global norm before clipping, a scalar tensor.
        """
        gradients = self.gradients()
        norm: Tensor = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients])) / weight
        scale = 1.0 / weight
        if self.config.clip:
            scale = scale * (self.config.clip / (norm + 1e-6)).clamp(max=1.0)
        at_once = map if threads is None else threads.map
        list(at_once(lambda rule: rule.update(learning_rate, scale), self.rules))
        return norm

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


def _flatten(parameters: list[nn.Parameter]) -> nn.Parameter:
    """Move parameters into one vector; they become views of it, and their gradients views of its gradient."""
    flat = nn.Parameter(torch.cat([parameter.detach().reshape(-1) for parameter in parameters]))
    flat.grad = torch.zeros_like(flat)
    start = 0
    for parameter in parameters:
        end = start + parameter.numel()
        parameter.data = flat.data[start:end].view(parameter.shape)
        parameter.grad = flat.grad[start:end].view(parameter.shape)
        start = end
    return flat


def _piece(flat: nn.Parameter, span: slice) -> nn.Parameter:
    """Return a part of a flat vector, gradient included, as a parameter that shares its memory."""
    assert flat.grad is not None
    piece = nn.Parameter(flat.data[span])
    piece.grad = flat.grad[span]
    return piece


class _AdamW:
    def __init__(self, weights: nn.Parameter, first: Tensor, second: Tensor, config: TrainConfig, decay: float) -> None:
        self.weights, self.first, self.second = weights, first, second
        betas, epsilon = (config.beta1, config.beta2), config.epsilon or 1e-8
        self.torch = torch.optim.AdamW([weights], betas=betas, eps=epsilon, weight_decay=decay, fused=True)
        self.done(0)

    def done(self, updates: int) -> None:
        count = torch.tensor(float(updates), device=self.weights.device)
        self.torch.state[self.weights] = {"step": count, "exp_avg": self.first, "exp_avg_sq": self.second}

    def update(self, learning_rate: float, scale: Tensor) -> None:
        assert self.weights.grad is not None
        self.weights.grad.mul_(scale)
        self.torch.param_groups[0]["lr"] = learning_rate
        self.torch.step()


class _BertAdam:
    def __init__(self, weights: nn.Parameter, first: Tensor, second: Tensor, config: TrainConfig, decay: float) -> None:
        self.weights, self.first, self.second, self.decay = weights, first, second, decay
        self.beta1, self.beta2, self.epsilon = config.beta1, config.beta2, config.epsilon or 1e-6

    def done(self, updates: int) -> None:
        """Nothing here depends on the number of updates."""

    @torch.no_grad()
    def update(self, learning_rate: float, scale: Tensor) -> None:
        gradient = self.weights.grad
        assert gradient is not None
        gradient.mul_(scale)
        self.first.lerp_(gradient, 1 - self.beta1)
        self.second.mul_(self.beta2).addcmul_(gradient, gradient, value=1 - self.beta2)
        change = self.first / self.second.sqrt().add_(self.epsilon)
        if self.decay:
            change.add_(self.weights.data, alpha=self.decay)
        self.weights.data.add_(change, alpha=-learning_rate)
