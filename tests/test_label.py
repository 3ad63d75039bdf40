"""Labelling: what is written, averages, files of probabilities, kill -9, faults."""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from scipy.special import expit, softmax

from bert_miniatures import soft_labels
from bert_miniatures.checkpoint import Labels, read_folder, write_folder
from bert_miniatures.data.probabilities import read_probabilities
from bert_miniatures.errors import CheckpointError, ConfigError, DataError, LabelError, OutputExists
from bert_miniatures.model import build
from bert_miniatures.predict import Predictor
from bert_miniatures.recipes import label as labelling
from bert_miniatures.recipes.label import label
from bert_miniatures.soft_labels import About, Lookup, SoftLabels, hashes_of, mean_of
from bert_miniatures.watch import Watch
from commands import finish, start

DRAWN = np.random.default_rng(29)
WORDS = ["good", "bad", "film", "very", "not", "x", "yz", "!"]
TEXTS = [" ".join(DRAWN.choice(WORDS, size=DRAWN.integers(1, 23))) + f" {i}" for i in range(61)]
NAMES = ("bad", "good", "žluť")


def teacher_folder(tiny: Path, folder: Path, labels: Labels, order: list[int] | None = None, seed: int = 3) -> Path:
    """Write a random classifier, its outputs in another order where one is given."""
    found = read_folder(tiny)
    outputs = len(labels.names) or 1
    weights = build(found.config, found.weights, groups={"pooler", "head"}, classes=outputs, seed=seed).weights()
    weights["head.weight"] = weights["head.weight"][order or list(range(outputs))] * 20
    write_folder(folder, replace(found, weights=weights, labels=labels), card="# teacher\n")
    return folder


@pytest.fixture(scope="module")
def teacher(tiny, tmp_path_factory) -> Path:
    labels = Labels("classification", NAMES, task="own", max_length=31)
    return teacher_folder(tiny, tmp_path_factory.mktemp("teachers") / "one", labels)


@pytest.fixture
def texts(tmp_path) -> Path:
    path = tmp_path / "texts.txt"
    path.write_text("\n".join(TEXTS) + "\n")
    return path


def rewrite(path: Path, **changes: object) -> None:
    """Change the document in the metadata."""
    table = parquet.read_table(path)
    document = json.loads(table.schema.metadata[b"soft_labels"]) | changes
    parquet.write_table(table.replace_schema_metadata({"soft_labels": json.dumps(document)}), path)


def test_a_file_holds_the_teachers_logits_and_who_it_was(teacher, texts, tmp_path):
    done = label(teacher, tmp_path / "l.parquet", files=[texts])
    found = soft_labels.read(tmp_path / "l.parquet")
    np.testing.assert_allclose(found.logits, Predictor(teacher).logits(TEXTS), atol=1e-5)
    assert found.about.labels == NAMES
    assert found.about.kind == "classification"
    assert done["rows"] == len(TEXTS)
    assert done["missing"] == 0
    who = found.about.teachers[0]
    assert who["sha256"] == read_folder(teacher).fingerprint
    assert who["parameters"] == sum(weight.size for weight in read_folder(teacher).weights.values())
    assert not (tmp_path / "l.parquet.parts").exists()
    assert set(parquet.read_table(tmp_path / "l.parquet").column_names) == {"hash", "logits"}  # no text


def test_texts_are_found_by_hash_in_any_order(teacher, texts, tmp_path):
    label(teacher, tmp_path / "l.parquet", files=[texts])
    found = soft_labels.read(tmp_path / "l.parquet")
    back = [*reversed(TEXTS), "never seen", TEXTS[0] + " "]
    logits, known = Lookup(found).find(hashes_of(back, None))
    assert known.tolist() == [True] * len(TEXTS) + [False, False]
    np.testing.assert_array_equal(logits[: len(TEXTS)], found.logits[::-1])


@given(st.lists(st.tuples(st.text(max_size=4), st.text(max_size=4)), min_size=1, max_size=17, unique=True))
def test_pairs_that_differ_have_other_hashes(rows):
    texts, pairs = [a for a, _ in rows], [b for _, b in rows]
    both = hashes_of([*texts, *(a + b for a, b in rows)], [*pairs, *("" for _ in rows)])
    assert len({bytes(one) for one in both[: len(rows)]}) == len(rows)
    for (a, b), one, joined in zip(rows, both, both[len(rows) :], strict=False):
        assert (bytes(one) == bytes(joined)) == (b == "")
        assert bytes(hashes_of([a], None)[0]) == bytes(hashes_of([a], [""])[0])


