"""Pre-training data: the encoded corpus, instances, masks, batches."""

import itertools
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from bert_miniatures.data import encoding, pretraining
from bert_miniatures.data import instances as instances_module
from bert_miniatures.data.corpus import document_hash, documents, open_corpus
from bert_miniatures.data.encoding import EncodedCorpus, corpus_checksum, encode_corpus
from bert_miniatures.data.instances import Rules, chapters, instances, pack, split_documents
from bert_miniatures.data.masking import Flat, Masker, _fill, draw
from bert_miniatures.data.pretraining import PretrainBatches, held_out_batches
from bert_miniatures.data.sentences import split_sentences
from bert_miniatures.errors import ConfigError, DataError
from bert_miniatures.tokenizer import Tokenizer
from bert_miniatures.watch import Watch
from conftest import PIECES

TOKENIZER = Tokenizer.from_vocabulary(PIECES)
FIRST = 5  # ids below are special


def corpus_of(shape, seed=0):
    """Make an encoded corpus of random pieces; `shape` has a list of sentence lengths for each document."""
    lengths = [length for document in shape for length in document]
    drawn = np.random.default_rng(seed)
    return EncodedCorpus(
        ids=drawn.integers(FIRST, len(PIECES), sum(lengths)).astype(np.uint16),
        sentences=np.cumsum([0, *lengths]),
        documents=np.cumsum([0, *map(len, shape)]),
        hashes=drawn.integers(0, 2**64, len(shape), dtype=np.uint64),
        checksum="",
    )


def document_at(corpus, places):
    return np.searchsorted(corpus.sentences[corpus.documents], places, "right") - 1


SHAPES = st.lists(st.lists(st.integers(1, 23), min_size=1, max_size=11), min_size=2, max_size=13)
BIG = [[1 + (7 * i + 3 * j) % 29 for j in range(5 + i % 61)] for i in range(307)]


# ---- the encoded corpus


def write_corpus(folder, files=3, documents_each=7, seed=1):
    drawn = random.Random(seed)
    paths = []
    for i in range(files):
        found = []
        for _ in range(documents_each):
            lines = []
            for _ in range(drawn.randint(1, 4)):
                words = [
                    drawn.choice(["The", "film", "was", "very", "bad", "good.", "Not", "Σ", "!?", "Mr."])
                    for _ in range(29)
                ]
                lines.append(" ".join(words))
            found.append("\n".join(lines))
        paths.append(folder / f"part{i}.txt")
        paths[-1].write_text("\n\n".join(found) + "\n", encoding="utf-8")
    return paths


def same(first, second):
    return all(
        np.array_equal(getattr(first, field.name), getattr(second, field.name)) for field in fields(EncodedCorpus)
    )


def test_encoding_is_the_tokenizer_sentence_by_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(encoding, "_CHARACTERS", 500)
    paths = write_corpus(tmp_path)
    for path in paths:  # a paragraph, and a document, that the tokenizer finds nothing in
        path.write_text(
            "One.\n\u200b\u200b\nTwo. Three.\n\n\u200b\n\n" + path.read_text(encoding="utf-8"), encoding="utf-8"
        )
    sources = open_corpus(paths)
    found = encode_corpus(sources, TOKENIZER, processes=1)
    at = number = 0
    for document in (document for source in sources for document in documents(source)):
        rows = [TOKENIZER.ids(sentence) for paragraph in document for sentence in split_sentences(paragraph)]
        rows = [row for row in rows if row]
        if rows:
            assert found.documents[number : number + 2].tolist() == [at, at + len(rows)]
            assert found.hashes[number] == document_hash(document)
            number += 1
        for row in rows:
            assert found.ids[slice(*found.sentences[at : at + 2])].tolist() == row
            at += 1
    assert (at, number) == (len(found.sentences) - 1, len(found.documents) - 1)
    assert len(found.hashes) == number == 24
    assert found.ids.dtype == np.uint16
    assert found.unknown == np.count_nonzero(found.ids == TOKENIZER.unk_id) > 0


def test_processes_order_and_names_do_not_matter(tmp_path):
    paths = write_corpus(tmp_path)
    one = encode_corpus(open_corpus(paths), TOKENIZER, processes=1, cache=tmp_path / "one")
    renamed = [path.rename(path.with_name(f"other{path.name}")) for path in paths[::-1]]
    two = encode_corpus(open_corpus(renamed), TOKENIZER, processes=2, cache=tmp_path / "two")
    assert same(one, two)
    assert [path.name for path in (tmp_path / "two").iterdir() if not path.name.startswith(".")] == [
        path.name for path in (tmp_path / "one").iterdir() if not path.name.startswith(".")
    ]


