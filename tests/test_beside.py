"""Work beside the main thread, and training in parts: who computes a part does not change a number."""

import os
import signal
import time

import numpy as np
import pytest
import torch

import bert_miniatures.train as train_module
from bert_miniatures.beside import Process, Thread, can_fork, shared_zeros
from bert_miniatures.config import ModelConfig, TrainConfig
from bert_miniatures.data.batches import Batches, Dataset
from bert_miniatures.errors import ProcessLost
from bert_miniatures.model import build
from bert_miniatures.objectives import classification
from bert_miniatures.tokenizer import Encoded
from bert_miniatures.train import TrainState, train

KINDS = [Thread, pytest.param(Process, marks=pytest.mark.skipif(not can_fork(), reason="needs fork on Linux"))]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_errors_and_shared_tensors(kind):
    numbers = shared_zeros(7)

    def fill(value: float) -> float:
        numbers.fill_(value)
        return 2 * value

    def fail() -> None:
        raise ValueError("no such row")

    beside = kind({"fill": fill, "fail": fail})
    try:
        beside.ask("fill", 3.0)
        assert beside.answer() == 6.0
        assert numbers.tolist() == [3.0] * 7
        beside.ask("fail")
        with pytest.raises(ValueError, match="no such row"):
            beside.answer()
        beside.ask("fill", 5.0)  # an error does not end it
        assert beside.answer() == 10.0
    finally:
        beside.close()


@pytest.mark.skipif(not can_fork(), reason="needs fork on Linux")
def test_a_killed_process_is_one_sentence_and_an_orphan_ends(tmp_path):
    beside = Process({"pid": os.getpid, "wait": lambda: time.sleep(60)})
    beside.ask("pid")
    pid = beside.answer()
    beside.ask("wait")
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(ProcessLost, match="exit code -9"):
        beside.answer()
    beside.close()
    parent = os.fork()
    if parent == 0:  # a process that is killed while it has somebody beside it
        other = Process({"pid": os.getpid})
        other.ask("pid")
        (tmp_path / "pid").write_text(str(other.answer()))
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(parent, 0)
    orphan = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while _runs(orphan):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def run(
    threads: int, micro: int | None = None, exact: bool = True, precision: str = "fp32"
) -> tuple[list[float], torch.Tensor]:
    """Train a tiny model; return the loss of every update, and the weights."""
    config = ModelConfig(vocab_size=53, hidden_size=15, num_hidden_layers=2, num_attention_heads=3,
                         intermediate_size=23, max_position_embeddings=31, hidden_dropout_prob=0.1,
                         initializer_range=0.15)  # fmt: skip
    drawn = np.random.default_rng(1)
    lengths = drawn.integers(3, 17, 71).astype(np.int32)
    ids = drawn.integers(5, 53, int(lengths.sum())).astype(np.int32)
    data = Dataset(Encoded(ids, lengths, lengths, 0, 0, 0), drawn.integers(0, 3, 71))
    settings = TrainConfig(batch_size=11, epochs=2, learning_rate=1e-3, epsilon=1e-3, micro_batch_size=micro,
                           exact_speedups=exact, precision=precision)  # fmt: skip
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        state = TrainState(build(config, groups={"pooler", "head"}, classes=3, seed=5), settings)
        model = state.model
        model.exact_speedups = exact
        losses = [float(p.loss) for p in train(state, classification(), Batches(data, 11, 1), settings)]
    finally:
        torch.set_num_threads(before)
    return losses, torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])


@pytest.mark.skipif(not can_fork(), reason="needs fork on Linux")
@pytest.mark.parametrize("micro", [None, 2])
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_and_processes_give_the_same_bits(threads, micro, monkeypatch):
    losses, weights = run(threads, micro)
    monkeypatch.setattr(train_module, "can_fork", lambda: False)
    again, same = run(threads, micro)
    assert losses == again
    assert torch.equal(weights, same)


def test_without_dropout_parts_are_the_whole(monkeypatch):
    monkeypatch.setattr("bert_miniatures.noise.Noise.dropout", lambda self, x, p, training: x)
    monkeypatch.setattr("bert_miniatures.noise.Noise.factors", lambda self, p, *shape: torch.ones(shape))
    everything = np.int16(-32_768), np.float32(1)
    monkeypatch.setattr(
        "bert_miniatures.noise.Noise.dropped", lambda self, p, *shape: (np.zeros(shape, np.int16), *everything)
    )
    losses, weights = run(1, exact=False)
    for threads in (1, 2, 4):
        found, same = run(threads)
        assert found == pytest.approx(losses, abs=2e-6)
        torch.testing.assert_close(same, weights, atol=3e-5, rtol=0)


@pytest.mark.parametrize("threads", [1, 2])
def test_sixteen_bits_follow_the_thirty_two(threads, monkeypatch):
    """Products in bfloat16; the word table has the few rows of its gradient there too, and weights stay float32."""
    monkeypatch.setattr("bert_miniatures.noise.Noise.dropout", lambda self, x, p, training: x)
    monkeypatch.setattr("bert_miniatures.noise.Noise.factors", lambda self, p, *shape: torch.ones(shape))
    losses, weights = run(1, exact=False)
    found, half = run(threads, precision="bf16")
    assert found != losses
    assert found == pytest.approx(losses, abs=1e-2)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, weights, atol=2e-3, rtol=0)
