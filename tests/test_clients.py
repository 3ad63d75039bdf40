"""Other programs open a deploy folder and answer as Predictor does: transformers, CrossEncoder, OpenVINO, Transformers.js."""

import importlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from bert_miniatures import Predictor
from bert_miniatures.checkpoint import Labels
from bert_miniatures.exporting import export
from bert_miniatures.outputs import shares
from bert_miniatures.predict_onnx import FILES
from bert_miniatures.tokenizer import Tokenizer
from deploy import LABELS, PAIRS, TEXTS, classifier, written

ROOT = Path(__file__).parents[1]
NODE = Path(__file__).parent / "clients"
ODD = [
    "",
    " \t",
    "Žluť CAFÉ naïve",
    "电影 good",
    "good🎬film",
    "a\u0301b\u00ad\tx\nyz",
    "x" * 150,
    "don't!?",
    "ß ﬁlm \u200d",
]
KINDS = {
    "single": LABELS["single"],
    "paired": LABELS["paired"],
    "scored": Labels("regression", (), task="own", pair=True, max_length=31),
    "multilabel": LABELS["multilabel"],
}
CLOSE = 1e-4  # of a share; of a score itself where the model answers with one
WITHIN = {"fp32": CLOSE, "int8": 0.02}  # another runtime's rounding is one step of 255 now and then
ALL = 997  # one batch for all
OPTIMUM = "needs optimum-onnx, which does not take transformers 5"
Rows = tuple[list[str], list[str] | None]


def rows_of(kind: str) -> Rows:
    """Return 106 texts, some of them longer than the models read, and second texts where they take pairs."""
    # An empty second text is none to the pipelines and to Transformers.js, so that [SEP] stands there once.
    return [*ODD, *TEXTS], [*PAIRS, *ODD[1:], "x"] if KINDS[kind].pair else None


def some(rows: Rows, wanted: Callable[[int], bool]) -> Rows:
    texts, pairs = rows
    kept = [i for i in range(len(texts)) if wanted(i)]
    return [texts[i] for i in kept], pairs and [pairs[i] for i in kept]


def batches(rows: Rows, size: int) -> Iterator[Rows]:
    for start in range(0, len(rows[0]), size):
        yield some(rows, range(start, start + size).__contains__)


@pytest.fixture(scope="module")
def models(tiny, tmp_path_factory) -> Path:
    """Make a model folder of each kind, each of its labels the answer to some of the texts."""
    folder = tmp_path_factory.mktemp("models")
    for kind, labels in KINDS.items():
        model = classifier(tiny, labels)
        texts, pairs = rows_of(kind)
        if labels.names:
            model.weights["head.bias"] -= np.median(Predictor(written(model, folder / "first")).logits(texts, pairs), 0)
            shutil.rmtree(folder / "first")
        written(model, folder / kind)
    return folder


@pytest.fixture(scope="module")
def deployed(models, tmp_path_factory) -> Path:
    """Export each kind in fp32 and int8; `fixed` is the first one, its int8 independent of the batch."""
    folder = tmp_path_factory.mktemp("deploy")
    for kind in KINDS:
        check = gold(models / kind, folder / f"{kind}.jsonl", *rows_of(kind))
        export(models / kind, folder / kind, **check)
    export(models / "single", folder / "fixed", batch_invariant=True, **check | {"check": folder / "single.jsonl"})
    return folder


def gold(model: Path, path: Path, texts: list[str], pairs: list[str] | None) -> dict[str, Any]:
    """Write the model's own answers as the truth, and return what makes `export` accept any int8."""
    answers = Predictor(model)(texts, pairs)
    with path.open("w") as file:
        for i, answer in enumerate(answers):
            label = answer.get("label", answer.get("labels", answer.get("score")))
            file.write(json.dumps({"text": texts[i], "label": label} | ({"pair": pairs[i]} if pairs else {})) + "\n")
    columns = {"text": "text", "label": "label", "pair": "pair" if pairs else None}
    return {"int8": True, "check": path, "columns": columns, "margin": 100, "at_most": 1e9}


