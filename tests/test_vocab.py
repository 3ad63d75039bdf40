"""`miniatures vocab`: the same bytes on every run, BERT's layout, pieces as the trainer of `tokenizers` finds them."""

import doctest
import hashlib
import json
import random
from collections import Counter

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, trainers

from bert_miniatures import pieces
from bert_miniatures.data import corpus, instances, sentences
from bert_miniatures.data.corpus import documents, open_corpus
from bert_miniatures.errors import ConfigError, DataError, OutputExists
from bert_miniatures.pieces import count_words, learn_pieces, learn_vocabulary
from bert_miniatures.tokenizer import Tokenizer
from bert_miniatures.vocabulary import SPECIAL
from bert_miniatures.watch import Watch
from commands import finish, start
from conftest import SHARED

needs_corpus = pytest.mark.skipif(not (SHARED / "corpus").is_dir(), reason="needs ../shared/corpus")


def run(home, *arguments, **env):
    return finish(start(home, *arguments, env=env))


SYLLABLES = ["ba", "ku", "lo", "mi", "ne", "ra", "so", "té", "vu", "ing", "ed", "st", "pre"]


def made_up(seed, words=4001):
    """Return text with Zipf's shape: rare words, frequent words, capitals, accents, marks, numbers."""
    drawn = random.Random(seed)
    lexicon = ["".join(drawn.choices(SYLLABLES, k=drawn.randint(1, 4))) for _ in range(499)]
    weights = [1 / (rank + 1) for rank in range(len(lexicon))]
    out = []
    for word in drawn.choices(lexicon, weights, k=words):
        out.append(drawn.choice([word, word, word, word.title(), f"{word},", f"({word})", str(drawn.randint(0, 99))]))
        out.append(drawn.choice([" ", " ", " ", " ", "\n", "\n\n"]))
    return "".join(out)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(made_up(1), encoding="utf-8")
    return path


def reference_counts(text, lowercase):
    """Count through `tokenizers` alone."""
    normal = normalizers.BertNormalizer(lowercase=lowercase).normalize_str(text)
    found = Counter(word for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normal))
    return Counter({word: count for word, count in found.items() if len(word) <= 100})


ODD = st.text("aZ9 \t\n.,_-!é\u0301ß中文\u00a0\u2028\x07\u200bİǅ") | st.text()


@pytest.mark.parametrize("lowercase", [True, False])
@given(parts=st.lists(ODD | st.sampled_from(["x" * 100, "y" * 101, "z" * 101 + "!"])))
def test_words_are_those_of_tokenizers(tmp_path_factory, parts, lowercase):
    text = " ".join(parts).encode("utf-8", "ignore").decode().replace("\0", "")
    path = tmp_path_factory.getbasetemp() / "odd.txt"
    path.write_bytes(text.encode() or b"\n")
    expected = sum((reference_counts(line, lowercase) for line in text.split("\n")), Counter())
    if expected:
        assert count_words(open_corpus([path]), lowercase=lowercase) == expected
    else:
        with pytest.raises(DataError, match=r"odd\.txt: no words in the corpus"):
            count_words(open_corpus([path]), lowercase=lowercase)


def test_pieces_are_those_of_the_trainer(text):
    """The trainer itself, over the same text: what differs are ties, and it differs from itself as much."""
    learnt = learn_pieces(count_words(open_corpus([text])), 401)
    plain = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    plain.normalizer, plain.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=401, min_frequency=2, special_tokens=list(SPECIAL), show_progress=False
    )
    plain.train_from_iterator([text.read_text(encoding="utf-8")], trainer)
    assert len(learnt.pieces) == 401
    assert len(set(learnt.pieces) & set(plain.get_vocab())) > 0.97 * 401
    ours, sample = Tokenizer(learnt.pieces), made_up(2, 499)
    lengths = [len(ours.pieces(sample)), len(plain.encode(sample).ids)]
    assert abs(lengths[0] - lengths[1]) < 0.02 * lengths[1]
    assert "[UNK]" not in ours.pieces(sample)


