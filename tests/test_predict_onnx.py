"""Predicting with a deploy folder: torch's answers without torch, damaged folders, order, batches, the command."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_miniatures.errors import CheckpointError, DataError, UnknownName
from bert_miniatures.exporting import export
from bert_miniatures.predict import Counts, Predictor, predict_stream
from bert_miniatures.predict_onnx import FILES, batches
from bert_miniatures.tokenizer import Encoded
from commands import finish, shell, start
from deploy import LABELS, PAIRS, TEXTS, classifier, written

BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {"torch", "transformers", "sklearn", "scipy", "onnx", %s}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture(scope="module")
def both(tiny, tmp_path_factory):
    """Return a function: kind -> the model folder and the deploy folder."""
    found: dict[str, tuple[Path, Path]] = {}

    def make(kind: str) -> tuple[Path, Path]:
        if kind not in found:
            folder = tmp_path_factory.mktemp(kind)
            model = written(classifier(tiny, LABELS[kind]), folder / "model")
            export(model, folder / "out")
            found[kind] = model, folder / "out"
        return found[kind]

    return make


def alike(found: list[dict], expected: list[dict]) -> None:
    """Assert the same labels, and scores within 1e-4."""
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        assert one.get("label") == other.get("label")
        assert one.get("labels") == other.get("labels")
        assert one.get("score") == pytest.approx(other.get("score"), abs=1e-4)
        assert one.get("scores") == pytest.approx(other.get("scores"), abs=1e-4)


def lines(texts: list[str]) -> bytes:
    return "".join(f"{text}\n" for text in texts).encode()


# ------------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize("kind", LABELS)
def test_the_answers_are_those_of_torch(kind, both):
    model, out = both(kind)
    pairs = PAIRS if kind == "paired" else None
    found, expected = Predictor(out)(TEXTS, pairs), Predictor(model)(TEXTS, pairs)
    alike(found, expected)
    spread = [answer.get("score") or sum(answer["scores"].values()) for answer in found]
    assert np.std(spread) > 0.01


def test_together_is_as_one_by_one_bit_for_bit(both):
    predictor = Predictor(both("single")[1])
    together = predictor.logits(TEXTS)
    np.testing.assert_array_equal(together, np.concatenate([predictor.logits([text]) for text in TEXTS]))
    order = np.random.default_rng(3).permutation(len(TEXTS))
    np.testing.assert_array_equal(predictor.logits([TEXTS[i] for i in order]), together[order])


def test_threads_change_nothing(both):
    out = both("single")[1]
    one, three = (Predictor(out, threads=threads).logits(TEXTS) for threads in (1, 3))
    np.testing.assert_allclose(one, three, atol=1e-6)


def test_texts_are_cut_and_counted_as_with_torch(both):
    texts = ["good 中", "a b c " * 20, "x", "", "good " * 50_000]
    counted = []
    for folder in both("single"):
        counted.append(Counts())
        found = [answers for chunk in (texts[:2], texts[2:]) for answers in [(chunk, None)]]
        assert len(list(predict_stream(folder, found, counts=counted[-1]))) == 2
    assert counted[0] == counted[1]
    assert counted[1].truncated == 2
    alike(*(Predictor(folder)(texts) for folder in both("single")))


def test_what_is_asked_must_fit_the_model(both):
    assert Predictor(both("single")[1])([]) == []
    with pytest.raises(DataError, match="leave --pair out"):
        Predictor(both("single")[1])(["a"], ["b"])
    with pytest.raises(DataError, match="compares two texts"):
        Predictor(both("paired")[1])(["a"])
    with pytest.raises(CheckpointError, match="int8 is for deploy folders"):
        Predictor(both("single")[0], precision="int8")
    with pytest.raises(CheckpointError, match=r"has no onnx/model_quantized.onnx, only fp32"):
        Predictor(both("single")[1], precision="int8")
    with pytest.raises(UnknownName, match="did you mean 'int8'"):
        Predictor(both("single")[1], precision="int9")


@given(st.lists(st.integers(2, 41), min_size=1, max_size=53), st.integers(1, 199))
def test_batches_hold_each_row_once_within_the_budget(lengths, budget):
    lengths = np.array(lengths, np.int32)
    ids = np.arange(lengths.sum(), dtype=np.int32)
    first = np.maximum(lengths - 5, 1).astype(np.int32)
    seen = []
    ends = np.cumsum(lengths)
    for rows, feed in batches(Encoded(ids, lengths, first, 0, 0, 0), -1, budget):
        seen += rows.tolist()
        shape = feed["input_ids"].shape
        assert shape[0] == 1 or shape[0] * shape[1] <= budget
        assert shape[1] == lengths[rows].max()
        for row, at in zip(rows, range(len(rows)), strict=True):
            real = feed["attention_mask"][at] == 1
            assert feed["input_ids"][at][real].tolist() == ids[ends[row] - lengths[row] : ends[row]].tolist()
            assert (feed["input_ids"][at][~real] == -1).all()
            assert feed["token_type_ids"][at].sum() == lengths[row] - first[row]
            assert real[: lengths[row]].all()
            assert not feed["token_type_ids"][at][: first[row]].any()
    assert sorted(seen) == list(range(len(lengths)))


# ------------------------------------------------------------------------------------------------- without torch


def test_the_command_needs_no_torch(both, tmp_path):
    model, out = both("single")
    done = finish(start(tmp_path, "predict", out, code=BLOCK % "'requests'"), lines(TEXTS))
    alike(done.rows, Predictor(model)(TEXTS))
    assert done.err.startswith("97 rows, ")


def test_python_needs_no_torch(both, tmp_path):
    code = BLOCK % "'pydantic', 'requests', 'pyarrow'" + (
        "from bert_miniatures import Predictor\n"
        f"print(Predictor({str(both('single')[1])!r})(['good'])[0]['label'])\n"
        "assert not {'torch', 'onnx', 'typer', 'huggingface_hub'} & set(sys.modules)\nsys.exit()"
    )
    done = finish(start(tmp_path, code=code))
    assert (done.code, done.err) == (0, "")
    assert done.out.strip() == Predictor(both("single")[0])(["good"])[0]["label"]


def test_without_onnxruntime_the_extra_is_named(both, tmp_path):
    done = finish(start(tmp_path, "predict", both("single")[1], code=BLOCK % "'onnxruntime'"), b"good\n")
    assert done.code == 2
    assert done.error == (
        "predicting with a deploy folder needs the 'deploy' extra: pip install 'bert-miniatures[deploy]'"
    )


@pytest.mark.slow
def test_workers_answer_as_one_process_does(both, tmp_path):
    model, out = both("single")
    many = TEXTS * 23
    done = finish(start(tmp_path, "predict", out, "--workers", 2), lines(many))
    alike(done.rows, Predictor(model)(TEXTS) * 23)


def test_threads_and_int8_are_options(both):
    out = both("single")[1]
    done = shell()("predict", out, "--threads", 1, stdin=lines(TEXTS[:7]))
    alike(done.rows, Predictor(out)(TEXTS[:7]))
    assert "each of several --workers has one" in shell()("predict", out, "--threads", 2, "--workers", 2).error
    assert "has no onnx/model_quantized.onnx" in shell()("predict", out, "--int8", stdin=b"good\n").error


def test_pairs_of_a_file(both, tmp_path):
    model, out = both("paired")
    rows = "".join(json.dumps({"a": a, "b": b}) + "\n" for a, b in zip(TEXTS, PAIRS, strict=True))
    (tmp_path / "pairs.jsonl").write_text(rows)
    done = shell()("predict", out, tmp_path / "pairs.jsonl", "--text", "a", "--pair", "b")
    alike(done.rows, Predictor(model)(TEXTS, PAIRS))


# ------------------------------------------------------------------------------------------------- damage


def flip(path: Path, place: float) -> None:
    raw = bytearray(path.read_bytes())
    raw[int(place * len(raw))] ^= 4
    path.write_bytes(raw)


def edit(path: Path, change) -> None:
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("file", "damage", "said"),
    [
        (FILES["fp32"], lambda path: path.write_bytes(path.read_bytes()[:-77]), "do not match the checksum"),
        (FILES["fp32"], lambda path: flip(path, 0.3), "do not match the checksum"),
        (FILES["fp32"], Path.unlink, "no such file; miniature.json lists it, so the folder is not whole"),
        ("vocab.txt", lambda path: flip(path, 0.5), "do not match the checksum"),
        ("vocab.txt", Path.unlink, "no such file"),
        ("miniature.json", Path.unlink, "no miniature.json; 'miniatures export' makes a deploy folder"),
        ("miniature.json", lambda path: path.write_text("[]"), "format None, this version reads format 1"),
        ("miniature.json", lambda path: path.write_text("{"), "not JSON"),
        ("miniature.json", lambda path: edit(path, lambda meta: meta.pop("labels")), "the key 'labels' is missing"),
        ("miniature.json", lambda path: edit(path, lambda meta: meta.pop("onnx")), "only no graph"),
        ("miniature.json", lambda path: edit(path, lambda meta: meta["onnx"][FILES["fp32"]].pop("sha256")), "checksum"),
        ("miniature.json", lambda path: edit(path, lambda meta: meta["labels"].append("new")), "4 labels, the graph"),
    ],
)
def test_a_damaged_folder_is_one_sentence_and_no_answer(file, damage, said, both, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(both("single")[1], folder)
    damage(folder / file)
    done = shell()("predict", folder, stdin=b"good\n")
    assert (done.code, done.out) == (2, "")
    assert said in done.error


def test_int8_that_could_overflow_here_is_refused(both, tmp_path, monkeypatch):
    folder = tmp_path / "out"
    shutil.copytree(both("single")[1], folder)
    shutil.copy(folder / FILES["fp32"], folder / FILES["int8"])

    def add(meta):
        listed = {"instructions": "x86_64 avx512_vnni", "bits": 8}
        meta["onnx"][FILES["int8"]] = meta["onnx"][FILES["fp32"]] | listed

    edit(folder / "miniature.json", add)
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("bert_miniatures.machine.instruction_sets", lambda: ["avx2"])
    with pytest.raises(CheckpointError, match=r"checked on x86_64 avx512_vnni and can overflow .* \(x86_64 avx2\)"):
        Predictor(folder, precision="int8")
