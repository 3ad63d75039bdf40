"""fill(): what a model with a masked-LM head would put where a text has [MASK]."""

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import torch
from torch import Tensor

from bert_miniatures.checkpoint import read_folder
from bert_miniatures.errors import CheckpointError, ConfigError, DataError
from bert_miniatures.model import build
from bert_miniatures.models import resolve

__all__ = ["Filler", "Guess", "fill"]

_MASK = "[MASK]"

Guess = dict[str, str | float]


class Filler:
    """A model that is ready to fill in; see `fill`.

    Args:
        model: any MODEL of the command line.

    Raises:
        CheckpointError: the model has no masked-LM head.
    """

    def __init__(self, model: str | Path) -> None:
        found = read_folder(resolve(str(model)))
        if "mlm" not in found.groups:
            has = "a classifier" if "head" in found.groups else "an encoder alone"
            raise CheckpointError(
                f"{model} has no masked-LM head to fill in with, but {has}; 'miniatures pretrain --model {model}' "
                "trains one"
            )
        self.tokenizer, self.model = found.tokenizer, build(found.config, found.weights, groups={"mlm"}).eval()
        self.fingerprint, self.limit = found.fingerprint, found.config.max_position_embeddings - 2

    @torch.inference_mode()
    def __call__(self, text: str, top: int = 5) -> list[list[Guess]]:
        """Return, for each [MASK] of the text, the `top` likeliest pieces, the likeliest first."""
        if not 0 < top <= len(self.tokenizer.vocabulary):
            raise ConfigError(
                f"top is {top}; expected 1 to {len(self.tokenizer.vocabulary)}, the size of the vocabulary"
            )
        parts = text.split(_MASK)
        if len(parts) == 1:
            raise DataError(f"no {_MASK} in '{text:.60}'; write it where a word is missing")
        ids = self._ids(parts)
        if len(ids) > self.limit:
            raise DataError(f"'{text:.60}…' has {len(ids)} word pieces and the model reads {self.limit}; shorten it")
        scores, pieces = self.scores([parts])[0].softmax(-1).topk(top)
        names = self.tokenizer.vocabulary
        return [
            [{"piece": names[piece], "score": score} for piece, score in zip(*found, strict=True)]
            for found in zip(pieces.tolist(), scores.tolist(), strict=True)
        ]

    @torch.inference_mode()
    def scores(self, rows: Sequence[Sequence[str]]) -> list[Tensor]:
        """Score the whole vocabulary for each missing word of several texts at once.

        Args:
            rows: of each text the parts between its missing words, of which none is read as a special token.

        Returns:
            For each text [K, V], one row per missing word; a text is cut at what the model reads, and so are its rows.
        """
        special = self.tokenizer
        ids = [[special.cls_id, *self._ids(parts)[: self.limit], special.sep_id] for parts in rows]
        device, width = next(self.model.parameters()).device, max(map(len, ids))
        padded = torch.tensor([row + [special.pad_id] * (width - len(row)) for row in ids])
        real = torch.arange(width) < torch.tensor([[len(row)] for row in ids])
        missing = padded == special.mask_id
        places = missing.flatten().nonzero()[:, 0].to(device)
        counts = missing.sum(1).tolist()
        if not len(places):
            return [torch.empty(0, len(special.vocabulary))] * len(rows)
        hidden = self.model(padded.to(device), None, None if real.all() else real.to(device), wanted=places)
        return list(torch.split(self.model.masked(hidden).float().cpu(), counts))

    def _ids(self, parts: Sequence[str]) -> list[int]:
        """Return the ids of a text in which [MASK], and nothing else, is a special token; without [CLS] and [SEP]."""
        ids: list[int] = []
        for part in parts:
            ids += [*self.tokenizer.ids(part), self.tokenizer.mask_id]
        ids.pop()
        return ids


@overload
def fill(model: str | Path, texts: str, *, top: int = 5) -> list[list[Guess]]: ...
@overload
def fill(model: str | Path, texts: list[str] | tuple[str, ...], *, top: int = 5) -> list[list[list[Guess]]]: ...
def fill(
    model: str | Path, texts: str | list[str] | tuple[str, ...], *, top: int = 5
) -> list[list[Guess]] | list[list[list[Guess]]]:
    """Guess the words behind [MASK].

    Where a text has several, each is guessed for itself: the others stay masked.

    Args:
        model: any MODEL of the command line.
        texts: a text, or several. No other special token is read in it: "[SEP]" is text.
        top: guesses for each [MASK].

    Returns:
        For each [MASK] a list of guesses, as {"piece": "capital", "score": 0.41}; for several texts, a list of these.

    Raises:
        CheckpointError: the model has no masked-LM head.
        DataError: a text has no [MASK], or more pieces than the model has positions.

    Example:
        >>> fill("tiny", "Paris is the [MASK] of France.", top=1)  # doctest: +SKIP
        [[{'piece': 'capital', 'score': 0.55}]]
    """
    filler = Filler(model)
    return filler(texts, top) if isinstance(texts, str) else [filler(text, top) for text in texts]
