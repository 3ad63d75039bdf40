"""The encoder and its heads against transformers, layer shapes of all 24 and real weights included."""

import numpy as np
import pytest
import torch
import transformers

from bert_miniatures.checkpoint import Labels, ModelFolder, read_folder, write_folder
from bert_miniatures.config import ModelConfig
from bert_miniatures.model import build
from bert_miniatures.tokenizer import Tokenizer
from bert_miniatures.zoo import ZOO

TOLERANCE = 1e-5


def pairs(vocabulary: int, rows: int = 3, length: int = 19, seed: int = 0):
    """Return ids, segments and mask of pairs; the first row is whole, the others are padded."""
    drawn = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, vocabulary, (rows, length), generator=drawn)
    mask = torch.ones(rows, length, dtype=torch.bool)
    segments = torch.zeros(rows, length, dtype=torch.long)
    segments[:, length // 3 :] = 1
    for row in range(1, rows):
        mask[row, length - 4 * row :] = False
    return ids, segments * mask, mask


def largest_difference(ours, theirs, mask=None) -> float:
    gap = (ours - theirs).abs()
    return float((gap[mask] if mask is not None else gap).max())


@pytest.mark.parametrize("size", list(ZOO))
def test_all_24_shapes_agree_with_transformers(size):
    miniature = ZOO[size]
    sizes = {"num_hidden_layers": miniature.layers, "hidden_size": miniature.width}
    sizes |= {"num_attention_heads": miniature.heads, "intermediate_size": 4 * miniature.width}
    config = ModelConfig(vocab_size=997, **sizes)  # the vocabulary is cut: its size is not what is tested
    model = build(config, groups={"pooler", "head"}, classes=3, seed=1).eval()
    theirs = transformers.BertForSequenceClassification(
        transformers.BertConfig(vocab_size=997, num_labels=3, **sizes)
    ).eval()
    from bert_miniatures.names import to_hf

    state = {name: torch.from_numpy(w) for name, w in to_hf(model.weights(), config).items()}
    missing = theirs.load_state_dict(state, strict=False)
    assert [n for n in missing.missing_keys if "position_ids" not in n] == []
    assert missing.unexpected_keys == []
    ids, segments, mask = pairs(997)
    with torch.no_grad():
        hidden = theirs.bert(ids, attention_mask=mask.long(), token_type_ids=segments).last_hidden_state
        logits = theirs(ids, attention_mask=mask.long(), token_type_ids=segments).logits
        assert largest_difference(model(ids, segments, mask), hidden, mask) < TOLERANCE
        assert largest_difference(model.classify(ids, segments, mask), logits) < TOLERANCE


def test_real_weights_agree_with_transformers(minilm):
    theirs = transformers.BertModel.from_pretrained(minilm).eval()
    found = read_folder(minilm)
    model = build(found.config, found.weights, groups={"pooler"}).eval()
    ids, segments, mask = pairs(30_522, rows=5, length=43)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask.long(), token_type_ids=segments)
        assert largest_difference(model(ids, segments, mask), expected.last_hidden_state, mask) < TOLERANCE
        assert largest_difference(model.pooled(ids, segments, mask), expected.pooler_output) < TOLERANCE


@pytest.mark.parametrize("activation", ["gelu", "gelu_new"])
def test_heads_agree_with_transformers(tiny, activation, tmp_path):
    found = read_folder(tiny)
    config = found.config.model_copy(update={"hidden_act": activation})
    write_folder(tmp_path / "m", ModelFolder(config, found.weights, found.tokenizer), card="")
    theirs = transformers.BertForPreTraining.from_pretrained(tmp_path / "m").eval()
    model = build(config, found.weights, groups=found.groups - {"encoder"}).eval()
    ids, segments, mask = pairs(config.vocab_size, length=31)
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask.long(), token_type_ids=segments)
        hidden = model(ids, segments, mask)
        where = mask.nonzero()[::3]
        rows, columns = where[:, 0], where[:, 1]
        assert largest_difference(model.masked(hidden[rows, columns]), expected.prediction_logits[rows, columns]) < TOLERANCE  # fmt: skip
        assert largest_difference(model.next_sentence(hidden[:, 0]), expected.seq_relationship_logits) < TOLERANCE


def test_first_only_is_the_same_in_outputs_and_gradients(config):
    model = build(config, groups={"pooler", "head"}, classes=5, seed=3).eval()
    ids, segments, mask = pairs(config.vocab_size)
    gradients = []
    for first_only in (True, False):
        model.exact_speedups = first_only
        model.zero_grad()
        logits = model.classify(ids, segments, mask)
        torch.nn.functional.cross_entropy(logits, torch.tensor([0, 4, 2])).backward()
        gradients.append((logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}))
    (a, first), (b, every) = gradients
    assert largest_difference(a, b) < 1e-6
    for name in first:
        assert largest_difference(first[name], every[name]) < 1e-6, name


def test_padding_does_not_change_the_answer(config):
    model = build(config, groups={"pooler", "head"}, classes=5, seed=3).eval()
    ids, segments, mask = pairs(config.vocab_size)
    with torch.no_grad():
        together = model.classify(ids, segments, mask)
        for row in range(len(ids)):
            real = int(mask[row].sum())
            alone = model.classify(ids[row : row + 1, :real], segments[row : row + 1, :real])
            assert largest_difference(together[row], alone[0]) < 1e-6


def test_new_weights_come_from_the_seed_alone(config):
    torch.manual_seed(1)
    a = build(config, groups={"pooler", "head"}, classes=5, seed=3).weights()
    torch.manual_seed(2)
    b = build(config, groups={"pooler", "head"}, classes=5, seed=3).weights()
    c = build(config, groups={"pooler", "head"}, classes=5, seed=4).weights()
    assert all(np.array_equal(a[name], b[name]) for name in a)
    assert not np.array_equal(a["head.weight"], c["head.weight"])
    words = a["embed.word.weight"]
    assert np.abs(words).max() <= 2 * config.initializer_range
    # deviation of a normal cut at two deviations: 0.8796
    assert words.std() == pytest.approx(0.8796 * config.initializer_range, rel=0.05)


def test_folders_open_in_transformers_and_back(tiny, config, tmp_path):
    found = read_folder(tiny)
    weights = build(config, found.weights, groups={"pooler", "head"}, classes=3, seed=5).weights()
    labels = Labels("classification", ("no", "maybe", "yes"), "own")
    ours = ModelFolder(config, weights, found.tokenizer, labels)
    write_folder(tmp_path / "ours", ours, card="# m\n")
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "ours").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert theirs.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    assert tokenizer.model_max_length == 37
    batch = tokenizer(["the film was good", "bad!"], ["very good", "not very bad?"], padding=True, return_tensors="pt")
    theirs.save_pretrained(tmp_path / "theirs")
    tokenizer.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        expected = theirs(**batch).logits
        for folder in ("ours", "theirs"):
            back = read_folder(tmp_path / folder)
            assert back.labels is not None
            assert back.labels.names == ("no", "maybe", "yes")
            model = build(back.config, back.weights, groups={"pooler", "head"}, classes=3).eval()
            logits = model.classify(batch["input_ids"], batch["token_type_ids"], batch["attention_mask"].bool())
            assert largest_difference(logits, expected) < TOLERANCE
    assert Tokenizer.from_folder(tmp_path / "theirs").fingerprint == found.tokenizer.fingerprint
