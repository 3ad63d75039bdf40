"""The loss over the vocabulary against F.cross_entropy."""

import pytest
import torch
import torch.nn.functional as F

import bert_miniatures.masked_loss as module
from bert_miniatures.masked_loss import masked_cross_entropy


def parts(scale: float = 1.0, dtype: torch.dtype = torch.float64):
    drawn = torch.Generator().manual_seed(1)
    hidden, words, bias = (
        (scale * torch.randn(*shape, generator=drawn, dtype=torch.float64)).to(dtype).requires_grad_()
        for shape in ((23, 7), (101, 7), (101,))
    )
    return hidden, words, bias, torch.randint(0, 101, (23,), generator=drawn)


@pytest.mark.parametrize("held", [1, 101 * 4, 10_000])
@pytest.mark.parametrize("factor", [1.0, 0.37])
def test_loss_and_gradients_are_torchs(factor, held, monkeypatch):
    monkeypatch.setattr(module, "_HELD", held)
    *tensors, targets = parts()
    hidden, words, bias = tensors
    expected = F.cross_entropy(F.linear(hidden, words, bias), targets, reduction="sum")
    found = masked_cross_entropy(hidden, words, bias, targets)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    for a, b in zip(*(torch.autograd.grad(factor * x, tensors) for x in (found, expected)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_a_share_of_zero_is_a_finite_loss():
    hidden, words, bias, targets = parts(40.0, torch.float32)
    expected = F.cross_entropy(F.linear(hidden, words, bias), targets, reduction="sum")
    assert expected / len(targets) > 500
    torch.testing.assert_close(masked_cross_entropy(hidden, words, bias, targets), expected)


def test_nothing_masked_is_zero():
    hidden, words, bias, targets = parts()
    loss = masked_cross_entropy(hidden[:0], words, bias, targets[:0])
    assert loss.item() == 0.0
    assert torch.autograd.grad(loss, words)[0].abs().max() == 0