def test_an_encoding_is_opened_again_and_made_again_where_it_is_damaged(tmp_path, monkeypatch):
    sources = open_corpus(write_corpus(tmp_path))
    first = encode_corpus(sources, TOKENIZER, processes=1)
    first = EncodedCorpus(
        **{name: np.array(value) if isinstance(value, np.ndarray) else value for name, value in vars(first).items()}
    )
    calls = []
    monkeypatch.setattr(encoding, "_encode_file", lambda *_: calls.append(1))
    assert same(encode_corpus(sources, TOKENIZER), first)
    assert not calls
    monkeypatch.undo()
    monkeypatch.setenv("MINIATURES_HOME", str(tmp_path / "cache"))
    (folder,) = (path for path in (tmp_path / "cache/pretraining").iterdir() if path.is_dir())
    for name in ("ids", "sentences", "facts.json"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-8])
        assert same(encode_corpus(sources, TOKENIZER, processes=1), first)


def test_interrupted_work_goes_on(tmp_path, monkeypatch):
    sources = open_corpus(write_corpus(tmp_path))
    whole = encode_corpus(sources, TOKENIZER, processes=1, cache=tmp_path / "whole")
    real, calls = encoding._encode_file, []

    def interrupted(source, *rest):
        calls.append(source)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(source, *rest)

    monkeypatch.setattr(encoding, "_encode_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode_corpus(sources, TOKENIZER, processes=1)
    assert same(encode_corpus(sources, TOKENIZER, processes=1), whole)
    assert len(calls) == 4  # the second file twice, the first and the third once


TESTS = str(Path(__file__).parent)
ENCODE = """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from conftest import PIECES
    from bert_miniatures.data.corpus import open_corpus
    from bert_miniatures.data.encoding import encode_corpus
    from bert_miniatures.tokenizer import Tokenizer
    encode_corpus(open_corpus(sys.argv[3:]), Tokenizer.from_vocabulary(PIECES), processes=2, cache=Path(sys.argv[2]))
"""


def test_killed_work_goes_on(tmp_path):
    paths, cache = write_corpus(tmp_path, files=5, documents_each=199), tmp_path / "cache"
    whole = encode_corpus(open_corpus(paths), TOKENIZER, processes=1, cache=tmp_path / "whole")
    for parts in (1, 3):
        process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(ENCODE), TESTS, str(cache), *map(str, paths)])
        until = time.monotonic() + 30
        while len(list(cache.glob("*.parts/*/facts.json"))) < parts and time.monotonic() < until:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    time.sleep(0.5)  # workers see the end of their input
    assert same(encode_corpus(open_corpus(paths), TOKENIZER, processes=1, cache=cache), whole)
    assert not list(cache.glob("*.parts"))


@pytest.mark.parametrize("processes", [1, 2])
def test_faults_are_told_from_any_process(tmp_path, processes):
    paths = write_corpus(tmp_path)
    paths[1].write_bytes(paths[1].read_bytes() + b"\xff\n")
    sources = open_corpus(paths)
    with pytest.raises(DataError, match=r"part1\.txt:\d+: not UTF-8 .*--encoding-errors replace or skip"):
        encode_corpus(sources, TOKENIZER, processes=processes)
    watch = Watch()
    found = encode_corpus(sources, TOKENIZER, processes=processes, on_errors="skip", watch=watch)
    assert found.bad_lines == 1
    assert "1 lines of the corpus are not UTF-8 (skip); the first is" in watch.warnings[0]


def test_a_corpus_without_words(tmp_path):
    (tmp_path / "a.txt").write_text("\n \n\n")
    with pytest.raises(DataError, match="the corpus has no words"):
        encode_corpus(open_corpus([tmp_path / "a.txt"]), TOKENIZER)


def test_the_checksum_is_of_the_content_and_of_how_it_is_read(tmp_path):
    paths = write_corpus(tmp_path)
    before = corpus_checksum(open_corpus(paths))
    assert before == corpus_checksum(open_corpus(paths[::-1])) != corpus_checksum(open_corpus(paths), "skip")
    paths[0].write_bytes(paths[0].read_bytes() + b"One more.\n")
    assert before != corpus_checksum(open_corpus(paths))