@pytest.mark.parametrize(("kind", "shares"), [("classification", softmax), ("multilabel", expit)])
def test_teachers_are_averaged_as_probabilities(kind, shares):
    first, second, third = (DRAWN.normal(size=(13, 5)).astype(np.float32) * 4 for _ in range(3))
    extra = {"axis": 1} if kind == "classification" else {}
    wanted = sum(shares(one.astype(float), **extra) for one in (first, second, third)) / 3
    found = mean_of(kind, [first, second, third])
    np.testing.assert_allclose(shares(found.astype(float), **extra), wanted, atol=1e-6)
    assert mean_of(kind, [first]) is first
    np.testing.assert_allclose(mean_of("regression", [first, second]), (first + second) / 2, atol=1e-6)


def test_two_teachers_meet_by_the_names_of_their_labels(teacher, tiny, texts, tmp_path):
    turned = Labels("classification", (NAMES[2], NAMES[0], NAMES[1]), task="own", max_length=31)
    teacher_folder(tiny, tmp_path / "turned", turned, order=[2, 0, 1])
    label([teacher, tmp_path / "turned"], tmp_path / "l.parquet", files=[texts])
    found = soft_labels.read(tmp_path / "l.parquet")
    alone = Predictor(teacher).logits(TEXTS).astype(float)
    np.testing.assert_allclose(softmax(found.logits.astype(float), axis=1), softmax(alone, axis=1), atol=1e-5)
    assert len(found.about.teachers) == 2
    other = teacher_folder(tiny, tmp_path / "other", replace(turned, names=("a", "b", "c")))
    with pytest.raises(LabelError, match=r"a, b, c.*bad, good"):
        label([teacher, other], tmp_path / "m.parquet", files=[texts])


