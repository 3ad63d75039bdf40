"""Hidden states and attention relations of a teacher: against plain torch over transformers, fused and not."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bert_miniatures.checkpoint import ModelFolder, read_folder, write_folder
from bert_miniatures.config import ModelConfig, TrainConfig
from bert_miniatures.data.batches import Batch, Batches, Dataset
from bert_miniatures.distill_config import DistillConfig
from bert_miniatures.errors import ConfigError
from bert_miniatures.files import RunFolder
from bert_miniatures.model import build
from bert_miniatures.objectives import classification
from bert_miniatures.recipes import comparison
from bert_miniatures.recipes.distill import distill, run_distill
from bert_miniatures.recipes.finetune import finetune
from bert_miniatures.soft_objectives import guided, hidden_loss, relation_heads, relation_loss, soft_multilabel
from bert_miniatures.tokenizer import Tokenizer
from bert_miniatures.train import TrainState, train
from conftest import PIECES

DRAWN = np.random.default_rng(43)
SHARED = {"vocab_size": len(PIECES), "max_position_embeddings": 37, "initializer_range": 0.15}
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
OWN = ModelConfig(hidden_size=15, num_hidden_layers=2, num_attention_heads=3, intermediate_size=17, **SHARED, **STILL)
THEIRS = ModelConfig(
    hidden_size=21, num_hidden_layers=5, num_attention_heads=7, intermediate_size=29, **SHARED, **STILL
)


@pytest.fixture(scope="module")
def batch() -> Batch:
    """Seven rows of 3 to 11 pieces, with labels."""
    lengths = DRAWN.integers(3, 12, 7)
    ids = DRAWN.integers(5, len(PIECES), (7, 11))
    real = np.arange(11) < lengths[:, None]
    labels = torch.from_numpy(DRAWN.integers(0, 5, 7))
    return Batch(torch.from_numpy(ids * real), None, torch.from_numpy(real), labels, np.arange(7))


@pytest.fixture(scope="module")
def teacher():
    return build(THEIRS, groups={"pooler"}, seed=3).eval().requires_grad_(False)


def student(**more):
    return build(OWN, groups={"pooler", "head"}, classes=5, helpers={"hidden": 21}, seed=5, **more).train()


def states_of(model, config: ModelConfig, batch: Batch) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return all states and the last layer's queries, keys and values, by torch's own functions from the weights."""
    w = dict(model.named_parameters())
    d, n = config.hidden_size, config.num_attention_heads
    norm = lambda x, name: F.layer_norm(x, (d,), w[f"{name}.weight"], w[f"{name}.bias"], config.layer_norm_eps)  # noqa: E731
    linear = lambda x, name: F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])  # noqa: E731
    x = (
        w["embed.word.weight"][batch.ids]
        + w["embed.position.weight"][: batch.ids.shape[1]]
        + w["embed.segment.weight"][0]
    )
    states = [norm(x, "embed.norm")]
    for i in range(config.num_hidden_layers):
        x = states[-1]
        qkv = linear(x, f"layers.{i}.qkv")
        q, k, v = (part.unflatten(2, (n, d // n)).transpose(1, 2) for part in qkv.split(d, 2))
        a = F.scaled_dot_product_attention(q, k, v, attn_mask=batch.mask[:, None, None]).transpose(1, 2).flatten(2)
        x = norm(x + linear(a, f"layers.{i}.attended"), f"layers.{i}.attended_norm")
        states.append(norm(x + linear(F.gelu(linear(x, f"layers.{i}.up")), f"layers.{i}.down"), f"layers.{i}.norm"))
    return states, qkv


def plain_loss(model, teacher, batch: Batch, hidden: float, relations: float, heads: int) -> torch.Tensor:
    """The mean loss, one example, head and position after the other."""
    own, own_qkv = states_of(model, OWN, batch)
    theirs, their_qkv = states_of(teacher, THEIRS, batch)
    logits = model.head(torch.tanh(model.pooler(own[-1][:, 0])))
    total = F.cross_entropy(logits, batch.labels, reduction="sum")
    for b in range(len(batch)):
        t = int(batch.mask[b].sum())
        errors = []
        for m, (mine, other) in enumerate(zip(own, (theirs[0], theirs[2], theirs[5]), strict=True)):
            rows = 1 if m == 2 else t
            errors.append(F.mse_loss(model.helpers["hidden"](mine[b, :rows]), other[b, :rows]))
        total = total + hidden * sum(errors) / 3
        divergences = []
        for kind in range(3):
            for head in range(heads):
                found = []
                for qkv in (own_qkv, their_qkv):
                    width = qkv.shape[2] // 3
                    size = width // heads
                    x = qkv[b, :t, kind * width + head * size : kind * width + (head + 1) * size]
                    found.append(torch.log_softmax(x @ x.T / size**0.5, -1))
                divergences += [F.kl_div(found[0][i], found[1][i], log_target=True, reduction="sum") for i in range(t)]
        total = total + relations * torch.stack(divergences).mean()
    return total / len(batch)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize(("hidden", "relations", "heads"), [(0.7, 0.0, 1), (0.0, 1.3, 3), (0.7, 1.3, 1)])
def test_loss_and_gradients_are_those_of_plain_torch(batch, teacher, hidden, relations, heads, exact):
    model, other = student(), student()
    model.exact_speedups = exact
    objective = guided(classification(), teacher, hidden=hidden, relations=relations, heads=heads)
    found = objective(model, batch)
    wanted = plain_loss(other, teacher, batch, hidden, relations, heads)
    assert (found.total / found.weight).item() == pytest.approx(wanted.item(), rel=1e-5)
    (found.total / found.weight).backward()
    wanted.backward()
    for (name, mine), (_, theirs) in zip(model.named_parameters(), other.named_parameters(), strict=True):
        assert (mine.grad is None or not mine.grad.any()) == (theirs.grad is None or not theirs.grad.any()), name
        if theirs.grad is not None and theirs.grad.any():
            np.testing.assert_allclose(mine.grad.numpy(), theirs.grad.numpy(), atol=2e-6, rtol=1e-4, err_msg=name)
    assert all(not layer._forward_hooks for layer in (*model.layers, *teacher.layers))


def test_the_loop_adds_these_gradients_where_the_others_are(batch, teacher):
    """One update of the loop, whose fused layers add in place, is one of autograd without any of that."""
    settings = {
        "batch_size": 7,
        "epochs": 1,
        "warmup": 0.0,
        "clip": 0.0,
        "learning_rate": 1e-2,
        "epsilon": 1e-3,
        "threads": 1,
    }
    models = []
    for exact in (True, False):
        config = TrainConfig(exact_speedups=exact, **settings)
        data = Dataset(
            Tokenizer.from_vocabulary(PIECES).encode(["good film !", "a b c d e", "bad"] * 5, max_length=11),
            batch.labels.numpy().repeat(3)[:15],
        )
        model = student()
        objective = guided(classification(), teacher, hidden=0.7, relations=1.3, heads=3)
        for _ in train(TrainState(model, config), objective, Batches(data, 7, 1), config):
            pass
        models.append(dict(model.named_parameters()))
    for name, mine in models[0].items():
        np.testing.assert_allclose(mine.detach(), models[1][name].detach(), atol=1e-5, err_msg=name)
    assert (models[0]["helpers.hidden.weight"] - student().helpers["hidden"].weight).abs().max() > 1e-3


def test_a_student_that_is_its_teacher_has_nothing_to_learn(batch, teacher):
    states, qkv = states_of(teacher, THEIRS, batch)
    assert relation_loss(qkv, qkv, batch.mask, 7).abs().max() < 1e-6
    assert not hidden_loss([*states[:-1], states[-1][:, :1]], states, batch.mask).any()
    longer = F.pad(qkv, (0, 0, 0, 3), value=5.0), F.pad(qkv * 2, (0, 0, 0, 3), value=-5.0)  # padding changes nothing
    found = relation_loss(*longer, F.pad(batch.mask, (0, 3)), 7)
    np.testing.assert_allclose(found, relation_loss(qkv, qkv * 2, batch.mask, 7), atol=1e-6)
    assert (found > 0.01).all()


def test_weights_mean_the_same_for_any_number_of_labels(batch, teacher):
    """A multilabel loss is a mean over labels too; what is added counts once an example."""
    model, labelled = student(), Batch(batch.ids, None, batch.mask, None, batch.rows, torch.zeros(7, 5))
    plain = soft_multilabel()(model, labelled)
    more = guided(soft_multilabel(), teacher, relations=1.0, heads=3)(model, labelled)
    own, theirs = states_of(model, OWN, batch)[1], states_of(teacher, THEIRS, batch)[1]
    added = more.total / more.weight - plain.total / plain.weight
    assert added.item() == pytest.approx(relation_loss(own, theirs, batch.mask, 3).mean().item(), rel=1e-4)


def test_how_many_relation_heads():
    assert [relation_heads(*widths) for widths in ((128, 384), (256, 768), (128, 256), (15, 21))] == [16, 32, 16, 1]


# ---------------------------------------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def folders(tmp_path_factory, reviews) -> tuple[Path, Path, Path]:
    """Write a student and a teacher of one vocabulary, and a student of another."""
    home = tmp_path_factory.mktemp("models")
    for name, config, pieces in (
        ("student", OWN, PIECES),
        ("start", THEIRS, PIECES),
        ("other", OWN, [*PIECES[:-1], "zz"]),
    ):
        found = ModelFolder(
            config, build(config, groups={"pooler"}, seed=3).weights(), Tokenizer.from_vocabulary(pieces)
        )
        write_folder(home / name, found, card="# x\n")
    data = {"train": str(reviews[0]), "dev": str(reviews[1]), "max_length": 32}
    finetune(home / "start", home / "teacher", data=data, train={"epochs": 1, "threads": 1, "learning_rate": 1e-3})
    return home / "student", home / "teacher", home / "other"


def test_a_run_learns_from_states_and_resumes(folders, reviews, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "_SECONDS", 0.01)
    own, theirs, _ = folders
    data = {"train": str(reviews[0]), "dev": str(reviews[1]), "max_length": 32}
    train = {"epochs": 2, "threads": 1, "learning_rate": 3e-3, "log_every": 1}
    settings = {"teacher": theirs, "data": data, "train": train}
    result = distill(own, tmp_path / "run", hidden_weight=1.0, relation_weight=2.0, **settings)
    assert result["guide"] == {"name": str(theirs), "sha256": read_folder(theirs / "model").fingerprint, "hidden": 1.0,
                               "relations": 2.0, "relation_heads": 1}  # fmt: skip
    whole = read_folder(tmp_path / "run" / "model").weights
    assert not any("helpers" in name for name in whole)
    config = DistillConfig.of({"model": str(own), "teacher": [str(theirs)], "data": data, "train": settings["train"],
                               "hidden_weight": 1.0, "relation_weight": 2.0})  # fmt: skip
    run_distill(config, tmp_path / "paused", until=3)
    run_distill(config, tmp_path / "paused", resume=True)
    again = read_folder(tmp_path / "paused" / "model").weights
    assert all(np.array_equal(again[name], whole[name]) for name in whole)
    slow = settings | {"train": train | {"exact_speedups": False}}  # which trains on the whole table of words
    distill(own, tmp_path / "slow", hidden_weight=1.0, relation_weight=2.0, **slow)
    losses = [
        [record["loss"] for record in RunFolder(tmp_path / name).records() if "loss" in record]
        for name in ("run", "slow")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-3)
    plain = distill(own, tmp_path / "plain", **settings)
    assert "guide" not in plain
    assert not np.array_equal(
        read_folder(tmp_path / "plain" / "model").weights["layers.0.qkv.weight"], whole["layers.0.qkv.weight"]
    )


def test_what_does_not_fit_is_one_sentence(folders, reviews, tmp_path):
    own, theirs, other = folders
    data = {"train": str(reviews[0]), "dev": str(reviews[1]), "max_length": 32}
    for model, changes, said in (
        (other, {"hidden_weight": 1.0}, "read other word pieces"),
        (own, {"relation_weight": 1.0, "relation_heads": 5}, "does not divide both widths, 15 and 21"),
        (own, {"relation_weight": 1.0, "teacher": [str(theirs), str(theirs)]}, "states_of = FOLDER"),
        (own, {"states_of": str(theirs)}, "say how much with hidden_weight"),
        (own, {"hidden_weight": 1.0, "data": data | {"max_length": 38}}, "38 is more than the 37 positions"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            distill(model, tmp_path / "run", **({"teacher": theirs, "data": data} | changes))
