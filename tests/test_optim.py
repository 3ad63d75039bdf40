"""Optimizers and schedule against torch's AdamW, Google's formula written out, and transformers' schedule."""

import math

import numpy as np
import pytest
import torch
from transformers import get_linear_schedule_with_warmup

from bert_miniatures.config import TrainConfig
from bert_miniatures.model import build
from bert_miniatures.optim import Optimizer, decay_so_far, learning_rate

STEPS = 23


def gradients(model, seed: int) -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(seed)
    return {name: torch.randn(p.shape, generator=drawn) for name, p in model.named_parameters()}


def ours(config, settings: TrainConfig):
    model = build(config, groups={"pooler", "head"}, classes=3, seed=1)
    optimizer = Optimizer(model, settings)
    for step in range(STEPS):
        for name, gradient in gradients(model, step).items():
            parameter = model.get_parameter(name)
            parameter.grad.copy_(7.0 * gradient)  # the loop hands in sums; the weight makes means of them
        optimizer.step(learning_rate(settings, step, STEPS), torch.tensor(7.0), optimizer.square())
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("clip", [1.0, 0.0])
def test_adamw_is_torchs_adamw(config, clip):
    settings = TrainConfig(learning_rate=3e-3, clip=clip, weight_decay=0.1, warmup=0.2)
    model = build(config, groups={"pooler", "head"}, classes=3, seed=1)
    plain = [p for n, p in model.named_parameters() if n.endswith("bias") or "norm" in n]
    decayed = [p for n, p in model.named_parameters() if not (n.endswith("bias") or "norm" in n)]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=3e-3)
    schedule = get_linear_schedule_with_warmup(theirs, int(STEPS * 0.2), STEPS)
    for step in range(STEPS):
        for name, gradient in gradients(model, step).items():
            model.get_parameter(name).grad = gradient
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        theirs.step()
        schedule.step()
    mine = ours(config, settings)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(mine[name], parameter.detach(), atol=2e-6, rtol=1e-5)


def test_bertadam_is_googles_formula(config):
    settings = TrainConfig(optimizer="bertadam", learning_rate=3e-3, clip=1.0, weight_decay=0.1)
    model = build(config, groups={"pooler", "head"}, classes=3, seed=1)
    weights = {name: p.detach().double().numpy() for name, p in model.named_parameters()}
    first = {name: np.zeros_like(w) for name, w in weights.items()}
    second = {name: np.zeros_like(w) for name, w in weights.items()}
    for step in range(STEPS):
        drawn = {name: g.double().numpy() for name, g in gradients(model, step).items()}
        norm = math.sqrt(sum(float((g**2).sum()) for g in drawn.values()))
        rate = learning_rate(settings, step, STEPS)
        for name, gradient in drawn.items():
            g = gradient / max(1.0, norm)
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g * g
            update = first[name] / (np.sqrt(second[name]) + 1e-6)
            if not (name.endswith("bias") or "norm" in name):
                update = update + 0.1 * weights[name]
            weights[name] = weights[name] - rate * update
    mine = ours(config, settings)
    for name, expected in weights.items():
        np.testing.assert_allclose(mine[name].numpy(), expected, atol=2e-6, rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("optimizer", ["adamw", "bertadam"])
@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_where_few_words_have_gradients_the_others_need_not_be_looked_at(config, optimizer, pieces):
    """The same norms and weights, whether the words are named or not."""
    settings = TrainConfig(optimizer=optimizer, learning_rate=3e-3, weight_decay=0.1)
    ends = []
    for named in (False, True):
        model = build(config, groups={"pooler", "head"}, classes=3, seed=1)
        each, norms = Optimizer(model, settings, pieces), []
        for step in range(5):
            words = torch.tensor([step, 7, 7 * step + 2])
            for name, gradient in gradients(model, step).items():
                parameter = model.get_parameter(name)
                if name == "embed.word.weight":
                    parameter.grad.zero_()[words] = gradient[words]
                else:
                    parameter.grad.copy_(gradient)
            square = each.square(words.unique() if named else None)
            norms.append(each.step(3e-3, torch.tensor(7.0), square))
        ends.append((torch.stack(norms), torch.cat([flat.detach() for flat in each.flat])))
    for whole, few in zip(*ends, strict=True):
        torch.testing.assert_close(few, whole, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0.1), (10, 0.0), (10, 0.1), (101, 0.1), (7, 1.0)])
def test_schedule_is_that_of_transformers(steps, warmup):
    settings = TrainConfig(learning_rate=1.0, warmup=warmup)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = get_linear_schedule_with_warmup(optimizer, int(steps * warmup), steps)
    for step in range(steps):
        assert learning_rate(settings, step, steps) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("optimizer", ["adamw", "bertadam"])
def test_decay_in_closed_form_is_what_the_optimizer_does_without_gradients(config, optimizer):
    settings = TrainConfig(optimizer=optimizer, learning_rate=1e-2, weight_decay=0.3)
    model = build(config, seed=1)
    before = model.embed.word.weight.detach().clone()
    one = Optimizer(model, settings)
    for step in range(STEPS):
        one.step(learning_rate(settings, step, STEPS), torch.tensor(1.0), one.square())
        expected = before * decay_so_far(settings, step + 1, STEPS)
        torch.testing.assert_close(model.embed.word.weight.detach(), expected, atol=1e-7, rtol=1e-5)


def test_state_goes_on_bit_for_bit(config):
    settings = TrainConfig(learning_rate=1e-2)
    one, other = build(config, seed=1), build(config, seed=2)
    a = Optimizer(one, settings)
    for step in range(5):
        for name, gradient in gradients(one, step).items():
            one.get_parameter(name).grad.copy_(gradient)
        a.step(1e-2, torch.tensor(1.0), a.square())
    b = Optimizer(other, settings)
    b.load({name: tensor.clone() for name, tensor in a.tensors().items()}, 5)
    for model, optimizer in ((one, a), (other, b)):
        for name, gradient in gradients(model, 99).items():
            model.get_parameter(name).grad.copy_(gradient)
        optimizer.step(1e-2, torch.tensor(1.0), optimizer.square())
    for (name, x), (_, y) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(x, y), name
