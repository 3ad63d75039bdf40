"""Fine-tuning end to end: files, scores, resume after kill -9, exactness of the speed-ups, findings."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from bert_miniatures import predictions
from bert_miniatures.checkpoint import read_folder
from bert_miniatures.config import FinetuneConfig
from bert_miniatures.errors import ConfigError, DataError, Diverged, OutputExists
from bert_miniatures.files import RunFolder
from bert_miniatures.predict import Predictor
from bert_miniatures.recipes.finetune import finetune, run_finetune
from bert_miniatures.recipes.loading import load_inputs
from bert_miniatures.recipes.method import fold, unfold
from bert_miniatures.recipes.scoring import evaluate
from bert_miniatures.watch import Watch

QUICK = {"epochs": 8, "learning_rate": 3e-3, "batch_size": 16, "threads": 1}

# The gradient of the key biases is zero but for rounding (softmax does not see a shift); with a small epsilon Adam
# would turn that rounding into steps of full size, and two equal computations would part.
NO_NOISE = {"epsilon": 1e-3}


def weights_of(run: Path) -> dict[str, np.ndarray]:
    return read_folder(run / "model").weights


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = weights_of(a), weights_of(b)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def data_of(reviews) -> dict[str, str]:
    return {"train": str(reviews[0]), "dev": str(reviews[1]), "max_length": 32}


@pytest.fixture(scope="module")
def finished(tiny, reviews, tmp_path_factory) -> Path:
    os.environ["MINIATURES_HOME"] = str(tmp_path_factory.mktemp("cache"))
    out = tmp_path_factory.mktemp("runs") / "run"
    finetune(tiny, out, data=data_of(reviews), train=QUICK)
    return out


def test_run_folder_has_exactly_these_files(finished):
    found = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    model = {"config.json", "model.safetensors", "vocab.txt", "tokenizer.json", "tokenizer_config.json"}
    model |= {"miniature.json", "README.md"}
    assert found == {"run.toml", "metrics.jsonl", "result.json", "predictions/dev.parquet"} | {
        f"model/{name}" for name in model
    }


def test_it_learns_and_the_scores_are_those_of_sklearn(finished, reviews):
    from sklearn.metrics import accuracy_score, f1_score

    result = json.loads((finished / "result.json").read_text())
    gold = [line.rsplit(",", 1)[1] for line in reviews[1].read_text().splitlines()[1:]]
    texts = [line.rsplit(",", 1)[0] for line in reviews[1].read_text().splitlines()[1:]]
    answers = [answer["label"] for answer in Predictor(finished)(texts)]
    assert result["scores"]["dev"]["accuracy"] == pytest.approx(accuracy_score(gold, answers), abs=1e-12)
    assert result["scores"]["dev"]["macro_f1"] == pytest.approx(f1_score(gold, answers, average="macro"), abs=1e-12)
    assert result["scores"]["dev"]["accuracy"] > 0.9
    assert result["finding"] is None
    assert evaluate(finished)["scores"] == pytest.approx(result["scores"]["dev"])


def test_predictions_are_the_models_logits_in_order(finished, reviews):
    found = predictions.read(finished / "predictions" / "dev.parquet")
    texts = [line.rsplit(",", 1)[0] for line in reviews[1].read_text().splitlines()[1:]]
    assert found.row_ids == [str(i) for i in range(len(texts))]
    assert found.labels == ("negative", "positive")
    np.testing.assert_allclose(Predictor(finished).logits(texts), found.logits, atol=1e-5)


def test_transformers_pipeline_gives_the_same_answers(finished):
    pipeline = transformers.pipeline("text-classification", model=str(finished / "model"))
    texts = ["the film was good", "bad bad bad", "x"]
    for theirs, ours in zip(pipeline(texts), Predictor(finished)(texts), strict=True):
        assert theirs["label"] == ours["label"]
        assert theirs["score"] == pytest.approx(ours["score"], abs=1e-5)


def test_same_seed_same_run_other_seed_other_run(finished, tiny, reviews, tmp_path):
    finetune(tiny, tmp_path / "again", data=data_of(reviews), train=QUICK)
    assert_same_weights(finished, tmp_path / "again")
    finetune(tiny, tmp_path / "other", data=data_of(reviews), train=QUICK | {"seed": 2})
    assert not np.array_equal(weights_of(finished)["head.weight"], weights_of(tmp_path / "other")["head.weight"])


@pytest.mark.parametrize("optimizer", ["adamw", "bertadam"])
def test_rows_that_never_occur_end_as_with_the_plain_computation(optimizer, tiny, reviews, tmp_path):
    """Without dropout the exact speed-ups leave the weights alone, those of words outside the data included."""
    still = tmp_path / "still"
    _without_dropout(tiny, still)
    for name, on in (("fast", True), ("plain", False)):
        settings = QUICK | {"exact_speedups": on, "optimizer": optimizer, "weight_decay": 0.5, "learning_rate": 1e-3}
        settings |= NO_NOISE
        finetune(still, tmp_path / name, data=data_of(reviews), train=settings)
    fast, plain, start = weights_of(tmp_path / "fast"), weights_of(tmp_path / "plain"), read_folder(still)
    unused = start.tokenizer.vocabulary.index("##ing")
    moved = np.abs(plain["embed.word.weight"][unused] - start.weights["embed.word.weight"][unused]).max()
    assert moved > 1e-4  # decay did something to a word that never occurs
    for name in fast:
        np.testing.assert_allclose(fast[name], plain[name], atol=3e-5, err_msg=name)


def _without_dropout(source: Path, target: Path) -> None:
    from bert_miniatures.checkpoint import ModelFolder, write_folder

    found = read_folder(source)
    config = found.config.model_copy(update={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    write_folder(target, ModelFolder(config, found.weights, found.tokenizer), card="")


def test_dropout_of_a_run_is_its_own(finished, tiny, reviews, tmp_path):
    """A run without dropout is that of a model that has none; the folder it leaves keeps the model's own."""
    still = tmp_path / "still"
    _without_dropout(tiny, still)
    finetune(still, tmp_path / "model", data=data_of(reviews), train=QUICK)
    finetune(tiny, tmp_path / "run", data=data_of(reviews), train=QUICK | {"dropout": 0.0})
    assert_same_weights(tmp_path / "model", tmp_path / "run")
    assert not np.array_equal(weights_of(finished)["head.weight"], weights_of(tmp_path / "run")["head.weight"])
    assert read_folder(tmp_path / "run" / "model").config == read_folder(tiny).config


