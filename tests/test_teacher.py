"""A sentence encoder as teacher: against transformers; its vectors on the disk, interrupted and not."""

import json
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from bert_miniatures import teacher_pass
from bert_miniatures.checkpoint import ModelFolder, write_folder
from bert_miniatures.data.pairs import PairRules, pairs_key
from bert_miniatures.data.teacher_texts import Selection
from bert_miniatures.errors import CheckpointError, ConfigError
from bert_miniatures.teacher import Teacher, read_teacher
from bert_miniatures.teacher_pass import make_pairs, make_store
from bert_miniatures.tokenizer import Tokenizer
from bert_miniatures.watch import Watch
from conftest import PIECES
from test_pairs import corpus_of, random_documents

TOKENIZER = Tokenizer.from_vocabulary(PIECES)


def teacher_folder(tiny, folder, pooling="mean", normalised=True, new_keys=False):
    """Make what sentence-transformers writes around a model folder."""
    shutil.copytree(tiny, folder)
    modules = ["Transformer", "Pooling", *(["Normalize"] if normalised else [])]
    paths = ["", "1_Pooling", "2_Normalize"]
    listed = [
        {"idx": i, "name": str(i), "path": paths[i], "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(modules)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_Pooling").mkdir()
    old = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
    document = (
        {"embedding_dimension": 21, "pooling_mode": pooling} if new_keys else {"word_embedding_dimension": 21, **old}
    )
    (folder / "1_Pooling/config.json").write_text(json.dumps(document))
    return folder


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    return teacher_folder(tiny, tmp_path_factory.mktemp("teachers") / "mean")


def rows_of(texts, tokenizer):
    rows = [tokenizer.ids(text) for text in texts]
    return np.array([i for row in rows for i in row], np.uint16), np.cumsum([0, *map(len, rows)])


def by_hand(folder, texts, pooling, normalised, max_length):
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder, add_pooling_layer=False).eval()
    given = AutoTokenizer.from_pretrained(folder)(
        texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt"
    )
    with torch.inference_mode():
        hidden = model(**given).last_hidden_state
    mask = given["attention_mask"][:, :, None]
    found = hidden[:, 0] if pooling == "cls" else (hidden * mask).sum(1) / mask.sum(1)
    return (torch.nn.functional.normalize(found, dim=1) if normalised else found).numpy()


TEXTS = ["the film was not very good!", "bad", "a good good film , is it not ? " * 9, "zq xjk"]


