"""From a fine-tuned model to a deploy folder: graphs, tokenizer and card, checked against torch before it is there."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bert_miniatures.card import deploy_card, versions
from bert_miniatures.check_data import load_check
from bert_miniatures.checkpoint import ModelFolder, config_document, read_folder
from bert_miniatures.errors import CheckpointError, UserError, WorkFailed
from bert_miniatures.files import atomic_folder, write_json
from bert_miniatures.model import Bert, build
from bert_miniatures.models import resolve
from bert_miniatures.onnx_graph import FP32, INPUTS, Precision, build_graph, mapped, products
from bert_miniatures.predict_onnx import FILES, FORMAT, MAPPED, TOKENIZER_SETTINGS, open_session
from bert_miniatures.quantise import Choice, choose
from bert_miniatures.watch import Watch

__all__ = ["TOLERANCE", "export", "parity"]

TOLERANCE = 1e-4  # of a logit, relative to it where it is above 1
_BATCHES = 9


@dataclass(frozen=True)
class _Source:
    """The model that is exported, and what its graphs say about themselves."""

    found: ModelFolder
    max_length: int
    facts: Mapping[str, Any]

    def graph(self, precision: Precision = FP32, shown: bool = False) -> bytes:
        """Return a graph as the bytes of its file."""
        about = {key: value if isinstance(value, str) else json.dumps(value) for key, value in self.facts.items()}
        kind = f"int{precision.bits}" if precision.products or precision.words else "fp32"
        about |= {"precision": kind}
        model = build_graph(self.found.config, self.found.weights, metadata=about, precision=precision, shown=shown)
        return bytes(model.SerializeToString())


def export(
    model: str | Path,
    out: str | Path,
    *,
    int8: bool = False,
    check: str | Path | None = None,
    glue: Path | None = None,
    columns: dict[str, str | None] | None = None,
    margin: float = 0.5,
    batch_invariant: bool = False,
    at_most: float = 1.0,
    overwrite: bool = False,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Write a deploy folder, which `Predictor` opens without torch.

    Args:
        model: a fine-tuned model folder or a run folder.
        out: the deploy folder.
        int8: try 8-bit integers too; they are written where they keep the metric and are faster.
        check: what int8 is judged on: a file, or the name of a GLUE task for its dev split; None means the run's own.
        glue: folder with GLUE.
        columns: names of the file's columns: text, pair, label.
        margin: points of the metric that int8 may lose.
        batch_invariant: int8 with fixed scales: a text's answer is the same whatever shares its batch.
        at_most: time of int8 as a share of fp32's that is still taken.
        overwrite: replace the folder that is there.

    Returns:
        What miniature.json of the folder holds.

    Raises:
        CheckpointError: the model has no classifier, or is damaged.
        OutputExists: `out` is not empty and `overwrite` is false.
        WorkFailed: the graph does not answer as torch does; nothing is written.
        UserError, DataError, LabelError: `check` cannot be used.

    Example:
        >>> export("runs/sst2", "deploy/sst2", int8=True)  # doctest: +SKIP
    """
    watch = watch or Watch()
    if check is not None and not int8:
        raise UserError("--check is what int8 is judged on; give --int8 too")
    with atomic_folder(Path(out), overwrite=overwrite) as folder:
        source = _source(resolve(str(model)))
        graph = source.graph()
        checked = parity(graph, source.found, source.max_length)
        watch.note(f"fp32: {checked['largest_difference']:.1e} from torch at most, over {checked['batches']} batches")
        files = {FILES["fp32"]: (graph, {"precision": "fp32", "parity": checked})}
        choice = None
        if int8:
            rows = load_check(model, source.found, check, source.max_length, glue=glue, columns=columns, watch=watch)
            parts = products(source.found.config)
            choice = choose(source.graph, parts, rows, margin=margin, fixed_scales=batch_invariant, at_most=at_most)
            watch.note(choice.said) if choice.graph else watch.warn(choice.said)
        if choice and choice.graph:
            kept = ("bits", "instructions", "batch_invariant")
            files[FILES["int8"]] = (choice.graph, {"precision": "int8"} | {key: choice.report[key] for key in kept})
        return _write(folder, source, files, choice)


def _source(folder: Path) -> _Source:
    found = read_folder(folder, labels_needed=True)
    labels = found.labels
    assert labels is not None
    if "pooler" not in found.groups:
        raise CheckpointError(f"{folder}: the classifier has no pooler before it")
    max_length = min(labels.max_length, found.config.max_position_embeddings)
    facts: dict[str, Any] = {
        "kind": labels.kind,
        "labels": list(labels.names),
        "task": labels.task,
        "pair": labels.pair,
    }
    facts |= {"max_length": max_length, "parent_sha256": found.fingerprint}
    facts |= {"tokenizer_sha256": found.tokenizer.fingerprint}
    return _Source(found, max_length, facts)


