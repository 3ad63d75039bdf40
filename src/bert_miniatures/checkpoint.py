"""Model folders: reading them wherever they come from, writing ours, converting.

Weights are numpy arrays here, so reading and converting need no torch (only `pytorch_model.bin` does).
"""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_miniatures.config import ModelConfig
from bert_miniatures.errors import CheckpointError, MissingExtra
from bert_miniatures.files import atomic_folder, read_json, sha256_of, write_json
from bert_miniatures.names import Weights, from_foreign, groups_of, is_slot, modern_names, to_hf
from bert_miniatures.outputs import Labels
from bert_miniatures.tokenizer import Tokenizer

__all__ = ["Conversion", "Labels", "ModelFolder", "config_document", "convert", "read_folder", "write_folder"]

FORMAT = 1


_ARCHITECTURES = [  # first row whose groups are all there
    ({"head"}, "BertForSequenceClassification"),
    ({"mlm", "nsp"}, "BertForPreTraining"),
    ({"mlm"}, "BertForMaskedLM"),
    ({"nsp"}, "BertForNextSentencePrediction"),
    (set(), "BertModel"),
]
_PROBLEMS = {
    "classification": "single_label_classification",
    "regression": "regression",
    "multilabel": "multi_label_classification",
}
# kind of model -> what a CrossEncoder of sentence-transformers makes of logits; by itself sigmoid of one, else nothing
_CROSS_ENCODER = {"regression": "torch.nn.modules.linear.Identity", "multilabel": "torch.nn.modules.activation.Sigmoid"}


@dataclass(frozen=True)
class ModelFolder:
    """A model in memory, as read from a folder.

    Attributes:
        weights: our name -> float32 array.
        labels: None where there is no classifier.
        fingerprint: SHA-256 of the weights file; identifies the parent of a tuned model.
        notes: what was repaired or skipped while reading, a sentence each.
    """

    config: ModelConfig
    weights: Weights
    tokenizer: Tokenizer
    labels: Labels | None = None
    fingerprint: str = ""
    notes: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    source_format: str = "hf"

    @property
    def groups(self) -> set[str]:
        """Which of encoder, pooler, mlm, nsp, head the weights hold."""
        return groups_of(self.weights)


@dataclass(frozen=True)
class Conversion:
    """What `convert` did.

    Attributes:
        source_format: "tensorflow", "safetensors" or "torch".
        tensors: number of tensors written.
        skipped: names in the source that are no weights of the model (optimizer slots, counters, buffers).
        repaired: what was missing or old-fashioned in the source, a sentence each.
    """

    source_format: str
    tensors: int
    skipped: list[str] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------------- reading


def read_folder(path: Path, *, labels_needed: bool = False) -> ModelFolder:
    """Read a model from a folder of ours, of Hugging Face's, or with a TensorFlow checkpoint.

    Args:
        path: the folder, or the prefix or `.index` file of a TensorFlow checkpoint.
        labels_needed: a folder without a classifier is an error.

    Raises:
        CheckpointError: missing, damaged, of another architecture, or its parts do not fit each other.
        MissingExtra: `pytorch_model.bin` needs torch.
    """
    path = Path(path)
    if not path.exists() and not Path(f"{path}.index").is_file():
        raise CheckpointError(f"{path}: no such folder or checkpoint")
    folder = path if path.is_dir() else path.parent
    notes: list[str] = []
    document = _read_config(folder, notes)
    config = ModelConfig.of(document, str(folder / "config.json"))
    raw, origin, file = _read_tensors(path)
    meta = _read_meta(folder)
    fingerprint = sha256_of(file)
    if meta.get("weights_sha256", fingerprint) != fingerprint:
        raise CheckpointError(f"{file}: the bytes do not match the checksum in miniature.json; the file is damaged")
    if origin == "tensorflow":
        weights, skipped = from_foreign(raw, config, "tf", str(file))
    else:
        weights, skipped = from_foreign(modern_names(raw, notes), config, "hf", str(file))
    tokenizer = Tokenizer.from_folder(folder)
    if len(tokenizer.vocabulary) != config.vocab_size:
        raise CheckpointError(
            f"{folder}: the vocabulary has {len(tokenizer.vocabulary)} pieces, config.json says {config.vocab_size}"
        )
    found = ModelFolder(config, weights, tokenizer, None, fingerprint, tuple(notes), tuple(skipped), origin)
    found = replace(found, labels=_labels(document, meta, weights))
    if labels_needed and found.labels is None:
        raise CheckpointError(f"{folder}: this model has no classifier; 'miniatures finetune' makes one")
    return found