LOW = """
    from bert_miniatures.data import corpus, encoding
    corpus._LONGEST_DOCUMENT = encoding._CHARACTERS = 2**16
"""
PEAK = """
    lines = Path("/proc/self/status").read_text().splitlines()
    print(next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")))
"""  # not ru_maxrss, which begins with the peak of the process that started this one


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_corpus(tmp_path):
    peaks = []
    for size in (1, 7):
        path = tmp_path / f"{size}.txt"
        path.write_text("The film was not very good. It was bad!\n" * (size * 25_000))  # one document of `size` MB
        command = [
            sys.executable,
            "-c",
            textwrap.dedent(LOW + ENCODE.replace("processes=2", "processes=1") + PEAK),
            TESTS,
            str(tmp_path / "cache"),
            str(path),
        ]
        peaks.append(int(subprocess.run(command, capture_output=True, check=True, text=True).stdout))
    assert peaks[1] < peaks[0] + 12, peaks


# ---- training and held-out documents

HASHES = st.lists(st.integers(0, 40) | st.integers(0, 2**64 - 1), min_size=1, max_size=50).map(
    lambda found: np.array(found, np.uint64)
)


@given(HASHES, st.floats(0, 1), st.integers(0, 50), st.randoms())
def test_every_text_is_on_one_side(hashes, share, most, shuffled):
    train, held = split_documents(hashes, share, most)
    assert sorted([*train, *held]) == list(range(len(hashes)))
    assert not set(hashes[train]) & set(hashes[held])
    texts = len(set(hashes.tolist()))
    if texts < 4 or share == 0:
        assert not len(held)
    else:
        assert 2 <= len(set(hashes[held])) <= max(2, most)
        assert len(set(hashes[train])) >= 2
    order = list(range(len(hashes)))
    shuffled.shuffle(order)
    _, again = split_documents(hashes[order], share, most)
    assert sorted(hashes[order][again]) == sorted(hashes[held])


def test_the_share_is_kept_and_documents_stay_on_their_side():
    hashes = np.random.default_rng(1).integers(0, 2**64, 20_011, dtype=np.uint64)
    _, held = split_documents(hashes)
    assert 150 < len(held) < 250  # 1 % of 20,011, within 3.5 standard deviations
    _, fewer = split_documents(hashes[:10_007])
    assert set(fewer) == {i for i in held if i < 10_007}
    assert len(split_documents(hashes, most=31)[1]) == 31


# ---- instances


@given(SHAPES, st.integers(5, 40), st.integers(0, 3), st.integers(0, 3))
def test_pairs(shape, max_length, seed, epoch):
    corpus, rules = corpus_of(shape), Rules(max_length, seed=seed)
    every = np.arange(len(shape))
    found = instances(corpus, every, every, rules, epoch)
    assert (found.lengths <= max_length).all()
    assert (found.a_length > 0).all()
    assert (found.b_length > 0).all()
    first, second = document_at(corpus, found.a), document_at(corpus, found.b)
    assert (document_at(corpus, found.a + found.a_length - 1) == first).all()
    assert (document_at(corpus, found.b + found.b_length - 1) == second).all()
    assert ((first != second) == found.random).all()
    follows = found.b >= found.a + found.a_length
    assert follows[~found.random].all()
    again = instances(corpus, every, every, rules, epoch)
    assert all(np.array_equal(getattr(found, field.name), getattr(again, field.name)) for field in fields(found))


@given(SHAPES, st.integers(0, 3))
def test_pairs_lose_no_piece_where_nothing_is_cut(shape, seed):
    corpus, every = corpus_of(shape), np.arange(len(shape))
    longest = 3 + 2 * sum(map(sum, shape))
    found = instances(corpus, every, every, Rules(longest, seed=seed), 0)
    met = np.zeros(len(corpus.ids), int)
    for a, a_length, b, b_length, is_random in zip(
        *(getattr(found, field.name) for field in fields(found)), strict=True
    ):
        met[a : a + a_length] += 1
        if not is_random:
            met[b : b + b_length] += 1
    assert (met == 1).all()


@given(SHAPES, st.integers(3, 40), st.integers(0, 3))
def test_singles_have_every_piece_once(shape, max_length, seed):
    corpus, every = corpus_of(shape), np.arange(len(shape))
    found = instances(corpus, every, every, Rules(max_length, next_sentence=False, seed=seed), 0)
    assert (found.lengths <= max_length).all()
    assert (found.a_length > 0).all()
    assert not found.random.any()
    places = np.concatenate([np.arange(a, a + length) for a, length in zip(found.a, found.a_length, strict=True)])
    assert sorted(places) == list(range(len(corpus.ids)))
    assert (document_at(corpus, found.a) == document_at(corpus, found.a + found.a_length - 1)).all()


