"""The ONNX Runtime engine of Predictor, for a deploy folder: numpy, tokenizers and onnxruntime, no torch."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from bert_miniatures.engine import Counts, Floats
from bert_miniatures.errors import CheckpointError, UnknownName
from bert_miniatures.files import read_json, sha256_of
from bert_miniatures.machine import adds_in_32_bits, cores, instructions
from bert_miniatures.outputs import Labels
from bert_miniatures.tokenizer import Encoded, Tokenizer
from bert_miniatures.vocabulary import read_vocabulary

__all__ = [
    "FILES",
    "FORMAT",
    "MAPPED",
    "TOKENIZER_SETTINGS",
    "OnnxEngine",
    "batches",
    "open_engine",
    "open_session",
    "run",
]

# precision -> file of a deploy folder
FILES = {"fp32": "onnx/model.onnx", "int8": "onnx/model_quantized.onnx"}
MAPPED = "onnx/model_mapped.onnx"  # fp32 without the word vectors, which it finds in the other file
FORMAT = 1
TOKENIZER_SETTINGS = ("lowercase", "strip_accents", "split_chinese")
BUDGET = 4096  # positions a batch

Ints = npt.NDArray[np.int64]


def open_engine(folder: Path, threads: int | None, precision: str = "fp32") -> "OnnxEngine":
    """Open a deploy folder; see `Predictor`."""
    return OnnxEngine(folder, threads, precision)


class OnnxEngine:
    """Computes logits with ONNX Runtime on the CPU.

    Args:
        folder: a deploy folder, as `miniatures export` writes it.
        threads: None for all cores that this process may use.
        precision: fp32, or int8 where the folder has it.

    Raises:
        CheckpointError: a file is missing or damaged, or was checked for a processor that this one is not.
        UnknownName: no such precision.
    """

    def __init__(self, folder: Path, threads: int | None = None, precision: str = "fp32") -> None:
        if precision not in FILES:
            raise UnknownName("precision", precision, FILES)
        meta = _read_meta(folder)
        file = _checked_graph(folder, meta, precision)
        self.counts = Counts()
        self.labels = _labels(meta, folder)
        self.tokenizer = _tokenizer(folder, meta)
        self.session = open_session(file, threads or cores())
        outputs, names = self.session.get_outputs()[0].shape[1], self.labels.names or ("score",)
        if outputs != len(names):
            raise CheckpointError(
                f"{folder}: miniature.json names {len(names)} labels, the graph has {outputs} outputs"
            )
        self.max_length = self.labels.max_length

    def logits(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Floats:
        """Return [N, C] in the order of the texts."""
        encoded = self.tokenizer.encode(texts, pairs, max_length=self.max_length)
        self.counts.add(encoded, self.max_length)
        return run(self.session, encoded, self.tokenizer.pad_id)


def open_session(model: Path | bytes, threads: int) -> onnxruntime.InferenceSession:
    """Open a graph with a number of threads.

    Raises:
        CheckpointError: ONNX Runtime cannot read it.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the next batch is not there yet
    try:
        source = model if isinstance(model, bytes) else str(model)
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # classes of its own, one for each status
        reason = str(error).splitlines()[0][:160]
        name = "the graph" if isinstance(model, bytes) else str(model)
        raise CheckpointError(f"{name}: ONNX Runtime cannot open it ({reason})") from None


def run(session: onnxruntime.InferenceSession, encoded: Encoded, pad_id: int) -> Floats:
    """Return the logits [N, C] of encoded rows, in their order."""
    if len(encoded.lengths) == 1:
        logits: Floats = session.run(["logits"], _one_row(encoded))[0]
        return logits
    found = [(rows, session.run(["logits"], feed)[0]) for rows, feed in batches(encoded, pad_id)]
    out = np.empty((len(encoded.lengths), found[0][1].shape[1]), np.float32)
    for rows, logits in found:
        out[rows] = logits
    return out


