"""Words behind [MASK]: those of transformers, and nothing else in a text is special."""

import json

import numpy as np
import pytest
import torch
import transformers

import bert_miniatures
from bert_miniatures.checkpoint import ModelFolder, read_folder, write_folder
from bert_miniatures.errors import CheckpointError, ConfigError, DataError
from bert_miniatures.recipes.filling import Filler, fill
from commands import shell


@pytest.fixture(scope="module")
def headless(tiny, tmp_path_factory):
    found = read_folder(tiny)
    weights = {name: array for name, array in found.weights.items() if not name.startswith(("mlm", "nsp"))}
    folder = tmp_path_factory.mktemp("models") / "headless"
    write_folder(folder, ModelFolder(found.config, weights, found.tokenizer), card="")
    return folder


@pytest.mark.parametrize("text", ["The film was [MASK].", "[MASK] good [MASK]ing, b[MASK]!"])
def test_guesses_are_those_of_transformers(tiny, text):
    pipeline = transformers.pipeline("fill-mask", model=str(tiny), top_k=7)
    theirs = pipeline(text)
    theirs = theirs if isinstance(theirs[0], list) else [theirs]
    ours = fill(tiny, text, top=7)
    assert len(ours) == text.count("[MASK]")
    for found, expected in zip(ours, theirs, strict=True):
        pieces = transformers.AutoTokenizer.from_pretrained(tiny).convert_ids_to_tokens(
            [one["token"] for one in expected]
        )
        assert [one["piece"] for one in found] == pieces
        np.testing.assert_allclose([one["score"] for one in found], [one["score"] for one in expected], rtol=1e-4)


def test_several_texts_are_answered_as_one_by_one(tiny):
    texts = ["the [MASK]", "[MASK] [MASK] film"]
    assert fill(tiny, texts, top=3) == [fill(tiny, text, top=3) for text in texts]
    assert [len(found) for found in fill(tiny, texts)] == [1, 2]
    every = fill(tiny, "the [MASK]", top=73)[0]
    assert sum(one["score"] for one in every) == pytest.approx(1, abs=1e-5)
    assert every == sorted(every, key=lambda one: -one["score"])


def test_only_mask_is_special(tiny):
    filler = Filler(tiny)
    ids, special = filler._ids(["a [SEP] b [CLS] [PAD] [mask] ", ""]), filler.tokenizer
    assert ids.count(special.mask_id) == 1
    assert not {special.sep_id, special.cls_id, special.pad_id} & set(ids)


def test_as_many_pieces_as_the_model_has_positions(tiny):
    assert len(fill(tiny, "a " * 34 + "[MASK]")[0]) == 5  # 35 and two special ones are 37
    with pytest.raises(DataError, match="36 word pieces and the model reads 35"):
        fill(tiny, "a " * 35 + "[MASK]")


def test_what_cannot_be_filled_is_said(tiny, headless):
    with pytest.raises(DataError, match=r"no \[MASK\] in 'the \[mask\]'"):
        fill(tiny, "the [mask]")
    with pytest.raises(ConfigError, match="top is 74; expected 1 to 73"):
        fill(tiny, "[MASK]", top=74)
    with pytest.raises(CheckpointError, match=r"no masked-LM head .* an encoder alone; 'miniatures pretrain"):
        fill(headless, "[MASK]")


def test_the_command(tiny, headless):
    done = shell()("fill", tiny, "the [MASK]", "[MASK] [MASK]", "--top", 2, "--json")
    expected = fill(tiny, ["the [MASK]", "[MASK] [MASK]"], top=2)
    assert [one["text"] for one in done.json["texts"]] == ["the [MASK]", "[MASK] [MASK]"]
    assert [[[g["piece"] for g in mask] for mask in one["masks"]] for one in done.json["texts"]] == [
        [[g["piece"] for g in mask] for mask in one] for one in expected
    ]
    lines = shell()("fill", tiny, stdin=b"the [MASK]\n[MASK] [MASK]\n", env={}).out.splitlines()
    assert len(lines) == 1 + 5 + 1 + 10
    first = expected[0][0][0]
    assert lines[1] == f"{first['score']:.4f}  {first['piece']}"
    assert lines[7].startswith("1  ")
    assert shell()("fill", headless, "[MASK]").code == 2
    failed = shell()("fill", tiny, stdin=b"[MASK]\nno mask\n")
    assert failed.code == 2
    assert "no [MASK] in 'no mask'" in failed.error
    assert len(failed.out.splitlines()) == 6  # the line before was answered


def test_names_of_the_package_stay_functions():
    for name in ("fill", "load", "pretrain"):
        first, second = getattr(bert_miniatures, name), getattr(bert_miniatures, name)
        assert first is second
        assert callable(second)
    assert json.dumps(bert_miniatures.__all__)
    assert torch.is_grad_enabled()
