"""Predicting: order, one by one or together, kinds, formats, processes, bounded memory; as an API and as a command."""

import functools
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet
from scipy.special import expit, softmax

from bert_miniatures.checkpoint import Labels, read_folder, write_folder
from bert_miniatures.errors import CheckpointError, DataError
from bert_miniatures.model import build
from bert_miniatures.predict import Counts, Predictor, answers, predict_stream
from commands import finish, shell, start

WORDS = ["good", "bad", "film", "very", "not", "the", "was", "is", "a1", "x", "yz", "!"]
DRAWN = np.random.default_rng(23)
TEXTS = [" ".join(DRAWN.choice(WORDS, size=DRAWN.integers(1, 40))) for _ in range(97)]


def classifier(tiny: Path, folder: Path, labels: Labels) -> Path:
    """Write a model folder with a random classifier for these labels."""
    found = read_folder(tiny)
    model = build(found.config, found.weights, groups={"pooler", "head"}, classes=len(labels.names) or 1, seed=3)
    weights = model.weights()
    weights["head.weight"] = weights["head.weight"] * 20  # so that the answers differ
    write_folder(folder, replace(found, weights=weights, labels=labels), card="# a classifier\n")
    return folder


@pytest.fixture(scope="module")
def single(tiny, tmp_path_factory) -> Path:
    labels = Labels("classification", ("bad", "good", "žluť"), task="own", max_length=31)
    return classifier(tiny, tmp_path_factory.mktemp("models") / "single", labels)


@pytest.fixture(scope="module")
def paired(tiny, tmp_path_factory) -> Path:
    labels = Labels("classification", ("same", "other"), task="own", pair=True, max_length=31)
    return classifier(tiny, tmp_path_factory.mktemp("models") / "paired", labels)


@pytest.fixture(scope="module")
def regression(tiny, tmp_path_factory) -> Path:
    return classifier(tiny, tmp_path_factory.mktemp("models") / "score", Labels("regression", (), task="own"))


@pytest.fixture(scope="module")
def multilabel(tiny, tmp_path_factory) -> Path:
    labels = Labels("multilabel", ("a", "b", "c", "d", "e"), task="own")
    return classifier(tiny, tmp_path_factory.mktemp("models") / "many", labels)


opened = functools.cache(Predictor)


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def same(found: list[dict], expected: list[dict]) -> None:
    """Assert the same answers; rounding differs with what shares a batch."""
    assert [answer["label"] for answer in found] == [answer["label"] for answer in expected]
    scores = [[answer["score"] for answer in both] for both in (found, expected)]
    np.testing.assert_allclose(*scores, atol=1e-6)


# ------------------------------------------------------------------------------------------------- answers


def test_together_is_as_one_by_one(single):
    predictor = Predictor(single)
    together = predictor(TEXTS)
    same(together, [predictor([text])[0] for text in TEXTS])
    assert len({answer["label"] for answer in together}) > 1


@given(st.permutations(range(13)))
def test_order_is_kept(single, order):
    predictor = opened(single)
    expected = predictor.logits(TEXTS[:13])[list(order)]
    np.testing.assert_allclose(predictor.logits([TEXTS[i] for i in order]), expected, atol=2e-6)


def test_classification_is_the_softmax_of_the_logits(single):
    predictor = Predictor(single)
    shares = softmax(predictor.logits(TEXTS).astype(np.float64), axis=1)
    for answer, row in zip(predictor(TEXTS), shares, strict=True):
        assert answer == {"label": ("bad", "good", "žluť")[row.argmax()], "score": pytest.approx(row.max(), abs=1e-12)}


def test_regression_is_the_number_itself(regression):
    predictor = Predictor(regression)
    assert predictor(TEXTS) == [{"score": float(value)} for value in predictor.logits(TEXTS)[:, 0]]


def test_multilabel_is_every_label_above_one_half(multilabel):
    predictor = Predictor(multilabel)
    shares = expit(predictor.logits(TEXTS).astype(np.float64))
    found = predictor(TEXTS)
    for answer, row in zip(found, shares, strict=True):
        assert answer["labels"] == [name for name, share in zip("abcde", row, strict=True) if share >= 0.5]
        assert answer["scores"] == pytest.approx(dict(zip("abcde", row, strict=True)), abs=1e-12)
    assert 0 < sum(len(answer["labels"]) for answer in found) < 5 * len(found)