def test_micro_batches_give_the_same_update(tiny, reviews, tmp_path):
    still = tmp_path / "still"
    _without_dropout(tiny, still)
    for name, size in (("whole", None), ("micro", 5)):
        settings = QUICK | {"epochs": 1, "micro_batch_size": size, "class_weights": "balanced"} | NO_NOISE
        finetune(still, tmp_path / name, data=data_of(reviews), train={k: v for k, v in settings.items() if v})
    whole, micro = weights_of(tmp_path / "whole"), weights_of(tmp_path / "micro")
    for name in whole:
        np.testing.assert_allclose(whole[name], micro[name], atol=2e-5, err_msg=name)


def test_two_threads_give_the_gradient_of_one_and_the_same_run_twice(tiny, reviews, tmp_path):
    """Without dropout the halves of a batch add up to the batch; with it, a run is the same each time."""
    still = tmp_path / "still"
    _without_dropout(tiny, still)
    for name, threads in (("one", 1), ("two", 2)):
        finetune(still, tmp_path / name, data=data_of(reviews), train=QUICK | NO_NOISE | {"threads": threads})
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    for name in one:
        np.testing.assert_allclose(one[name], two[name], atol=5e-5, err_msg=name)
    for name in ("a", "b"):
        finetune(tiny, tmp_path / name, data=data_of(reviews), train=QUICK | {"threads": 2})
    assert_same_weights(tmp_path / "a", tmp_path / "b")


