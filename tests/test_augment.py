"""Made texts: which words change and into what, the same ones each time, none of dev or test, and a distillation."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from bert_miniatures.checkpoint import Labels, read_folder, write_folder
from bert_miniatures.data.examples import read_glue
from bert_miniatures.data.tasks import task_named
from bert_miniatures.distill_config import DistillConfig
from bert_miniatures.errors import CheckpointError, ConfigError
from bert_miniatures.model import build
from bert_miniatures.predict import Predictor
from bert_miniatures.recipes import augmenting, comparison
from bert_miniatures.recipes.augmenting import Rules, augment, augmented, normalised
from bert_miniatures.recipes.distill import distill
from bert_miniatures.recipes.filling import Filler
from bert_miniatures.recipes.label import label
from bert_miniatures.recipes.soft_loading import load_soft_inputs
from bert_miniatures.watch import Watch
from conftest import LETTERS

WORD = re.compile(r"\w+")
TEXTS = ["The film was good, very good!", "bad", "not a film: is it?", "x yz good film", "?!", "a b c d e f g h i j k"]


@pytest.fixture(scope="module")
def filler(tiny) -> Filler:
    return Filler(tiny)


@pytest.fixture(scope="module")
def teacher(tiny, tmp_path_factory) -> Path:
    folder, found = tmp_path_factory.mktemp("teachers") / "teacher", read_folder(tiny)
    weights = build(found.config, found.weights, groups={"pooler", "head"}, classes=2, seed=3).weights()
    labels = Labels("classification", ("negative", "positive"), task="own", max_length=31)
    write_folder(folder, replace(found, weights=weights, labels=labels), card="# teacher\n")
    return folder


class Hears(Watch):
    """Remembers the notes."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@given(st.text(max_size=20))
def test_texts_are_compared_without_case_and_punctuation(text):
    once = normalised(text)
    assert normalised(once) == once
    assert normalised(f" {text} ") == once
    assert normalised("Ein  Café...") == normalised("ein cafe") == "ein cafe"
    assert normalised("a b", "c") != normalised("a", "b c")


def test_the_same_texts_each_time_and_more_begin_with_fewer(filler):
    whole = augmented((TEXTS, None), Rules(43), filler, ())
    torch.rand(3)
    assert augmented((TEXTS, None), Rules(43), filler, ()) == whole
    assert augmented((TEXTS, None), Rules(11), filler, ()).texts == whole.texts[:11]
    assert augmented((TEXTS, None), Rules(43, seed=2), filler, ()).texts != whole.texts
    assert len(whole.texts) == 43
    keys = [normalised(text) for text in whole.texts]
    assert len(set(keys)) == 43
    assert not set(keys) & {normalised(text) for text in TEXTS}


def test_only_words_change_into_what_the_head_finds_likely(filler):
    """Each made text is one of the texts with some words masked, and each new word among the likeliest whole words."""
    names, top = filler.tokenizer.vocabulary, 3
    usable = [i for i, name in enumerate(names) if WORD.fullmatch(name)]
    source = {WORD.sub("_", text): text for text in TEXTS}
    changed = 0
    for made in augmented((TEXTS, None), Rules(37, share=0.4, top=top), filler, ()).texts:
        text = source[WORD.sub("_", made)]  # what is not a word stays
        pairs = list(zip(WORD.finditer(text), WORD.findall(made), strict=True))
        new = [(match, word) for match, word in pairs if match.group() != word]
        ends, starts = [0, *(m.end() for m, _ in new)], [*(m.start() for m, _ in new), len(text)]
        scores = filler.scores([[text[a:b] for a, b in zip(ends, starts, strict=True)]])[0]
        assert len(scores) == len(new) > 0
        for row, (match, word) in zip(scores, new, strict=True):
            assert word[0].isupper() == match.group()[0].isupper()
            likely = [
                names[i] for i in sorted(usable, key=lambda i: -float(row[i])) if names[i] != match.group().lower()
            ]
            changed += word.lower() in likely[:top]
            assert word.lower() in likely[: top + 1]
    assert changed > 37


def test_words_are_drawn_by_their_probability(filler):
    words = augmenting._Words(filler, 5)
    scores = torch.linspace(-1.0, 2.0, len(words.names)).flip(0)[None]
    names, shares = words._likeliest(scores, [words.names[1].upper()])[0]
    assert names == [words.names[i] for i in (0, 2, 3, 4, 5)]
    wanted = softmax(scores[0, [0, 2, 3, 4, 5]].numpy().astype(float))
    np.testing.assert_allclose(np.diff(shares / shares[-1], prepend=0), wanted, atol=1e-6)
    drawn, masked = np.random.default_rng(1), augmenting._Masked(["", ""], ["x"])
    found = [augmenting._joined(masked, [(names, shares)], drawn) for _ in range(4001)]
    for name, share in zip(names, wanted, strict=True):
        assert found.count(name) / 4001 == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / 4001))


def test_scores_of_several_texts_are_those_of_one(filler):
    rows = [["the ", " was good"], ["a b c d e f g "], ["", " ", ""], ["x " * 50, " y"]]
    found = filler.scores(rows)
    assert [len(scores) for scores in found] == [1, 0, 2, 0]  # the last one is cut before its missing word
    for parts, scores in zip(rows, found, strict=True):
        np.testing.assert_allclose(scores, filler.scores([parts])[0], atol=1e-5)


