"""Pre-training with a teacher, end to end: three objectives, resume, word vectors, bad input."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import test_pretrain
from bert_miniatures.checkpoint import read_folder
from bert_miniatures.config import PretrainConfig
from bert_miniatures.errors import ConfigError, DataError
from bert_miniatures.files import RunFolder
from bert_miniatures.recipes.course import course_of
from bert_miniatures.recipes.lessons import TaughtCourse, lessons_of
from bert_miniatures.recipes.pretrain import pretrain, run_pretrain
from bert_miniatures.recipes.text_loading import load_text_inputs
from bert_miniatures.watch import Watch
from bert_miniatures.word_start import start_words
from test_pretrain import DATA, QUICK, Heard, Stopper, bits, result_of
from test_teacher import teacher_folder

corpus = test_pretrain.corpus
TEACHER = {"sentences": 61, "pairs": 97, "shortest": 3, "batch_size": 5}


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    return teacher_folder(tiny, tmp_path_factory.mktemp("teachers") / "teacher")


def settings(model, corpus, folder, train=None, **teacher):
    return PretrainConfig.of(
        {
            "model": str(model),
            "data": DATA | {"corpus": [corpus]},
            "teacher": TEACHER | {"model": str(folder)} | teacher,
            "train": QUICK | (train or {}),
        }
    )


@pytest.fixture(scope="module")
def whole(tiny, corpus, folder, tmp_path_factory):
    os.environ["MINIATURES_HOME"] = str(tmp_path_factory.mktemp("cache"))
    out = tmp_path_factory.mktemp("runs") / "run"
    run_pretrain(settings(tiny, corpus, folder), out)
    return out


def records(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_three_objectives_and_no_helper_in_the_folder(whole, folder):
    losses = [record["losses"] for record in records(whole) if "losses" in record]
    assert len(losses) == QUICK["steps"]
    assert [len(each) for each in losses] == [1] * QUICK["steps"]  # log_every = 1
    counts = {kind: sum(kind in each for each in losses) for kind in ("masked", "vectors", "pairs")}
    assert counts == pytest.approx({"masked": 12, "vectors": 6, "pairs": 6}, abs=2)
    found = read_folder(whole / "model")
    assert found.groups == {"encoder", "pooler", "mlm", "nsp"}
    assert set(found.weights) == set(read_folder(folder).weights)
    assert "and what a teacher says of sentences. Vocabulary" in (whole / "model/README.md").read_text()
    result = result_of(whole)
    assert result["lessons"]["pairs"] == 97
    assert result["lessons"]["width"] == 21
    assert result["teacher"]["model"] == str(folder)
    assert result["data_sha256"]["teacher"]
    assert 0 < result["passes"] < 0.6 * QUICK["steps"] * QUICK["batch_size"] / 43


@pytest.mark.parametrize("after", [5, 14])
def test_resume_equals_the_uninterrupted_run(after, whole, tiny, corpus, folder, tmp_path):
    config = settings(tiny, corpus, folder)
    with pytest.raises(KeyboardInterrupt):
        run_pretrain(config, tmp_path / "run", watch=Stopper(after))
    assert not RunFolder(tmp_path / "run").is_finished()
    run_pretrain(config, tmp_path / "run", resume=True)
    assert bits(tmp_path / "run") == bits(whole)
    keys = ("step", "loss", "losses", "gradient_norm", "tokens", "learning_rate")
    ours, theirs = ([{key: r.get(key) for key in keys} for r in records(run)] for run in (tmp_path / "run", whole))
    assert ours == theirs


@pytest.mark.slow
def test_kill_9_and_resume(whole, tiny, corpus, folder, tmp_path):
    out = tmp_path / "run"
    command = [
        sys.executable,
        "-m",
        "bert_miniatures",
        "pretrain",
        "--model",
        str(tiny),
        "--out",
        str(out),
        str(corpus),
    ]
    for section, values in (("data", DATA), ("teacher", TEACHER | {"model": folder}), ("train", QUICK)):
        for key, value in values.items():
            command += ["--set", f"{section}.{key}={value}"]
    command += ["--set", "train.save_every=0"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not RunFolder(out).records() and time.monotonic() < until:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not RunFolder(out).is_finished()
    run_pretrain(settings(tiny, corpus, folder, {"save_every": 0.0}), out, resume=True)
    assert bits(out) == bits(whole)


def inputs_of(config):
    inputs = load_text_inputs(config, Watch(), "run")
    return inputs, lessons_of(config, inputs, Watch())


def test_the_course_counts_what_it_reads(tiny, corpus, folder):
    config = settings(tiny, corpus, folder)
    long = config.model_copy(update={"data": config.data.model_copy(update={"long_share": 0.5, "long_length": 37})})
    inputs, lessons = inputs_of(long)
    course = lessons.course(course_of(long, inputs.parent, inputs.corpus, inputs.training), long, inputs)
    assert isinstance(course, TaughtCourse)
    course.long_begins = 17
    kinds = [course.kind(step) for step in range(41)]
    masked = 0
    for step, rows in enumerate(course.rows(0)[:41]):
        assert course.latest is rows
        (batch,) = course.micro(rows)
        assert (
            type(batch).__name__
            == {"masked": "PretrainBatch", "vectors": "VectorBatch", "pairs": "PairBatch"}[kinds[step]]
        )
        tokens, work = course.cost(rows, inputs.parent.config, 0.15)
        mask = torch.ones_like(batch.ids) if batch.mask is None else batch.mask
        assert tokens == int(mask.sum())
        assert work > 6 * tokens * 2 * (4 * 21**2 + 2 * 21 * 29)
        if kinds[step] == "masked":
            phase, epoch, index = course.at(step)
            assert phase == int(step >= 17)
            assert index + epoch * course.phases[phase].per_epoch == masked - phase * kinds[:17].count("masked")
            masked += 1
    expected = [kinds[:17].count("masked"), kinds[17:].count("masked")]
    assert course.passes(41) == pytest.approx(
        sum(n / p.per_epoch for n, p in zip(expected, course.phases, strict=True))
    )
    steps = course.updates(3)
    assert course._mixture.done(steps)[0] >= 3 * course.phases[0].per_epoch
    assert course._mixture.done(steps - 4)[0] < 3 * course.phases[0].per_epoch


def test_one_of_the_two(tiny, corpus, folder, tmp_path):
    for name, shares in (("vectors", {"pair_share": 0}), ("pairs", {"vector_share": 0})):
        inputs, lessons = inputs_of(settings(tiny, corpus, folder, **shares))
        assert set(lessons.helpers) == {"vectors": {"projection"}, "pairs": {"similarity"}}[name]
        config = settings(tiny, corpus, folder, **shares)
        course = lessons.course(course_of(config, inputs.parent, inputs.corpus, inputs.training), config, inputs)
        assert course.kinds == ["masked", name]
        result = run_pretrain(config, tmp_path / name)
        kinds = {kind for record in records(tmp_path / name) for kind in record.get("losses", {})}
        assert kinds == {"masked", name}
        assert inputs.teacher.fingerprint == result["data_sha256"]["teacher"]


def test_a_budget_with_a_teacher(tiny, corpus, folder, tmp_path):
    train = {key: value for key, value in QUICK.items() if key != "steps"} | {"budget": "2s"}
    config = PretrainConfig.of(settings(tiny, corpus, folder).model_dump() | {"train": train})
    result = run_pretrain(config, tmp_path / "run")
    assert result["steps"] > 20
    assert {kind for record in records(tmp_path / "run") for kind in record.get("losses", {})} == {
        "masked",
        "vectors",
        "pairs",
    }


def test_words_start_from_the_teachers(tiny, corpus, folder, tmp_path):
    read_folder(tiny).tokenizer.save(tmp_path / "vocab")
    document = {"model": "2/128", "vocab": tmp_path / "vocab", "data": DATA | {"corpus": [corpus]}, "train": QUICK}
    wide = PretrainConfig.of(document | {"teacher": TEACHER | {"model": str(folder), "start_words": True}})
    with pytest.raises(ConfigError, match="word vectors of 21 numbers cannot be the start of 128"):
        run_pretrain(wide, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"teacher\.start_words is for new weights \(--vocab\)"):
        run_pretrain(settings(tiny, corpus, folder, start_words=True), tmp_path / "run")
    inputs = load_text_inputs(wide, Watch(), "run")
    narrow = inputs.parent.config.model_copy(update={"hidden_size": 7})
    watch = Heard()
    inputs = type(inputs)(**(vars(inputs) | {"parent": type(inputs.parent)(narrow, {}, inputs.parent.tokenizer)}))
    lessons = lessons_of(wide, inputs, watch)
    table = read_folder(folder).weights["embed.word.weight"]
    names = inputs.parent.tokenizer.vocabulary
    assert np.array_equal(lessons.weights["embed.word.weight"], start_words(table, names, names, 7)[0])
    assert watch.notes[0] == "word vectors of 73 of 73 pieces start from the teacher's"


def test_words_alone_need_no_pass(tiny, corpus, folder, tmp_path):
    config = settings(tiny, corpus, folder, vector_share=0, pair_share=0)
    run_pretrain(config, tmp_path / "taught")
    pretrain(tiny, corpus, tmp_path / "plain", data=DATA, train=QUICK)
    assert bits(tmp_path / "taught") == bits(tmp_path / "plain")
    assert (tmp_path / "cache" / "pretraining").is_dir()
    assert not (tmp_path / "cache" / "teacher").exists()


def test_passes_are_those_over_the_corpus(tiny, corpus, folder, tmp_path):
    train = {key: value for key, value in QUICK.items() if key != "steps"} | {"epochs": 2}
    config = PretrainConfig.of(settings(tiny, corpus, folder).model_dump() | {"train": train})
    result = run_pretrain(config, tmp_path / "run")
    plain = pretrain(tiny, corpus, tmp_path / "plain", data=DATA, train=train)
    assert plain["passes"] == 2
    assert 2 <= result["passes"] < 2.3
    assert result["steps"] == pytest.approx(2 * plain["steps"], abs=4)


def test_runs_of_several_seeds_share_what_the_teacher_read(tiny, corpus, folder):
    found = [inputs_of(settings(tiny, corpus, folder, {"seed": seed}))[1] for seed in (1, 2)]
    assert found[0].store.folder == found[1].store.folder
    other = inputs_of(settings(tiny, corpus, folder, seed=2))[1]
    assert other.store.folder != found[0].store.folder


def test_what_cannot_work(tiny, corpus, folder, whole, tmp_path):
    with pytest.raises(ConfigError, match=r"does not say how .* --set teacher\.pooling=mean or cls"):
        run_pretrain(settings(tiny, corpus, tiny), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"teacher\.longest 30: at most 29 pieces fit"):
        run_pretrain(settings(tiny, corpus, folder, longest=30), tmp_path / "run")
    with pytest.raises(DataError, match="no sentence of 28 to 29 pieces"):
        run_pretrain(settings(tiny, corpus, folder, shortest=28), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"near_share 0\.9 and thinned_share 0\.2 are more than 1"):
        settings(tiny, corpus, folder, near_share=0.9, thinned_share=0.2)
    with pytest.raises(ConfigError, match="start_words needs a teacher"):
        PretrainConfig.of({"model": "2/128", "teacher": {"start_words": True}})
    with pytest.raises(ConfigError, match=r"teacher\.pairs = 97, now it is 98; a run is resumed as it was begun"):
        run_pretrain(settings(tiny, corpus, folder, pairs=98), whole, resume=True)


def test_another_teacher_is_noticed(tiny, corpus, folder, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        run_pretrain(settings(tiny, corpus, folder), out, watch=Stopper(5))
    other = teacher_folder(tiny, tmp_path / "other", "cls")
    with pytest.raises(DataError, match=r"the teacher changed since .*run was begun"):
        run_pretrain(settings(tiny, corpus, other), out, resume=True)