def test_keep_best_keeps_the_best_epoch(tiny, reviews, tmp_path):
    result = finetune(tiny, tmp_path / "run", data=data_of(reviews), train=QUICK | {"epochs": 5}, keep="best")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    by_epoch = {r["epoch"]: r["scores"]["accuracy"] for r in records if "scores" in r}
    assert len(by_epoch) == 5
    assert result["scores"]["dev"]["accuracy"] == max(by_epoch.values())
    assert result["epoch"] == min(epoch for epoch, score in by_epoch.items() if score == max(by_epoch.values()))


def test_regression_is_standardised_and_folded_back_exactly(tiny, reviews, tmp_path):
    rows = [line.rsplit(",", 1) for line in reviews[0].read_text().splitlines()[1:]]
    lines = ["text,score", *(f"{text},{4.25 if label == 'positive' else 1.75}" for text, label in rows)]
    (tmp_path / "scores.csv").write_text("\n".join(lines) + "\n")
    data = {"train": str(tmp_path / "scores.csv"), "dev": str(tmp_path / "scores.csv"), "max_length": 32}
    result = finetune(tiny, tmp_path / "run", data=data, train=QUICK | {"epochs": 6})
    assert result["scores"]["dev"]["pearson"] > 0.9
    answers = [a["score"] for a in Predictor(tmp_path / "run")([text for text, _ in rows])]
    assert abs(np.mean(answers) - np.mean([float(line.rsplit(",", 1)[1]) for line in lines[1:]])) < 0.3
    assert json.loads((tmp_path / "run" / "model" / "config.json").read_text())["problem_type"] == "regression"
    still = QUICK | {"epochs": 1, "learning_rate": 1e-9}  # trained further, it begins where it ended
    more = finetune(tmp_path / "run", tmp_path / "more", data=data, train=still)
    assert more["scores"]["dev"] == pytest.approx(result["scores"]["dev"], abs=1e-5)
    further = [a["score"] for a in Predictor(tmp_path / "more")([text for text, _ in rows])]
    np.testing.assert_allclose(further, answers, atol=1e-4)


def test_fold_is_exact():
    drawn = np.random.default_rng(3)
    weights = {"head.weight": drawn.standard_normal((1, 7)).astype(np.float32), "head.bias": np.float32([0.3])}
    hidden = drawn.standard_normal((11, 7)).astype(np.float32)
    plain = hidden @ weights["head.weight"].T + weights["head.bias"]
    folded = fold(weights, 2.7, 1.5)
    np.testing.assert_allclose(hidden @ folded["head.weight"].T + folded["head.bias"], plain * 1.5 + 2.7, atol=1e-5)
    back = unfold(folded, 2.7, 1.5)
    assert all(np.allclose(back[name], weights[name], atol=1e-6) for name in weights)


def test_pairs_and_multilabel(tiny, tmp_path):
    lines = [json.dumps({"text": f"{a} {b}", "labels": [w for w in (a, b) if w in ("good", "bad")]})
             for a in ("good", "film", "the") for b in ("bad", "was", "not", "very") for _ in range(4)]  # fmt: skip
    (tmp_path / "many.jsonl").write_text("\n".join(lines) + "\n")
    data = {"train": str(tmp_path / "many.jsonl"), "dev": str(tmp_path / "many.jsonl"), "kind": "multilabel"}
    result = finetune(tiny, tmp_path / "many", data=data | {"max_length": 32}, train=QUICK | {"epochs": 30})
    assert result["scores"]["dev"]["micro_f1"] > 0.95
    answer = Predictor(tmp_path / "many")(["good bad"])[0]
    assert set(answer["scores"]) == {"good", "bad"}
    pair = ["premise,hypothesis,label", *(f"{a},{b},{'same' if a == b else 'other'}" for a in "abcd" for b in "abcd")]
    (tmp_path / "pair.csv").write_text("\n".join(pair) + "\n")
    finetune(tiny, tmp_path / "pair", data={"train": str(tmp_path / "pair.csv"), "max_length": 16, "hold_out": 0.25},
             train=QUICK)  # fmt: skip
    with pytest.raises(DataError, match="compares two texts"):
        Predictor(tmp_path / "pair")(["a"])
    assert len(Predictor(tmp_path / "pair")(["a", "b"], ["a", "c"])) == 2