def test_extreme_logits_overflow_nowhere():
    extreme = np.float32([[1e4, -1e4], [-1e4, 1e4]])
    assert [a["score"] for a in answers(Labels("classification", ("a", "b")), extreme)] == [1.0, 1.0]
    assert answers(Labels("multilabel", ("a", "b")), extreme)[0] == {"labels": ["a"], "scores": {"a": 1.0, "b": 0.0}}


def test_no_texts_no_answers(single, paired, regression):
    assert Predictor(single)([]) == []
    assert Predictor(single).logits([]).shape == (0, 3)
    assert Predictor(regression).logits([]).shape == (0, 1)
    assert Predictor(paired).logits([]).shape == (0, 2)


def test_what_is_asked_must_fit_the_model(single, paired):
    with pytest.raises(DataError, match=r"write \[text\]"):
        Predictor(single)("a text")
    with pytest.raises(DataError, match="leave --pair out"):
        Predictor(single)(["a"], ["b"])
    with pytest.raises(DataError, match="compares two texts"):
        Predictor(paired)(["a"])
    with pytest.raises(DataError, match="2 texts and 1 second texts"):
        Predictor(paired)(["a", "b"], ["c"])


def test_weights_that_are_no_numbers_give_no_answers(tiny, tmp_path):
    found = read_folder(classifier(tiny, tmp_path / "whole", Labels("classification", ("a", "b"))))
    weights = found.weights | {"head.bias": np.float32([np.nan, 0])}
    write_folder(tmp_path / "nan", replace(found, weights=weights), card="")
    with pytest.raises(CheckpointError, match="answers NaN or infinity; its weights are damaged"):
        Predictor(tmp_path / "nan")(["a"])


def test_counts_are_those_of_the_texts(single):
    counts = Counts()
    texts = ["good 中", "a b c " * 20, "x"]
    list(predict_stream(single, [(texts[:2], None), (texts[2:], None)], counts=counts))
    assert counts == Counts(rows=3, pieces=2 + 29 + 1, unknown=1, truncated=1, max_length=31)


# ------------------------------------------------------------------------------------------------- files


def written(folder: Path, suffix: str, texts: list[str]) -> Path:
    path = folder / f"texts{suffix}"
    if suffix == ".parquet":
        parquet.write_table(pa.table({"id": range(len(texts)), "text": texts}), path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps({"id": i, "text": text}) + "\n" for i, text in enumerate(texts)))
    elif suffix == ".txt":
        path.write_text("".join(f"{text}\n" for text in texts))
    else:
        mark = "\t" if suffix == ".tsv" else ","
        path.write_text("\n".join([f"id{mark}text", *(f'{i}{mark}"{text}"' for i, text in enumerate(texts))]) + "\n")
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", ".txt"])
def test_every_format_gives_the_same_answers(suffix, single, tmp_path):
    done = shell()("predict", single, written(tmp_path, suffix, TEXTS))
    same(done.rows, Predictor(single)(TEXTS))
    assert "žluť" in done.out
    assert done.err.startswith("97 rows, ")


@pytest.mark.parametrize("file", [[], ["-"]])
def test_lines_of_standard_input(file, single):
    done = shell()("predict", single, *file, stdin="\n".join([*TEXTS[:5], "", "bad"]).encode())
    same(done.rows, Predictor(single)([*TEXTS[:5], "", "bad"]))


def test_pairs_regression_and_several_labels(paired, regression, multilabel, tmp_path):
    (tmp_path / "pairs.csv").write_text("a,b,c\n" + "".join(f"{x},{i},{y}\n" for i, (x, y) in enumerate(PAIRS)))
    done = shell()("predict", paired, tmp_path / "pairs.csv", "--text", "a", "--pair", "c")
    same(done.rows, Predictor(paired)([x for x, _ in PAIRS], [y for _, y in PAIRS]))
    path = written(tmp_path, ".txt", TEXTS)
    scores = [row["score"] for row in shell()("predict", regression, path).rows]
    np.testing.assert_allclose(scores, Predictor(regression).logits(TEXTS)[:, 0], atol=1e-5)
    assert [row["labels"] for row in shell()("predict", multilabel, path).rows] == [
        answer["labels"] for answer in Predictor(multilabel)(TEXTS)
    ]