def test_many_parts_give_the_file_of_one(teacher, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(labelling, "PART", 7)
    monkeypatch.setattr(soft_labels, "_GROUP", 17)
    label(teacher, tmp_path / "l.parquet", files=[texts])
    found = soft_labels.read(tmp_path / "l.parquet")
    np.testing.assert_array_equal(found.hashes, hashes_of(TEXTS, None))
    np.testing.assert_allclose(found.logits, Predictor(teacher).logits(TEXTS), atol=1e-5)


@pytest.mark.slow
def test_a_labelling_that_was_killed_goes_on_and_ends_with_the_same_bytes(teacher, texts, tmp_path):
    out, slow = tmp_path / "l.parquet", tmp_path / "many.txt"
    slow.write_text("".join(f"{text} {i}\n" for i in range(13) for text in TEXTS))
    command = ("label", teacher, slow, "-o", out)
    small = "import bert_miniatures.recipes.label as labelling; labelling.PART = 5"
    process = start(tmp_path, *command, code=small, env={"OMP_NUM_THREADS": "1"})
    parts = tmp_path / "l.parquet.parts"
    until = time.monotonic() + 60
    while len(list(parts.glob("0*.parquet"))) < 3 and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    finish(process)
    there = {path: path.stat().st_mtime_ns for path in parts.glob("0*.parquet")}
    assert len(there) >= 3
    assert not out.exists()
    with pytest.raises(OutputExists, match="--resume"):
        label(teacher, out, files=[slow])
    done = finish(start(tmp_path, *command, "--resume", "--json", code=small, env={"OMP_NUM_THREADS": "1"}))
    assert done.code == 0, done.err
    assert json.loads(done.out)["rows"] == 13 * len(TEXTS)
    once = ("label", teacher, slow, "-o", tmp_path / "once.parquet")
    assert finish(start(tmp_path, *once, code=small, env={"OMP_NUM_THREADS": "1"})).code == 0  # one thread: one sum
    assert out.read_bytes() == (tmp_path / "once.parquet").read_bytes()


def test_what_a_stopped_labelling_left_is_read_and_checked(teacher, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(labelling, "PART", 11)
    out = tmp_path / "l.parquet"
    label(teacher, tmp_path / "whole.parquet", files=[texts])

    class Stops(Watch):
        def progress(self, done: int, total: int, text: str = "", left: float | None = None) -> None:
            assert total == len(TEXTS)
            assert left is None
            if done >= 33:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        label(teacher, out, files=[texts], watch=Stops())
    first = sorted((tmp_path / "l.parquet.parts").glob("0*.parquet"))[0]
    before = first.stat().st_ino
    text = texts.read_text()
    texts.write_text("X" + text)
    with pytest.raises(DataError, match="the texts changed"):
        label(teacher, out, files=[texts], resume=True)
    texts.write_text(text + "one more\n")
    with pytest.raises(ConfigError, match="begun with other"):
        label(teacher, out, files=[texts], resume=True)
    texts.write_text(text)
    assert first.stat().st_ino == before
    seen = []

    class Sees(Watch):
        def progress(self, done: int, total: int, text: str = "", left: float | None = None) -> None:
            seen.append(done)

    label(teacher, out, files=[texts], resume=True, watch=Sees())
    assert seen == [33, 44, 55, 61]  # the pace begins where the work does
    assert out.read_bytes() == (tmp_path / "whole.parquet").read_bytes()  # bit for bit


def test_a_deploy_folder_is_a_teacher(teacher, texts, tmp_path):
    pytest.importorskip("onnxruntime", exc_type=ImportError)
    from bert_miniatures.exporting import export

    export(teacher, tmp_path / "deployed")
    label(tmp_path / "deployed", tmp_path / "l.parquet", files=[texts])
    found = soft_labels.read(tmp_path / "l.parquet")
    np.testing.assert_allclose(found.logits, Predictor(teacher).logits(TEXTS), atol=1e-4)
    assert found.about.labels == NAMES
    assert found.about.teachers[0]["bytes"] == (tmp_path / "deployed" / "onnx" / "model.onnx").stat().st_size


# ---------------------------------------------------------------------------------------------------- probabilities


def test_probabilities_are_a_teacher(tmp_path, texts):
    shares = DRAWN.dirichlet([1, 1], size=len(TEXTS))
    rows = [{"text": t, "probabilities": {"b": p[1], "a": p[0]}} for t, p in zip(TEXTS, shares, strict=True)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flat = {"text": TEXTS, "a": shares[:, 0], "b": shares[:, 1]}
    parquet.write_table(pa.table(flat), tmp_path / "flat.parquet")
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "struct.parquet")
    for name in ("p.jsonl", "flat.parquet", "struct.parquet"):
        found = read_probabilities(tmp_path / name)
        assert found.about.labels == ("a", "b")
        np.testing.assert_allclose(softmax(found.logits, axis=1), shares, atol=1e-6)
    label(tmp_path / "p.jsonl", tmp_path / "l.parquet", files=[texts])
    written = soft_labels.read(tmp_path / "l.parquet")
    np.testing.assert_allclose(softmax(written.logits, axis=1), shares, atol=1e-6)
    sure = tmp_path / "sure.jsonl"
    sure.write_text('{"text": "x", "a": 1, "b": 0}\n')
    assert np.isfinite(read_probabilities(sure).logits).all()


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"a": -0.1, "b": 1.1}, r"p.jsonl:2: the probability of 'a' is -0.1"),
        ({"a": 0.4, "b": 0.5}, r"p.jsonl:2: the probabilities sum to 0.9, expected 1; --kind multilabel"),
        ({"a": 0.4, "c": 0.6}, r"p.jsonl:2: expected the labels a, b, as in the first row, got a, c"),
        ({"a": "high", "b": 0.5}, r"p.jsonl:2: expected a number for 'a', got 'high'"),
        ({"a": float("nan"), "b": 0.5}, r"p.jsonl:2: expected a number for 'a', got nan"),
    ],
)
def test_probabilities_that_are_none(second, said, tmp_path):
    rows = [{"text": "x", "probabilities": {"a": 0.25, "b": 0.75}}, {"text": "y", "probabilities": second}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=said):
        read_probabilities(tmp_path / "p.jsonl")


def test_scores_and_several_labels(tmp_path):
    (tmp_path / "s.jsonl").write_text('{"text": "x", "score": 3.25}\n{"text": "y", "score": -1}\n')
    found = read_probabilities(tmp_path / "s.jsonl")
    assert (found.about.kind, found.logits.tolist()) == ("regression", [[3.25], [-1.0]])
    (tmp_path / "m.jsonl").write_text('{"text": "x", "probabilities": {"a": 0.9, "b": 0.8}}\n')
    several = read_probabilities(tmp_path / "m.jsonl", kind="multilabel")
    np.testing.assert_allclose(expit(several.logits), [[0.9, 0.8]], atol=1e-6)