def agree(
    found: Any, folder: Path, rows: Rows, precision: str = "fp32", *, logits: bool = True, within: float = CLOSE
) -> None:
    """Compare answers [N, C], logits or shares, with Predictor's: the same labels, and shares that are close."""
    predictor = Predictor(folder, precision=precision)
    kind, answer = predictor.labels.kind, predictor.logits(*rows)
    assert np.std(answer, axis=0).max() > 0.05
    expected = shares(kind, answer)
    given = np.asarray(found, dtype=np.float64).reshape(expected.shape)
    given = shares(kind, given) if logits else given
    np.testing.assert_allclose(given, expected, rtol=0, atol=within)
    if kind == "regression":
        return
    second, first = np.sort(expected, axis=1)[:, -2:].T
    at, clear = {
        "classification": (lambda of: of.argmax(1), first - second > 2 * within),
        "multilabel": (lambda of: of > 0.5, np.abs(expected - 0.5) > within),
    }[kind]
    assert clear.mean() > 0.5
    assert len(np.unique(at(expected)[clear])) == (expected.shape[1] if kind == "classification" else 2)
    np.testing.assert_array_equal(at(given)[clear], at(expected)[clear])


def named(found: list[list[dict[str, Any]]], folder: Path, rows: Rows, precision: str = "fp32", **how: Any) -> None:
    """Compare lists of labels with their shares, the greatest first, with Predictor's."""
    names = Predictor(folder).labels.names or ("score",)
    by_name = [{one["label"]: one["score"] for one in answer} for answer in found]
    agree([[one[name] for name in names] for one in by_name], folder, rows, precision, logits=False, **how)
    for answer in found:
        assert [one["score"] for one in answer] == sorted((one["score"] for one in answer), reverse=True)


# ------------------------------------------------------------------------------------------------- transformers


@pytest.mark.parametrize(
    ("folder", "precision", "batch"),
    [
        *((kind, "fp32", 7) for kind in KINDS),
        *((kind, "int8", ALL) for kind in KINDS),  # scales are those of the batch: here the batch that Predictor makes
        ("fixed", "int8", 7),
    ],
)
def test_the_tokenizer_and_labels_of_transformers(folder, precision, batch, deployed):
    from transformers import AutoConfig, AutoTokenizer

    kind = "single" if folder == "fixed" else folder
    tokenizer, config = AutoTokenizer.from_pretrained(deployed / folder), AutoConfig.from_pretrained(deployed / folder)
    session = onnxruntime.InferenceSession(deployed / folder / FILES[precision])
    logits = []
    for texts, pairs in batches(rows_of(kind), batch):
        inputs = tokenizer(texts, pairs, padding=True, truncation=True, return_tensors="np")
        assert set(inputs) == {one.name for one in session.get_inputs()}
        logits.append(session.run(["logits"], dict(inputs))[0])
    agree(np.concatenate(logits), deployed / folder, rows_of(kind), precision)
    assert tuple(config.id2label.values()) == (KINDS[kind].names or ("score",))
    assert config.label2id == {name: i for i, name in config.id2label.items()}


def test_the_tokenizer_cuts_where_predictor_does(deployed):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(deployed / "single")
    assert tokenizer.model_max_length == 31  # what the model was tuned at; it has 37 positions
    assert len(tokenizer("a " * 40, truncation=True).input_ids) == 31


@pytest.mark.parametrize("kind", KINDS)
def test_the_pipeline_opens_the_model_folder(kind, models, deployed):
    """A deploy folder has no weights for torch: what the pipeline opens is the folder that was exported."""
    from transformers import pipeline

    classify = pipeline("text-classification", str(models / kind), device="cpu")
    longest = min(KINDS[kind].max_length, 37)
    found = classify(for_pipeline(kind), top_k=None, batch_size=7, truncation=True, max_length=longest)
    named(found, deployed / kind, rows_of(kind))


def for_pipeline(kind: str) -> list[Any]:
    texts, pairs = rows_of(kind)
    return [{"text": a, "text_pair": b} for a, b in zip(texts, pairs, strict=True)] if pairs else texts


def test_the_pipeline_says_what_a_deploy_folder_has_not(deployed):
    from transformers import pipeline

    with pytest.raises(ValueError, match=r"no file named model\.safetensors"):
        pipeline("text-classification", str(deployed / "single"), device="cpu")


@pytest.mark.parametrize("precision", FILES)
@pytest.mark.parametrize("kind", KINDS)
def test_the_pipeline_with_optimum(kind, precision, deployed):
    optimum = pytest.importorskip("optimum.onnxruntime", reason=OPTIMUM)
    from transformers import AutoTokenizer, pipeline

    where = {"subfolder": "onnx", "file_name": Path(FILES[precision]).name, "provider": "CPUExecutionProvider"}
    model = optimum.ORTModelForSequenceClassification.from_pretrained(deployed / kind, **where)
    classify = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(deployed / kind))
    batch = ALL if precision == "int8" else 7
    found = classify(for_pipeline(kind), top_k=None, batch_size=batch, truncation=True)
    named(found, deployed / kind, rows_of(kind), precision)


