"""Order, collation and the cache of encoded texts."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_miniatures.data.batches import Batches, Dataset, by_length, encode, epoch_order
from bert_miniatures.tokenizer import Encoded, Tokenizer

lengths = st.lists(st.integers(1, 512), min_size=1, max_size=400).map(lambda found: np.array(found, np.int32))


@given(lengths, st.integers(1, 64), st.integers(0, 2**31), st.integers(0, 9), st.booleans())
def test_every_row_once_in_batches_of_the_published_size(found, size, seed, epoch, grouped):
    batches = epoch_order(found, size, seed, epoch, grouped=grouped)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(found)))
    assert len(batches) == -(-len(found) // size)
    assert sorted(map(len, batches))[1:] == [size] * (len(batches) - 1)
    again = epoch_order(found, size, seed, epoch, grouped=grouped)
    assert all(np.array_equal(a, b) for a, b in zip(batches, again, strict=True))


def test_the_order_changes_with_seed_and_epoch_and_groups_by_length():
    found = np.random.default_rng(1).integers(1, 100, 997)
    flat = {key: np.concatenate(epoch_order(found, 16, *key)).tolist() for key in ((1, 0), (1, 1), (2, 0))}
    assert len({tuple(order) for order in flat.values()}) == 3

    def padding(grouped: bool) -> float:
        batches = epoch_order(found, 16, 1, 0, grouped=grouped)
        return sum(found[rows].max() * len(rows) for rows in batches) / found.sum() - 1

    assert padding(True) < 0.1 < 0.5 < padding(False)


@given(lengths, st.integers(1, 8192))
def test_inference_batches_hold_every_row_within_the_budget(found, budget):
    batches = by_length(found, budget)
    assert sorted(np.concatenate(batches).tolist()) == list(range(len(found)))
    for rows in batches:
        assert len(rows) == 1 or int(found[rows].max()) * len(rows) <= budget


rows = st.lists(
    st.tuples(st.lists(st.integers(5, 70), min_size=2, max_size=13), st.integers(0, 13)), min_size=1, max_size=17
)


@given(rows, st.data())
def test_collation_is_the_plain_loop(drawn, data):
    """ids, mask and segments of a batch equal what a loop over its rows makes."""
    texts = [ids for ids, _ in drawn]
    first = np.array([min(len(ids), 1 + cut) for ids, cut in drawn], np.int32)
    sizes = np.array([len(ids) for ids in texts], np.int32)
    flat = np.array([i for ids in texts for i in ids], np.int32)
    dataset = Dataset(Encoded(flat, sizes, first, 0, 0, 0), np.arange(len(texts)))
    chosen = np.array(data.draw(st.lists(st.integers(0, len(texts) - 1), min_size=1, max_size=9)))
    batch = dataset.batch(chosen)
    width = max(len(texts[i]) for i in chosen)
    for row, i in enumerate(chosen):
        pad = width - len(texts[i])
        assert batch.ids[row].tolist() == texts[i] + [0] * pad
        mask = [True] * width if batch.mask is None else batch.mask[row].tolist()
        assert mask == [True] * len(texts[i]) + [False] * pad
        segments = [0] * width if batch.segments is None else batch.segments[row].tolist()
        assert segments == [0] * first[i] + [1] * (len(texts[i]) - first[i]) + [0] * pad
    assert batch.labels is not None
    assert batch.labels.tolist() == chosen.tolist()


@given(rows)
def test_renumbering_is_undone_by_the_table(drawn):
    texts = [ids for ids, _ in drawn]
    sizes = np.array([len(ids) for ids in texts], np.int32)
    flat = np.array([i for ids in texts for i in ids], np.int32)
    dataset = Dataset(Encoded(flat, sizes, sizes, 0, 0, 0), None)
    used = dataset.used_ids()
    narrow = dataset.renumber(used)
    every = np.arange(len(texts))
    wide, thin = dataset.batch(every).ids.numpy(), narrow.batch(every).ids.numpy()
    assert np.array_equal(used[thin], wide)
    assert thin.max() < len(used) <= len(set(flat.tolist())) + 1


def test_micro_batches_cover_a_batch():
    sizes = np.full(11, 3, np.int32)
    batches = Batches(Dataset(Encoded(np.arange(33, dtype=np.int32), sizes, sizes, 0, 0, 0), None), 11, 1)
    whole = batches.rows(0)[0]
    parts = [batch.rows for batch in batches.micro(whole, 4)]
    assert [len(part) for part in parts] == [4, 4, 3]
    assert np.array_equal(np.concatenate(parts), whole)
    assert list(batches.micro(whole[:0], None)) == []


@pytest.fixture
def tokenizer(tiny) -> Tokenizer:
    return Tokenizer.from_folder(tiny)


def test_encoded_texts_are_read_from_the_cache(tokenizer, tmp_path, monkeypatch):
    texts, pairs = ["good film", "bad"], ["very", "not \udc80"]
    first = encode(tokenizer, texts, pairs, max_length=16, cache=tmp_path)
    monkeypatch.setattr(tokenizer, "encode", None)  # a second encoding would now fail
    again = encode(tokenizer, texts, pairs, max_length=16, cache=tmp_path)
    assert np.array_equal(first.ids, again.ids)
    assert (first.pieces, first.unknown, first.truncated) == (again.pieces, again.unknown, again.truncated)
    with pytest.raises(TypeError):
        encode(tokenizer, texts, pairs, max_length=15, cache=tmp_path)
    with pytest.raises(TypeError):
        encode(tokenizer, ["good fil", "mbad"], pairs, max_length=16, cache=tmp_path)


def test_a_damaged_or_unwritable_cache_is_no_error(tokenizer, tmp_path):
    first = encode(tokenizer, ["good film"], None, max_length=16, cache=tmp_path)
    file = next(tmp_path.glob("*.npy"))
    raw = bytearray(file.read_bytes())
    for position in range(0, len(raw), 7):
        damaged = bytearray(raw)
        damaged[position] ^= 16
        file.write_bytes(damaged)
        assert np.array_equal(encode(tokenizer, ["good film"], None, max_length=16, cache=tmp_path).ids, first.ids)
    (tmp_path / "file").write_text("not a folder")
    again = encode(tokenizer, ["good film"], None, max_length=16, cache=tmp_path / "file" / "below")
    assert np.array_equal(again.ids, first.ids)
