"""The Ray engine on a real cluster of two nodes on this machine, one of which is killed in mid-sweep."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bert_miniatures.checkpoint import Labels, read_folder, write_folder
from bert_miniatures.choice import choose
from bert_miniatures.errors import ConfigError, DataError
from bert_miniatures.model import build
from bert_miniatures.plan import SweepConfig
from bert_miniatures.predict import Counts, predict_stream
from bert_miniatures.recipes.sweep import run_sweep
from bert_miniatures.results import collect
from bert_miniatures.watch import Watch

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


def plan_of(tiny, reviews) -> SweepConfig:
    data = {"train": str(reviews[0]), "dev": str(reviews[1]), "max_length": 32}
    grid = {"batch_size": [4, 8, 16], "learning_rate": [3e-3, 1e-3], "epochs": [8]}
    return SweepConfig.of({"models": [str(tiny)], "data": data, "grid": grid})


def scores(out: Path) -> dict[str, dict]:
    return {
        str(path.parent.relative_to(out)): json.loads(path.read_text())["scores"] for path in out.rglob("result.json")
    }


class Killer(Watch):
    """Takes a node away when the first cell is done, and remembers which cells ended."""

    def __init__(self, cluster, node) -> None:
        super().__init__()
        self.cluster, self.node, self.ended = cluster, node, list[str]()

    def note(self, text: str) -> None:
        if ": accuracy " in text:
            self.ended.append(text.split(": ")[0])
            if self.node is not None:
                node, self.node = self.node, None
                self.cluster.remove_node(node, allow_graceful=False)


@pytest.fixture
def two_nodes(monkeypatch):
    """A cluster on this machine, with the node that may be lost."""
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[1] / "src"), os.environ.get("PYTHONPATH", "")])
    )
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * 2**20})
    try:
        node = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
        cluster.wait_for_nodes()
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster, node
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.slow
def test_a_cluster_that_loses_a_node_ends_with_the_table_of_one_machine(tiny, reviews, tmp_path, two_nodes):
    local, far = tmp_path / "local", tmp_path / "far"
    run_sweep(plan_of(tiny, reviews), local, workers=2)
    killer = Killer(*two_nodes)
    summary = run_sweep(plan_of(tiny, reviews), far, engine="ray", watch=killer)
    assert killer.node is None
    assert (summary.done, summary.failed) == (6, {})
    assert len(killer.ended) == len(set(killer.ended)) == 6
    assert scores(far) == scores(local)
    chosen = [choose(collect([out]))[0] for out in (local, far)]
    assert chosen[0].run.path.relative_to(local) == chosen[1].run.path.relative_to(far)
    assert len(list(far.rglob("model.safetensors"))) == 1
    began = time.monotonic()
    assert run_sweep(plan_of(tiny, reviews), far, engine="ray").done == 6
    assert time.monotonic() - began < 5


@pytest.mark.slow
def test_answers_of_a_cluster_that_loses_a_node_are_those_of_one_process(tiny, tmp_path, two_nodes):
    found = read_folder(tiny)
    weights = build(found.config, found.weights, groups={"pooler", "head"}, classes=2, seed=3).weights()
    labels = Labels("classification", ("žluť", "negative"), task="own", max_length=31)
    write_folder(tmp_path / "model", replace(found, weights=weights, labels=labels), card="# A classifier\n")
    chunks = [([f"good {'film ' * (n % 7)}" for n in range(100 + number)], None) for number in range(40)]
    expected = [answer for answers in predict_stream(tmp_path / "model", chunks) for answer in answers]
    counts, answers = Counts(), []
    for number, more in enumerate(predict_stream(tmp_path / "model", iter(chunks), engine="ray", counts=counts)):
        assert len(more) == 100 + number
        answers += more
        if number == 5:
            two_nodes[0].remove_node(two_nodes[1], allow_graceful=False)
    assert counts.rows == len(answers) == len(expected)
    assert [answer["label"] for answer in answers] == [answer["label"] for answer in expected]
    np.testing.assert_allclose([a["score"] for a in answers], [a["score"] for a in expected], atol=1e-5)
    with pytest.raises(DataError, match="this model reads one text, got pairs"):
        list(predict_stream(tmp_path / "model", [(["one"], ["two", "three"])], engine="ray"))


def test_an_engine_that_does_not_exist(tiny, reviews, tmp_path):
    with pytest.raises(ConfigError, match="unknown engine 'spark'; it is one of local, ray"):
        run_sweep(plan_of(tiny, reviews), tmp_path / "out", engine="spark")
    with pytest.raises(ConfigError, match="unknown engine 'spark'; it is one of local, ray"):
        list(predict_stream(tiny, [(["one"], None)], engine="spark"))
