"""The torch engine of Predictor."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from bert_miniatures.checkpoint import read_folder
from bert_miniatures.data.batches import Dataset
from bert_miniatures.engine import Counts
from bert_miniatures.errors import CheckpointError
from bert_miniatures.evaluation import logits_of
from bert_miniatures.machine import cores
from bert_miniatures.model import build

__all__ = ["TorchEngine", "open_engine"]


def open_engine(folder: Path, threads: int | None) -> "TorchEngine":
    """Open a model folder; see `Predictor`."""
    return TorchEngine(folder, threads)


class TorchEngine:
    """Computes logits with torch, on a GPU where there is one.

    Args:
        folder: a model folder with a classifier.
        threads: None for all cores that this process may use.
    """

    def __init__(self, folder: Path, threads: int | None = None) -> None:
        torch.set_num_threads(threads or min(torch.get_num_threads(), cores()))
        found = read_folder(folder, labels_needed=True)
        assert found.labels is not None
        if "pooler" not in found.groups:
            raise CheckpointError(f"{folder}: the classifier has no pooler before it")
        self.counts = Counts()
        self.labels, self.tokenizer = found.labels, found.tokenizer
        self.max_length = min(self.labels.max_length, found.config.max_position_embeddings)
        outputs = len(self.labels.names) or 1
        model = build(found.config, found.weights, groups={"pooler", "head"}, classes=outputs)
        self.model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def logits(self, texts: Sequence[str], pairs: Sequence[str] | None) -> npt.NDArray[np.float32]:
        """Return [N, C] in the order of the texts."""
        encoded = self.tokenizer.encode(texts, pairs, max_length=self.max_length)
        self.counts.add(encoded, self.max_length)
        return logits_of(self.model, Dataset(encoded, None, self.tokenizer.pad_id))
