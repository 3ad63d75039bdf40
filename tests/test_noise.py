"""Dropout: the right share, the right scale, decided by the seed, one stream per thread."""

import threading

import torch

from bert_miniatures.noise import Noise


def test_share_and_scale():
    noise = Noise()
    noise.seed(1, 2)
    x = torch.ones(1_000_003)
    for p in (0.1, 0.5, 0.93):
        found = noise.dropout(x, p, True)
        share = float((found == 0).float().mean())
        assert abs(share - p) < 4 * (p * (1 - p) / len(x)) ** 0.5 + 1 / 65_536
        assert abs(float(found.mean()) - 1) < 4 * (p / (1 - p) / len(x)) ** 0.5
        assert len(found.unique()) == 2


def test_neighbours_are_independent():
    noise = Noise()
    noise.seed(3)
    kept = (noise.dropout(torch.ones(1_000_000), 0.5, True) > 0).float() - 0.5
    for lag in (1, 2, 3, 4, 7, 64):
        assert abs(float((kept[lag:] * kept[:-lag]).mean())) < 4 * 0.25 / 1000


def test_nothing_outside_training():
    x = torch.randn(11)
    assert Noise().dropout(x, 0.5, False) is x
    assert Noise().dropout(x, 0.0, True) is x


def test_the_seed_decides_and_threads_do_not_disturb_each_other():
    noise = Noise()
    noise.seed(5, 7)
    expected = [noise.dropout(torch.ones(101), 0.3, True) for _ in range(20)]
    found: dict[int, list[torch.Tensor]] = {}

    def draw(number: int) -> None:
        noise.seed(5, number)
        found[number] = [noise.dropout(torch.ones(101), 0.3, True) for _ in range(20)]

    threads = [threading.Thread(target=draw, args=(number,)) for number in (7, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(expected, found[7], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(expected, found[8], strict=True))


def test_gradient_is_the_mask():
    noise = Noise()
    noise.seed(1)
    x = torch.randn(997, requires_grad=True)
    y = noise.dropout(x, 0.25, True)
    y.sum().backward()
    assert torch.equal(x.grad == 0, y == 0)
