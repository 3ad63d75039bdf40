"""Teachers of other architectures: transformers itself is the oracle; no code of a folder is ever run."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax

from bert_miniatures import soft_labels
from bert_miniatures.errors import CheckpointError, LabelError, MissingExtra
from bert_miniatures.recipes import comparison
from bert_miniatures.recipes.distill import distill
from bert_miniatures.recipes.label import label
from bert_miniatures.recipes.teachers import open_teachers
from bert_miniatures.watch import Watch
from commands import environment

transformers = pytest.importorskip("transformers")

WORDS = ["good", "bad", "film", "very", "x", "yz", "!"]
DRAWN = np.random.default_rng(23)
TEXTS = [" ".join(DRAWN.choice(WORDS, size=DRAWN.integers(1, 43))) for _ in range(29)]
NAMES = {0: "negative", 1: "positive"}


def tokenizer_of(folder: Path) -> None:
    """Write a tokenizer whose vocabulary is words, with the special tokens of RoBERTa."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    pieces = ["<s>", "<pad>", "</s>", "<unk>", *WORDS]
    made = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=made, cls_token="<s>", sep_token="</s>", **names)
    fast.save_pretrained(folder)


def folder_of(kind: str, folder: Path, **more) -> Path:
    """Write a random classifier of transformers'."""
    torch.manual_seed(17)
    common = {"vocab_size": 4 + len(WORDS), "pad_token_id": 1, "id2label": NAMES, **more}
    if kind == "roberta":
        config = transformers.RobertaConfig(hidden_size=21, num_hidden_layers=2, num_attention_heads=3, intermediate_size=29,
                                            max_position_embeddings=33, type_vocab_size=1, initializer_range=0.3, **common)  # fmt: skip
    else:
        config = transformers.DistilBertConfig(dim=21, n_layers=2, n_heads=3, hidden_dim=29, max_position_embeddings=31,
                                               initializer_range=0.3, **common)  # fmt: skip
    transformers.AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer_of(folder)
    return folder


@pytest.fixture(scope="module")
def roberta(tmp_path_factory) -> Path:
    return folder_of("roberta", tmp_path_factory.mktemp("models") / "roberta")


def expected(folder: Path, texts: list[str], pairs: list[str] | None = None) -> np.ndarray:
    """Answer one row at a time, cut at the 31 positions that both kinds have."""
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    read = transformers.AutoTokenizer.from_pretrained(folder)
    out = []
    for i, text in enumerate(texts):
        second = () if pairs is None else (pairs[i],)
        with torch.no_grad():
            ids = read(text, *second, truncation=True, max_length=31, return_tensors="pt")
            out.append(model(**ids).logits[0].numpy())
    return np.array(out)


@pytest.mark.parametrize("kind", ["roberta", "distilbert"])
def test_another_architecture_answers_as_transformers_does(kind, tmp_path):
    folder = folder_of(kind, tmp_path / kind)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    done = label(folder, tmp_path / "l.parquet", files=[tmp_path / "texts.txt"])
    found = soft_labels.read(tmp_path / "l.parquet")
    np.testing.assert_allclose(found.logits, expected(folder, TEXTS), atol=1e-5)
    assert found.about.labels == ("negative", "positive")
    who = done["teachers"][0]
    assert who["max_length"] == 31
    assert who["bytes"] == (folder / "model.safetensors").stat().st_size
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    assert who["parameters"] == sum(p.numel() for p in model.parameters())