def _read_config(folder: Path, notes: list[str]) -> dict[str, Any]:
    for name in ("config.json", "bert_config.json"):
        if (folder / name).is_file():
            document = read_json(folder / name)
            if not isinstance(document, dict):
                raise CheckpointError(f"{folder / name}: expected an object with the model's sizes")
            if "model_type" not in document:
                notes.append(f"{name} has no model_type; taken as 'bert'")
            return document
    raise CheckpointError(f"{folder}: no config.json or bert_config.json")


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / "miniature.json"
    if not path.is_file():
        return {}
    meta: dict[str, Any] = read_json(path)
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {meta.get('format')}, this version reads format {FORMAT}")
    return meta


def _read_tensors(path: Path) -> tuple[dict[str, npt.NDArray[Any]], str, Path]:
    """Return raw name -> array, the kind of file and the file that was read."""
    from bert_miniatures import tf_bundle

    if path.is_dir() and (path / "model.safetensors").is_file():
        return _read_safetensors(path / "model.safetensors"), "safetensors", path / "model.safetensors"
    if path.is_dir() and (path / "pytorch_model.bin").is_file():
        return _read_torch(path / "pytorch_model.bin"), "torch", path / "pytorch_model.bin"
    prefix = tf_bundle.find_prefix(path)
    if prefix is None:
        raise CheckpointError(
            f"{path}: no weights; looked for model.safetensors, pytorch_model.bin and a TensorFlow .index"
        )
    index = Path(f"{prefix}.index")
    names = [name for name in tf_bundle.read_index(prefix) if not is_slot(name)]
    raw: dict[str, npt.NDArray[Any]] = dict(tf_bundle.read_bundle(prefix, names))
    raw |= {name: np.empty(0) for name in tf_bundle.read_index(prefix) if is_slot(name)}
    return raw, "tensorflow", index


_DTYPES = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I64": "<i8", "I32": "<i4"}


def _read_safetensors(file: Path) -> dict[str, npt.NDArray[Any]]:
    import safetensors

    try:
        tensors = safetensors.deserialize(file.read_bytes())  # type: ignore[no-untyped-call]
    except Exception as error:  # the library raises its own class, derived from Exception
        raise CheckpointError(f"{file}: not a whole safetensors file ({error})") from None
    out: dict[str, npt.NDArray[Any]] = {}
    for name, tensor in tensors:
        kind, shape, data = tensor["dtype"], tensor["shape"], tensor["data"]
        if kind == "BF16":  # the upper half of a float32
            wide = np.frombuffer(data, "<u2").astype("<u4") << 16
            out[name] = wide.view("<f4").reshape(shape)
        elif kind in _DTYPES:
            out[name] = np.frombuffer(data, _DTYPES[kind]).reshape(shape)
        else:
            raise CheckpointError(f"{file}: '{name}' has type {kind}; expected F32, F16, BF16 or F64")
    return out


def _read_torch(file: Path) -> dict[str, npt.NDArray[Any]]:
    try:
        import torch
    except ImportError:
        raise MissingExtra(f"reading {file.name}", "train") from None
    try:
        state = torch.load(file, map_location="cpu", weights_only=True)
        return {name: tensor.float().numpy() for name, tensor in state.items()}
    except Exception as error:  # unpickling damaged bytes raises almost anything
        reason = str(error).splitlines()[0][:120]
        raise CheckpointError(f"{file}: not a whole torch file of tensors ({reason})") from None


def _labels(document: Mapping[str, Any], meta: Mapping[str, Any], weights: Weights) -> Labels | None:
    if "head.weight" not in weights:
        return None
    outputs = weights["head.weight"].shape[0]
    if meta.get("kind"):
        names = tuple(meta.get("labels", ()))
        kept = {key: meta[key] for key in ("task", "pair", "max_length") if key in meta}
        labels = Labels(meta["kind"], names, **kept)
    else:
        problem = document.get("problem_type")
        kinds = {value: key for key, value in _PROBLEMS.items()}
        kind = kinds.get(problem or "", "regression" if outputs == 1 else "classification")
        table = {int(key): str(name) for key, name in (document.get("id2label") or {}).items()}
        names = tuple(table.get(i, f"LABEL_{i}") for i in range(outputs)) if kind != "regression" else ()
        labels = Labels(kind, names)
    if labels.kind != "regression" and len(labels.names) != outputs:
        raise CheckpointError(f"the classifier has {outputs} outputs, the folder names {len(labels.names)} labels")
    return labels