def test_texts_of_dev_and_test_are_never_made(filler):
    free = augmented((TEXTS, None), Rules(43), filler, ())
    barred = {normalised(text) for text in free.texts[::3]}
    made = augmented((TEXTS, None), Rules(43), filler, barred)
    assert not {normalised(text) for text in made.texts} & barred
    assert made.held_out >= len(barred) - 2
    assert len(made.texts) == 43
    every = augmented((["bad"], None), Rules(1000), filler, {"good"})
    assert 0 < len(every.texts) < 16  # of the 15 likeliest words
    assert "good" not in every.texts


def test_pairs_change_on_both_sides_and_are_kept_on_the_disk(filler, tmp_path):
    rows = TEXTS[:4], TEXTS[2:]
    first, known = augment(rows, Rules(31), filler, ())
    assert not known
    sources = list(zip(*rows, strict=True))
    sides = np.array([[made not in both for made, both in zip(pair, zip(*sources, strict=True), strict=True)]
                      for pair in zip(first.texts, first.pairs, strict=True)])  # fmt: skip
    assert (sides.any(1)).all()
    assert (sides.sum(0) > 5).all()
    again, known = augment(rows, Rules(31), filler, ())
    assert known
    assert again == first
    assert not augment(rows, Rules(31), filler, {"x"})[1]
    kept = sorted((tmp_path / "cache" / "augmented").glob("*.json"))
    assert len(kept) == 2
    for path in kept:
        path.write_text("{")
    again, known = augment(rows, Rules(31), filler, ())
    assert not known
    assert (again.texts, again.pairs) == (first.texts, first.pairs)


def test_test_texts_of_glue_are_held_back(glue):
    task = task_named("rte")
    config = DistillConfig(model="x", teacher=("x",), data={"task": "rte", "glue": glue, "dev_rows": 3})
    held = augmenting._held(task, config.data, {}, Watch())
    for split in ("dev", "test"):
        examples = read_glue(task, glue, split)
        assert {normalised(*row) for row in zip(examples.texts, examples.pairs, strict=True)} <= held
    train = read_glue(task, glue, "train")
    assert normalised(train.texts[0], train.pairs[0]) not in held


# ---------------------------------------------------------------------------------------------------- distillation


def test_a_student_learns_from_made_texts(tiny, teacher, reviews, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "_SECONDS", 0.01)
    data = {"train": str(reviews[0]), "dev": str(reviews[1]), "max_length": 31}
    settings = {"teacher": teacher, "data": data, "train": {"epochs": 1, "threads": 1}}
    plain = load_soft_inputs(DistillConfig.of(settings | {"model": str(tiny), "teacher": [str(teacher)]}), Watch())
    cached = set((tmp_path / "cache" / "teachers").glob("*.parquet"))
    heard = Hears()
    result = distill(tiny, tmp_path / "run", augment=67, watch=heard, **settings)
    assert result["texts"]["augmented"] == 67
    assert result["rows"]["train"] == len(plain.splits["train"]) + 67
    said = result["augmentation"]
    assert (said["made"], said["amount"], said["model"]) == (67, 67, str(tiny))
    assert said["repeated"] >= 0 <= said["seconds"]
    assert len(set((tmp_path / "cache" / "teachers").glob("*.parquet")) - cached) == 1  # the texts there are, once
    line = next(text for text in heard.notes if text.startswith("augment: "))
    assert re.fullmatch(
        r"augment: 67 texts made of 131 with .*; \d+ duplicates and \d+ texts of dev or test dropped, [\d.]+ s", line
    )
    inputs = load_soft_inputs(DistillConfig.of(json.loads(DistillConfig.of(
        settings | {"model": str(tiny), "teacher": [str(teacher)], "augment": 67}).model_dump_json())), heard)  # fmt: skip
    assert (
        "; read from the cache, "
        in heard.notes[[text.startswith("augment: ") for text in heard.notes].index(True, heard.notes.index(line) + 1)]
    )
    source, learnt = inputs.splits["train"], inputs.data["train"]
    assert source.checksum == result["data_sha256"]["train"]
    assert (source.labels[131:] == -1).all()
    np.testing.assert_allclose(learnt.teacher, Predictor(teacher).logits(source.texts), atol=1e-5)
    dev = {normalised(text) for text in inputs.splits["dev"].texts}
    assert not {normalised(text) for text in source.texts[131:]} & dev


def test_what_cannot_be_made_is_one_sentence(tiny, teacher, reviews, tmp_path):
    data = {"train": str(reviews[0]), "dev": str(reviews[1]), "max_length": 31}
    settings = {"teacher": teacher, "data": data, "train": {"epochs": 1}}
    with pytest.raises(ConfigError, match="say how many with augment"):
        distill(tiny, tmp_path / "run", augment_with="tiny", **settings)
    with pytest.raises(CheckpointError, match="no masked-LM head"):
        distill(tiny, tmp_path / "run", augment=3, augment_with=str(teacher), **settings)
    label(teacher, tmp_path / "l.parquet", files=reviews)
    with pytest.raises(ConfigError, match="needs the teacher itself"):
        distill(tiny, tmp_path / "run", augment=3, **(settings | {"teacher": tmp_path / "l.parquet"}))
    few = tmp_path / "few.csv"
    few.write_text(
        "text,label\n" + "".join(f"{word},{name}\n" for word, name in (("good", "positive"), ("bad", "negative")))
    )
    settings = {"model": str(tiny), "teacher": [str(teacher)], "data": data | {"train": str(few)}, "augment": 999}
    heard = Hears()
    inputs = load_soft_inputs(DistillConfig.of(settings), heard)
    assert 0 < inputs.texts["augmented"] < len(LETTERS)
    assert any("of 999 texts could be made" in text for text in heard.warnings)