def parity(graph: bytes, found: ModelFolder, max_length: int, seed: int = 0) -> dict[str, Any]:
    """Compare a graph with torch on random rows: lengths, batch sizes, padding and second texts are all drawn.

    Returns:
        `{"batches", "largest_difference", "tolerance"}`.

    Raises:
        WorkFailed: an output differs by more than the tolerance.
    """
    outputs = len(found.weights["head.bias"])
    model = build(found.config, found.weights, groups={"pooler", "head"}, classes=outputs).eval()
    session = open_session(graph, 1)
    drawn = np.random.default_rng(seed)
    largest = 0.0
    for number in range(_BATCHES):
        rows, width = int(drawn.integers(1, 8)), int(drawn.integers(3, max_length + 1))
        if number == 0:
            rows, width = 1, max_length
        feed = _drawn(drawn, rows, width, found)
        got, expected = session.run(["logits"], feed)[0], _torch_logits(model, feed)
        difference = np.abs(got - expected) / np.maximum(1, np.abs(expected))
        if not difference.max() <= TOLERANCE:  # where it is not a number too
            raise WorkFailed(
                f"the ONNX graph differs from torch by {difference.max():.1e} at a batch of {rows} texts of {width} "
                f"pieces, at most {TOLERANCE:g} is allowed; nothing was written"
            )
        largest = max(largest, float(difference.max()))
    return {"batches": _BATCHES, "largest_difference": largest, "tolerance": TOLERANCE}


def _drawn(drawn: np.random.Generator, rows: int, width: int, found: ModelFolder) -> dict[str, np.ndarray]:
    columns = np.arange(width)
    lengths = drawn.integers(2, width + 1, rows)
    lengths[0] = width
    real = columns < lengths[:, None]
    second = real & (columns >= drawn.integers(2, width + 1, rows)[:, None])
    if found.config.type_vocab_size < 2:
        second[:] = False
    ids = np.where(real, drawn.integers(0, found.config.vocab_size, (rows, width)), found.tokenizer.pad_id)
    return dict(zip(INPUTS, (ids.astype(np.int64), real.astype(np.int64), second.astype(np.int64)), strict=True))


@torch.inference_mode()
def _torch_logits(model: Bert, feed: Mapping[str, np.ndarray]) -> np.ndarray:
    ids, mask, segments = (torch.from_numpy(feed[name]) for name in INPUTS)
    logits: np.ndarray = model.classify(ids, segments, mask.bool()).numpy()
    return logits


def _write(
    folder: Path, source: _Source, files: dict[str, tuple[bytes, dict[str, Any]]], choice: Choice | None
) -> dict[str, Any]:
    """Write the folder and return what its miniature.json holds."""
    tokenizer, listed = source.found.tokenizer, {}
    (folder / "onnx").mkdir()
    for name, (graph, entry) in files.items():
        (folder / name).write_bytes(graph)
        listed[name] = {"sha256": hashlib.sha256(graph).hexdigest(), "bytes": len(graph)} | entry
    small = mapped(files[FILES["fp32"]][0], Path(FILES["fp32"]).name)
    (folder / MAPPED).write_bytes(small)
    listed[FILES["fp32"]]["mapped"] = {"file": MAPPED, "sha256": hashlib.sha256(small).hexdigest()}
    tokenizer.save(folder, positions=source.max_length)  # so that other programs cut where Predictor does
    write_json(folder / "config.json", config_document(source.found))
    meta: dict[str, Any] = {"format": FORMAT, **source.facts, "onnx": listed}
    settings = {key: getattr(tokenizer, key) for key in TOKENIZER_SETTINGS}
    vocabulary = hashlib.sha256((folder / "vocab.txt").read_bytes()).hexdigest()
    meta |= {"tokenizer": settings | {"sha256": vocabulary}, "versions": versions("onnx", "onnxruntime")}
    if choice is not None:
        meta["int8"] = {"written": choice.graph is not None, "said": choice.said, "report": _finite(choice.report)}
    meta = _finite(meta)
    write_json(folder / "miniature.json", meta)
    assert source.found.labels is not None
    (folder / "README.md").write_text(deploy_card(source.found.labels, source.found.config, meta), encoding="utf-8")
    return meta


def _finite(value: Any) -> Any:
    """Replace NaN, which JSON does not have, by null."""
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
