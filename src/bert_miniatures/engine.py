"""What every engine of Predictor offers, and what it counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from bert_miniatures.outputs import Labels
from bert_miniatures.tokenizer import Encoded, Tokenizer

__all__ = ["Counts", "Engine", "Floats"]

Floats = npt.NDArray[np.float32]


@dataclass
class Counts:
    """What the texts were to the vocabulary so far, special tokens not counted.

    Attributes:
        rows: texts, or pairs of them.
        pieces: word pieces that the model saw.
        unknown: how many of them are [UNK].
        truncated: rows that were cut.
        max_length: in word pieces, where they were cut.
    """

    rows: int = 0
    pieces: int = 0
    unknown: int = 0
    truncated: int = 0
    max_length: int = 0

    def add(self, encoded: Encoded, max_length: int) -> None:
        """Count encoded rows."""
        self.take(Counts(len(encoded.lengths), encoded.pieces, encoded.unknown, encoded.truncated, max_length))

    def take(self, more: "Counts") -> None:
        """Add other counts."""
        self.rows += more.rows
        self.pieces += more.pieces
        self.unknown += more.unknown
        self.truncated += more.truncated
        self.max_length = more.max_length


class Engine(Protocol):
    """What computes logits: torch, or ONNX Runtime for a deploy folder. It counts what it reads."""

    labels: Labels
    tokenizer: Tokenizer
    counts: Counts

    def logits(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Floats:
        """Return [N, C] in the order of the texts."""
        ...
