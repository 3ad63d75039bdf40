"""Two processes with half of every batch each make the updates of one process with whole batches."""

import json
import multiprocessing as mp
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from bert_miniatures.config import ModelConfig, TrainConfig
from bert_miniatures.data.batches import Batches, Dataset
from bert_miniatures.model import build
from bert_miniatures.objectives import classification
from bert_miniatures.tokenizer import Encoded
from bert_miniatures.train import TrainState, train


def losses() -> list[float]:
    """Train a tiny model without dropout on made-up rows; return the loss of every update."""
    torch.set_num_threads(1)
    config = ModelConfig(vocab_size=53, hidden_size=15, num_hidden_layers=2, num_attention_heads=3,
                         intermediate_size=23, max_position_embeddings=31, hidden_dropout_prob=0.0,
                         attention_probs_dropout_prob=0.0, initializer_range=0.15)  # fmt: skip
    drawn = np.random.default_rng(1)
    lengths = drawn.integers(3, 17, 67).astype(np.int32)
    ids = drawn.integers(5, 53, int(lengths.sum())).astype(np.int32)
    data = Dataset(Encoded(ids, lengths, lengths, 0, 0, 0), drawn.integers(0, 3, 67))
    settings = TrainConfig(batch_size=11, epochs=2, learning_rate=1e-3, epsilon=1e-3)
    state = TrainState(build(config, groups={"pooler", "head"}, classes=3, seed=5), settings)
    weights = torch.tensor([1.0, 3.0, 0.5])  # the weight of a half is not half of the weight
    return [float(p.loss) for p in train(state, classification(weights), Batches(data, 11, 1), settings)]


def one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    Path(folder, f"{rank}.json").write_text(json.dumps(losses()))
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path):
    context = mp.get_context("spawn")
    processes = [context.Process(target=one_of_two, args=(rank, str(tmp_path))) for rank in (0, 1)]
    for process in processes:
        process.start()
    expected = losses()
    for process in processes:
        process.join(120)
        assert process.exitcode == 0
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == pytest.approx(expected, abs=2e-5)
    assert expected[0] != pytest.approx(expected[-1], abs=1e-3)