def test_a_classifier_with_the_same_labels_is_trained_further(finished, reviews, tmp_path):
    heard = _Heard()
    settings = QUICK | {"epochs": 1, "learning_rate": 1e-9}
    result = finetune(finished, tmp_path / "more", data=data_of(reviews), train=settings, watch=heard)
    before = json.loads((finished / "result.json").read_text())
    assert result["scores"]["dev"] == before["scores"]["dev"]
    assert any("trained further" in text for text in heard.notes)


class _Heard(Watch):
    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_run_that_goes_nowhere_is_said(tiny, reviews, tmp_path):
    lines = reviews[0].read_text().splitlines()
    texts = [line.rsplit(",", 1)[0] for line in lines[1:]]
    rows = [f"x,{'a' if i % 3 else 'b'}" for i, _ in enumerate(texts)]
    (tmp_path / "noise.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    data = {"train": str(tmp_path / "noise.csv"), "dev": str(tmp_path / "noise.csv"), "max_length": 16}
    result = finetune(tiny, tmp_path / "run", data=data, train=QUICK | {"learning_rate": 1e-5})
    assert result["finding"]
    assert result["finding"] in result["warnings"]


def test_nan_is_recorded_and_raised(tiny, reviews, tmp_path):
    with pytest.raises(Diverged, match="smaller --learning-rate"):
        finetune(tiny, tmp_path / "run", data=data_of(reviews), train=QUICK | {"learning_rate": 1e30, "clip": 0})
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["scores"] == {}
    assert "the loss became" in result["finding"]


def test_output_that_exists_is_refused_without_resume_or_overwrite(finished, tiny, reviews, tmp_path):
    with pytest.raises(OutputExists, match="--resume"):
        finetune(tiny, finished, data=data_of(reviews), train=QUICK)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputExists, match="not a run folder"):
        finetune(tiny, tmp_path / "precious", data=data_of(reviews), train=QUICK, overwrite=True)
    assert (tmp_path / "precious" / "thesis.txt").read_text() == "mine"


def test_resume_refuses_other_settings_and_other_data(tiny, reviews, tmp_path):
    out = tmp_path / "run"
    _interrupted(tiny, reviews, out)
    with pytest.raises(ConfigError, match=r"train\.epochs = 8, now it is 9"):
        finetune(tiny, out, data=data_of(reviews), train=QUICK | {"save_every": 0, "epochs": 9}, resume=True)
    changed = tmp_path / "train.csv"
    changed.write_text(reviews[0].read_text().replace("good", "very", 1))
    data = data_of(reviews)
    run = RunFolder(out)
    run.config.write_text(run.config.read_text().replace(str(reviews[0]), str(changed)))
    with pytest.raises(DataError, match="train data changed"):
        finetune(tiny, out, data=data | {"train": str(changed)}, train=QUICK | {"save_every": 0}, resume=True)


def _interrupted(tiny, reviews, out: Path) -> None:
    """Leave a run that was stopped after a few updates, as Ctrl-C does."""

    class Stopper(Watch):
        def progress(self, done: int, total: int, text: str = "", left: float | None = None) -> None:
            if done >= 10:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        finetune(tiny, out, data=data_of(reviews), train=QUICK | {"log_every": 1}, watch=Stopper())
    assert not RunFolder(out).is_finished()


def test_ctrl_c_saves_and_resume_equals_the_uninterrupted_run(finished, tiny, reviews, tmp_path):
    _interrupted(tiny, reviews, tmp_path / "run")
    resumed = finetune(tiny, tmp_path / "run", data=data_of(reviews), train=QUICK, resume=True)
    assert_same_weights(finished, tmp_path / "run")
    assert resumed["scores"] == json.loads((finished / "result.json").read_text())["scores"]
    assert not (tmp_path / "run" / "state").exists()


