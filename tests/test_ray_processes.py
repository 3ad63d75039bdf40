"""A pre-training run whose batches two nodes of a Ray cluster on this machine share; one node is killed."""

import json
import os
import time
from pathlib import Path

import pytest

from bert_miniatures.checkpoint import ModelFolder, read_folder, write_folder
from bert_miniatures.machine import Launch, launch
from commands import finish, shell, start
from test_torchrun import records

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own
SOURCE = str(Path(__file__).parents[1] / "src")


@pytest.fixture
def cluster(monkeypatch):
    ray = pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([SOURCE, os.environ.get("PYTHONPATH", "")]))
    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    found = Cluster(initialize_head=True, head_node_args=small)
    try:
        found.second = found.add_node(**small)
        found.wait_for_nodes()
        monkeypatch.setenv("RAY_ADDRESS", found.address)
        yield found
    finally:
        ray.shutdown()
        found.shutdown()


@pytest.fixture
def plain(tiny, tmp_path) -> Path:
    """A model without dropout, which depends on how a batch is divided."""
    found = read_folder(tiny)
    config = found.config.model_copy(update={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    write_folder(tmp_path / "plain", ModelFolder(config, found.weights, found.tokenizer), card="")
    return tmp_path / "plain"


@pytest.fixture
def corpus(tmp_path) -> Path:
    lines = [f"the film number {i} was {'good' if i % 3 else 'bad'} ." + "\n" * (1 + (i % 5 == 0)) for i in range(97)]
    (tmp_path / "corpus.txt").write_text("".join(lines))
    return tmp_path / "corpus.txt"


def command(model: Path, corpus: Path, out: Path, steps: int, *more: str) -> list[str]:
    words = ["pretrain", "--model", str(model), "--corpus", str(corpus), "--out", str(out), "--max-length", "31"]
    for setting in (f"train.steps={steps}", "train.threads=1", "train.log_every=1"):
        words += ["--set", setting]
    return [*words, "--batch-size", "13", *more]


@pytest.mark.slow
def test_a_cluster_has_the_losses_of_one_process(cluster, plain, corpus, tmp_path):
    far = finish(start(tmp_path, *command(plain, corpus, tmp_path / "far", 7, "--engine", "ray")))
    assert far.code == 0, far.err
    assert "2 processes share each batch of 13" in far.err
    near = shell()(*command(plain, corpus, tmp_path / "near", 7))
    assert near.code == 0, near.err
    expected, found = ([r["loss"] for r in records(tmp_path / name) if "loss" in r] for name in ("near", "far"))
    assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.slow
def test_what_is_left_goes_on_where_a_node_is_lost(cluster, plain, corpus, tmp_path):
    run = tmp_path / "run"
    process = start(tmp_path, *command(plain, corpus, run, 1500, "--engine", "ray"))
    end = time.monotonic() + 90
    while not any(record["step"] >= 5 for record in records(run)):
        assert time.monotonic() < end
        assert process.poll() is None, finish(process).err
        time.sleep(0.05)
    cluster.remove_node(cluster.second, allow_graceful=False)
    done = finish(process)
    assert done.code == 0, done.err
    assert "all begin again from the last saved state" in done.err
    assert "resumed at step" in done.err
    assert json.loads((run / "result.json").read_text())["steps"] == 1500
    assert [r["step"] for r in records(run) if "loss" in r] == list(range(1, 1501))


@pytest.mark.slow
def test_files_that_a_node_lacks_are_written_there_once(cluster, tmp_path, monkeypatch):
    import ray

    from bert_miniatures import ray_cluster
    from bert_miniatures.recipes.ray_processes import _renamed

    monkeypatch.setenv("MINIATURES_HOME", str(tmp_path / "cache"))
    names = ("model/vocab.txt", "model/onnx/model.onnx", "text.txt.xz")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    ray.init(address=cluster.address, log_to_driver=False)
    for path in (tmp_path / "model", tmp_path / "text.txt.xz"):
        here = ray_cluster.sent(path)
        assert ray_cluster.on_this_node(here) == path
        for _ in range(2):
            ray_cluster._KNOWN.clear()
            found = ray_cluster.on_this_node(here._replace(path=f"/far/{path.name}"))
            assert tmp_path / "cache" in found.parents
            assert ray_cluster.sent(found).sha256 == here.sha256
    assert {path.read_text() for path in (tmp_path / "cache").rglob("*") if path.is_file()} == set(names)
    document = {"data": {"corpus": ["/far/text.txt.xz"]}, "model": "2/128"}
    assert _renamed(document, {"/far/text.txt.xz": str(found)})["data"]["corpus"] == [str(found)]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--engine", "spark"], "unknown engine 'spark'; it is one of local, ray"),
        (["--workers", "2"], "--workers is for --engine ray"),
    ],
)
def test_engines_that_do_not_fit(tiny, corpus, tmp_path, more, said):
    done = shell()(*command(tiny, corpus, tmp_path / "run", 3, *more))
    assert (done.code, said in done.error) == (2, True), done.err
    assert not (tmp_path / "run").exists()


def test_a_restart_of_one_process_alone_is_seen(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "TORCHELASTIC_RESTART_COUNT": "2"}.items():
        monkeypatch.setenv(name, value)
    assert launch() == Launch(restarts=2)