def _one_row(encoded: Encoded) -> dict[str, Ints]:
    """Return what `batches` gives for one row: putting a single text in order took a tenth of its time."""
    ids = encoded.ids[None].astype(np.int64)
    second = (np.arange(len(encoded.ids)) >= encoded.first[0])[None].astype(np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": second}


def batches(encoded: Encoded, pad_id: int, budget: int = BUDGET) -> Iterator[tuple[Ints, dict[str, Ints]]]:
    """Yield the rows of each batch and the graph's inputs, sorted by length.

    Args:
        encoded: N rows.
        pad_id: what fills short rows.
        budget: positions per batch, padding included; one row may have more.
    """
    offsets = np.cumsum(encoded.lengths, dtype=np.int64) - encoded.lengths
    order = np.argsort(encoded.lengths, kind="stable")[::-1]
    start = 0
    while start < len(order):
        width = int(encoded.lengths[order[start]])
        rows = order[start : start + max(1, budget // width)]
        start += len(rows)
        columns = np.arange(width)
        real = columns < encoded.lengths[rows][:, None]
        where = np.minimum(offsets[rows][:, None] + columns, len(encoded.ids) - 1)
        yield (
            rows,
            {
                "input_ids": np.where(real, encoded.ids[where], pad_id).astype(np.int64),
                "attention_mask": real.astype(np.int64),
                "token_type_ids": (real & (columns >= encoded.first[rows][:, None])).astype(np.int64),
            },
        )


def _read_meta(folder: Path) -> dict[str, Any]:
    path = folder / "miniature.json"
    if not path.is_file():
        raise CheckpointError(f"{folder}: no miniature.json; 'miniatures export' makes a deploy folder")
    meta = read_json(path)
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        found = meta.get("format") if isinstance(meta, dict) else None
        raise CheckpointError(f"{path}: format {found}, this version reads format {FORMAT}")
    return meta


def _checked(folder: Path, name: str, sha256: Any) -> Path:
    """Return a file whose bytes are those that were exported and checked."""
    file = folder / name
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file; miniature.json lists it, so the folder is not whole")
    if sha256_of(file) != sha256:
        raise CheckpointError(f"{file}: the bytes do not match the checksum in miniature.json; the file is damaged")
    return file


def _checked_graph(folder: Path, meta: Mapping[str, Any], precision: str) -> Path:
    listed = meta.get("onnx", {})
    entry = listed.get(FILES[precision])
    if entry is None:
        known = ", ".join(other for other, file in FILES.items() if file in listed) or "no graph"
        raise CheckpointError(f"{folder} has no {FILES[precision]}, only {known}; 'miniatures export --int8' tries it")
    file = _checked(folder, FILES[precision], entry.get("sha256"))
    if entry.get("bits") == 8 and not adds_in_32_bits():
        raise CheckpointError(
            f"{file} was checked on {entry.get('instructions')} and can overflow on this processor "
            f"({instructions()}); export it here, or use fp32"
        )
    small = entry.get("mapped")
    return file if small is None else _checked(folder, small["file"], small["sha256"])


def _tokenizer(folder: Path, meta: Mapping[str, Any]) -> Tokenizer:
    """Read vocab.txt and nothing else: checked bytes need no second vocabulary to compare with."""
    settings = meta.get("tokenizer", {})
    vocabulary = read_vocabulary(_checked(folder, "vocab.txt", settings.get("sha256")))
    return Tokenizer(vocabulary, **{key: settings[key] for key in TOKENIZER_SETTINGS if key in settings})


def _labels(meta: Mapping[str, Any], folder: Path) -> Labels:
    try:
        return Labels(meta["kind"], tuple(meta["labels"]), meta["task"], meta["pair"], meta["max_length"])
    except KeyError as error:
        raise CheckpointError(f"{folder / 'miniature.json'}: the key {error} is missing") from None