def reference_pairs(shape, max_length, drawn):
    """create_instances_from_document of google-research/bert, over lengths, with the short draw for each instance."""
    room, found = max_length - 3, []
    for number, document in enumerate(shape):
        at = 0
        while at < len(document):
            target = drawn.randint(2, room) if drawn.random() < 0.1 else room
            chunk, size = [], 0
            while at < len(document) and size < target:
                chunk.append(document[at])
                size += document[at]
                at += 1
            divide = drawn.randint(1, len(chunk) - 1) if len(chunk) >= 2 else 1
            a, is_random = sum(chunk[:divide]), len(chunk) == 1 or drawn.random() < 0.5
            b = sum(chunk[divide:])
            if is_random:
                other = drawn.choice([i for i in range(len(shape)) if i != number]) if len(shape) < 9 else number
                while other == number:
                    other = drawn.randrange(len(shape))
                start, b = drawn.randrange(len(shape[other])), 0
                for length in shape[other][start:]:
                    b += length
                    if b >= target - a:
                        break
                at -= len(chunk) - divide
            while a + b > room:
                if a > b:
                    a -= 1
                else:
                    b -= 1
            found.append((a, b, is_random))
    return np.array(found)


def test_pairs_are_distributed_as_the_source_makes_them():
    corpus, every = corpus_of(BIG), np.arange(len(BIG))
    ours = [instances(corpus, every, every, Rules(64, seed=seed), 0) for seed in range(5)]
    theirs = [reference_pairs(BIG, 64, random.Random(seed)) for seed in range(5)]
    count = [np.mean([len(found) for found in side]) for side in (ours, theirs)]
    assert count[0] == pytest.approx(count[1], rel=0.02)
    ours_columns = [
        np.concatenate([getattr(found, name) for found in ours]) for name in ("a_length", "b_length", "random")
    ]
    theirs_columns = np.concatenate(theirs).T
    for mine, other in zip(ours_columns, theirs_columns, strict=True):
        error = np.sqrt(mine.var() / len(mine) + other.var() / len(other))
        assert abs(mine.mean() - other.mean()) < 4.5 * error
        assert mine.std() == pytest.approx(other.std(), rel=0.03)


def test_pieces_too_many_go_from_both_ends():
    corpus, every = corpus_of([[100]] * 200), np.arange(200)
    found = instances(corpus, every, every, Rules(43), 0)
    skipped = found.a - 100 * document_at(corpus, found.a)
    assert (found.a_length == 20).all()
    assert skipped.mean() == pytest.approx(40, abs=1.5)
    assert 2 < skipped.std() < 7  # binomial: 4.5


def test_what_cannot_be_paired():
    corpus = corpus_of([[3, 4, 5]])
    one = np.arange(1)
    with pytest.raises(
        DataError, match="next-sentence prediction needs at least 2 documents, the corpus has 1; put an"
    ):
        instances(corpus, one, one, Rules(), 0)
    assert len(instances(corpus, one, one, Rules(next_sentence=False, short=0), 0)) == 1
    for rules in (Rules(4), Rules(2, next_sentence=False)):
        with pytest.raises(ConfigError, match=rf"max_length {rules.max_length} is too small for pre-training"):
            instances(corpus, one, one, rules, 0)


@given(SHAPES, st.integers(1, 200), st.integers(0, 2))
def test_chapters_divide_the_documents(shape, size, epoch):
    corpus, every = corpus_of(shape), np.arange(len(shape))
    before = instances_module._CHAPTER
    instances_module._CHAPTER = size
    try:
        found = chapters(corpus, every, Rules(), epoch)
        assert len(found) == len(chapters(corpus, every, Rules(), epoch + 1))
    finally:
        instances_module._CHAPTER = before
    assert sorted(np.concatenate(found)) == list(range(len(shape)))


@given(st.lists(st.integers(1, 31), min_size=1), st.integers(31, 50))
def test_packing_loses_nothing_and_leaves_no_two_rows_that_fit_into_one(lengths, room):
    lengths = np.array(lengths)
    members, begins = pack(lengths, room)
    assert sorted(members) == list(range(len(lengths)))
    filled = np.add.reduceat(lengths[members], begins[:-1])
    assert (filled <= room).all()
    assert begins[-1] == len(lengths)
    if len(filled) > 1:
        assert sum(sorted(filled)[:2]) > room


# ---- masks


