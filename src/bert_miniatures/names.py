"""One table of weight names, ours, Hugging Face's and TensorFlow's, used in every direction, strict about leftovers.

In memory names are ours and short; on disk they are Hugging Face's, in Google's checkpoints TensorFlow's. Weights are
float32 numpy arrays here, so that converting needs no torch.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_miniatures.config import ModelConfig
from bert_miniatures.errors import CheckpointError

__all__ = ["TABLE", "Weights", "from_foreign", "groups_of", "is_slot", "modern_names", "shapes", "to_hf"]

Weights = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class _Row:
    """One weight. `hf` and `tf` name one tensor, or several that are joined along axis 0 in memory."""

    ours: str
    hf: tuple[str, ...]
    tf: tuple[str, ...]
    shape: str
    kernel: bool = False  # TensorFlow stores [in, out], we and Hugging Face [out, in]


def _linear(ours: str, hf: tuple[str, ...], tf: tuple[str, ...], out: str, into: str) -> list[_Row]:
    return [
        _Row(f"{ours}.weight", tuple(f"{n}.weight" for n in hf), tuple(f"{n}/kernel" for n in tf), f"{out} {into}", True),
        _Row(f"{ours}.bias", tuple(f"{n}.bias" for n in hf), tuple(f"{n}/bias" for n in tf), out),
    ]  # fmt: skip


def _norm(ours: str, hf: str, tf: str) -> list[_Row]:
    return [
        _Row(f"{ours}.weight", (f"{hf}.weight",), (f"{tf}/gamma",), "D"),
        _Row(f"{ours}.bias", (f"{hf}.bias",), (f"{tf}/beta",), "D"),
    ]


_HF, _TF = "bert.encoder.layer.{i}", "bert/encoder/layer_{i}"
_SELF = ("query", "key", "value")
# group -> rows; a folder has all rows of a group or none. D width, F feed-forward, V vocabulary, P positions,
# S segments, C classes, 3D query, key and value together.
TABLE: dict[str, list[_Row]] = {
    "encoder": [
        _Row("embed.word.weight", ("bert.embeddings.word_embeddings.weight",), ("bert/embeddings/word_embeddings",), "V D"),
        _Row("embed.position.weight", ("bert.embeddings.position_embeddings.weight",), ("bert/embeddings/position_embeddings",), "P D"),
        _Row("embed.segment.weight", ("bert.embeddings.token_type_embeddings.weight",), ("bert/embeddings/token_type_embeddings",), "S D"),
        *_norm("embed.norm", "bert.embeddings.LayerNorm", "bert/embeddings/LayerNorm"),
        *_linear("layers.{i}.qkv", tuple(f"{_HF}.attention.self.{n}" for n in _SELF), tuple(f"{_TF}/attention/self/{n}" for n in _SELF), "3D", "D"),
        *_linear("layers.{i}.attended", (f"{_HF}.attention.output.dense",), (f"{_TF}/attention/output/dense",), "D", "D"),
        *_norm("layers.{i}.attended_norm", f"{_HF}.attention.output.LayerNorm", f"{_TF}/attention/output/LayerNorm"),
        *_linear("layers.{i}.up", (f"{_HF}.intermediate.dense",), (f"{_TF}/intermediate/dense",), "F", "D"),
        *_linear("layers.{i}.down", (f"{_HF}.output.dense",), (f"{_TF}/output/dense",), "D", "F"),
        *_norm("layers.{i}.norm", f"{_HF}.output.LayerNorm", f"{_TF}/output/LayerNorm"),
    ],
    "pooler": _linear("pooler", ("bert.pooler.dense",), ("bert/pooler/dense",), "D", "D"),
    "mlm": [
        *_linear("mlm.dense", ("cls.predictions.transform.dense",), ("cls/predictions/transform/dense",), "D", "D"),
        *_norm("mlm.norm", "cls.predictions.transform.LayerNorm", "cls/predictions/transform/LayerNorm"),
        _Row("mlm.bias", ("cls.predictions.bias",), ("cls/predictions/output_bias",), "V"),
    ],
    "nsp": [
        _Row("nsp.weight", ("cls.seq_relationship.weight",), ("cls/seq_relationship/output_weights",), "2 D"),
        _Row("nsp.bias", ("cls.seq_relationship.bias",), ("cls/seq_relationship/output_bias",), "2"),
    ],
    "head": [
        _Row("head.weight", ("classifier.weight",), ("output_weights",), "C D"),
        _Row("head.bias", ("classifier.bias",), ("output_bias",), "C"),
    ],
}  # fmt: skip

# What may stand beside the weights: optimizer slots and counters of TensorFlow, buffers and tied copies of torch.
_SLOTS = re.compile(r"(.*/(adam_[mv]|lamb_[mv]|Adam(_1)?)|global_step|.*/?beta[12]_power)")
_BUFFERS = re.compile(r"(bert\.)?embeddings\.(position_ids|token_type_ids)")
_TIED = {"cls.predictions.decoder.weight": "embed.word.weight", "cls.predictions.decoder.bias": "mlm.bias"}


def shapes(config: ModelConfig, groups: Iterable[str], classes: int = 0) -> dict[str, tuple[int, ...]]:
    """Return our name -> shape for every weight of these groups."""
    return {row.ours: _shape(row, config, classes) for row in _rows(config, groups)}


def _shape(row: _Row, config: ModelConfig, classes: int) -> tuple[int, ...]:
    width = config.hidden_size
    sizes = {"D": width, "3D": 3 * width, "F": config.intermediate_size, "V": config.vocab_size}
    sizes |= {"P": config.max_position_embeddings, "S": config.type_vocab_size, "C": classes, "2": 2}
    return tuple(sizes[symbol] for symbol in row.shape.split())


def _expand(row: _Row, layers: int) -> list[_Row]:
    if "{i}" not in row.ours:
        return [row]
    return [
        replace(
            row,
            ours=row.ours.format(i=i),
            hf=tuple(name.format(i=i) for name in row.hf),
            tf=tuple(name.format(i=i) for name in row.tf),
        )
        for i in range(layers)
    ]


def _rows(config: ModelConfig, groups: Iterable[str]) -> list[_Row]:
    return [one for group in groups for row in TABLE[group] for one in _expand(row, config.num_hidden_layers)]


def modern_names(raw: Mapping[str, npt.NDArray[Any]], notes: list[str]) -> dict[str, npt.NDArray[Any]]:
    """Undo the old spellings: LayerNorm.gamma/beta, and no `bert.` before the name."""
    out, old = {}, 0
    for name, tensor in raw.items():
        new = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
        new = re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", new)
        old += new != name
        if new.startswith(("embeddings.", "encoder.", "pooler.")):
            new = f"bert.{new}"
        out[new] = tensor
    if old:
        notes.append(f"{old} weights have the old spelling LayerNorm.gamma/beta")
    return out


def from_foreign(
    raw: Mapping[str, npt.NDArray[Any]], config: ModelConfig, side: str, where: str
) -> tuple[Weights, list[str]]:
    """Turn foreign names into ours; every name must be known and every group whole."""
    left = dict(raw)
    skipped = [name for name in left if (_SLOTS if side == "tf" else _BUFFERS).fullmatch(name)]
    for name in skipped:
        del left[name]
    tied = {name: left.pop(name) for name in _TIED if name in left} if side == "hf" else {}
    weights: Weights = {}
    for group in TABLE:
        rows = _rows(config, [group])
        names = [name for row in rows for name in (row.hf if side == "hf" else row.tf)]
        missing = [name for name in names if name not in left]
        if missing and (group == "encoder" or len(missing) < len(names)):
            raise CheckpointError(_misfit(where, missing[0], "is missing", left, config))
        if missing:
            continue
        classes = left[names[0]].shape[0] if group == "head" else 0
        for row in rows:
            parts = [left.pop(name) for name in (row.hf if side == "hf" else row.tf)]
            weights[row.ours] = _joined(parts, row, _shape(row, config, classes), side, where)
    if left:
        first = min(left)
        raise CheckpointError(_misfit(where, first, "has no place in this model", left, config))
    for name, copy in tied.items():
        if not np.array_equal(copy, weights.get(_TIED[name], copy)):
            raise CheckpointError(f"{where}: '{name}' differs from the weight that it is tied to; not supported")
    return weights, sorted([*skipped, *tied])


def _joined(
    parts: list[npt.NDArray[Any]], row: _Row, shape: tuple[int, ...], side: str, where: str
) -> npt.NDArray[np.float32]:
    names = row.hf if side == "hf" else row.tf
    expected = (shape[0] // len(parts), *shape[1:])
    if side == "tf" and row.kernel:
        expected = expected[::-1]
    for part, name in zip(parts, names, strict=True):
        if part.shape != expected:
            got, want = list(part.shape), list(expected)
            raise CheckpointError(f"{where} does not fit config.json: '{name}' has shape {got}, expected {want}")
        if part.dtype.kind != "f":
            raise CheckpointError(f"{where}: '{name}' has type {part.dtype}, expected floating point")
    turned = [part.T if side == "tf" and row.kernel else part for part in parts]
    return np.ascontiguousarray(np.concatenate(turned) if len(turned) > 1 else turned[0], dtype=np.float32)


def _misfit(where: str, name: str, what: str, found: Mapping[str, Any], config: ModelConfig) -> str:
    layers = {int(number) for key in found for number in re.findall(r"layer[._](\d+)[./]", key)}
    count = max(layers) + 1 if layers else 0
    says = config.num_hidden_layers
    tail = f" (the file has {count} layers, config.json says {says})" if count and count != says else ""
    return f"{where} does not fit config.json: '{name}' {what}{tail}"


def to_hf(weights: Weights, config: ModelConfig) -> dict[str, npt.NDArray[np.float32]]:
    """Return the weights under Hugging Face's names."""
    out: dict[str, npt.NDArray[np.float32]] = {}
    for row in _rows(config, TABLE):
        if row.ours in weights:
            parts = np.split(weights[row.ours], len(row.hf)) if len(row.hf) > 1 else [weights[row.ours]]
            out |= {name: np.ascontiguousarray(part) for name, part in zip(row.hf, parts, strict=True)}
    return out


def groups_of(weights: Mapping[str, Any]) -> set[str]:
    """Return which of encoder, pooler, mlm, nsp, head these weights hold."""
    return {group for group, rows in TABLE.items() if _expand(rows[0], 1)[0].ours in weights}


def is_slot(name: str) -> bool:
    """Tell whether a TensorFlow variable belongs to the optimizer or counts steps."""
    return _SLOTS.fullmatch(name) is not None