def test_a_paused_run_ends_as_the_uninterrupted_one(finished, tiny, reviews, tmp_path):
    """Pause in the middle of an epoch, at its end, and where it stands already; the inputs are shared."""
    settings = {"model": str(tiny), "data": data_of(reviews), "train": QUICK}
    config, seen = FinetuneConfig.of(settings), []
    inputs = load_inputs(config, Watch())
    for until in (5, 9, 18, 18):
        seen.append(run_finetune(config, tmp_path / "run", resume=True, until=until, load=lambda *_: inputs))
        assert not RunFolder(tmp_path / "run").is_finished()
    assert [(found["paused"], found["steps"]) for found in seen] == [(5, 72), (9, 72), (18, 72), (18, 72)]
    assert seen[2] == seen[3]
    assert all(0 <= found["scores"]["dev"]["accuracy"] <= 1 and found["loss"] > 0 for found in seen)
    ended = run_finetune(config, tmp_path / "run", resume=True, until=72)
    assert_same_weights(finished, tmp_path / "run")
    assert ended["scores"] == json.loads((finished / "result.json").read_text())["scores"]


def command(tiny: Path, reviews, out: Path) -> list[str]:
    arguments = [sys.executable, "-m", "bert_miniatures", "finetune", "--model", str(tiny), "--out", str(out)]
    arguments += ["--train", str(reviews[0]), "--dev", str(reviews[1]), "--max-length", "32", "--epochs", "6"]
    arguments += ["--learning-rate", "3e-3", "--batch-size", "4", "--keep", "best"]
    return [*arguments, "--set", "train.threads=1", "--set", "train.save_every=0", "--set", "train.log_every=1"]


@pytest.mark.slow
def test_kill_9_at_random_moments(tiny, reviews, tmp_path):
    """Whenever the process dies, the resumed run ends with the same weights and the same scores, bit for bit."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    started = time.monotonic()
    subprocess.run(command(tiny, reviews, whole), check=True, capture_output=True, env=environment)
    seconds = time.monotonic() - started
    moments = random.Random(int(os.environ.get("KILL_SEED", "17")))
    kills = 0
    while kills < int(os.environ.get("KILLS", "3")):
        fresh, started = not killed.exists(), time.monotonic()
        process = subprocess.Popen([*command(tiny, reviews, killed), "--resume"], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, env=environment)  # fmt: skip
        try:
            assert process.wait(moments.uniform(0.5, 1.0) * seconds) == 0
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
        if (killed / "result.json").exists():
            assert_same_weights(whole, killed)
            subprocess.run(["rm", "-r", str(killed)], check=True)
            if fresh:  # the machine has become faster
                seconds = min(seconds, time.monotonic() - started)
    subprocess.run([*command(tiny, reviews, killed), "--resume"], check=True, capture_output=True, env=environment)
    assert_same_weights(whole, killed)
    first, second = (json.loads((run / "result.json").read_text()) for run in (whole, killed))
    assert first["scores"] == second["scores"]
    assert first["epoch"] == second["epoch"]


def test_a_damaged_state_is_refused(tiny, reviews, tmp_path):
    _interrupted(tiny, reviews, tmp_path / "run")
    state = tmp_path / "run" / "state" / "state.safetensors"
    raw = bytearray(state.read_bytes())
    raw[-7] ^= 1
    state.write_bytes(raw)
    from bert_miniatures.errors import CheckpointError

    with pytest.raises(CheckpointError, match="damaged"):
        finetune(tiny, tmp_path / "run", data=data_of(reviews), train=QUICK, resume=True)


def test_the_loop_leaves_the_callers_random_numbers_decided(tiny, reviews, tmp_path):
    """A run does not depend on what was drawn before it."""
    torch.manual_seed(99)
    np.random.seed(99)
    finetune(tiny, tmp_path / "a", data=data_of(reviews), train=QUICK | {"epochs": 1})
    torch.manual_seed(7)
    finetune(tiny, tmp_path / "b", data=data_of(reviews), train=QUICK | {"epochs": 1})
    assert_same_weights(tmp_path / "a", tmp_path / "b")
