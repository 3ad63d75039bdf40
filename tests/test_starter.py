"""The model that comes with the package: whole, small, known to transformers, and better than words alone."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from bert_miniatures import finetune, load, models
from bert_miniatures.checkpoint import read_folder
from bert_miniatures.zoo import lookup

SUPPORT = Path(__file__).parents[1] / "examples" / "support"


def rows(name: str) -> tuple[list[str], list[str]]:
    with (SUPPORT / name).open(encoding="utf-8", newline="") as file:
        found = list(csv.DictReader(file))
    return [row["text"] for row in found], [row["intent"] for row in found]


def test_it_is_in_the_package_whole_and_small():
    assert models.resolve("starter", offline=True) == models.STARTER
    found = read_folder(models.STARTER)  # compares the checksum
    tiny = lookup("tiny")
    assert (found.config.num_hidden_layers, found.config.hidden_size) == (tiny.layers, tiny.width)
    assert len(found.tokenizer.vocabulary) == found.config.vocab_size == 30_522
    assert sum(path.stat().st_size for path in models.STARTER.iterdir()) <= 10_000_000
    assert all(np.isfinite(weights).all() for weights in found.weights.values())


def test_transformers_opens_it_and_gives_the_same_vectors():
    theirs = transformers.BertForPreTraining.from_pretrained(models.STARTER).eval()
    given = transformers.AutoTokenizer.from_pretrained(models.STARTER)("It came on Monday.", return_tensors="pt")
    ours, tokenizer = load("starter")
    ids = torch.tensor([[tokenizer.cls_id, *tokenizer.ids("It came on Monday."), tokenizer.sep_id]])
    assert torch.equal(ids, given["input_ids"])
    with torch.no_grad():
        torch.testing.assert_close(ours.pooled(ids), theirs.bert(**given).pooler_output.float(), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_fine_tuned_it_beats_words_alone(tmp_path):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts, intents = (column[::4] for column in rows("train.csv"))  # the fewer there are, the more it matters
    with (tmp_path / "train.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("text", "intent"), *zip(texts, intents, strict=True)])
    data = {"train": tmp_path / "train.csv", "dev": SUPPORT / "dev.csv", "max_length": 64}
    train = {"batch_size": 16, "learning_rate": 1e-3, "epochs": 10, "threads": 1}
    ours = finetune("starter", tmp_path / "run", data=data, train=train)["scores"]["dev"]["accuracy"]
    words = make_pipeline(TfidfVectorizer(), LogisticRegression(C=10, max_iter=1000)).fit(texts, intents)
    assert ours > words.score(*rows("dev.csv")) + 0.03
