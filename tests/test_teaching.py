"""Batches of a teacher's vectors and cosines, their objectives, and several sources as one."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bert_miniatures.config import ModelConfig, TrainConfig
from bert_miniatures.data.instances import Rules
from bert_miniatures.data.masking import Masker
from bert_miniatures.data.mixture import Mixture
from bert_miniatures.data.pairs import PairRules, draw_pairs, near_rows
from bert_miniatures.data.pretraining import PretrainBatch, PretrainBatches
from bert_miniatures.data.teacher_store import TeacherStore, open_texts, write_texts
from bert_miniatures.data.teacher_texts import Selection
from bert_miniatures.data.teaching import PairBatch, PairBatches, VectorBatch, VectorBatches
from bert_miniatures.errors import ConfigError
from bert_miniatures.model import build, twin
from bert_miniatures.objectives import by_kind, masked_lm, pair_similarity, sentence_vectors
from bert_miniatures.tokenizer import Tokenizer
from bert_miniatures.train import TrainState, train
from conftest import PIECES
from test_pairs import corpus_of, random_documents

TOKENIZER = Tokenizer.from_vocabulary(PIECES)
WIDTH = 13
SIZES = ModelConfig(vocab_size=len(PIECES), hidden_size=21, num_hidden_layers=2, num_attention_heads=3,
                    intermediate_size=29, max_position_embeddings=41, initializer_range=0.15)  # fmt: skip
HELPERS = {"projection": WIDTH, "similarity": 1}


@pytest.fixture(scope="module")
def corpus():
    return corpus_of(random_documents(61))


@pytest.fixture(scope="module")
def store(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "texts"
    write_texts(corpus, np.arange(61), TOKENIZER, Selection(sentences=101, copies=31, shortest=3), folder)
    texts, words = open_texts(folder), np.random.default_rng(1).standard_normal((len(PIECES), WIDTH))
    vectors = np.add.reduceat(words[texts.ids], texts.bounds[:-1]).astype(np.float16)  # a bag of words: can be learnt
    return TeacherStore(texts, vectors, folder)


@pytest.fixture(scope="module")
def pairs(store):
    return draw_pairs(store, near_rows(store.vectors, 101, 0, 101, 4), PairRules(count=211))


def pieces_of(store, number):
    return store.texts.ids[slice(*store.texts.bounds[number : number + 2])].tolist()


# ---- batches


def test_sentences_come_once_an_epoch_with_their_vectors(store):
    batches = VectorBatches(store, TOKENIZER, 41, 7, seed=3)
    rows = batches.rows(2)
    assert len(rows) == batches.per_epoch == 15
    assert sorted(np.concatenate(rows)) == list(range(101))
    assert not np.array_equal(rows[0], batches.rows(3)[0])
    for some in rows:
        (batch,) = batches.micro(some)
        assert isinstance(batch, VectorBatch)
        assert batch.segments is None
        np.testing.assert_array_equal(batch.targets, store.vectors[some].astype(np.float32))
        for i, number in enumerate(some):
            expected = [TOKENIZER.cls_id, *pieces_of(store, number), TOKENIZER.sep_id]
            row, n = batch.ids[i].tolist(), len(expected)
            assert row == expected + [TOKENIZER.pad_id] * (len(row) - n)
            assert batch.mask is None or batch.mask[i].tolist() == [True] * n + [False] * (len(row) - n)
            assert batches.lengths(some)[i] == n
    assert [len(batch) for batch in batches.micro(rows[0], 3)] == [3, 3, 1]
    with pytest.raises(ConfigError, match=r"do not fit into max_length 20; set teacher\.longest"):
        VectorBatches(store, TOKENIZER, 20, 7, seed=3)


@pytest.mark.parametrize("max_length", [41, 17])
def test_pairs_are_encoded_as_the_tokenizer_does(store, pairs, max_length):
    batches = PairBatches(store, pairs, TOKENIZER, max_length, 7, seed=3)
    seen = []
    for some in batches.rows(0):
        (batch,) = batches.micro(some)
        assert isinstance(batch, PairBatch)
        np.testing.assert_array_equal(batch.targets, pairs.cosine[some])
        seen += some.tolist()
        for i, number in enumerate(some):
            a, b = pieces_of(store, pairs.a[number]), pieces_of(store, pairs.b[number])
            while len(a) + len(b) > max_length - 3:
                (a if len(a) > len(b) else b).pop()
            expected = [TOKENIZER.cls_id, *a, TOKENIZER.sep_id, *b, TOKENIZER.sep_id]
            n = len(expected)
            assert batch.ids[i, :n].tolist() == expected
            assert (batch.ids[i, n:] == TOKENIZER.pad_id).all()
            assert batch.segments[i].tolist() == [0] * (len(a) + 2) + [1] * (len(b) + 1) + [0] * (
                batch.ids.shape[1] - n
            )
            assert batch.mask is None or int(batch.mask[i].sum()) == n
            assert batches.lengths(some)[i] == n
    assert sorted(seen) == list(range(211))


# ---- objectives


def model_of(**changes):
    sizes = SIZES.model_copy(update=changes)
    return build(sizes, groups={"pooler", "mlm", "nsp"}, helpers=HELPERS, seed=5)


def test_the_losses_are_what_they_say(store, pairs):
    model = model_of().eval()
    (batch,) = VectorBatches(store, TOKENIZER, 41, 7, seed=3).micro(np.arange(7))
    found = sentence_vectors()(model, batch)
    made = model.helpers["projection"](model.pooled(batch.ids, None, batch.mask)).detach().numpy().astype(np.float64)
    target = store.vectors[:7].astype(np.float64)
    cosine = (made * target).sum(1) / np.linalg.norm(made, axis=1) / np.linalg.norm(target, axis=1)
    assert (found.total.item(), found.weight.item()) == (pytest.approx((1 - cosine).sum(), rel=1e-5), 7)
    (batch,) = PairBatches(store, pairs, TOKENIZER, 41, 7, seed=3).micro(np.arange(7))
    found = pair_similarity(0.3, 0.2)(model, batch)
    made = model.helpers["similarity"](model.pooled(batch.ids, batch.segments, batch.mask)).detach().numpy()[:, 0]
    expected = ((made - (pairs.cosine[:7] - 0.3) / 0.2) ** 2).sum()
    assert (found.total.item(), found.weight.item()) == (pytest.approx(expected, rel=1e-5), 7)


def test_helpers_are_trained_and_shared_with_twins_and_not_kept():
    model = model_of()
    plain = build(SIZES, groups={"pooler", "mlm", "nsp"}, seed=5).weights()
    assert model.weights().keys() == plain.keys()
    assert all(np.array_equal(array, plain[name]) for name, array in model.weights().items())
    names = {name for name, _ in model.named_parameters()}
    assert {"helpers.projection.weight", "helpers.projection.bias", "helpers.similarity.weight"} < names
    other = twin(model)
    assert other.helpers["projection"].weight.data_ptr() == model.helpers["projection"].weight.data_ptr()


# ---- several sources


class Numbers:
    """A source whose batches are numbers."""

    def __init__(self, per_epoch):
        self.per_epoch = per_epoch

    def rows(self, epoch):
        return [np.array([1000 * epoch + i]) for i in range(self.per_epoch)]

    def micro(self, rows, size=None):
        yield rows.tolist()

    def lengths(self, rows):
        return rows % 1000


@given(
    st.lists(st.floats(0.01, 5), min_size=1, max_size=4), st.integers(0, 10), st.integers(1, 3000), st.integers(0, 500)
)
def test_each_source_has_its_share_everywhere(shares, seed, steps, start):
    mixture = Mixture([Numbers(7)] * len(shares), shares, seed)
    kinds = mixture.kinds(start, start + steps)
    counts = np.bincount(kinds, minlength=len(shares))
    assert np.abs(counts - steps * np.array(shares) / sum(shares)).max() < 8
    assert np.array_equal(np.subtract(mixture.done(start + steps), mixture.done(start)), counts)
    assert sum(mixture.done(2**62)) == 2**62


def test_each_source_goes_through_its_epochs_from_any_update_on():
    mixture = Mixture([Numbers(5), Numbers(11), Numbers(3)], [2, 1, 1], seed=4)
    found = [(mixture.source(rows)[0], *next(mixture.micro(rows))) for rows in mixture.rows(0)[:200]]
    for kind, per_epoch in ((0, 5), (1, 11), (2, 3)):
        own = [number for which, number in found if which == kind]
        assert own == [1000 * (i // per_epoch) + i % per_epoch for i in range(len(own))]
    fresh = Mixture([Numbers(5), Numbers(11), Numbers(3)], [2, 1, 1], seed=4)
    rows = fresh.rows(0)[150:][3]
    assert (fresh.source(rows)[0], *next(fresh.micro(rows))) == found[153]
    assert fresh.latest is rows
    assert fresh.lengths(rows).tolist() == [found[153][1] % 1000]
    kinds = [kind for kind, _ in found]
    assert kinds != [kind for kind, _ in zip(Mixture(mixture.parts, [2, 1, 1], 5).kinds(0, 200), kinds, strict=True)]
    assert Counter(kinds)[0] in range(96, 105)


# ---- training on all of it


def sources_of(corpus, store, pairs):
    masked = PretrainBatches(corpus, np.arange(61), TOKENIZER, Rules(41, seed=2), Masker(TOKENIZER), 11)
    vectors = VectorBatches(store, TOKENIZER, 41, 13, seed=2)
    return Mixture([masked, vectors, PairBatches(store, pairs, TOKENIZER, 41, 7, seed=2)], [0.5, 0.25, 0.25], seed=2)


OBJECTIVE = by_kind({PretrainBatch: masked_lm(), VectorBatch: sentence_vectors(), PairBatch: pair_similarity(0.2, 0.4)})
CONFIG = TrainConfig(learning_rate=3e-3, batch_size=11)


def trained(state, mixture, until, steps=29):
    losses = []
    for progress in train(state, OBJECTIVE, mixture, state.optimizer.config, steps):
        losses.append(float(progress.loss))
        if progress.step == until:
            break
    return losses


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_mixed_run_goes_on_bit_for_bit(corpus, store, pairs, parts, threads):
    threads(parts)
    whole = TrainState(model_of(), CONFIG)
    assert whole.parts == parts
    losses = trained(whole, sources_of(corpus, store, pairs), 29)
    first = TrainState(model_of(), CONFIG)
    begun = trained(first, sources_of(corpus, store, pairs), 12)
    saved = {name: tensor.clone() for name, tensor in first.tensors().items()}
    second = TrainState(model_of(), CONFIG)
    second.load(saved, 12)
    assert begun + trained(second, sources_of(corpus, store, pairs), 29) == losses
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, second.tensors()[name]), name


def test_parts_give_the_update_of_the_whole_batch(corpus, store, pairs, threads):
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    found = []
    for parts in (1, 3):
        threads(parts)
        state = TrainState(model_of(**still), CONFIG.model_copy(update={"epsilon": 1e-3}))  # of 0 Adam makes noise
        trained(state, sources_of(corpus, store, pairs), 9)
        found.append(state.model.weights())
    for name, array in found[0].items():
        np.testing.assert_allclose(found[1][name], array, rtol=1e-3, atol=2e-5, err_msg=name)


def test_all_three_are_learnt(corpus, store, pairs):
    mixture, state = sources_of(corpus, store, pairs), TrainState(model_of(), CONFIG)
    before = state.model.helpers["projection"].weight.clone(), state.model.helpers["similarity"].weight.clone()
    losses = np.array(trained(state, mixture, 241, steps=241))
    kinds = mixture.kinds(0, 241)
    for kind, falls in enumerate((0.97, 0.9, 0.95)):
        own = losses[kinds == kind]
        assert own[-15:].mean() < falls * own[:5].mean(), kind
    assert not torch.equal(state.model.helpers["projection"].weight, before[0])
    assert not torch.equal(state.model.helpers["similarity"].weight, before[1])
