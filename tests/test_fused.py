"""The compiled layer in float32 against the layer as autograd records it in float64."""

import math

import pytest
import torch
from torch import Tensor

from bert_miniatures.config import ModelConfig
from bert_miniatures.model import Bert, build

ROWS, POSITIONS, WIDTH = 5, 7, 12


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def close(actual: Tensor, expected: Tensor, name: str = "") -> None:
    """Within what 24 bits leave after some hundred operations, measured by the largest number of the tensor."""
    most = max(1.0, expected.abs().max().item())
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=3e-6 * most, msg=lambda m: name + m)


def encoder(dropout: float, activation: str = "gelu", dtype: torch.dtype = torch.float64) -> Bert:
    config = ModelConfig(vocab_size=29, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=3,
                         intermediate_size=19, max_position_embeddings=11, hidden_act=activation,
                         hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout)  # fmt: skip
    model = build(config, groups={"pooler", "head"}, classes=3, seed=1).double()
    drawn = torch.Generator().manual_seed(2)
    for parameter in model.parameters():  # biases and norms too, none of them 0 or 1
        parameter.data = torch.randn(parameter.shape, generator=drawn, dtype=torch.float64) * 0.5
    return model.to(dtype).train()


def padding(kind: str) -> Tensor | None:
    lengths = torch.tensor([7, 3, 1, 7, 5])
    real = torch.arange(POSITIONS) < lengths[:, None]
    if kind == "none":
        return None
    if kind == "rows":
        return torch.zeros(ROWS, 1, 1, POSITIONS).double().masked_fill_(~real[:, None, None], -math.inf)
    groups = torch.tensor([1, 1, 1, 2, 2, 3, 3]).expand(ROWS, -1)  # several texts in one row
    apart = groups[:, None, :, None] != groups[:, None, None, :]
    return torch.zeros(ROWS, 1, POSITIONS, POSITIONS).double().masked_fill_(apart, -math.inf)


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("asking", ["all", "first", "picked"])
@pytest.mark.parametrize("mask", ["none", "rows", "packed"])
def test_outputs_and_gradients_are_those_of_autograd(mask, asking, dropout, activation):
    wide = padding(mask)
    picked = None
    if asking == "picked":
        picked = torch.tensor([[0, 3, 6], [7, 8, 7], [14, 14, 14], [22, 23, 27], [30, 31, 28]])
        if mask == "packed":
            wide = wide.flatten(0, 2)[picked][:, None]
    only = {"first_only": asking == "first", "picked": picked}
    found = []
    for dtype in (torch.float64, torch.float32):
        model = encoder(dropout, activation, dtype)
        layer = model.layers[0]
        x = torch.randn(ROWS, POSITIONS, WIDTH, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        x = x.to(dtype).requires_grad_()
        model.noise.seed(7)  # both draw the same numbers in the same order
        y = layer(x, None if wide is None else wide.to(dtype), **only, fused=dtype == torch.float32)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        found.append((y, *torch.autograd.grad(y, [x, *layer.parameters()], weights.to(dtype))))
    names = ["y", "x", *(name for name, _ in layer.named_parameters())]
    for name, expected, actual in zip(names, *found, strict=True):
        close(actual, expected, name)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("segments", [True, False])
@pytest.mark.parametrize("positions", [True, False])
def test_gradients_added_in_place_are_those_of_autograd(positions, segments, dropout):
    """Two steps, so that adding is told from writing; embedding, layers, pooler and head."""
    ids = torch.arange(ROWS * POSITIONS).view(ROWS, POSITIONS) * 3 % 29
    found = {}
    for direct in (False, True):
        model = encoder(dropout, dtype=torch.float32 if direct else torch.float64)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        if direct:
            model.accumulate_in_place()
        for step in range(2):
            model.noise.seed(7, step)
            of_pieces = (ids + step) % 29, (ids % 2 if segments else None)
            if positions:
                x = model(*of_pieces, positions=(ids * 5) % 11)
                loss = x.pow(3).sum()
            else:
                loss = model.classify(*of_pieces).pow(3).sum()
            loss.backward()
        found[direct] = {name: parameter.grad for name, parameter in model.named_parameters()}
        assert len(model.embed.looked_up) == 2 * direct
    for name, expected in found[False].items():
        close(found[True][name], expected, name)


def in_place(forgotten: bool) -> Bert:
    """Return a model whose gradients are zero, or numbers that are nothing and forgotten where the layers can write."""
    model = encoder(0.0, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    model.accumulate_in_place()
    for sums in model.layer_sums() if forgotten else []:
        sums.forgotten = True
        for matrix in sums.matrices:
            matrix.fill_(math.nan)
    return model


@pytest.mark.parametrize("kind", ["classify", "picked", "all"])
def test_what_is_forgotten_is_written_upon_once(kind):
    """Whatever was there before: the first backward pass writes, the second adds."""
    ids = torch.arange(ROWS * POSITIONS).view(ROWS, POSITIONS) * 3 % 29
    found = {}
    for forgotten in (False, True):
        model = in_place(forgotten)
        for step in range(2):
            if kind == "classify":
                y = model.classify((ids + step) % 29)
            else:
                y = model((ids + step) % 29, wanted=torch.tensor([1, 8, 9, 33]) if kind == "picked" else None)
            y.pow(3).sum().backward()
        found[forgotten] = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, expected in found[False].items():
        close(found[True][name], expected, name)


def test_autograd_adds_to_what_is_forgotten_too():
    """An objective that uses a weight of a layer on its own, whatever the order of the backward passes."""
    ids = torch.arange(ROWS * POSITIONS).view(ROWS, POSITIONS) * 3 % 29
    for late in (False, True):
        found = {}
        for forgotten in (False, True):
            model = in_place(forgotten)
            alone = model.layers[1].qkv.weight.pow(3).sum()
            loss = model.classify(ids).pow(3).sum()
            for part in (loss, alone) if late else (alone, loss):
                part.backward()
            found[forgotten] = {name: parameter.grad for name, parameter in model.named_parameters()}
        for name, expected in found[False].items():
            close(found[True][name], expected, name)


def test_what_is_forgotten_and_not_written_is_zero():
    model = encoder(0.0)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    model.accumulate_in_place()
    for sums in model.layer_sums():
        sums.forgotten = True
        sums.settle()
        assert not any(matrix.any() for matrix in sums.matrices)
        assert not sums.forgotten
    assert {id(matrix) for sums in model.layer_sums() for matrix in sums.matrices} == {
        id(layer.get_parameter(f"{name}.weight").grad)
        for layer in model.layers
        for name in ("qkv", "attended", "up", "down")
    }


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("packed", [True, False])
def test_wanted_places_are_those_of_the_whole(packed, training):
    model = encoder(0.0).train(training)
    ids = torch.arange(ROWS * POSITIONS).view(ROWS, POSITIONS) % 29
    wanted = torch.tensor([0, 2, 6, 7, 14, 15, 16, 17, 33])  # one row lacks any
    more = {"mask": torch.arange(POSITIONS) < torch.tensor([7, 3, 4, 7, 6])[:, None]}
    if packed:
        groups = torch.tensor([1, 1, 1, 2, 2, 2, 0]).expand(ROWS, -1)
        more = {"groups": groups, "positions": torch.tensor([0, 1, 2, 0, 1, 2, 0]).expand(ROWS, -1)}
    found = {}
    for exact in (False, True):
        model.exact_speedups = exact
        model.to(torch.float32 if exact else torch.float64)
        y = model(ids, wanted=wanted, **more)
        gradients = torch.autograd.grad(y.pow(3).sum(), [p for n, p in model.named_parameters() if "layers" in n])
        found[exact] = (y, *gradients)
    for actual, expected in zip(found[True], found[False], strict=True):
        close(actual, expected)
    if packed:  # the texts of a row do not see each other
        alone = model(ids[:1, 3:6])
        close(model(ids, **more)[0, 3:6], alone[0])


def test_a_second_backward_pass_is_refused():
    """The first one writes on what it has read; a second one must not give wrong gradients."""
    model = encoder(0.0, dtype=torch.float32)
    y = model(torch.arange(ROWS * POSITIONS).view(ROWS, POSITIONS) % 29).sum()
    y.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="second backward pass"):
        y.backward()


def test_only_training_in_one_thread_of_a_cpu_in_float32_is_fused():
    model = encoder(0.0, dtype=torch.float32)
    ids = torch.arange(ROWS * POSITIONS).view(ROWS, POSITIONS) % 29
    assert "_LayerBackward" in type(model(ids).grad_fn).__name__
    model.exact_speedups = False
    assert "_LayerBackward" not in type(model(ids).grad_fn).__name__
    model.exact_speedups = True
    assert "_LayerBackward" not in type(model.eval()(ids).grad_fn).__name__
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        assert "_LayerBackward" not in type(model(ids).grad_fn).__name__
    torch.set_num_threads(2)
    assert "_LayerBackward" not in type(model(ids).grad_fn).__name__
    torch.set_num_threads(1)
    assert "_LayerBackward" in type(model(ids).grad_fn).__name__
    assert "_LayerBackward" not in type(model.double()(ids).grad_fn).__name__