# ------------------------------------------------------------------------------------------------- CrossEncoder


@pytest.mark.parametrize("precision", FILES)
@pytest.mark.parametrize("kind", ["paired", "scored"])
def test_cross_encoder(kind, precision, deployed):
    pytest.importorskip("optimum.onnxruntime", reason=OPTIMUM)
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = sentence_transformers.CrossEncoder(
        str(deployed / kind), backend="onnx", model_kwargs={"file_name": FILES[precision]}, device="cpu"
    )
    batch = ALL if precision == "int8" else 7
    texts, pairs = rows_of(kind)
    found = model.predict(list(zip(texts, pairs, strict=True)), apply_softmax=kind == "paired", batch_size=batch)
    agree(found, deployed / kind, rows_of(kind), precision, logits=False)


@pytest.mark.parametrize("kind", ["paired", "scored"])
def test_cross_encoder_of_a_model_folder(kind, models):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    length = KINDS[kind].max_length  # a model folder is not tied to the length that it was fine-tuned with
    model = sentence_transformers.CrossEncoder(str(models / kind), device="cpu", max_length=length)
    found = model.predict(list(zip(*rows_of(kind), strict=True)), apply_softmax=kind == "paired", batch_size=7)
    agree(found, models / kind, rows_of(kind), logits=False)


def test_config_names_what_cross_encoder_makes_of_logits(deployed):
    """The class itself needs optimum; the names must be those of torch, and give what Predictor gives."""
    import torch

    for kind in ("scored", "multilabel"):
        path = json.loads((deployed / kind / "config.json").read_text())["sentence_transformers"]["activation_fn"]
        module, _, name = path.rpartition(".")
        activation = getattr(importlib.import_module(module), name)()
        logits = Predictor(deployed / kind).logits(*rows_of(kind))
        np.testing.assert_allclose(activation(torch.from_numpy(logits)), shares(KINDS[kind].kind, logits), atol=1e-6)


# ------------------------------------------------------------------------------------------------- OpenVINO


@pytest.mark.parametrize(
    ("kind", "precision", "batch"), [*((kind, "fp32", 7) for kind in KINDS), *((kind, "int8", ALL) for kind in KINDS)]
)
def test_openvino(kind, precision, batch, deployed):
    openvino = pytest.importorskip("openvino")
    from transformers import AutoTokenizer

    tokenizer, core = AutoTokenizer.from_pretrained(deployed / kind), openvino.Core()
    graph = core.read_model(deployed / kind / FILES[precision])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    model, logits = core.compile_model(graph, "CPU", settings), []
    for texts, pairs in batches(rows_of(kind), batch):
        inputs = tokenizer(texts, pairs, padding=True, truncation=True, return_tensors="np")
        logits.append(model(dict(inputs))["logits"])
    agree(np.concatenate(logits), deployed / kind, rows_of(kind), precision, within=WITHIN[precision])


# ------------------------------------------------------------------------------------------------- Transformers.js