def digest(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_the_same_bytes_on_every_run_order_of_files_and_thread_count(tmp_path):
    names = []
    for i in range(3):
        names.append(tmp_path / f"{i}.txt")
        names[-1].write_text(made_up(i), encoding="utf-8")
    found = []
    for turn, (threads, order) in enumerate((("1", 1), ("2", -1), ("5", 1))):
        out = tmp_path / f"out{turn}"
        arguments = ["vocab", "--corpus", *names[::order], "-o", out, "--size", "1201"]
        done = run(
            tmp_path, *arguments, RAYON_NUM_THREADS=threads, TOKENIZERS_PARALLELISM="true", PYTHONHASHSEED=threads
        )
        assert done.code == 0, done.err
        found.append(digest(out))
    assert found[0] == found[1] == found[2]
    assert set(found[0]) == {"vocab.txt", "tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize("module", [pieces, corpus, instances, sentences])
def test_the_examples_in_docstrings(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


def test_the_official_layout(text, tmp_path):
    learn_vocabulary(open_corpus([text]), tmp_path / "out", size=1009, watch=Watch())
    lines = (tmp_path / "out/vocab.txt").read_text(encoding="utf-8").split("\n")
    assert lines[0] == "[PAD]"
    assert lines[1:100] == [f"[unused{i}]" for i in range(99)]
    assert lines[100:104] == ["[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert lines[104:108] == ["(", ")", ",", "0"]
    assert "##(" not in lines
    assert "##a" in lines


def test_the_layout_agrees_with_a_real_vocabulary(minilm, text):
    real = Tokenizer.from_folder(minilm).vocabulary
    assert learn_pieces(count_words(open_corpus([text])), 1009).pieces[:104] == real[:104]


def test_a_small_vocabulary_has_no_unused_pieces(text):
    learnt = learn_pieces(count_words(open_corpus([text])), 211)
    assert learnt.pieces[:5] == list(SPECIAL)
    assert len(learnt.pieces) == len(set(learnt.pieces)) == 211


def test_transformers_opens_the_folder(text, tmp_path):
    from transformers import AutoTokenizer

    done = run(tmp_path, "vocab", "--corpus", text, "-o", tmp_path / "out", "--size", 307, "--json")
    assert done.code == 0
    assert json.loads(done.out)["pieces"] == 307
    theirs, ours = AutoTokenizer.from_pretrained(tmp_path / "out"), Tokenizer.from_folder(tmp_path / "out")
    sample = made_up(3, 997)
    assert theirs.convert_ids_to_tokens(theirs(sample, add_special_tokens=False)["input_ids"]) == ours.pieces(sample)
    assert theirs.mask_token_id == 4


def test_cased(tmp_path, text):
    learn_vocabulary(open_corpus([text]), tmp_path / "out", size=401, lowercase=False)
    ours = Tokenizer.from_folder(tmp_path / "out")
    assert not ours.lowercase
    assert any(piece[0] in "BKLMNRSTVIEP" for piece in ours.vocabulary[5:])


def test_rare_characters_make_unknown_words_and_no_half_words(monkeypatch):
    monkeypatch.setattr(pieces, "_CHARACTERS", 3)
    learnt = learn_pieces(Counter({"aab": 5, "abc": 2, "bad": 1}), 50)
    assert learnt.pieces[5:8] == ["a", "b", "c"]
    assert learnt.unknown == 1
    assert not any("d" in piece for piece in learnt.pieces[5:])


def test_forgetting_rare_words_bounds_the_count(monkeypatch, text):
    everything = count_words(open_corpus([text]))
    monkeypatch.setattr(pieces, "_COUNTED", 200)
    watch = Watch()
    counts = count_words(open_corpus([text]), watch=watch)
    assert len(counts) < 250 < len(everything)
    assert "more than 200 distinct words" in watch.warnings[0]
    top = [word for word, _ in everything.most_common(20)]
    assert all(counts[word] == everything[word] for word in top)


def test_a_corpus_too_small_for_the_size_says_so(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("low lower lowest\n" * 3)
    watch = Watch()
    learnt = learn_vocabulary(open_corpus([path]), tmp_path / "out", size=1009, watch=watch)
    assert len(learnt.pieces) < 150
    assert f"the corpus gives {len(learnt.pieces)} pieces, not 1,009" in watch.warnings[0]


@pytest.mark.parametrize(
    ("size", "match"), [(49, "a vocabulary of 49 pieces is too small; at least 50"), (-1, "of -1")]
)
def test_a_size_that_cannot_work(tmp_path, text, size, match):
    with pytest.raises(ConfigError, match=match):
        learn_vocabulary(open_corpus([text]), tmp_path / "out", size=size)
    assert not (tmp_path / "out").exists()


def test_faults_of_the_command(tmp_path, text):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(OutputExists, match="full exists and is not empty"):
        learn_vocabulary(open_corpus([text]), tmp_path / "full")
    text.write_bytes(b"fine\n\xe9\n" * 3)
    done = run(tmp_path, "vocab", "--corpus", text, "-o", tmp_path / "out")
    assert done.code == 2
    assert "text.txt:2: not UTF-8" in done.err
    assert not (tmp_path / "out").exists()
    done = run(tmp_path, "vocab", "--corpus", text, "-o", tmp_path / "out", "--encoding-errors", "skip", "--size", 100)
    assert done.code == 0
    assert "3 lines are not UTF-8" in done.err


@needs_corpus
def test_real_text(tmp_path, minilm):
    """A sample of Wikipedia: nearly no word is unknown, and the pieces are mostly those of the official vocabulary."""
    (source,) = open_corpus([SHARED / "corpus/wiki-wiki_008.txt.xz"])
    sample, size = [], 0
    for document in documents(source):
        sample.append("\n".join(document))
        size += len(sample[-1])
        if size > 2_000_000:
            break
    path = tmp_path / "sample.txt"
    path.write_text("\n\n".join(sample), encoding="utf-8")
    learnt = learn_pieces(count_words(open_corpus([path])), 8009)
    real = set(Tokenizer.from_folder(minilm).vocabulary)
    assert learnt.unknown < 0.001 * learnt.words
    assert len(real & set(learnt.pieces)) > 0.7 * 8009
