"""What a teacher reads, and pairs: sentences chosen by a hash, thinned copies, neighbours."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_miniatures.data import pairs as module
from bert_miniatures.data import teacher_texts
from bert_miniatures.data.encoding import EncodedCorpus
from bert_miniatures.data.pairs import PairRules, cosines, draw_pairs, near_rows, open_pairs, pairs_key, write_pairs
from bert_miniatures.data.teacher_store import TeacherStore, Texts, open_store, open_texts, write_texts
from bert_miniatures.data.teacher_texts import Selection, choose, phrases, thinned
from bert_miniatures.errors import DataError
from bert_miniatures.tokenizer import Tokenizer
from conftest import PIECES

TOKENIZER = Tokenizer.from_vocabulary(PIECES)


def corpus_of(documents):
    """Make an encoded corpus; a document is a list of sentences, each a list of pieces."""
    sentences = [sentence for document in documents for sentence in document]
    return EncodedCorpus(
        ids=np.array([i for sentence in sentences for i in sentence], np.uint16),
        sentences=np.cumsum([0, *map(len, sentences)]),
        documents=np.cumsum([0, *map(len, documents)]),
        hashes=np.arange(len(documents)).astype(np.uint64),
        checksum="",
    )


def random_documents(count, seed=0):
    drawn = np.random.default_rng(seed)
    return [
        [drawn.integers(5, len(PIECES), drawn.integers(1, 23)).tolist() for _ in range(drawn.integers(1, 9))]
        for _ in range(count)
    ]


def texts_of(corpus, numbers):
    return [tuple(corpus.ids[corpus.sentences[n] : corpus.sentences[n + 1]].tolist()) for n in numbers]


@pytest.mark.parametrize("block", [7, 2**16])
def test_sentences_are_chosen_by_their_content_alone(block, monkeypatch):
    monkeypatch.setattr(teacher_texts, "_BLOCK", block)
    documents = random_documents(61)
    documents[3][0] = documents[17][0] = documents[41][-1] = [9, 8, 7, 6, 7, 8]  # met three times
    documents[5][0] = [9, 9, 9, TOKENIZER.unk_id, 9, 9]
    selection = Selection(sentences=53, shortest=3, longest=17)
    corpus, every = corpus_of(documents), np.arange(61)
    allowed = {tuple(s) for d in documents for s in d if 3 <= len(s) <= 17 and TOKENIZER.unk_id not in s}
    all_of_them = texts_of(corpus, choose(corpus, every, TOKENIZER, Selection(10**6, shortest=3, longest=17)))
    assert len(all_of_them) == len(allowed)
    assert set(all_of_them) == allowed
    found = texts_of(corpus, choose(corpus, every, TOKENIZER, selection))
    assert found == all_of_them[:53]  # fewer are the beginning of more
    order = np.random.default_rng(1).permutation(61)
    shuffled = corpus_of([documents[i][::-1] for i in order])
    assert texts_of(shuffled, choose(shuffled, every, TOKENIZER, selection)) == found
    other = choose(corpus, every, TOKENIZER, Selection(53, shortest=3, longest=17, seed=2))
    assert len(set(texts_of(corpus, other)) & set(found)) < 40


def test_only_given_documents_are_read():
    documents = [[[5 + i] * 6] for i in range(20)]
    corpus = corpus_of(documents)
    found = choose(corpus, np.array([2, 3, 11]), TOKENIZER, Selection())
    assert sorted(found) == [2, 3, 11]
    with pytest.raises(DataError, match="the corpus has no sentence of 7 to 126 pieces"):
        choose(corpus, np.array([2]), TOKENIZER, Selection(shortest=7))


@given(
    st.lists(st.lists(st.integers(5, len(PIECES) - 1), min_size=1, max_size=29), min_size=1, max_size=13),
    st.integers(0, 9),
)
def test_thinned_copies_lack_whole_words(rows, seed):
    ids, bounds = np.array([i for row in rows for i in row]), np.cumsum([0, *map(len, rows)])
    ((left, counts),) = thinned(ids, bounds, TOKENIZER, seed)
    ends = np.cumsum(counts)
    for row, end, count in zip(rows, ends, counts, strict=True):
        words: list[list[int]] = []
        for i in row:
            if PIECES[i].startswith("##") and words:
                words[-1].append(i)
            else:
                words.append([i])
        copy = left[end - count : end].tolist()
        states = {(0, 0)}  # how much of the copy is explained, by how many words
        for word in words:
            states |= {(at + len(word), kept + 1) for at, kept in states if copy[at : at + len(word)] == word}
        dropped = {len(words) - kept for at, kept in states if at == len(copy)}
        least, most = min(1, len(words) - 1), min(max(1, round(0.5 * len(words))), len(words) - 1)
        assert dropped & set(range(max(least, round(0.1 * len(words)) * least), most + 1))
        assert copy


@pytest.mark.parametrize("block", [3, 2**16])
def test_phrases_are_whole_words_of_their_texts(block, monkeypatch):
    monkeypatch.setattr(teacher_texts, "_BLOCK", block)
    rows = [sentence for document in random_documents(61) for sentence in document]
    ids, bounds = np.array([i for row in rows for i in row]), np.cumsum([0, *map(len, rows)])
    begins = np.array([not PIECES[i].startswith("##") for i in ids])
    begins[bounds[:-1]] = True
    starts, ends = phrases(ids, bounds, TOKENIZER, 211, seed=3)
    found = [tuple(ids[start:end].tolist()) for start, end in zip(starts, ends, strict=True)]
    assert len(found) == len(set(found)) == 211
    lengths = []
    for start, end in zip(starts, ends, strict=True):
        text = np.searchsorted(bounds, start, "right") - 1
        assert bounds[text] <= start < end <= bounds[text + 1]
        assert begins[start]
        assert end == bounds[text + 1] or begins[end]
        assert 0 < end - start < bounds[text + 1] - bounds[text]
        lengths.append(int(begins[start:end].sum()))
    assert set(lengths) == set(range(1, 9))
    few = phrases(ids, bounds, TOKENIZER, 53, seed=3)
    assert len(few[0]) == 53
    assert not len(phrases(np.array([5, 7]), np.array([0, 1, 2]), TOKENIZER, 9, seed=3)[0])  # texts of one word


def test_phrases_are_learnt_and_copies_are_not(tmp_path):
    corpus, every = corpus_of(random_documents(37)), np.arange(37)
    write_texts(corpus, every, TOKENIZER, Selection(29, 11, shortest=4, phrases=17), tmp_path / "texts")
    found = open_texts(tmp_path / "texts")
    assert (len(found), found.sentences, found.copies, found.phrases) == (57, 29, 11, 17)
    assert found.alone.tolist() == [*range(29), *range(40, 57)]
    rows = [found.ids[slice(*found.bounds[i : i + 2])].tolist() for i in range(57)]
    whole = [" ".join(map(str, row)) for row in rows[:29]]
    assert all(any(" ".join(map(str, row)) in text for text in whole) for row in rows[40:])
    write_texts(corpus, every, TOKENIZER, Selection(29, 11, shortest=4), tmp_path / "fewer")
    fewer = open_texts(tmp_path / "fewer")
    assert found.ids[: len(fewer.ids)].tolist() == fewer.ids.tolist()


def test_texts_on_the_disk(tmp_path):
    documents = random_documents(37)
    corpus, every = corpus_of(documents), np.arange(37)
    selection = Selection(sentences=29, copies=11, shortest=4)
    write_texts(corpus, every, TOKENIZER, selection, tmp_path / "texts")
    found = open_texts(tmp_path / "texts")
    assert (len(found), found.sentences, found.copies) == (40, 29, 11)
    numbers = choose(corpus, every, TOKENIZER, selection)
    rows = [tuple(found.ids[slice(*found.bounds[i : i + 2])].tolist()) for i in range(40)]
    assert rows[:29] == texts_of(corpus, numbers)
    words = [sum(not PIECES[piece].startswith("##") for piece in row[1:]) + 1 for row in rows]
    for i in range(11):
        assert 0 < len(rows[29 + i]) < len(rows[i]) + (words[i] == 1)
    assert found.bounds[-1] == len(found.ids)
    for name in ("ids", "bounds", "texts.json"):
        whole = (tmp_path / "texts" / name).read_bytes()
        (tmp_path / "texts" / name).write_bytes(whole[:-8])
        assert open_texts(tmp_path / "texts") is None
        (tmp_path / "texts" / name).write_bytes(whole)
    assert open_store(tmp_path / "texts") is None


def store_of(sentences, copies, width, folder=Path("nowhere"), seed=0):
    drawn = np.random.default_rng(seed)
    vectors = (drawn.standard_normal((sentences + copies, width)) * 3).astype(np.float16)
    texts = Texts(np.zeros(0, np.uint16), np.zeros(sentences + copies + 1, np.int64), sentences)
    return TeacherStore(texts, vectors, folder)


@pytest.mark.parametrize("chunk", [5, 37, 1024])
@pytest.mark.parametrize("among", [101, 43])
def test_neighbours_are_those_of_brute_force(chunk, among, monkeypatch):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    store = store_of(101, 0, 7)
    wide = store.vectors.astype(np.float64)
    wide /= np.linalg.norm(wide, axis=1, keepdims=True)
    close = wide @ wide[:among].T
    close[np.arange(among), np.arange(among)] = -2
    expected = np.argsort(-close, axis=1)[:among, :3]
    found = np.concatenate([near_rows(store.vectors, among, i, min(i + 17, among), 3) for i in range(0, among, 17)])
    assert found.dtype == np.int32
    assert np.array_equal(found, expected)


def test_pairs_have_their_shares_and_the_teachers_cosine():
    store = store_of(101, 31, 7)
    near = near_rows(store.vectors, 101, 0, 101, 4)
    rules = PairRules(count=200, near=0.6, thinned=0.15, neighbours=4)
    found = draw_pairs(store, near, rules)
    assert np.bincount(found.kind).tolist() == [120, 30, 50]
    a, b = store.vectors[found.a].astype(np.float64), store.vectors[found.b].astype(np.float64)
    expected = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(found.cosine, expected, atol=1e-6)
    assert (found.mean, found.deviation) == pytest.approx((expected.mean(), expected.std()), abs=1e-6)
    is_near, is_thin, is_random = (found.kind == kind for kind in range(3))
    assert all(b in near[a] for a, b in zip(found.a[is_near], found.b[is_near], strict=True))
    assert len(set(zip(found.a[is_near], found.b[is_near], strict=True))) == 120
    assert set(np.abs(found.a - found.b)[is_thin]) == {101}
    assert 0 < (found.a < found.b)[is_thin].mean() < 1  # either first
    assert (np.maximum(found.a, found.b)[is_random] < 101).all()
    assert (found.a != found.b).all()
    again, other = draw_pairs(store, near, rules), draw_pairs(store, near, PairRules(200, 0.6, 0.15, seed=2))
    assert np.array_equal(found.a, again.a)
    assert not np.array_equal(found.a, other.a)


def test_where_there_are_too_few():
    one = draw_pairs(store_of(1, 0, 3), np.empty((0, 0), np.int32), PairRules(count=5))
    assert one.a.tolist() == one.b.tolist() == [0] * 5
    few = draw_pairs(store_of(3, 2, 3), np.array([[1], [2], [0]], np.int32), PairRules(count=40))
    assert np.bincount(few.kind).tolist() == [24, 6, 10]


def test_a_vector_of_zeros_has_a_cosine():
    assert cosines(np.zeros((2, 3)), np.ones((2, 3))).tolist() == [0.0, 0.0]


def test_pairs_on_the_disk(tmp_path):
    pairs = draw_pairs(store_of(11, 2, 3), np.array([[1]] * 11, np.int32), PairRules(count=17))
    write_pairs(tmp_path / "pairs", pairs)
    found = open_pairs(tmp_path / "pairs")
    for name in ("a", "b", "cosine", "kind", "mean", "deviation"):
        assert np.array_equal(getattr(found, name), getattr(pairs, name))
    for name in ("a", "cosine", "facts.json"):
        whole = (tmp_path / "pairs" / name).read_bytes()
        (tmp_path / "pairs" / name).write_bytes(whole[:-4])
        assert open_pairs(tmp_path / "pairs") is None
        (tmp_path / "pairs" / name).write_bytes(whole)
    assert pairs_key(PairRules()) == pairs_key(PairRules()) != pairs_key(PairRules(seed=2))