# ---------------------------------------------------------------------------------------------------- writing


def write_folder(
    path: Path,
    model: ModelFolder,
    *,
    card: str,
    extra: Mapping[str, Any] | None = None,
    half: bool = False,
    overwrite: bool = False,
) -> None:
    """Write a model folder that transformers' Auto classes open; whole or not at all.

    Args:
        card: text of README.md.
        extra: further keys of miniature.json, such as parent, task and scores.
        half: numbers of 16 bits. config.json says float32 all the same: that is what they are read as.

    Raises:
        CheckpointError: a number is too large for 16 bits.
    """
    tensors = to_hf(model.weights, model.config)
    if half:
        tensors = {name: _halved(name, tensor) for name, tensor in tensors.items()}
    with atomic_folder(path, overwrite=overwrite) as folder:
        _write_safetensors(folder / "model.safetensors", tensors)
        write_json(folder / "config.json", config_document(model))
        model.tokenizer.save(folder, positions=model.config.max_position_embeddings)
        meta: dict[str, Any] = {"format": FORMAT, "weights_sha256": sha256_of(folder / "model.safetensors")}
        if model.labels is not None:
            labels = model.labels
            meta |= {"kind": labels.kind, "labels": list(labels.names), "task": labels.task, "pair": labels.pair}
            meta |= {"max_length": labels.max_length}
        write_json(folder / "miniature.json", meta | dict(extra or {}))
        (folder / "README.md").write_text(card, encoding="utf-8")


def _halved(name: str, tensor: npt.NDArray[Any]) -> npt.NDArray[Any]:
    largest = float(np.abs(tensor).max(initial=0))
    if largest > float(np.finfo(np.float16).max):
        raise CheckpointError(f"'{name}' holds {largest:.6g}, which 16 bits cannot; convert it without --half")
    return tensor.astype(np.float16)


def _write_safetensors(file: Path, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
    from safetensors.numpy import save

    # Written from here and not by the library: its own errors do not tell a full disk from anything else.
    file.write_bytes(save(dict(tensors), metadata={"format": "pt"}))


def config_document(model: ModelFolder) -> dict[str, Any]:
    """Return config.json of a model: Hugging Face's keys."""
    groups = model.groups
    architecture = next(name for needed, name in _ARCHITECTURES if needed <= groups)
    document: dict[str, Any] = {"architectures": [architecture], "model_type": "bert", "dtype": "float32"}
    document |= model.config.model_dump()
    document |= {"position_embedding_type": "absolute"}
    if model.labels is not None:
        names = model.labels.names or ("score",)
        document["id2label"] = {str(i): name for i, name in enumerate(names)}
        document["label2id"] = {name: i for i, name in enumerate(names)}
        document["problem_type"] = _PROBLEMS[model.labels.kind]
        if model.labels.kind in _CROSS_ENCODER:
            document["sentence_transformers"] = {"activation_fn": _CROSS_ENCODER[model.labels.kind]}
    return document


def convert(source: Path, target: Path, *, half: bool = False, overwrite: bool = False) -> Conversion:
    """Turn a TensorFlow checkpoint, a Hugging Face folder or a folder of ours into a model folder.

    The card that a folder has is kept: it names the licence.

    Args:
        half: write numbers of 16 bits; every reader makes 32 of them.

    Raises:
        CheckpointError: the source cannot be read.
        OutputExists: the target is there and `overwrite` is false.
    """
    model = read_folder(source)
    folder = Path(source) if Path(source).is_dir() else Path(source).parent
    repaired = list(model.notes)
    if not (folder / "tokenizer.json").is_file():
        repaired.append("tokenizer.json was missing and has been made from vocab.txt")
    if not (folder / "tokenizer_config.json").is_file():
        positions = model.config.max_position_embeddings
        repaired.append(f"tokenizer_config.json was missing and has been made (model_max_length {positions})")
    extra = {"parent_sha256": model.fingerprint}
    write_folder(target, model, card=_card(folder, model), extra=extra, half=half, overwrite=overwrite)
    return Conversion(model.source_format, len(to_hf(model.weights, model.config)), list(model.skipped), repaired)


def _card(folder: Path, model: ModelFolder) -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return (folder / "README.md").read_text(encoding="utf-8")
    size = f"{model.config.num_hidden_layers} layers, {model.config.hidden_size} wide"
    return f"---\nlibrary_name: bert-miniatures\n---\n\n# BERT, {size}\n\nConverted by bert-miniatures.\n"