PAIRS = list(zip(TEXTS[:41], TEXTS[41:82], strict=True))


def test_out_is_written_whole_or_not_at_all(single, tmp_path):
    good, out = written(tmp_path, ".csv", TEXTS * 13), tmp_path / "new" / "answers.jsonl"
    assert shell()("predict", single, good, "--out", out).out == ""
    before = lines(out)
    assert len(before) == 97 * 13
    same(before[:97], Predictor(single)(TEXTS))
    bad = tmp_path / "bad.csv"
    bad.write_text(good.read_text() + "one,two,three\n" + good.read_text())
    done = shell()("predict", single, bad, "--out", out)
    assert done.code == 2
    assert (
        done.error == f"{bad}:1263: expected 2 columns (id, text), got 3; a text with the separator in it needs quotes"
    )
    assert lines(out) == before
    assert sorted(os.listdir(out.parent)) == ["answers.jsonl", "answers.jsonl.partial"]
    assert shell()("predict", single, good, "--out", out).code == 0  # what is left of another file is in nobody's way
    assert os.listdir(out.parent) == ["answers.jsonl"]


def test_rows_before_a_damaged_one_are_answered_on_stdout(single, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "good"}\n' * 2048 + '{"txt": "good"}\n')
    done = shell()("predict", single, path)
    assert done.code == 2
    assert done.error == f"{path}:2049: the key 'text' is missing; this line has txt"
    assert len(done.out.splitlines()) == 2048


def test_the_file_that_is_read_is_not_written(single, tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "good"}\n')
    assert "is the file to read" in shell()("predict", single, path, "--out", tmp_path / "." / "texts.jsonl").error
    assert path.read_text() == '{"text": "good"}\n'


def test_what_is_cut_or_unknown_is_said(single):
    done = shell()("predict", single, stdin=("good " * 100_000 + "\n中文 good\n").encode())
    assert len(done.rows) == 2
    assert "2 rows, 1 cut at 31 pieces (50.0%), 6.25% unknown pieces" in done.err
    done = shell()("predict", single, stdin="中文\n".encode())
    assert "warning: 100% of the pieces are unknown" in done.err


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(single, tmp_path):
    """200,000 rows of 100 characters are 20 MB, their answers far more."""
    peaks = []
    for rows in (2_000, 200_000):
        path = tmp_path / f"{rows}.csv"
        path.write_text("id,text\n" + "".join(f"{i},{'good film ' * 10}\n" for i in range(rows)))
        done = shell()("predict", single, path, "--out", tmp_path / "out.jsonl")
        assert f"{rows:,} rows, " in done.err
        peaks.append(done.peak)
    assert (tmp_path / "out.jsonl").read_bytes().count(b"\n") == 200_000
    assert peaks[1] - peaks[0] < 16 * 1024  # KiB


def test_a_terminal_is_answered_line_by_line(single, tmp_path):
    master, slave = os.openpty()
    process = start(tmp_path, "predict", single, stdin=slave)
    os.close(slave)
    for text in TEXTS[:2]:
        os.write(master, f"{text}\n".encode())
        answer = json.loads(process.stdout.readline())
        same([answer], Predictor(single)([text]))
    os.write(master, b"\x04")
    done = finish(process)
    os.close(master)
    assert (done.code, done.out) == (0, "")
    assert done.err.startswith("one text a line; Ctrl-D ends\n")


# ------------------------------------------------------------------------------------------------- processes


@pytest.mark.slow
def test_workers_answer_as_one_process_does(single, tmp_path):
    path = written(tmp_path, ".csv", TEXTS * 53)  # six chunks, more than wait in the queue
    one = shell()("predict", single, path)
    two = finish(start(tmp_path, "predict", single, path, "--workers", 2))
    same(two.rows, one.rows)
    assert two.err.splitlines()[-1:] == one.err.splitlines()[-1:]  # the counts; progress before them where it is slow


def test_a_worker_that_cannot_open_the_model_says_why(single, tmp_path):
    broken = tmp_path / "broken"
    subprocess.run(["cp", "-r", single, broken], check=True)
    raw = bytearray((broken / "model.safetensors").read_bytes())
    raw[-5] ^= 1
    (broken / "model.safetensors").write_bytes(raw)
    done = finish(start(tmp_path, "predict", broken, "--workers", 2), b"good\n")
    assert done.code == 2
    assert "the file is damaged" in done.error
