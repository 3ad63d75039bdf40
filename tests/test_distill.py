"""Distillation: objectives against numpy and scipy, a student that reaches its teacher, resume, labels, faults."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import expit, log_softmax, softmax

from bert_miniatures import soft_labels
from bert_miniatures.checkpoint import ModelFolder, read_folder, write_folder
from bert_miniatures.config import ModelConfig, read_toml
from bert_miniatures.data.batches import Batch
from bert_miniatures.distill_config import DistillConfig
from bert_miniatures.errors import CheckpointError, ConfigError, DataError, LabelError, UnknownName
from bert_miniatures.evaluation import prior_loss
from bert_miniatures.model import build
from bert_miniatures.predict import Predictor
from bert_miniatures.recipes import comparison
from bert_miniatures.recipes.comparison import table
from bert_miniatures.recipes.distill import distill, run_distill
from bert_miniatures.recipes.finetune import finetune
from bert_miniatures.recipes.label import label
from bert_miniatures.recipes.scoring import evaluate
from bert_miniatures.results import collect
from bert_miniatures.soft_labels import About, SoftLabels, hashes_of
from bert_miniatures.soft_objectives import soft_classification, soft_multilabel, soft_prior, soft_regression
from bert_miniatures.tokenizer import Tokenizer
from bert_miniatures.watch import Watch
from commands import finish, start
from conftest import LETTERS, PIECES

QUICK = {"epochs": 8, "learning_rate": 3e-3, "batch_size": 16, "threads": 1}


def data_of(reviews) -> dict[str, str]:
    return {"train": str(reviews[0]), "dev": str(reviews[1]), "max_length": 32}


DRAWN = np.random.default_rng(31)
ROWS, CLASSES = 7, 5


def batch_of(teacher, labels) -> Batch:
    ids = torch.zeros(len(teacher), 3, dtype=torch.int64)
    rows = np.arange(len(teacher))
    return Batch(ids, None, None, torch.from_numpy(labels), rows, torch.from_numpy(teacher.astype(np.float32)))


def lost(objective, student, teacher, labels):
    """Return the mean loss of these logits and its gradient."""
    logits = torch.tensor(student, dtype=torch.float32, requires_grad=True)
    found = objective(SimpleNamespace(classify=lambda *_: logits), batch_of(teacher, labels))
    mean = found.total / found.weight
    mean.backward()
    return mean.item(), logits.grad.numpy()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 3.7])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_soft_cross_entropy_and_its_gradient(temperature, weight):
    student, teacher = DRAWN.normal(size=(2, ROWS, CLASSES)) * 3
    labels = DRAWN.integers(0, CLASSES, ROWS)
    labels[2] = -1
    share = weight * (labels >= 0)
    soft_target, soft_output = softmax(teacher / temperature, axis=1), softmax(student / temperature, axis=1)
    one_hot = np.eye(CLASSES)[labels]
    soft = -(soft_target * log_softmax(student / temperature, axis=1)).sum(1) * temperature**2
    hard = -(one_hot * log_softmax(student, axis=1)).sum(1)
    gradient = (1 - share)[:, None] * temperature * (soft_output - soft_target)
    gradient += share[:, None] * (softmax(student, axis=1) - one_hot)
    loss, found = lost(soft_classification(temperature, weight), student, teacher, labels)
    assert loss == pytest.approx(((1 - share) * soft + share * hard).mean(), rel=1e-5)
    np.testing.assert_allclose(found, gradient / ROWS, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_soft_binary_cross_entropy_and_its_gradient(weight):
    student, teacher = DRAWN.normal(size=(2, ROWS, CLASSES)) * 3
    labels = DRAWN.integers(0, 2, (ROWS, CLASSES))
    labels[4] = -1
    share = weight * (labels >= 0)
    p, q, t = expit(teacher / 2), expit(student / 2), expit(student)
    soft = -4 * (p * np.log(q) + (1 - p) * np.log(1 - q))
    hard = -(labels * np.log(t) + (1 - labels) * np.log(1 - t))
    loss, found = lost(soft_multilabel(2.0, weight), student, teacher, labels)
    assert loss == pytest.approx(((1 - share) * soft + share * hard).mean(), rel=1e-5)
    gradient = (1 - share) * 2 * (q - p) + share * (t - labels)
    np.testing.assert_allclose(found, gradient / labels.size, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.3])
def test_squared_error_of_the_teachers_score(weight):
    student, teacher = DRAWN.normal(size=(2, ROWS, 1)) * 3
    labels = DRAWN.normal(size=ROWS)
    labels[3] = np.nan
    known = ~np.isnan(labels)
    share, label = weight * known, np.where(known, labels, 0)
    to = (teacher[:, 0] - 1.5) / 0.7, (label - 1.5) / 0.7
    errors = student[:, 0] - to[0], student[:, 0] - to[1]
    loss, found = lost(soft_regression(1.5, 0.7, weight), student, teacher, labels)
    assert loss == pytest.approx(((1 - share) * errors[0] ** 2 + share * errors[1] ** 2).mean(), rel=1e-5)
    gradient = 2 * ((1 - share) * errors[0] + share * errors[1]) / ROWS
    np.testing.assert_allclose(found[:, 0], gradient, atol=1e-6)


def test_a_sure_teacher_is_a_label():
    labels = np.array([0, 2, 1, 2, 2])
    teacher = (np.eye(3)[labels] * 60).astype(np.float32)
    student = DRAWN.normal(size=(5, 3))
    hard = torch.nn.functional.cross_entropy(torch.from_numpy(student), torch.from_numpy(labels)).item()
    assert lost(soft_classification(), student, teacher, labels)[0] == pytest.approx(hard, rel=1e-5)
    assert soft_prior("classification", teacher) == pytest.approx(prior_loss("classification", labels), rel=1e-6)
    several = np.eye(3)[labels]
    sure = ((several * 2 - 1) * 60).astype(np.float32)
    assert soft_prior("multilabel", sure) == pytest.approx(prior_loss("multilabel", several), rel=1e-6)


# ---------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(autouse=True, scope="module")
def short_measuring() -> Iterator[None]:
    """Measure speeds for a moment only."""
    before, comparison._SECONDS = comparison._SECONDS, 0.02
    yield
    comparison._SECONDS = before


@pytest.fixture(scope="module")
def student(tmp_path_factory) -> Path:
    """Write a model folder with half the layers of the teacher."""
    config = ModelConfig(vocab_size=len(PIECES), hidden_size=15, num_hidden_layers=1, num_attention_heads=3,
                         intermediate_size=17, max_position_embeddings=37, initializer_range=0.15)  # fmt: skip
    folder = tmp_path_factory.mktemp("students") / "student"
    weights = build(config, groups={"pooler"}, seed=13).weights()
    write_folder(folder, ModelFolder(config, weights, Tokenizer.from_vocabulary(PIECES)), card="# student\n")
    return folder


@pytest.fixture(scope="module")
def teacher(tiny, reviews, tmp_path_factory) -> Path:
    os.environ["MINIATURES_HOME"] = str(tmp_path_factory.mktemp("cache"))
    out = tmp_path_factory.mktemp("teachers") / "teacher"
    assert finetune(tiny, out, data=data_of(reviews), train=QUICK)["scores"]["dev"]["accuracy"] > 0.9
    return out


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory) -> Path:
    """Write 307 texts such as the reviews, without labels."""
    drawn = np.random.default_rng(41)
    rows = []
    for _ in range(307):
        words = ["".join(drawn.choice(list(LETTERS), size=drawn.integers(1, 5))) for _ in range(drawn.integers(1, 9))]
        words.insert(int(drawn.integers(0, len(words) + 1)), str(drawn.choice(["good", "bad"])))
        rows.append(" ".join(words))
    path = tmp_path_factory.mktemp("texts") / "unlabelled.txt"
    path.write_text("\n".join(rows) + "\n")
    return path


class Hears(Watch):
    """Remembers the notes."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


