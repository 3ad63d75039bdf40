"""Teachers of other architectures: whatever transformers opens as a sequence classifier, with its own tokenizer.

Class logits need no shared vocabulary, so that any model may teach. Only weights are read, never code.
"""

import contextlib
import functools
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_miniatures.errors import CheckpointError, MissingExtra
from bert_miniatures.files import read_json, sha256_of
from bert_miniatures.soft_labels import About

__all__ = ["AutoTeacher", "is_foreign"]

_KINDS = {
    "regression": "regression",
    "single_label_classification": "classification",
    "multi_label_classification": "multilabel",
}
_LONGEST = 512  # word pieces, where neither tokenizer nor model says less
_POSITIONS = 4096  # of a batch, padding included


def is_foreign(folder: Path) -> bool:
    """Tell a folder of another architecture from a BERT's, which this package reads itself."""
    file = folder / "config.json"
    document = read_json(file) if file.is_file() else {}
    return isinstance(document, dict) and document.get("model_type", "bert") != "bert"


class AutoTeacher:
    """A classifier of another architecture, opened by transformers.

    Args:
        name: what the user calls it.
        folder: with config.json, weights (safetensors, or pytorch_model.bin without any code in it) and tokenizer.

    Raises:
        MissingExtra: transformers is not installed.
        CheckpointError: no weights, no classifier, code of its own, or damaged.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        document: Mapping[str, Any] = read_json(folder / "config.json")
        self.kind = str(document["model_type"])
        if find_spec("transformers") is None or find_spec("torch") is None:
            raise MissingExtra(f"{name}, a teacher of the kind '{self.kind}',", "teacher")
        labels = _labels_of(document)
        kind = _KINDS.get(document.get("problem_type") or "", "regression" if len(labels) == 1 else "classification")
        files = _weight_files(folder)
        facts = {
            "name": name,
            "sha256": _digest(files),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "bytes": sum(file.stat().st_size for file in files),
            "max_length": self.max_length,
        }
        self.about = About(kind, () if kind == "regression" else labels, (facts,))

    @functools.cached_property
    def model(self) -> Any:
        """The model, in evaluation mode, on a GPU where there is one."""
        import torch
        from transformers import AutoModelForSequenceClassification

        with self._said(), _quiet():
            model, found = AutoModelForSequenceClassification.from_pretrained(
                str(self.folder), trust_remote_code=False, local_files_only=True, weights_only=True,
                output_loading_info=True, dtype=torch.float32,
            )  # fmt: skip
        missing = sorted(found["missing_keys"])
        if missing:
            raise CheckpointError(f"{self.folder}: no whole classifier: '{missing[0]}' is missing from the weights")
        return model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The model's own tokenizer."""
        from transformers import AutoTokenizer

        with self._said(), _quiet():
            return AutoTokenizer.from_pretrained(str(self.folder), trust_remote_code=False, local_files_only=True)

    @functools.cached_property
    def max_length(self) -> int:
        """How many pieces the model reads; models that count positions from the padding's number on have fewer."""
        limits = [_LONGEST, int(self.tokenizer.model_max_length)]
        positions = getattr(self.model.config, "max_position_embeddings", None)
        if isinstance(positions, int) and positions > 0:
            first = [
                module.padding_idx + 1
                for name, module in self.model.named_modules()
                if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None
            ]
            limits.append(positions - max(first, default=0))
        return min(limits)

    def answer(self, texts: Sequence[str], pairs: Sequence[str] | None) -> npt.NDArray[np.float32]:
        """Return the logits [N, C], in order."""
        import torch

        from bert_miniatures.data.batches import by_length

        out = np.empty((len(texts), self.about.outputs), np.float32)
        if not len(texts):
            return out
        both = {} if pairs is None else {"text_pair": list(pairs)}
        encoded = self.tokenizer(list(texts), **both, truncation=True, max_length=self.max_length)
        lengths = np.array([len(ids) for ids in encoded["input_ids"]])
        device = next(self.model.parameters()).device
        with torch.inference_mode():
            for rows in by_length(lengths, _POSITIONS):
                batch = self.tokenizer.pad(
                    {key: [values[i] for i in rows] for key, values in encoded.items()}, return_tensors="pt"
                )
                out[rows] = self.model(**batch.to(device)).logits.float().cpu().numpy()
        if not np.isfinite(out).all():
            raise CheckpointError(f"{self.folder}: the model answers NaN or infinity; its weights are damaged")
        return out

    @contextlib.contextmanager
    def _said(self) -> Iterator[None]:
        """Turn what transformers raises for a folder that it cannot open into one sentence."""
        try:
            yield
        except ModuleNotFoundError:
            raise MissingExtra(f"{self.name}, a teacher of the kind '{self.kind}',", "teacher") from None
        except Exception as error:  # each of its parts, and each file format, has errors of its own
            said = " ".join(str(error).split()) or type(error).__name__
            if "trust_remote_code" in said:
                said = "it needs code of its own, which is never run"
            raise CheckpointError(f"{self.folder}: transformers cannot open this '{self.kind}': {said:.300}") from None


def _labels_of(document: Mapping[str, Any]) -> tuple[str, ...]:
    table = {int(key): str(name) for key, name in (document.get("id2label") or {}).items()}
    count = len(table) or int(document.get("num_labels", 2))
    return tuple(table.get(i, f"LABEL_{i}") for i in range(count))


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that transformers reads: safetensors where there are any, as it prefers them."""
    for pattern in ("model*.safetensors", "pytorch_model*.bin"):
        found = sorted(folder.glob(pattern))
        if found:
            return found
    raise CheckpointError(f"{folder}: no weights; looked for model.safetensors and pytorch_model.bin")


def _digest(files: Sequence[Path]) -> str:
    if len(files) == 1:
        return sha256_of(files[0])
    return hashlib.sha256("\n".join(map(sha256_of, files)).encode()).hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' progress bars and remarks off the terminal."""
    logging: Any = import_module("transformers.utils.logging")
    before = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