def test_texts_that_a_file_of_answers_lacks(tmp_path, texts):
    half = [{"text": t, "probabilities": {"a": 0.5, "b": 0.5}} for t in TEXTS[:30]]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in half))
    with pytest.raises(DataError, match=r"31 of 61 texts \(50.8%\) have no answer.*another version"):
        label(tmp_path / "p.jsonl", tmp_path / "l.parquet", files=[texts])


# ---------------------------------------------------------------------------------------------------- faults


def test_conflicting_rows_are_counted_and_averaged():
    hashes = hashes_of(["a", "b", "a", "c", "b"], None)
    logits = np.float32([[2, 0], [1, 0], [0, 2], [5, 5], [1, 0]])
    lookup = Lookup(SoftLabels(About("classification", ("x", "y")), hashes, logits))
    assert lookup.conflicts == 1
    found, known = lookup.find(hashes_of(["a", "b", "c", "d"], None))
    assert known.tolist() == [True, True, True, False]
    np.testing.assert_allclose(softmax(found[0]), [0.5, 0.5], atol=1e-6)
    np.testing.assert_array_equal(found[1:3], [[1, 0], [5, 5]])


def test_damaged_and_newer_files(teacher, texts, tmp_path):
    out = tmp_path / "l.parquet"
    label(teacher, out, files=[texts])
    whole = out.read_bytes()
    for size in (0, 3, len(whole) // 2, len(whole) - 1):
        (tmp_path / "cut.parquet").write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"cut.parquet: not a whole"):
            label(tmp_path / "cut.parquet", tmp_path / "m.parquet", files=[texts])
    rewrite(out, format=soft_labels.FORMAT + 1)
    with pytest.raises(DataError, match="format 2, newer than 1"):
        soft_labels.read(out)
    out.write_bytes(whole)
    rewrite(out, labels=["a", "b"])
    with pytest.raises(DataError, match="not a whole file of soft labels"):
        soft_labels.read(out)


def test_wrong_use_is_one_sentence(teacher, tiny, texts, tmp_path):
    out = tmp_path / "l.parquet"
    with pytest.raises(ConfigError, match="no texts"):
        label(teacher, out)
    with pytest.raises(ConfigError, match=r"written as \.parquet"):
        label(teacher, tmp_path / "l.csv", files=[texts])
    with pytest.raises(CheckpointError, match="no classifier"):
        label(tiny, out, files=[texts])
    with pytest.raises(ConfigError, match="standard input"):
        label(teacher, out, files=["-"])
    out.write_bytes(b"")
    with pytest.raises(OutputExists, match="--overwrite"):
        label(teacher, out, files=[texts])
    out.unlink()
    unnamed = teacher_folder(tiny, tmp_path / "unnamed", Labels("classification", ("LABEL_0", "LABEL_1")))
    with pytest.raises(CheckpointError, match="id2label"):
        label(unnamed, out, files=[texts])
    assert not (tmp_path / "l.parquet.parts").exists()


def test_a_task_gives_its_labels_in_its_order(tiny, glue, tmp_path):
    turned = Labels("classification", ("entailment", "not_entailment"), task="wnli", pair=True, max_length=37)
    folder = teacher_folder(tiny, tmp_path / "t", replace(turned, names=turned.names[::-1]), order=[1, 0])
    done = label(folder, tmp_path / "l.parquet", task="wnli", glue=glue, splits=["dev"])
    assert done["rows"] == 71
    straight = teacher_folder(tiny, tmp_path / "s", turned)
    label(straight, tmp_path / "s.parquet", task="wnli", glue=glue, splits=["dev"])
    first, second = soft_labels.read(tmp_path / "l.parquet"), soft_labels.read(tmp_path / "s.parquet")
    assert first.about.labels == second.about.labels
    np.testing.assert_allclose(first.logits, second.logits, atol=1e-5)
    with pytest.raises(LabelError):
        label(folder, tmp_path / "m.parquet", task="sst2", glue=glue, splits=["dev"])