@pytest.mark.parametrize("new_keys", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_vectors_are_those_of_transformers(pooling, normalised, new_keys, tiny, tmp_path):
    folder = teacher_folder(tiny, tmp_path / "teacher", pooling, normalised, new_keys)
    read = read_teacher(folder)
    assert (read.pooling, read.normalised, read.max_length, read.width) == (pooling, normalised, 37, 21)
    found = Teacher(read, TOKENIZER).vectors(*rows_of(TEXTS, TOKENIZER))
    assert found.dtype == np.float16
    expected = by_hand(folder, TEXTS, pooling, normalised, 37)
    np.testing.assert_allclose(found.astype(np.float32), expected, rtol=2e-3, atol=2e-4)
    assert (np.linalg.norm(expected, axis=1).round(2) == 1).all() == normalised


def test_a_published_teacher(minilm):
    read = read_teacher(minilm)
    assert (read.pooling, read.normalised, read.max_length, read.width) == ("mean", True, 256, 384)
    texts = ["A man is playing a guitar.", "Somebody plays an instrument.", "Stocks fell sharply on Monday."]
    tokenizer = read.model.tokenizer
    found = Teacher(read, tokenizer).vectors(*rows_of(texts, tokenizer)).astype(np.float32)
    np.testing.assert_allclose(found, by_hand(minilm, texts, "mean", True, 256), atol=2e-4)
    assert found[0] @ found[1] > 0.5 > found[0] @ found[2]


def test_products_of_16_bits(folder, tmp_path):
    read, rows = read_teacher(folder), rows_of(TEXTS, TOKENIZER)
    exact, found = (Teacher(read, TOKENIZER, kind).vectors(*rows).astype(np.float32) for kind in ("fp32", "bf16"))
    assert 0 < np.abs(exact - found).max() < 0.05
    assert (np.einsum("nw,nw->n", exact, found) > 0.999).all()
    corpus, stores = corpus_of(random_documents(61)), []
    for kind in ("fp32", "bf16"):
        how = {"precision": kind, "processes": 1, "cache": tmp_path}
        stores.append(make_store(corpus, np.arange(61), TOKENIZER, read, SELECTION, **how))
    assert stores[0].folder != stores[1].folder
    assert 0 < np.abs(stores[0].vectors.astype(np.float32) - stores[1].vectors).max() < 0.05


def test_a_student_with_other_pieces(folder):
    pieces = [*PIECES[:5], *reversed(PIECES[5:]), "film##", "notgood"]
    student = Tokenizer.from_vocabulary([piece for piece in pieces if piece not in ("film", "##ing")])
    read = read_teacher(folder)
    found = Teacher(read, student).vectors(*rows_of(TEXTS[:2], student))
    assert np.array_equal(found, Teacher(read, TOKENIZER).vectors(*rows_of(TEXTS[:2], TOKENIZER)))


def test_a_cased_teacher_cannot_read_an_uncased_student(config, tmp_path):
    from bert_miniatures.model import build

    cased = [*PIECES, "A", "B"]
    sizes = config.model_copy(update={"vocab_size": len(cased)})
    model = ModelFolder(sizes, build(sizes).weights(), Tokenizer(cased, lowercase=False))
    write_folder(tmp_path / "cased", model, card="")
    read = read_teacher(tmp_path / "cased", "mean")
    with pytest.raises(ConfigError, match="cased: a cased teacher cannot read the pieces of an uncased student"):
        Teacher(read, TOKENIZER)
    Teacher(read, Tokenizer(cased, lowercase=True))  # the pieces are its own


def test_a_folder_that_does_not_say(tiny, folder):
    with pytest.raises(ConfigError, match=r"does not say how .* --set teacher.pooling=mean or cls"):
        read_teacher(tiny)
    assert read_teacher(tiny, "cls").normalised
    assert read_teacher(tiny, "cls").fingerprint != read_teacher(tiny, "mean").fingerprint
    with pytest.raises(ConfigError, match="trained with pooling 'mean', not 'cls'"):
        read_teacher(folder, "cls")


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("1_Pooling/config.json", '{"embedding_dimension": 22}', "vectors of 22 numbers, config.json says 21"),
        ("1_Pooling/config.json", '{"pooling_mode": "max"}', "pooling max is not supported; mean and cls are"),
        ("1_Pooling/config.json", '{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}', "mean and cls is not"),
        ("1_Pooling/config.json", "{}", "pooling nothing is not supported"),
        ("1_Pooling/config.json", "[]", "expected an object"),
        ("1_Pooling/config.json", "{", "config.json:1: not JSON"),
        ("modules.json", '[{"type": "x.Transformer", "path": ""}, {"type": "x.Dense", "path": ""}]', "Transformer, Dense is not"),
        ("modules.json", "[1]", "expected a list of objects"),
        ("config_sentence_transformers.json", '{"default_prompt_name": "query"}', "with a prompt before each text"),
    ],
)  # fmt: skip
def test_what_is_not_supported_is_said(file, text, said, folder, tmp_path):
    copy = tmp_path / "teacher"
    shutil.copytree(folder, copy)
    (copy / file).write_text(text)
    with pytest.raises(CheckpointError, match=said):
        read_teacher(copy)


# ---- the pass over a corpus

SELECTION = Selection(sentences=113, copies=31, shortest=3, longest=17)


@pytest.fixture
def small_shards(monkeypatch):
    monkeypatch.setattr(teacher_pass, "_SHARD", {"vectors": 17, "near": 23})


def test_a_store_has_the_vectors_of_its_texts(folder, tmp_path, small_shards):
    corpus, read = corpus_of(random_documents(61)), read_teacher(folder)
    watch = Heard()
    store = make_store(corpus, np.arange(61), TOKENIZER, read, SELECTION, processes=1, cache=tmp_path, watch=watch)
    assert store.vectors.shape == (144, 21)
    expected = Teacher(read, TOKENIZER).vectors(store.texts.ids, store.texts.bounds)
    np.testing.assert_allclose(store.vectors.astype(np.float32), expected.astype(np.float32), atol=1e-3)
    assert watch.last == (144, 144)
    assert watch.left == 0
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == [store.folder.name]
    make_store(corpus, np.arange(61), TOKENIZER, read, SELECTION, cache=tmp_path, watch=watch)
    assert len(watch.notes) == 1
    other = make_store(corpus, np.arange(60), TOKENIZER, read, SELECTION, processes=1, cache=tmp_path)
    assert other.folder != store.folder


