"""Compiled loops against torch in float64, and what becomes of machine code that is kept."""

import math
import sys

import numba
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import bert_miniatures
from bert_miniatures import compiling, fused, kernels
from bert_miniatures.compiling import compiled, exp, helper
from bert_miniatures.errors import MissingExtra

ROWS, WIDTH = 5, 331  # an odd prime: every loop has a rest
NOTHING = np.empty((0, 0), np.int16), np.int16(0), np.float32(1)


def numbers(*shape: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(3).normal(0, scale, shape).astype(np.float32)


@pytest.mark.parametrize(("kernel", "form"), [("gelu", "none"), ("gelu_tanh", "tanh")])
def test_gelu_and_its_derivative(kernel, form):
    x = np.linspace(-14, 14, ROWS * WIDTH, dtype=np.float32).reshape(ROWS, WIDTH)
    bias, y, slope = numbers(WIDTH), np.empty_like(x), x.copy()
    getattr(kernels, kernel)(slope, bias, y)
    expected = torch.from_numpy(x + bias).double().requires_grad_()
    value = F.gelu(expected, approximate=form)
    value.sum().backward()
    np.testing.assert_allclose(y, value.detach().numpy(), rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(slope, expected.grad.numpy(), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize("kernel", ["gelu", "gelu_tanh"])
def test_gelu_of_what_is_no_number(kernel):
    """A run that diverges must be seen to: nothing that is not a number may come out as one."""
    u = np.array([[math.nan, math.inf, -math.inf, 1e30, -1e30, 0.0]], np.float32)
    y = np.empty_like(u)
    getattr(kernels, kernel)(u, np.zeros(6, np.float32), y)
    assert math.isnan(y[0, 0])
    assert math.isnan(u[0, 0])
    assert y[0, 1] == math.inf
    assert y[0, 3] == np.float32(1e30)
    assert y[0, 4] == 0
    assert y[0, 5] == 0
    assert u[0, 5] == 0.5


def test_exp():
    @helper
    def each(x, y):
        for i in range(len(x)):
            y[i] = exp(x[i])

    x = np.concatenate([np.linspace(-86.99, 0, 100_003), [-88, -1e9, -math.inf]]).astype(np.float32)
    y = np.empty_like(x)
    each(x, y)
    np.testing.assert_allclose(y[:-4], np.exp(x[:-4].astype(np.float64)), rtol=3e-7)
    assert (y[-3:] == 0).all()
    assert y[-4] == 1


@pytest.mark.parametrize("offset", [0.0, 300.0])
def test_norm_of_rows_far_from_zero(offset):
    """The mean is taken away before squares are summed."""
    x, change, bias = numbers(ROWS, WIDTH) + np.float32(offset), numbers(ROWS, WIDTH), numbers(WIDTH)
    weight, shift = numbers(WIDTH), numbers(WIDTH)
    whole = torch.from_numpy(x).double() + torch.from_numpy(change).double() + torch.from_numpy(bias).double()
    expected = F.layer_norm(whole, (WIDTH,), torch.from_numpy(weight).double(), torch.from_numpy(shift).double(), 1e-12)
    y, inverse = kernels.norm(x, change, bias, NOTHING, weight, shift, 1e-12)
    np.testing.assert_allclose(y, expected.numpy(), atol=2e-6 * max(1.0, offset / 2))
    np.testing.assert_allclose(inverse, 1 / whole.std(1, correction=0).numpy(), rtol=1e-5)


def test_norm_of_what_is_no_number():
    x = numbers(ROWS, WIDTH)
    x[2, 100] = math.nan
    rows = numbers(ROWS, WIDTH), np.zeros(WIDTH, np.float32)
    y, _ = kernels.norm(x, *rows, NOTHING, numbers(WIDTH), numbers(WIDTH), 1e-12)
    assert np.isnan(y[2]).all()
    assert np.isfinite(np.delete(y, 2, 0)).all()


def attended(mask: np.ndarray, q: np.ndarray) -> np.ndarray:
    texts, heads = 3, 2
    k, v = numbers(9, 10), numbers(9, 10)[::-1].copy()
    args = texts, heads, mask, NOTHING
    return kernels.attend(q[:, :], k[:, :], v[:, :], np.zeros(30, np.float32), *args)[1]  # shares


def test_shares_of_masked_positions_are_zero():
    mask = np.zeros((3, 1, 3), np.float32)
    mask[1, 0, 2] = mask[2, 0, 1:] = -math.inf
    shares = attended(mask, numbers(9, 10)).reshape(3, 2, 3, 3)
    np.testing.assert_allclose(shares.sum(-1), 1, rtol=1e-6)
    assert (shares[1, ..., 2] == 0).all()
    assert (shares[2, ..., 0] == 1).all()


def test_shares_of_what_is_no_number():
    q = numbers(9, 10)
    q[4, 1] = math.nan  # the second text, its second position, the first head
    shares = attended(np.empty((0, 0, 0), np.float32), q).reshape(3, 2, 3, 3)
    assert np.isnan(shares[1, 0, 1]).all()
    assert np.isnan(shares).sum() == 3


@pytest.mark.parametrize("harm", ["cut", "emptied", "turned"])
def test_machine_code_that_is_damaged_is_made_anew(harm, tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))

    def twice(x):
        for i in range(len(x)):
            x[i] *= 2

    of = numba.float32[::1]
    compiled(of)(twice)
    files = [file for file in tmp_path.rglob("*") if file.suffix in {".nbi", ".nbc"}]
    assert len(files) == 2
    for file in files:
        data = file.read_bytes()
        file.write_bytes({"cut": data[: len(data) // 3], "emptied": b"", "turned": data[::-1]}[harm])
    x = np.ones(3, np.float32)
    compiled(of)(twice)(x)
    assert x.tolist() == [2, 2, 2]


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path, monkeypatch):
    def twice(x):
        for i in range(len(x)):
            x[i] *= 2

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("numba.core.caching.IndexDataCacheFile.save", full)
    x = np.ones(3, np.float32)
    compiled(numba.float32[::1])(twice)(x)
    assert x.tolist() == [2, 2, 2]


def test_compiling_is_said_and_done_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    compiling._tell.cache_clear()

    def twice(x):
        for i in range(len(x)):
            x[i] *= 2

    compiled(numba.float32[::1])(twice)
    assert capsys.readouterr().err.startswith("training is compiled for this machine, which is done once")
    compiling._tell.cache_clear()
    compiled(numba.float32[::1])(twice)
    assert capsys.readouterr().err == ""


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match="No matching definition"):
        kernels.times(np.ones((2, 3)), np.ones((2, 3)), np.ones(3))


def test_what_is_missing_is_said(monkeypatch):
    monkeypatch.delattr(bert_miniatures, "kernels")
    monkeypatch.delitem(sys.modules, "bert_miniatures.kernels")
    monkeypatch.delitem(sys.modules, "bert_miniatures.compiling")
    monkeypatch.setitem(sys.modules, "numba", None)
    with pytest.raises(MissingExtra, match="training needs the 'train' extra: pip install"):
        fused._kernels.__wrapped__()
