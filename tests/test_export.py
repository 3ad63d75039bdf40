"""Exporting: the graph against transformers, what the folder holds, int8 and how it is judged, what is refused."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from sklearn.metrics import accuracy_score

from bert_miniatures import Predictor
from bert_miniatures.checkpoint import read_folder
from bert_miniatures.errors import (
    CheckpointError,
    DataError,
    LabelError,
    OutputExists,
    UnknownName,
    UserError,
    WorkFailed,
)
from bert_miniatures.exporting import export, parity
from bert_miniatures.machine import adds_in_32_bits
from bert_miniatures.onnx_graph import Precision, build_graph, products
from bert_miniatures.predict_onnx import FILES, OnnxEngine, open_session, run
from bert_miniatures.tokenizer import Tokenizer
from commands import finish, shell, start
from deploy import LABELS, TEXTS, classifier, written

FOLDER = ["README.md", "config.json", "miniature.json", "onnx", "tokenizer.json", "tokenizer_config.json", "vocab.txt"]
ALWAYS = 1e9  # int8 is taken however slow it is: a busy machine decides nothing here


def feed(rows: int, width: int, seed: int = 1) -> dict[str, np.ndarray]:
    drawn = np.random.default_rng(seed)
    real = np.arange(width) < drawn.integers(2, width + 1, rows)[:, None]
    real[0] = True
    arrays = (drawn.integers(0, 73, (rows, width)), real, drawn.integers(0, 2, (rows, width)))
    names = ("input_ids", "attention_mask", "token_type_ids")
    return {name: array.astype(np.int64) for name, array in zip(names, arrays, strict=True)}


@pytest.fixture(scope="module")
def single(tiny, tmp_path_factory) -> Path:
    return written(classifier(tiny, LABELS["single"]), tmp_path_factory.mktemp("models") / "single")


@pytest.fixture(scope="module")
def deployed(single, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("deploy") / "single"
    export(single, folder)
    return folder


def labelled(path: Path, model: Path) -> Path:
    """Write texts with the answers of the fp32 model, so that its score is the highest there is."""
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "label"])
        for text, answer in zip(TEXTS, Predictor(model)(TEXTS), strict=True):
            rows.writerow([text, answer.get("label", answer["score"])])
    return path


# ------------------------------------------------------------------------------------------------- the graph


@pytest.mark.parametrize("kind", LABELS)
def test_every_kind_is_as_transformers_has_it(kind, tiny, tmp_path):
    compare(written(classifier(tiny, LABELS[kind]), tmp_path / "model"), tmp_path / "out")


@pytest.mark.parametrize(
    "sizes",
    [
        {"num_hidden_layers": 1, "hidden_act": "gelu_new"},
        {"num_hidden_layers": 3, "hidden_size": 35, "num_attention_heads": 7},  # more heads than are folded
        {"num_attention_heads": 1, "layer_norm_eps": 0.01},
        {"num_hidden_layers": 1, "hidden_size": 35, "num_attention_heads": 5, "hidden_act": "gelu_pytorch_tanh"},
    ],
)
def test_every_size_is_as_transformers_has_it(sizes, tiny, tmp_path):
    compare(written(classifier(tiny, LABELS["single"], **sizes), tmp_path / "model"), tmp_path / "out")


def compare(model: Path, out: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    export(model, out)
    session = open_session(out / FILES["fp32"], 1)
    oracle = AutoModelForSequenceClassification.from_pretrained(model, attn_implementation="eager").eval()
    spread = []
    for rows, width in ((1, 2), (3, 17), (7, 31), (2, 37)):
        given = feed(rows, width)
        with torch.no_grad():
            expected = oracle(**{name: torch.from_numpy(array) for name, array in given.items()}).logits.numpy()
        np.testing.assert_allclose(session.run(["logits"], given)[0], expected, atol=2e-5)
        spread.append(expected)
    assert np.concatenate(spread).std(0).max() > 0.05


def test_a_text_longer_than_the_positions_is_an_error(deployed):
    session = open_session(deployed / FILES["fp32"], 1)
    with pytest.raises(Exception, match=r"(?i)broadcast|dimension"):
        session.run(["logits"], feed(2, 38))


def test_rows_do_not_depend_on_their_batch_bit_for_bit(deployed):
    session, given = open_session(deployed / FILES["fp32"], 1), feed(13, 29)
    assert rows_alone(session, given)


def rows_alone(session, given) -> bool:
    """Tell whether each row alone, and all with more padding, have the bits that they have together."""
    together = session.run(["logits"], given)[0]
    alone = [session.run(["logits"], {name: array[i : i + 1] for name, array in given.items()})[0] for i in range(13)]
    wider = {name: np.pad(array, ((0, 0), (0, 7))) for name, array in given.items()}
    padded = session.run(["logits"], wider)[0]
    return np.array_equal(np.concatenate(alone), together) and np.array_equal(padded, together)


def test_the_file_says_what_it_is(deployed, single):
    model = onnx.load(deployed / FILES["fp32"])
    assert [opset.domain for opset in model.opset_import] == [""]  # no operator of one runtime alone
    session = open_session(deployed / FILES["fp32"], 1)
    assert {(i.name, i.type, tuple(i.shape)) for i in session.get_inputs()} == {
        (name, "tensor(int64)", ("batch", "sequence")) for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("logits", ["batch", 3])]
    told = session.get_modelmeta().custom_metadata_map
    assert json.loads(told["labels"]) == ["bad", "good", "žluť"]
    assert {key: told[key] for key in ("kind", "task", "pair", "max_length", "precision")} == {
        "kind": "classification", "task": "own", "pair": "false", "max_length": "31", "precision": "fp32"
    }  # fmt: skip
    found = read_folder(single)
    assert told["parent_sha256"] == found.fingerprint
    assert told["tokenizer_sha256"] == found.tokenizer.fingerprint


def test_weights_that_no_file_holds_are_said(config):
    weights = {"embed.word.weight": np.broadcast_to(np.float32(0), (30_000, 20_000))}
    with pytest.raises(CheckpointError, match="2,400,000,000 bytes, an ONNX file holds 2,000,000,000"):
        build_graph(config, weights, metadata={})


# ------------------------------------------------------------------------------------------------- the folder


def test_the_folder_holds_what_predicting_needs(deployed):
    assert sorted(os.listdir(deployed)) == FOLDER
    assert sorted(os.listdir(deployed / "onnx")) == ["model.onnx", "model_mapped.onnx"]
    meta = json.loads((deployed / "miniature.json").read_text())
    assert meta["labels"] == ["bad", "good", "žluť"]
    assert meta["onnx"]["onnx/model.onnx"]["parity"]["largest_difference"] < 1e-5
    assert json.loads((deployed / "config.json").read_text())["id2label"] == {"0": "bad", "1": "good", "2": "žluť"}
    assert "onnx/model.onnx" in (deployed / "README.md").read_text()


def test_the_word_vectors_are_mapped_and_not_read(deployed):
    whole, small = (deployed / "onnx" / name for name in ("model.onnx", "model_mapped.onnx"))
    table = next(tensor for tensor in onnx.load(whole).graph.initializer if tensor.name == "words")
    assert small.stat().st_size < whole.stat().st_size - len(table.raw_data) + 200
    encoded = Tokenizer.from_folder(deployed).encode(["good film", "x", "the bad bad film was not good"], max_length=31)
    logits = [run(open_session(file, 1), encoded, 0) for file in (whole, small)]
    np.testing.assert_array_equal(*logits)
    mapped = bytes(small.read_bytes())
    try:
        small.write_bytes(mapped[:-1])
        with pytest.raises(CheckpointError, match=r"model_mapped.onnx: the bytes do not match the checksum"):
            OnnxEngine(deployed)
    finally:
        small.write_bytes(mapped)


def test_a_graph_of_other_weights_is_no_parity(single):
    found = read_folder(single)
    wrong = found.weights | {"layers.1.up.bias": found.weights["layers.1.up.bias"] + 0.01}
    graph = build_graph(found.config, wrong, metadata={}).SerializeToString()
    with pytest.raises(WorkFailed, match=r"differs from torch by .* at most 0.0001 is allowed; nothing was written"):
        parity(graph, found, 31)


def test_without_parity_nothing_is_written(tiny, tmp_path):
    model = classifier(tiny, LABELS["single"])
    model.weights["head.bias"][0] = np.nan
    written(model, tmp_path / "model")
    with pytest.raises(WorkFailed, match="nothing was written"):
        export(tmp_path / "model", tmp_path / "out")
    assert os.listdir(tmp_path) == ["model"]


def test_a_folder_is_replaced_only_when_asked(single, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(OutputExists, match="--overwrite"):
        export(single, tmp_path / "out")
    export(single, tmp_path / "out", overwrite=True)
    assert sorted(os.listdir(tmp_path / "out")) == FOLDER


def test_a_model_without_a_classifier_is_not_exported(tiny, tmp_path):
    with pytest.raises(CheckpointError, match="no classifier"):
        export(tiny, tmp_path / "out")
    assert not os.listdir(tmp_path)


# ------------------------------------------------------------------------------------------------- int8


@pytest.fixture(scope="module")
def rounded(single, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rounded")
    check = labelled(folder / "check.csv", single)
    export(single, folder / "out", int8=True, check=check, margin=12, at_most=ALWAYS)
    return folder / "out"


def test_int8_is_judged_on_the_metric(rounded):
    meta = json.loads((rounded / "miniature.json").read_text())
    report = meta["int8"]["report"]
    gold = [answer["label"] for answer in Predictor(rounded)(TEXTS)]
    found = [answer["label"] for answer in Predictor(rounded, precision="int8")(TEXTS)]
    assert report["fp32"] == 1.0
    assert report["int8"] == pytest.approx(accuracy_score(gold, found))
    assert report["loss_points"] == pytest.approx(100 * (1 - report["int8"]))
    low, high = report["interval_points"]
    assert low <= report["loss_points"] <= high
    assert meta["onnx"][FILES["int8"]]["instructions"] == report["instructions"]
    assert meta["int8"]["said"] in (rounded / "README.md").read_text().replace("Int8", "int8")
    told = open_session(rounded / FILES["int8"], 1).get_modelmeta().custom_metadata_map
    assert told["precision"] == f"int{report['bits']}"


def test_int8_weights_are_the_nearest_whole_numbers(single):
    found = read_folder(single)
    parts = frozenset(products(found.config))
    graph = build_graph(found.config, found.weights, metadata={}, precision=Precision(parts, True, True, bits=7))
    arrays = {array.name: numpy_helper.to_array(array) for array in graph.graph.initializer}
    whole = arrays["words"] * arrays["words.scale"]
    table = found.weights["embed.word.weight"]
    assert np.abs(whole - table).max() <= arrays["words.scale"].max() / 2 * 1.001
    assert np.abs(arrays["words"]).max(axis=1).tolist() == [127] * 73
    for name in parts:
        assert np.abs(arrays[f"{name}.weight"]).max() == 63
    up = arrays["layers.0.up.weight"] * arrays["layers.0.up.scale"]
    np.testing.assert_allclose(
        up, found.weights["layers.0.up.weight"].T, atol=arrays["layers.0.up.scale"].max() / 2 * 1.001
    )


def regression_with(tiny, folder: Path, **changed: object) -> tuple[Path, Path]:
    """Write a scoring model with other weights, and its own answers as the truth."""
    model = classifier(tiny, LABELS["regression"])
    for name, change in changed.items():
        change(model.weights[name.replace("__", ".")])
    written(model, folder / "model")
    return folder / "model", labelled(folder / "check.csv", folder / "model")


def test_one_wide_row_makes_a_scale_for_each_output(tiny, tmp_path):
    def widen(pooler):
        pooler[3] *= 3000

    model, check = regression_with(tiny, tmp_path, pooler__weight=widen)
    report = export(model, tmp_path / "out", int8=True, check=check, margin=2, at_most=ALWAYS)["int8"]["report"]
    assert [trial["what"] for trial in report["tried"]] == ["one scale a product", "a scale for each output"]
    assert "bits" in report


def test_what_8_bits_cannot_hold_stays_fp32(tiny, tmp_path):
    """One feature of 3000 that nothing reads leaves no steps for the others."""

    def lift(bias):
        bias[5] = 3000

    def ignore(down):
        down[:, 5] = 0

    changed = {"layers__0__up__bias": lift, "layers__0__down__weight": ignore}
    model, check = regression_with(tiny, tmp_path, **changed)
    meta = export(model, tmp_path / "out", int8=True, check=check, margin=2, at_most=ALWAYS)
    tried = meta["int8"]["report"]["tried"]
    assert len(tried) == 3
    assert "fp32: layers.0.down" in tried[-1]["what"]
    assert meta["int8"]["written"]


def test_int8_that_loses_too_much_is_not_written(tiny, tmp_path):
    model, check = regression_with(tiny, tmp_path)
    meta = export(model, tmp_path / "out", int8=True, check=check, margin=0, at_most=ALWAYS)
    assert not meta["int8"]["written"]
    assert len(meta["int8"]["report"]["tried"]) == 4
    assert "points of pearson at best, 0 are allowed; only fp32 is written" in meta["int8"]["said"]
    assert sorted(os.listdir(tmp_path / "out" / "onnx")) == ["model.onnx", "model_mapped.onnx"]


def test_int8_that_is_not_faster_is_not_written(single, tmp_path):
    check = labelled(tmp_path / "check.csv", single)
    meta = export(single, tmp_path / "out", int8=True, check=check, margin=12, at_most=0)
    assert "of fp32's time here; only fp32 is written" in meta["int8"]["said"]
    assert list(meta["onnx"]) == ["onnx/model.onnx"]


def test_int8_with_fixed_scales_does_not_depend_on_the_batch(single, rounded, tmp_path):
    check = labelled(tmp_path / "check.csv", single)
    export(single, tmp_path / "out", int8=True, check=check, margin=15, at_most=ALWAYS, batch_invariant=True)
    given = feed(13, 29)
    assert rows_alone(open_session(tmp_path / "out" / FILES["int8"], 1), given)
    assert not rows_alone(open_session(rounded / FILES["int8"], 1), given)
    assert json.loads((tmp_path / "out" / "miniature.json").read_text())["onnx"][FILES["int8"]]["batch_invariant"]


@pytest.mark.parametrize(
    ("told", "safe"),
    [
        ("x86_64 avx2", False),
        ("x86_64 avx2 avx512f", False),
        ("x86_64 avx2 avx512f avx512_vnni", True),
        ("AMD64 avx2 avx_vnni", True),
        ("aarch64 asimddp", True),
    ],
)
def test_where_products_of_8_bits_can_overflow(told, safe):
    assert adds_in_32_bits(told) is safe


# ------------------------------------------------------------------------------------------------- what it is judged on


def test_what_cannot_be_judged_is_said_before_anything_is_written(single, tmp_path):
    (tmp_path / "other.csv").write_text("text,label\ngood,happy\nbad,sad\n")
    (tmp_path / "hidden.csv").write_text("text\ngood\n")
    for error, words, given in (
        (UserError, "give --int8 too", {"check": "sst2"}),
        (UserError, "give --check FILE, or --check TASK", {"int8": True}),
        (UnknownName, "did you mean 'sst2'", {"int8": True, "check": "sst22"}),
        (DataError, "no such file", {"int8": True, "check": tmp_path / "none.csv"}),
        (DataError, "happy", {"int8": True, "check": tmp_path / "other.csv"}),
        (UserError, "label", {"int8": True, "check": tmp_path / "hidden.csv"}),
    ):
        with pytest.raises(error, match=words):
            export(single, tmp_path / "out", **given)
        assert not (tmp_path / "out").exists()


def test_rows_that_have_no_score_judge_nothing(tiny, tmp_path):
    written(classifier(tiny, LABELS["regression"]), tmp_path / "model")
    (tmp_path / "flat.csv").write_text("text,label\ngood,1.5\nbad,1.5\nfilm,1.5\n")
    with pytest.raises(DataError, match="pearson is not defined for fp32 there"):
        export(tmp_path / "model", tmp_path / "out", int8=True, check=tmp_path / "flat.csv")
    assert not (tmp_path / "out").exists()


def test_a_glue_task_judges_a_model_of_its_labels(tiny, single, glue, tmp_path):
    with pytest.raises(LabelError, match="labels"):
        export(single, tmp_path / "out", int8=True, check="rte", glue=glue)
    model = classifier(tiny, replace(LABELS["paired"], names=("not_entailment", "entailment"), task="rte"))
    written(model, tmp_path / "rte")
    meta = export(tmp_path / "rte", tmp_path / "out", int8=True, check="rte", glue=glue, margin=100, at_most=ALWAYS)
    report = meta["int8"]["report"]
    assert (report["rows"], report["metric"]) == (277, "accuracy")
    rows = [line.split("\t") for line in (glue / "RTE" / "dev.tsv").read_text().splitlines()[1:]]
    found = Predictor(tmp_path / "out")([row[1] for row in rows], [row[2] for row in rows])
    assert report["fp32"] == pytest.approx(accuracy_score([row[3] for row in rows], [one["label"] for one in found]))


def test_a_run_is_judged_on_its_own_dev_split(tiny, reviews, tmp_path):
    from bert_miniatures import finetune

    data = {"train": str(reviews[0]), "dev": str(reviews[1]), "max_length": 31}
    result = finetune(str(tiny), tmp_path / "run", data=data, train={"epochs": 1, "batch_size": 16})
    meta = export(tmp_path / "run", tmp_path / "out", int8=True, margin=100, at_most=ALWAYS)
    assert meta["int8"]["report"]["rows"] == 53
    assert meta["int8"]["report"]["fp32"] == pytest.approx(result["scores"]["dev"]["accuracy"])
    settings = tmp_path / "run" / "run.toml"
    lines = [line for line in settings.read_text().splitlines() if not line.startswith(("dev =", "hold_out ="))]
    settings.write_text("\n".join(line + "\nhold_out = 0.0" * (line == "[data]") for line in lines))
    with pytest.raises(UserError, match="no dev rows to judge int8 on; give --check FILE"):
        export(tmp_path / "run", tmp_path / "other", int8=True)


# ------------------------------------------------------------------------------------------------- the command


def test_the_command(single, tmp_path):
    done = shell()("export", single, tmp_path / "out")
    assert done.out == f"{tmp_path / 'out' / 'onnx/model.onnx'}\t0.1 MB\n"
    assert "from torch at most, over 9 batches" in done.err
    assert "--overwrite" in shell()("export", single, tmp_path / "out").error
    check = labelled(tmp_path / "check.csv", single)
    options = ("--overwrite", "--int8", "--check", check, "--margin", 0, "--json")
    found = shell()("export", single, tmp_path / "out", *options).json
    assert found["path"] == str(tmp_path / "out")
    assert found["int8"]["report"]["metric"] == "accuracy"


def test_without_onnx_the_extra_is_named(single, tmp_path):
    block = (
        "import sys\nclass Blocked:\n    def find_spec(self, name, *_):\n        if name.partition('.')[0] == 'onnx':\n"
        "            raise ModuleNotFoundError(name, name=name)\nsys.meta_path.insert(0, Blocked())"
    )
    done = finish(start(tmp_path, "export", single, tmp_path / "out", code=block))
    assert done.error == "exporting to ONNX needs the 'deploy' extra: pip install 'bert-miniatures[deploy]'"