def test_pairs_and_pickled_weights(roberta, tmp_path):
    folder = tmp_path / "pickled"
    model = transformers.AutoModelForSequenceClassification.from_pretrained(roberta)
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    tokenizer_of(folder)
    teacher = open_teachers([str(folder)], Watch())[0]
    found = teacher.answer(TEXTS, TEXTS[::-1])
    np.testing.assert_allclose(found, expected(roberta, TEXTS, TEXTS[::-1]), atol=1e-5)
    torch.save({"classifier.dense.weight": Path("/")}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot open this 'roberta'"):
        open_teachers([str(folder)], Watch())


def test_it_teaches_a_student(roberta, tiny, reviews, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "_SECONDS", 0.01)
    data = {"train": str(reviews[0]), "dev": str(reviews[1]), "max_length": 32}
    result = distill(tiny, tmp_path / "run", teacher=roberta, data=data, train={"epochs": 1, "threads": 1})
    first = result["comparison"][0]
    assert first["texts_per_second"] > 0
    assert first["parameters"] == result["teachers"][0]["parameters"]
    assert set(first["scores"]) == set(result["scores"]["dev"])
    data = {"train": str(tmp_path / "other.csv"), "max_length": 32}
    (tmp_path / "other.csv").write_text("text,label\n" + "good,yes\nbad,no\n" * 9)
    with pytest.raises(LabelError, match="negative, positive"):
        distill(tiny, tmp_path / "no", teacher=roberta, data=data)


def test_folders_that_cannot_teach(roberta, tmp_path):
    (tmp_path / "texts.txt").write_text("good film\n")
    bare = tmp_path / "bare"
    whole = transformers.AutoModelForSequenceClassification.from_pretrained(roberta)
    whole.roberta.save_pretrained(bare)
    tokenizer_of(bare)
    document = json.loads((bare / "config.json").read_text()) | {"id2label": {str(k): v for k, v in NAMES.items()}}
    (bare / "config.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"no whole classifier: 'classifier.dense.bias' is missing"):
        open_teachers([str(bare)], Watch())
    unnamed = folder_of("roberta", tmp_path / "unnamed", id2label={0: "LABEL_0", 1: "LABEL_1"})
    with pytest.raises(CheckpointError, match="its labels have no names"):
        open_teachers([str(unnamed)], Watch())
    (bare / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights; looked for"):
        open_teachers([str(bare)], Watch())


def test_code_in_a_folder_is_never_run(roberta, tmp_path):
    folder, trace = tmp_path / "own", tmp_path / "trace"
    folder_of("roberta", folder)
    document = json.loads((folder / "config.json").read_text())
    classes = {"AutoConfig": "own.C", "AutoModelForSequenceClassification": "own.M"}
    (folder / "config.json").write_text(json.dumps(document | {"model_type": "mine", "auto_map": classes}))
    (folder / "own.py").write_text(f"open({str(trace)!r}, 'w').close()\nclass C: ...\nclass M: ...\n")
    with pytest.raises(CheckpointError, match="code of its own, which is never run"):
        open_teachers([str(folder)], Watch())
    assert not trace.exists()


def test_without_transformers_it_is_one_sentence(roberta, tmp_path, monkeypatch):
    code = (
        "import sys; sys.modules['transformers'] = None\n"
        "import importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'transformers' else real(name, *a)\n"
        "from bert_miniatures.cli import main; main()"
    )
    (tmp_path / "texts.txt").write_text("good film\n")
    arguments = ["label", str(roberta), str(tmp_path / "texts.txt"), "-o", str(tmp_path / "l.parquet")]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment(tmp_path), capture_output=True, text=True
    )
    assert done.returncode == MissingExtra.exit_code
    assert done.stderr.splitlines()[-1].endswith("needs the 'teacher' extra: pip install 'bert-miniatures[teacher]'")
    assert "Traceback" not in done.stderr


def test_two_kinds_of_teachers_meet_by_name(roberta, tmp_path):
    shares = DRAWN.dirichlet([1, 1], size=len(TEXTS))
    rows = [{"text": t, "positive": p[0], "negative": p[1]} for t, p in zip(TEXTS, shares, strict=True)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    label([roberta, tmp_path / "p.jsonl"], tmp_path / "l.parquet", files=[tmp_path / "texts.txt"])
    found = soft_labels.read(tmp_path / "l.parquet").logits.astype(float)
    wanted = (softmax(expected(roberta, TEXTS), axis=1) + shares[:, ::-1]) / 2
    np.testing.assert_allclose(softmax(found, axis=1), wanted, atol=1e-5)