@pytest.fixture(scope="module")
def node() -> str:
    """Return the path of Node, where Transformers.js is installed for it."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("Node is not installed")
    if not (NODE / "node_modules" / "@huggingface" / "transformers").is_dir():
        pytest.skip("Transformers.js is not installed: npm install --prefix tests/clients")
    return found


def ask(node: str, how: str, folder: Path, rows: Rows, precision: str = "fp32", batch: int = 7) -> Any:
    request = {"models": str(folder.parent), "model": folder.name, "how": how, "texts": rows[0], "pairs": rows[1]}
    request |= {"dtype": {"fp32": "fp32", "int8": "q8"}[precision], "batch": batch}
    done = subprocess.run(
        [node, NODE / "answer.mjs"], input=json.dumps(request), capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def fitting(kind: str, folder: Path) -> Rows:
    """Return the rows that are not cut."""
    rows, tokenizer = rows_of(kind), Tokenizer.from_folder(folder)
    lengths = tokenizer.encode(*rows, max_length=997).lengths
    return some(rows, lambda i: lengths[i] <= min(KINDS[kind].max_length, 37))


@pytest.mark.parametrize(("precision", "batch"), [("fp32", 7), ("int8", ALL)])
@pytest.mark.parametrize("kind", ["single", "multilabel"])
def test_the_pipeline_of_transformers_js(kind, precision, batch, node, deployed):
    rows = fitting(kind, deployed / kind)
    found = ask(node, "pipeline", deployed / kind, rows, precision, batch)
    named(found, deployed / kind, rows, precision, within=WITHIN[precision])


@pytest.mark.parametrize(("precision", "batch"), [("fp32", 7), ("int8", ALL)])
@pytest.mark.parametrize("kind", ["paired", "scored"])
def test_the_model_of_transformers_js_takes_pairs(kind, precision, batch, node, deployed):
    rows = fitting(kind, deployed / kind)
    assert len(rows[0]) > 20
    found = ask(node, "model", deployed / kind, rows, precision, batch)
    agree(found["logits"], deployed / kind, rows, precision, within=WITHIN[precision])
    assert list(found["labels"].values()) == list(KINDS[kind].names or ("score",))


@pytest.mark.parametrize("how", ["cut", "web"])
@pytest.mark.parametrize(("kind", "precision", "batch"), [("single", "fp32", 7), ("paired", "int8", ALL)])
def test_long_texts_in_javascript(how, kind, precision, batch, node, deployed):
    """`encode.mjs` cuts as Python does; `web` is the runtime of browsers."""
    found = ask(node, how, deployed / kind, rows_of(kind), precision, batch)
    agree(found["logits"], deployed / kind, rows_of(kind), precision, within=WITHIN[precision])


def test_transformers_js_alone_cuts_off_the_closing_sep(node, deployed):
    """Why there is `encode.mjs`; where this fails a later Transformers.js does not need it any more."""
    found = ask(node, "model", deployed / "single", rows_of("single"))["logits"]
    with pytest.raises(AssertionError):
        agree(found, deployed / "single", rows_of("single"))


# ------------------------------------------------------------------------------------------------- the documentation


def snippet(heading: str, number: int = 0) -> str:
    """Return a block of code below a heading of docs/deploy.md."""
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    below = page.split(f"\n### {heading}\n")[1].split("\n##")[0]
    return re.findall(r"```(?:python|js)\n(.*?)```", below, flags=re.DOTALL)[number]


@pytest.fixture
def documented(deployed, tmp_path, monkeypatch) -> Path:
    """Make the folders that the page speaks of, in the working directory."""
    (tmp_path / "deploy").mkdir()
    for name, kind in {"mine": "single", "pairs": "paired"}.items():
        (tmp_path / "deploy" / name).symlink_to(deployed / kind)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "deploy"


@pytest.mark.parametrize(
    ("heading", "number", "needs"),
    [
        ("transformers", 0, "transformers"),
        ("transformers", 1, "optimum.onnxruntime"),
        ("CrossEncoder", 0, "optimum.onnxruntime"),
        ("OpenVINO", 0, "openvino"),
    ],
)
def test_the_documented_python(heading, number, needs, documented):
    pytest.importorskip(needs, reason=OPTIMUM if "optimum" in needs else None)
    seen: dict[str, Any] = {}
    exec(snippet(heading, number), seen)
    folder, pairs = ("pairs", [b for _, b in seen["texts"]]) if heading == "CrossEncoder" else ("mine", None)
    texts = [a for a, _ in seen["texts"]] if pairs else seen["texts"]
    predictor = Predictor(documented / folder)
    if "answers" in seen:
        assert [{**one, "score": pytest.approx(one["score"], abs=CLOSE)} for one in predictor(texts)] == seen["answers"]
    else:
        expected = predictor.logits(texts, pairs)
        expected = shares("classification", expected) if "shares" in seen else expected
        np.testing.assert_allclose(seen.get("shares", seen.get("logits")), expected, atol=CLOSE)


@pytest.mark.parametrize("number", [0, 1])
def test_the_documented_javascript(number, node, documented, tmp_path):
    (tmp_path / "node_modules").symlink_to(NODE / "node_modules")
    shutil.copy(NODE / "encode.mjs", tmp_path)
    (tmp_path / "snippet.mjs").write_text(snippet("Transformers.js", number))
    done = subprocess.run([node, tmp_path / "snippet.mjs"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if number == 0:
        expected = Predictor(documented / "mine")(["where is my parcel?", "it is broken"])
        assert found == [{**one, "score": pytest.approx(one["score"], abs=CLOSE)} for one in expected]
    else:
        expected = Predictor(documented / "pairs").logits(["how old are you?"], ["what is your age?"])
        np.testing.assert_allclose(found, expected, atol=CLOSE)