def flat_of(lengths, seed=0):
    """Instances of random pieces, [CLS] at the beginning, [SEP] in the middle and at the end."""
    drawn = np.random.default_rng(seed)
    lengths = np.array(lengths, np.int64)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    position = np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    ids = drawn.integers(FIRST, len(PIECES), len(owner))
    ids[position == 0] = TOKENIZER.cls_id
    ids[position == lengths[owner] - 1] = TOKENIZER.sep_id
    ids[(position == lengths[owner] // 2) & (lengths[owner] > 6)] = TOKENIZER.sep_id
    return Flat(ids, owner, position, lengths, np.arange(len(lengths)).astype(np.uint64) + np.uint64(1000 * seed))


def words_of(flat):
    """Group the places of each word."""
    found = []
    for place, piece in enumerate(PIECES[i] for i in flat.ids):
        if piece in ("[CLS]", "[SEP]"):
            found.append([])
        elif piece.startswith("##") and found[-1]:
            found[-1].append(place)
        else:
            found.append([place])
    return [word for word in found if word]


LENGTHS = st.lists(st.integers(3, 60), min_size=1, max_size=12)


@given(LENGTHS, st.integers(0, 5), st.sampled_from(["token", "word"]))
def test_masks(lengths, seed, masking):
    flat, untouched = flat_of(lengths, seed), flat_of(lengths, seed)
    chosen = Masker(TOKENIZER, masking)(flat)
    assert (untouched.ids[chosen] >= FIRST).all()  # no special token
    elsewhere = np.setdiff1d(np.arange(len(flat.ids)), chosen)
    assert np.array_equal(flat.ids[elsewhere], untouched.ids[elsewhere])
    assert set(flat.ids[chosen]) <= {TOKENIZER.mask_id, *range(FIRST, len(PIECES))}
    counts = np.bincount(flat.instance[chosen], minlength=len(lengths))
    budget = np.maximum(1, np.array([round(0.15 * n) for n in lengths]))
    assert (counts > 0).all()
    if masking == "token":
        assert (counts == budget).all()
        assert (counts <= np.ceil(0.15 * np.array(lengths))).all()
    else:
        words = words_of(untouched)
        assert all(len(set(word) & set(chosen)) in (0, len(word)) for word in words)
        for i in np.flatnonzero(counts > budget):  # only where every word is too long
            assert all(len(word) > budget[i] for word in words if untouched.instance[word[0]] == i)


@given(st.lists(st.tuples(st.lists(st.integers(1, 6), max_size=12), st.integers(1, 9)), min_size=1, max_size=6))
def test_words_are_taken_as_in_the_source(rows):
    """The loop of create_masked_lm_predictions, over the words in the order in which they are tried."""
    expected = []
    for sizes, budget in rows:
        taken, left = [], budget
        for size in sizes:
            fits = left > 0 and size <= left
            left -= size if fits else 0
            taken.append(fits)
        if sizes and not any(taken):
            taken[0] = True
        expected += taken
    assume(expected)
    sizes = np.array([size for words, _ in rows for size in words])
    starts = np.cumsum([0, *(len(words) for words, _ in rows)])
    assert _fill(sizes, starts, np.array([budget for _, budget in rows])).tolist() == expected


def within(count, trials, share, deviations=4.5):
    return abs(count - trials * share) <= deviations * np.sqrt(trials * share * (1 - share))


@pytest.mark.parametrize("masking", ["token", "word"])
def test_eighty_ten_ten(masking):
    flat, untouched = flat_of([101] * 997), flat_of([101] * 997)
    chosen = Masker(TOKENIZER, masking)(flat)
    now, before = flat.ids[chosen], untouched.ids[chosen]
    assert within((now == TOKENIZER.mask_id).sum(), len(chosen), 0.8)
    ordinary = len(PIECES) - FIRST
    assert within(((now != before) & (now != TOKENIZER.mask_id)).sum(), len(chosen), 0.1 * (1 - 1 / ordinary))
    others = now[(now != before) & (now != TOKENIZER.mask_id)]
    share = np.bincount(others, minlength=len(PIECES))[FIRST:]
    assert (abs(share - len(others) / ordinary) < 5 * np.sqrt(len(others) / ordinary)).all()
    if masking == "token":  # every position as often as any other
        places = np.bincount(flat.position[chosen], minlength=101)
        inner = places[(places > 0)]
        assert len(inner) == 98
        assert all(within(count, 997, 15 / 98, 5) for count in inner)


def test_the_shares_of_transformers_collator():
    """DataCollatorForLanguageModeling draws each token by itself; the shares are the same."""
    from transformers import BertTokenizerFast, DataCollatorForLanguageModeling

    theirs = BertTokenizerFast(vocab={piece: i for i, piece in enumerate(PIECES)})
    flat = flat_of([61] * 499)
    rows = flat.ids.reshape(499, 61)
    torch.manual_seed(3)
    batch = DataCollatorForLanguageModeling(theirs)([{"input_ids": row.tolist()} for row in rows])
    labels = batch["labels"].numpy()
    where = labels != -100
    masked = batch["input_ids"].numpy()[where] == theirs.mask_token_id
    chosen = Masker(TOKENIZER)(flat)
    ours_masked = flat.ids[chosen] == TOKENIZER.mask_id
    assert where.mean() == pytest.approx(0.15 * 58 / 61, abs=0.01)
    assert len(chosen) / rows.size == pytest.approx(9 / 61, abs=1e-9)
    assert masked.mean() == pytest.approx(ours_masked.mean(), abs=0.03)


def test_the_words_of_transformers_collator():
    """With whole words theirs divides a text into the same words, and as many tokens are guessed."""
    from transformers import BertTokenizerFast, DataCollatorForLanguageModeling

    theirs = BertTokenizerFast(vocab={piece: i for i, piece in enumerate(PIECES)})
    text = " ".join(["filming verygood a1 bad, notis ! the wasxyz"] * 5)
    encoded = [theirs(text, return_offsets_mapping=True) for _ in range(211)]
    collate = DataCollatorForLanguageModeling(
        theirs, whole_word_mask=True, mask_replace_prob=1, random_replace_prob=0, seed=5
    )
    chosen = (collate(encoded)["labels"] != -100).numpy()
    ids = np.array(encoded[0]["input_ids"])
    count = len(ids)
    flat = Flat(
        np.tile(ids, 211), np.repeat(np.arange(211), count), np.tile(np.arange(count), 211),
        np.full(211, count), np.arange(211).astype(np.uint64),
    )  # fmt: skip
    words = words_of(Flat(ids, np.zeros(count, int), np.arange(count), np.array([count]), np.zeros(1, np.uint64)))
    assert all(row[word].all() or not row[word].any() for row in chosen for word in words)
    ours = np.zeros(211 * count, bool)
    ours[Masker(TOKENIZER, "word")(flat)] = True
    assert ours.mean() == pytest.approx(chosen.mean(), abs=0.02)


def test_random_numbers_look_random():
    numbers = np.repeat(np.arange(1009, dtype=np.uint64), 101)
    positions = np.tile(np.arange(101), 1009)
    bits = [draw(numbers, positions, stream) for stream in (1, 2)]
    assert len(np.unique(np.concatenate(bits))) == 2 * len(numbers)
    for found in bits:
        for bit in range(0, 64, 7):
            assert within(((found >> np.uint64(bit)) & np.uint64(1)).sum(), len(found), 0.5)
    uniform = [found.astype(float) / 2**64 for found in bits]
    assert abs(np.corrcoef(*uniform)[0, 1]) < 0.02
    assert abs(np.corrcoef(uniform[0][:-1], uniform[0][1:])[0, 1]) < 0.02


# ---- batches

SMALL = [[1 + (5 * i + 3 * j) % 13 for j in range(1 + i % 7)] for i in range(41)]


def batches_of(corpus, *, masking="token", packed=False, batch_size=7, **rules):
    rules = Rules(**({"max_length": 31} | rules))
    return PretrainBatches(
        corpus, np.arange(len(corpus.hashes)), TOKENIZER, rules, Masker(TOKENIZER, masking), batch_size, packed=packed
    )  # fmt: skip


def restored(batch):
    """The ids before masking, one list for each instance."""
    ids = batch.ids.clone().reshape(-1)
    ids[batch.masked] = batch.targets
    ids = ids.reshape(batch.ids.shape)
    groups = (
        batch.groups if batch.groups is not None else torch.ones_like(ids) if batch.mask is None else batch.mask.long()
    )
    return [
        row[group == k].tolist() for row, group in zip(ids, groups, strict=True) for k in range(1, int(group.max()) + 1)
    ]


ALL_KINDS = list(itertools.product([True, False], [True, False], ["token", "word"]))


@pytest.mark.parametrize(("packed", "next_sentence", "masking"), ALL_KINDS)
def test_a_batch_holds_its_instances(packed, next_sentence, masking):
    corpus = corpus_of(SMALL)
    batches = batches_of(corpus, packed=packed, next_sentence=next_sentence, masking=masking)
    known = batches._chapter(2, 0)
    for rows in batches.rows(2):
        (batch,) = batches.micro(rows)
        members = np.concatenate([known.members[known.begins[r] : known.begins[r + 1]] for r in rows & (2**32 - 1)])
        expected, firsts = [], []
        for i in members:
            a = corpus.ids[known.found.a[i] :][: known.found.a_length[i]].tolist()
            b = corpus.ids[known.found.b[i] :][: known.found.b_length[i]].tolist()
            tail = [*b, TOKENIZER.sep_id] if next_sentence else []
            expected.append([TOKENIZER.cls_id, *a, TOKENIZER.sep_id, *tail])
            firsts.append(len(a) + 2)
        assert restored(batch) == expected
        height, width = batch.ids.shape
        assert (height, len(batch)) == (len(rows), len(rows))
        assert width <= 31
        assert batch.tokens == sum(map(len, expected))
        real = torch.ones(height, width, dtype=bool) if batch.mask is None else batch.mask
        assert real.sum() == batch.tokens
        assert (batch.ids[~real] == TOKENIZER.pad_id).all()
        assert batch.mask is None or not real.all()
        flat = batch.ids.reshape(-1)
        assert (flat[batch.starts] == TOKENIZER.cls_id).all()
        assert len(batch.starts) == len(members) == (flat == TOKENIZER.cls_id).sum()
        assert batch.masked.tolist() == sorted(set(batch.masked.tolist()))
        assert (batch.targets >= FIRST).all()
        lengths = torch.tensor([len(found) for found in expected])
        positions = torch.cat([torch.arange(n) for n in lengths])
        segments = torch.cat([(torch.arange(n) >= first).long() for n, first in zip(lengths, firsts, strict=True)])
        order = torch.cat([torch.arange(n) + start for n, start in zip(lengths, batch.starts, strict=True)])
        if packed:
            assert torch.equal(batch.positions.reshape(-1)[order], positions)
            assert torch.equal(batch.groups > 0, real)
            assert not batch.positions[~real].any()
        else:
            assert batch.positions is batch.groups is None
        if next_sentence:
            assert torch.equal(batch.segments.reshape(-1)[order], segments)
            assert not batch.segments[~real].any()
            assert batch.next.tolist() == known.found.random[members].astype(int).tolist()
        else:
            assert batch.segments is batch.next is None
        assert batch.to(torch.device("cpu")) is batch
        assert batch.to(torch.device("meta")).masked.device.type == "meta"


def equal(first, second):
    return all(
        (a is None and b is None) or (torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b)
        for a, b in ((getattr(first, field.name), getattr(second, field.name)) for field in fields(first))
    )


@pytest.mark.parametrize("chapter", [2**27, 100])
@pytest.mark.parametrize("packed", [False, True])
def test_an_epoch_has_each_row_once_and_any_batch_can_be_reached(monkeypatch, packed, chapter):
    monkeypatch.setattr(instances_module, "_CHAPTER", chapter)
    corpus = corpus_of(SMALL)
    batches = batches_of(corpus, packed=packed)
    assert (batches.chapters > 3) == (chapter == 100)
    scanned = [list(batches.rows(epoch)) for epoch in range(3)]
    assert {len(epoch) for epoch in scanned} == {batches.per_epoch}
    assert not np.array_equal(
        np.sort(np.concatenate(scanned[0])) & (2**32 - 1), np.concatenate(scanned[0]) & (2**32 - 1)
    )
    if chapter == 2**27:
        for epoch in scanned:
            every = np.concatenate(epoch)
            assert len(every) == batches.per_epoch * 7
            again = len(every) - len(set(every.tolist()))
            assert again <= 0.2 * len(every)  # a small corpus: the first epoch may have a few more
        assert len(set(np.concatenate(scanned[0]).tolist())) == batches.per_epoch * 7
    whole = [[batches.batch(rows) for rows in epoch] for epoch in scanned]
    fresh = batches_of(corpus, packed=packed)
    for epoch, at in ((2, 5), (0, batches.per_epoch - 1), (1, 0), (2, 3)):
        rows = fresh.rows(epoch)
        assert len(rows[at:]) == batches.per_epoch - at
        assert np.array_equal(rows[at:][0], scanned[epoch][at])
        assert np.array_equal(rows[at - batches.per_epoch], scanned[epoch][at])
        assert equal(fresh.batch(rows[at]), whole[epoch][at])
    with pytest.raises(IndexError):
        fresh.rows(0)[batches.per_epoch]


@pytest.mark.parametrize(("packed", "next_sentence", "masking"), ALL_KINDS)
def test_a_row_does_not_depend_on_its_batch(packed, next_sentence, masking):
    """Masked ids and targets are the same whoever else is in the batch: two processes, two halves, micro-batches."""
    batches = batches_of(corpus_of(SMALL), packed=packed, next_sentence=next_sentence, masking=masking)
    rows = batches.rows(1)[1]

    def described(batch):
        height, width = batch.ids.shape
        real = torch.ones(height, width, dtype=bool) if batch.mask is None else batch.mask
        guesses = [[] for _ in range(height)]
        for place, target in zip(batch.masked.tolist(), batch.targets.tolist(), strict=True):
            guesses[place // width].append((place % width, target))
        return [(ids[here].tolist(), guess) for ids, here, guess in zip(batch.ids, real, guesses, strict=True)]

    whole = described(batches.batch(rows))
    assert [row for batch in batches.micro(rows, 3) for row in described(batch)] == whole
    assert described(batches.batch(rows[::2])) == whole[::2]
    assert described(batches.batch(rows[1::2])) == whole[1::2]


def test_seeds_and_epochs_give_other_masks_and_instances():
    """One document, no pairs and no short ones: instance 3 is the same piece of text whatever is drawn."""
    corpus = corpus_of([[5] * 200])
    found, texts = [], []
    for seed, epoch, number in ((1, 0, 3), (1, 1, 3), (2, 0, 3), (1, 0, 4)):
        batch = batches_of(corpus, next_sentence=False, short=0, seed=seed).batch(np.array([(epoch << 40) + number]))
        found.append(tuple(batch.masked.tolist()))
        texts.append(restored(batch))
    assert texts[0] == texts[1] == texts[2] != texts[3]
    assert len(set(found)) == 4
    corpus = corpus_of(SMALL)
    pairs = [batches_of(corpus, seed=seed)._chapter(epoch, 0).found.a.tolist() for seed in (1, 2) for epoch in (0, 1)]
    assert len({tuple(places) for places in pairs}) == 4


def test_threads_may_share_batches():
    corpus = corpus_of(SMALL)
    expected = [batches_of(corpus).batch(batches_of(corpus).rows(epoch)[0]) for epoch in range(8)]
    shared, found = batches_of(corpus), {}

    def work(epoch):
        found[epoch] = shared.batch(shared.rows(epoch)[0])

    threads = [threading.Thread(target=work, args=(epoch,)) for epoch in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(equal(found[epoch], expected[epoch]) for epoch in range(8))


def test_rows_of_a_batch_are_of_similar_length():
    batches = batches_of(corpus_of(BIG), batch_size=11, max_length=47, next_sentence=False)
    padding = [batch.ids.numel() - batch.tokens for batch in map(batches.batch, batches.rows(0))]
    total = sum(batches.batch(rows).tokens for rows in batches.rows(0))
    assert sum(padding) < 0.03 * total


def test_fewer_rows_than_a_batch():
    batches = batches_of(corpus_of([[3, 4], [5, 6], [7]]), batch_size=64)
    assert batches.per_epoch == 1
    (rows,) = batches.rows(0)
    assert sorted(rows & (2**32 - 1)) == list(range(len(rows)))


def test_no_documents():
    with pytest.raises(DataError, match="the corpus has no documents to train on"):
        PretrainBatches(corpus_of([[3]]), np.empty(0, np.int64), TOKENIZER, Rules(), Masker(TOKENIZER), 8)


# ---- held-out batches


def test_held_out_batches_do_not_depend_on_the_run():
    corpus = corpus_of(BIG)
    train, held = split_documents(corpus.hashes, 0.1)
    masker = Masker(TOKENIZER)
    one = held_out_batches(corpus, held, TOKENIZER, Rules(31, seed=1), masker, batch_size=13, most=101)
    two = held_out_batches(corpus, held, TOKENIZER, Rules(31, seed=2), masker, batch_size=13, most=101)
    assert all(equal(a, b) for a, b in zip(one, two, strict=True))
    assert sum(map(len, one)) == 101
    assert [len(batch) for batch in one] == [13] * 7 + [10]
    widths = [batch.ids.shape[1] for batch in one]
    assert widths == sorted(widths)
    assert held_out_batches(corpus, held[:0], TOKENIZER, Rules(31), masker) == []
    batches = PretrainBatches(corpus, held, TOKENIZER, Rules(31, seed=pretraining.HELD_OUT_SEED), masker, 13)
    found = batches._chapter(0, 0).found
    assert set(document_at(corpus, found.a)) | set(document_at(corpus, found.b)) <= set(held)
    assert not set(held) & set(train)