class Heard(Watch):
    def __init__(self):
        super().__init__()
        self.notes, self.last, self.left = [], (0, 0), None

    def note(self, text):
        self.notes.append(text)

    def progress(self, done, total, text="", left=None):
        self.last, self.left = (done, total), left


def test_interrupted_pass_goes_on(folder, tmp_path, small_shards, monkeypatch):
    corpus, read, real, calls = corpus_of(random_documents(61)), read_teacher(folder), teacher_pass._work, []
    whole = make_store(corpus, np.arange(61), TOKENIZER, read, SELECTION, processes=1, cache=tmp_path / "whole")

    def interrupted(request, say):
        calls.append(request["start"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        real(request, say)

    monkeypatch.setattr(teacher_pass, "_work", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_store(corpus, np.arange(61), TOKENIZER, read, SELECTION, processes=1, cache=tmp_path)
    found = make_store(corpus, np.arange(61), TOKENIZER, read, SELECTION, processes=1, cache=tmp_path)
    assert calls == [0, 17, 34, 34, 51, 68, 85, 102, 119, 136]
    assert found.vectors.tobytes() == whole.vectors.tobytes()
    assert found.texts.ids.tobytes() == whole.texts.ids.tobytes()


TESTS = str(Path(__file__).parent)
MAKE = """
    import sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    import numpy as np
    from bert_miniatures import teacher_pass
    from bert_miniatures.teacher import read_teacher
    from test_teacher import PairRules, SELECTION, TOKENIZER, corpus_of, random_documents
    teacher_pass._SHARD = {"vectors": 5, "near": 3}
    store = teacher_pass.make_store(corpus_of(random_documents(61)), np.arange(61), TOKENIZER, read_teacher(Path(sys.argv[3])),
                                    SELECTION, processes=2, cache=Path(sys.argv[2]))
    teacher_pass.make_pairs(store, PairRules(count=101), processes=2)
"""


@pytest.mark.slow
def test_killed_pass_goes_on(folder, tmp_path, monkeypatch):
    """Two processes; killed while vectors are made and while neighbours are found; the same bytes as one process."""
    monkeypatch.setattr(teacher_pass, "_SHARD", {"vectors": 5, "near": 3})
    corpus, read = corpus_of(random_documents(61)), read_teacher(folder)
    whole = make_store(corpus, np.arange(61), TOKENIZER, read, SELECTION, processes=1, cache=tmp_path / "whole")
    expected = make_pairs(whole, PairRules(count=101), processes=1)
    cache, key = tmp_path / "cache", whole.folder.name
    command = [sys.executable, "-c", textwrap.dedent(MAKE), TESTS, str(cache), str(folder)]
    for pattern, count in (("*.parts/vectors/0*", 3), ("*/*.parts/near/0*", 5)):
        process = subprocess.Popen(command)
        until = time.monotonic() + 60
        while len(list(cache.glob(pattern))) < count and time.monotonic() < until:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        if "vectors" in pattern:
            assert not (cache / key).exists()
            make_store(corpus, np.arange(61), TOKENIZER, read, SELECTION, processes=1, cache=cache)
        else:
            assert (cache / key).is_dir()
            assert not (cache / key / pairs_key(PairRules(count=101))).exists()
    found = make_store(corpus, np.arange(61), TOKENIZER, read, SELECTION, processes=1, cache=cache)
    assert found.vectors.tobytes() == whole.vectors.tobytes()
    pairs = make_pairs(found, PairRules(count=101), processes=1)
    for name in ("a", "b", "cosine", "kind"):
        assert np.array_equal(getattr(pairs, name), getattr(expected, name)), name
    assert not list(cache.glob("**/*.parts"))


def test_a_worker_that_fails_is_heard(folder, tmp_path, small_shards):
    corpus, read = corpus_of(random_documents(61)), read_teacher(folder)
    gone = tmp_path / "teacher"
    shutil.copytree(folder, gone)
    moved = type(read)(gone, read.model, read.pooling, read.normalised, read.max_length)
    (gone / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        make_store(corpus, np.arange(61), TOKENIZER, moved, SELECTION, processes=1, cache=tmp_path / "one")
    with pytest.raises(CheckpointError, match="no weights"):
        make_store(corpus, np.arange(61), TOKENIZER, moved, SELECTION, processes=2, cache=tmp_path / "two")
