"""Model folders: every spelling that is found in the wild is read, every damage is an error that names it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file

from bert_miniatures.checkpoint import Labels, ModelFolder, convert, read_folder, write_folder
from bert_miniatures.errors import CheckpointError, OutputExists
from bert_miniatures.model import build
from bert_miniatures.names import TABLE, from_foreign, shapes, to_hf
from bert_miniatures.zoo import ZOO

FIXTURES = Path(__file__).parent / "fixtures" / "tf"


def assert_same(a: ModelFolder, b: ModelFolder) -> None:
    assert a.weights.keys() == b.weights.keys()
    for name in a.weights:
        np.testing.assert_array_equal(a.weights[name], b.weights[name], err_msg=name)


def edited(tiny: Path, target: Path, **changes) -> Path:
    """Copy a folder without miniature.json (so that its checksum does not speak first) and edit config.json."""
    shutil.copytree(tiny, target)
    (target / "miniature.json").unlink()
    document = json.loads((target / "config.json").read_text())
    for key, value in changes.items():
        document.pop(key, None)
        if value is not None:
            document[key] = value
    (target / "config.json").write_text(json.dumps(document))
    return target


def test_parameter_counts_are_the_published_ones():
    published = {"2/128": 4_385_920, "4/512": 28_763_648, "8/512": 41_373_184, "12/768": 109_482_240}
    for size, count in published.items():
        assert ZOO[size].parameters == count
    for miniature in ZOO.values():
        from bert_miniatures.config import ModelConfig

        config = ModelConfig(vocab_size=30_522, hidden_size=miniature.width, num_hidden_layers=miniature.layers,
                             num_attention_heads=miniature.heads, intermediate_size=4 * miniature.width)  # fmt: skip
        assert sum(int(np.prod(s)) for s in shapes(config, ["encoder", "pooler"]).values()) == miniature.parameters


def test_round_trip_keeps_every_bit_and_every_head(tiny, tmp_path):
    first = read_folder(tiny)
    assert first.groups == {"encoder", "pooler", "mlm", "nsp"}
    convert(tiny, tmp_path / "copy")
    assert_same(first, read_folder(tmp_path / "copy"))


def test_name_table_is_a_bijection(tiny):
    found = read_folder(tiny)
    names = to_hf(found.weights, found.config)
    back, skipped = from_foreign(names, found.config, "hf", "here")
    assert skipped == []
    assert back.keys() == found.weights.keys()
    for name in back:
        np.testing.assert_array_equal(back[name], found.weights[name])
    ours = [row.ours for rows in TABLE.values() for row in rows]
    theirs = [name for rows in TABLE.values() for row in rows for name in row.hf]
    assert len(set(ours)) == len(ours)
    assert len(set(theirs)) == len(theirs)


@pytest.mark.parametrize("variant", ["pretrained", "finetuned", "sharded"])
def test_tensorflow_checkpoints_convert_bit_for_bit(variant, tmp_path):
    expected = load_file(FIXTURES / f"{variant.replace('sharded', 'pretrained')}.safetensors")
    conversion = convert(FIXTURES / variant, tmp_path / "m")
    assert conversion.source_format == "tensorflow"
    written = load_file(tmp_path / "m" / "model.safetensors")
    assert conversion.tensors == len(written)
    for name, array in written.items():
        theirs = _tensorflow_name(name)
        wanted = expected[theirs].T if theirs.endswith("/kernel") else expected[theirs]
        np.testing.assert_array_equal(array, wanted, err_msg=name)
    left = set(expected) - {_tensorflow_name(name) for name in written}
    assert left == set(conversion.skipped)
    model = transformers.AutoModel.from_pretrained(tmp_path / "m")
    assert model.config.num_hidden_layers == 2


def _tensorflow_name(name: str) -> str:
    """Translate one name by hand, without the table that is tested."""
    heads = {"classifier.weight": "output_weights", "classifier.bias": "output_bias",
             "cls.predictions.bias": "cls/predictions/output_bias",
             "cls.seq_relationship.weight": "cls/seq_relationship/output_weights",
             "cls.seq_relationship.bias": "cls/seq_relationship/output_bias"}  # fmt: skip
    if name in heads:
        return heads[name]
    parts = name.replace("encoder.layer.", "encoder.layer_").split(".")
    if parts[-2] == "LayerNorm":
        parts[-1] = {"weight": "gamma", "bias": "beta"}[parts[-1]]
    elif parts[1] == "embeddings":
        parts.pop()
    elif parts[-1] == "weight":
        parts[-1] = "kernel"
    return "/".join(parts)


def test_old_spellings_are_read(tiny, tmp_path):
    """gamma/beta, no `bert.` prefix, position_ids, no model_type, no tokenizer files, pytorch_model.bin."""
    found = read_folder(tiny)
    folder = edited(tiny, tmp_path / "old", model_type=None, architectures=None)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    state = {}
    for name, array in tensors.items():
        old = name.removeprefix("bert.")
        old = old.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        state[old] = torch.from_numpy(array)
    state["embeddings.position_ids"] = torch.arange(37)[None]
    state["cls.predictions.decoder.weight"] = state["embeddings.word_embeddings.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    conversion = convert(folder, tmp_path / "new")
    assert conversion.source_format == "torch"
    assert "bert.embeddings.position_ids" in conversion.skipped
    assert any("model_type" in text for text in conversion.repaired)
    assert any("tokenizer_config.json" in text for text in conversion.repaired)
    assert_same(found, read_folder(tmp_path / "new"))
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "new").model_max_length == 37
    assert type(transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "new")).__name__ == "BertForPreTraining"


def test_half_precision_is_widened(tiny, tmp_path):
    found = read_folder(tiny)
    folder = edited(tiny, tmp_path / "half")
    import safetensors.torch

    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    for dtype, tolerance in ((torch.float16, 1e-3), (torch.bfloat16, 1e-2)):
        safetensors.torch.save_file({k: v.to(dtype) for k, v in tensors.items()}, folder / "model.safetensors")
        half = read_folder(folder)
        for name, array in half.weights.items():
            assert array.dtype == np.float32
            np.testing.assert_allclose(array, found.weights[name], atol=tolerance, rtol=tolerance)


def test_a_half_folder_is_half_as_big_and_opens_everywhere_as_single(tiny, tmp_path):
    (edited(tiny, tmp_path / "source") / "README.md").write_text("license: mine\n")
    convert(tmp_path / "source", tmp_path / "half", half=True)
    found, half = read_folder(tiny), read_folder(tmp_path / "half")
    for name, array in found.weights.items():
        assert (half.weights[name] == array.astype(np.float16).astype(np.float32)).all(), name
    numbers = sum(array.nbytes for array in found.weights.values())
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 0.5 * numbers + 5_000  # 5,000 for the names
    assert (tmp_path / "half" / "README.md").read_text() == "license: mine\n"
    theirs = transformers.AutoModelForPreTraining.from_pretrained(tmp_path / "half")
    assert theirs.dtype == torch.float32
    words = theirs.bert.embeddings.word_embeddings.weight.detach().numpy()
    assert (words == half.weights["embed.word.weight"]).all()


def test_a_number_that_16_bits_cannot_hold_is_an_error(tiny, tmp_path):
    found = read_folder(tiny)
    found.weights["pooler.bias"][0] = 70_000
    with pytest.raises(CheckpointError, match=r"'bert\.pooler\.dense\.bias' holds 70000, which 16 bits cannot"):
        write_folder(tmp_path / "half", found, card="", half=True)
    assert not (tmp_path / "half").exists()


def _without(tensors, name):
    return {key: value for key, value in tensors.items() if key != name}


DAMAGES = {
    "missing": (lambda t: _without(t, "bert.encoder.layer.1.attention.self.query.weight"), r"layer\.1\.attention\.self\.query\.weight' is missing"),
    "half a head": (lambda t: _without(t, "cls.predictions.bias"), r"'cls\.predictions\.bias' is missing"),
    "left over": (lambda t: t | {"bert.adapter.weight": np.zeros(3, np.float32)}, r"'bert\.adapter\.weight' has no place"),
    "wrong shape": (lambda t: t | {"bert.pooler.dense.bias": np.zeros(23, np.float32)}, r"'bert\.pooler\.dense\.bias' has shape \[23\], expected \[21\]"),
    "integers": (lambda t: t | {"bert.pooler.dense.bias": np.zeros(21, np.int64)}, r"has type int64, expected floating"),
    "untied": (lambda t: t | {"cls.predictions.decoder.weight": np.zeros((73, 21), np.float32)}, "differs from the weight that it is tied to"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights_are_named(damage, tiny, tmp_path):
    change, sentence = DAMAGES[damage]
    folder = edited(tiny, tmp_path / "m")
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=sentence):
        read_folder(folder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"num_hidden_layers": 3}, r"the file has 2 layers, config.json says 3"),
        ({"num_hidden_layers": 1}, r"the file has 2 layers, config.json says 1"),
        ({"vocab_size": 71}, r"has 73 pieces, config\.json says 71|shape \[73, 21\], expected \[71, 21\]"),
        ({"hidden_size": None}, "'hidden_size' is missing"),
        ({"num_attention_heads": 2}, "not a multiple"),
        ({"model_type": "roberta"}, "model_type is 'roberta'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ({"hidden_act": "relu"}, "hidden_act"),
    ],
)
def test_a_config_that_does_not_fit_is_named(changes, sentence, tiny, tmp_path):
    with pytest.raises(CheckpointError, match=sentence):
        read_folder(edited(tiny, tmp_path / "m", **changes))


def test_any_flipped_bit_of_our_weights_is_an_error(tiny, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(tiny, folder)
    file = folder / "model.safetensors"
    raw = file.read_bytes()
    drawn = np.random.default_rng(13)
    for position in drawn.integers(0, len(raw), 101):
        damaged = bytearray(raw)
        damaged[position] ^= 1 << int(drawn.integers(8))
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read_folder(folder)
    for length in drawn.integers(0, len(raw), 23):
        file.write_bytes(raw[:length])
        with pytest.raises(CheckpointError):
            read_folder(folder)


def test_a_pickle_with_code_is_refused_and_not_run(tiny, tmp_path):
    folder = edited(tiny, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    trap = tmp_path / "trap"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (trap,))

    torch.save({"bert.pooler.dense.bias": Evil()}, folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="not a whole torch file of tensors"):
        read_folder(folder)
    assert not trap.exists()


def test_empty_and_foreign_folders(tmp_path, tiny):
    with pytest.raises(CheckpointError, match="no such folder"):
        read_folder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json or bert_config\.json"):
        read_folder(tmp_path / "empty")
    folder = edited(tiny, tmp_path / "m")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"no weights; looked for model\.safetensors"):
        read_folder(folder)
    (folder / "vocab.txt").unlink()
    (folder / "tokenizer.json").unlink()
    save_file({"x": np.zeros(1, np.float32)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError):
        read_folder(folder)


def test_writing_is_all_or_nothing(tiny, tmp_path, config):
    found = read_folder(tiny)
    with pytest.raises(OutputExists):
        write_folder(tiny, found, card="")
    target = tmp_path / "m"
    write_folder(target, found, card="one")
    broken = ModelFolder(config, found.weights, found.tokenizer, Labels("nonsense", ("a",)))
    with pytest.raises(KeyError):
        write_folder(target, broken, card="two", overwrite=True)
    assert (target / "README.md").read_text() == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


def test_labels_of_a_hub_config(tiny, tmp_path, config):
    found = read_folder(tiny)
    weights = build(config, found.weights, groups={"pooler", "head"}, classes=3).weights()
    named = ModelFolder(config, weights, found.tokenizer, Labels("classification", ("b", "a", "c")))
    write_folder(tmp_path / "m", named, card="")
    (tmp_path / "m" / "miniature.json").unlink()
    labels = read_folder(tmp_path / "m").labels
    assert labels is not None
    assert (labels.kind, labels.names) == ("classification", ("b", "a", "c"))
    document = json.loads((tmp_path / "m" / "config.json").read_text())
    del document["id2label"], document["problem_type"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(document))
    labels = read_folder(tmp_path / "m").labels
    assert labels is not None
    assert labels.names == ("LABEL_0", "LABEL_1", "LABEL_2")