def texts_of(reviews: Path) -> list[str]:
    return [line.rsplit(",", 1)[0] for line in lines_of(reviews)[1:]]


def same_weights(a: Path, b: Path) -> bool:
    first, second = read_folder(a / "model").weights, read_folder(b / "model").weights
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def logits(teacher, reviews, unlabelled, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("logits") / "logits.parquet"
    label(teacher, out, files=[*reviews, unlabelled])
    return out


@pytest.fixture(scope="module")
def distilled(student, teacher, reviews, unlabelled, tmp_path_factory) -> Path:
    """Distill on unlabelled text alone, then fine-tune; a run of the student alone is beside it."""
    os.environ["MINIATURES_HOME"] = str(tmp_path_factory.mktemp("cache"))
    folder = tmp_path_factory.mktemp("runs")
    finetune(student, folder / "alone", data=data_of(reviews), train=QUICK | {"epochs": 1})
    train = QUICK | {"epochs": 12}
    more = {"labelled": False, "then_finetune": True, "finetune": {"epochs": 2, "learning_rate": 1e-3}}
    distill(student, folder / "run", teacher=teacher, transfer=[unlabelled], data=data_of(reviews), train=train, **more)
    return folder / "run"


def test_a_student_reaches_its_teachers_answers_without_a_label(distilled, teacher, reviews, unlabelled):
    result = json.loads((distilled / "result.json").read_text())
    texts = texts_of(reviews[1])
    theirs, ours = Predictor(teacher).logits(texts).argmax(1), Predictor(distilled).logits(texts).argmax(1)
    assert (theirs == ours).mean() > 0.9
    assert result["scores"]["dev"]["accuracy"] > 0.85
    assert result["finding"] is None
    unique = set(lines_of(unlabelled)) - set(texts)
    assert result["texts"] == {"labelled": 0, "transfer": len(unique), "repeated": 307 - len(set(lines_of(unlabelled))),
                               "in_dev": len(set(lines_of(unlabelled)) & set(texts))}  # fmt: skip
    assert result["teachers"][0]["sha256"] == read_folder(teacher / "model").fingerprint
    assert evaluate(distilled)["scores"] == pytest.approx(result["scores"]["dev"])
    assert "Distilled from" in (distilled / "model" / "README.md").read_text()


def test_the_table_has_the_four(distilled, teacher, student):
    result = json.loads((distilled / "result.json").read_text())
    rows = {row["name"]: row for row in result["comparison"]}
    assert list(rows) == ["teacher", "fine-tuned alone", "distilled", "distilled, fine-tuned"]
    own = {name: json.loads((path / "result.json").read_text())["scores"]["dev"] for name, path in
           {"teacher": teacher, "fine-tuned alone": distilled.parent / "alone", "distilled": distilled,
            "distilled, fine-tuned": distilled / "finetuned"}.items()}  # fmt: skip
    for name, scores in own.items():
        assert rows[name]["scores"] == pytest.approx(scores), name
        assert rows[name]["texts_per_second"] > 0
    size = sum(weight.size for weight in read_folder(distilled / "model").weights.values())
    assert rows["distilled"]["parameters"] == size < rows["teacher"]["parameters"]
    assert rows["distilled"]["bytes"] == (distilled / "model" / "model.safetensors").stat().st_size
    after = json.loads((distilled / "finetuned" / "result.json").read_text())
    assert after["parent_sha256"] == read_folder(distilled / "model").fingerprint
    assert (after["epochs"], after["learning_rate"], after["seed"]) == (2, 1e-3, result["seed"])
    assert after["rows"]["train"] == 131
    shown = table(result["comparison"]).splitlines()
    assert len(shown) == 5
    assert len({len(line) for line in shown}) == 1


def test_the_teacher_answers_once_for_all_students(student, teacher, reviews, unlabelled, tmp_path):
    said = Hears()
    for seed in (1, 2):
        train = QUICK | {"epochs": 1, "seed": seed}
        settings = {"teacher": teacher, "transfer": [unlabelled], "data": data_of(reviews), "train": train}
        distill(student, tmp_path / f"run{seed}", watch=said, **settings)
    assert sum("answers" in text and "once" in text for text in said.notes) == 2  # the texts to learn from, and dev
    assert sum(text.startswith("teacher: dev accuracy") for text in said.notes) == 2
    assert not same_weights(tmp_path / "run1", tmp_path / "run2")
    table_of_second = json.loads((tmp_path / "run2" / "result.json").read_text())["comparison"]
    assert table_of_second[1]["name"] == "fine-tuned alone"
    assert table_of_second[1]["scores"] == {}  # the first run had a teacher
    assert any("no run of this student fine-tuned alone" in text for text in said.notes)
    first, second = collect([tmp_path])
    assert (first.seed, second.seed) == (1, 2)
    assert first.settings == second.settings  # two seeds of one cell
    assert any(setting.startswith("teacher = ") for setting in first.settings)  # which no fine-tuning is


def test_columns_in_another_order_are_the_same_run(student, logits, reviews, tmp_path):
    found = soft_labels.read(logits)
    turned = About(found.about.kind, found.about.labels[::-1], found.about.teachers)
    soft_labels.write(tmp_path / "turned.parquet", SoftLabels(turned, found.hashes, found.logits[:, ::-1]))
    train = QUICK | {"epochs": 1}
    for name, file in (("straight", logits), ("turned", tmp_path / "turned.parquet")):
        distill(student, tmp_path / name, teacher=file, data=data_of(reviews), train=train)
    assert same_weights(tmp_path / "straight", tmp_path / "turned")
    other = About("classification", ("bad", "worse"), found.about.teachers)
    soft_labels.write(tmp_path / "other.parquet", SoftLabels(other, found.hashes, found.logits))
    with pytest.raises(LabelError, match="bad, worse"):
        distill(student, tmp_path / "no", teacher=tmp_path / "other.parquet", data=data_of(reviews), train=train)
    assert not (tmp_path / "no").exists() or not (tmp_path / "no" / "result.json").exists()


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(student, logits, reviews, unlabelled, tmp_path):
    train = {"epochs": 5, "batch_size": 8, "learning_rate": 1e-3, "threads": 1, "save_every": 0, "log_every": 1}
    settings = {"teacher": logits, "transfer": [unlabelled], "data": data_of(reviews), "train": train}
    settings |= {"then_finetune": True, "finetune": {"epochs": 3}}
    whole = tmp_path / "whole"
    distill(student, whole, **settings)
    paused, killed = tmp_path / "paused", tmp_path / "killed"
    config = DistillConfig.of(read_toml(whole / "run.toml"))
    assert run_distill(config, paused, until=7)["paused"] == 7
    said = Hears()
    run_distill(config, paused, resume=True, watch=said)
    assert any("resumed at step 7" in text for text in said.notes)
    process = start(tmp_path, "distill", "--config", whole / "run.toml", "--out", killed)
    until = time.monotonic() + 100
    state = killed / "finetuned" / "state" / "state.safetensors"
    while not state.is_file() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    finish(process)
    assert (killed / "run.toml").is_file()
    assert not (killed / "result.json").exists()
    done = finish(start(tmp_path, "distill", "--resume", "--out", killed))
    assert done.code == 0, done.err
    assert done.out.splitlines()[1].startswith("teacher ")
    assert done.err.count("resumed at step") == 2
    for out in (paused, killed):
        assert same_weights(whole, out)
        assert same_weights(whole / "finetuned", out / "finetuned")


def test_labels_and_scores_of_a_file_of_probabilities(student, reviews, tmp_path):
    rows = [line.rsplit(",", 1) for path in reviews for line in lines_of(path)[1:]]
    likely = {"positive": {"positive": 0.9, "negative": 0.1}, "negative": {"negative": 0.95, "positive": 0.05}}
    (tmp_path / "p.jsonl").write_text(
        "".join(json.dumps({"text": text, "probabilities": likely[name]}) + "\n" for text, name in rows)
    )
    settings = {"data": data_of(reviews), "train": QUICK | {"epochs": 16}, "label_weight": 0.5, "temperature": 2.0}
    result = distill(student, tmp_path / "run", teacher=tmp_path / "p.jsonl", **settings)
    assert result["comparison"][0]["scores"]["accuracy"] == 1.0
    assert result["comparison"][0]["texts_per_second"] is None
    assert result["scores"]["dev"]["accuracy"] > 0.85
    assert any("learns from 131 texts only" in text for text in result["warnings"])


def test_a_score_is_learnt_from_the_teachers_score(student, reviews, tmp_path):
    rows = [line.rsplit(",", 1) for line in lines_of(reviews[0])[1:]]
    scored = [(text, 4.25 if name == "positive" else 1.75) for text, name in rows]
    (tmp_path / "s.csv").write_text("text,score\n" + "".join(f"{text},{score}\n" for text, score in scored))
    (tmp_path / "p.jsonl").write_text(
        "".join(json.dumps({"text": text, "score": 100 * score}) + "\n" for text, score in scored)
    )
    data = {"train": str(tmp_path / "s.csv"), "dev": str(tmp_path / "s.csv"), "max_length": 32}
    settings = {"data": data, "train": QUICK | {"epochs": 12}}
    result = distill(student, tmp_path / "run", teacher=tmp_path / "p.jsonl", **settings)
    assert result["scores"]["dev"]["pearson"] > 0.9
    answers = Predictor(tmp_path / "run").logits([text for text, _ in rows])[:, 0]
    assert abs(answers.mean() - 100 * np.mean([score for _, score in scored])) < 30  # the teacher's units


# ---------------------------------------------------------------------------------------------------- what is useless


def test_answers_for_another_version_of_the_texts(student, logits, reviews, tmp_path):
    lines = lines_of(reviews[0])
    (tmp_path / "new.csv").write_text("\n".join([lines[0], *(f"x{line}" for line in lines[1:])]) + "\n")
    data = data_of(reviews) | {"train": str(tmp_path / "new.csv")}
    with pytest.raises(DataError, match=r"131 of 131 texts \(100.0%\) have no answer.*another version"):
        distill(student, tmp_path / "run", teacher=logits, data=data, train=QUICK)
    (tmp_path / "new.csv").write_text("\n".join([*lines[:-1], f"x{lines[-1]}"]) + "\n")
    result = distill(student, tmp_path / "run", teacher=logits, data=data, train=QUICK | {"epochs": 1})
    assert result["rows"]["train"] == result["texts"]["labelled"] == 130
    assert any("1 of 131 texts (0.8%) have no answer; they are left out" in text for text in result["warnings"])


def test_a_teacher_that_knows_less_and_texts_from_elsewhere(student, distilled, logits, reviews, tmp_path):
    found = soft_labels.read(logits)
    soft_labels.write(tmp_path / "worse.parquet", SoftLabels(found.about, found.hashes, -found.logits))
    far = "\n".join(f"ж{letter}" for letter in LETTERS)
    (tmp_path / "far.txt").write_text(far + "\n")
    unknown = hashes_of(far.split("\n"), None)
    both = np.concatenate([found.hashes, unknown]), np.concatenate([-found.logits, found.logits[: len(unknown)]])
    soft_labels.write(tmp_path / "worse.parquet", SoftLabels(found.about, *both))
    result = distill(
        student, tmp_path / "run", teacher=tmp_path / "worse.parquet", transfer=[tmp_path / "far.txt"],
        data=data_of(reviews), train=QUICK | {"epochs": 1}, compare=str(distilled.parent / "alone"),
    )  # fmt: skip
    said = " | ".join(result["warnings"])
    assert "less than the student fine-tuned alone" in said
    assert "with the outputs named otherwise" in said
    assert "pieces are unknown to the vocabulary" in said
    assert "pieces a text on average" in said


def test_dev_texts_are_never_learnt_from(student, logits, reviews, unlabelled, tmp_path):
    texts = [*texts_of(reviews[1]), *texts_of(reviews[0])[:7], *lines_of(unlabelled)[:20]]
    (tmp_path / "mixed.txt").write_text("\n".join(texts) + "\n")
    settings = {"teacher": logits, "transfer": [tmp_path / "mixed.txt"], "data": data_of(reviews)}
    result = distill(student, tmp_path / "run", train=QUICK | {"epochs": 1}, **settings)
    counts = result["texts"]
    assert counts["in_dev"] == len(texts_of(reviews[1]))
    assert counts["labelled"] == 131
    assert counts["transfer"] == len(set(lines_of(unlabelled)[:20]))
    assert result["rows"]["train"] == counts["labelled"] + counts["transfer"]


def test_wrong_use_is_one_sentence(student, tiny, logits, reviews, unlabelled, tmp_path):
    data, out = data_of(reviews), tmp_path / "run"
    for changes, error, said in (
        ({"teacher": []}, ConfigError, "teacher"),
        ({"labelled": False}, ConfigError, "nothing to learn from"),
        ({"temperature": 0}, ConfigError, "temperature"),
        ({"train": QUICK | {"class_weights": "balanced"}}, ConfigError, "class_weights"),
        ({"teacher": tiny}, CheckpointError, "no classifier"),
        ({"transfr": []}, UnknownName, "transfer"),
        ({"compare": str(tmp_path)}, DataError, "no finished run"),
    ):
        with pytest.raises(error, match=said):
            distill(student, out, **({"teacher": logits, "data": data} | changes))
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(logits.read_bytes()[:-9])
    with pytest.raises(DataError, match=r"cut.parquet: not a whole"):
        distill(student, out, teacher=cut, data=data)
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("text,text2\na,b\n")
    with pytest.raises(DataError, match="rows of one text, these rows have two"):
        distill(student, out, teacher=logits, data=data, transfer=[pairs])
