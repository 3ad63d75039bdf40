"""Which words mattered: each is left out in turn, and the score of the first label is looked at again (occlusion).

The effect of a word is the score with it less the score without it. It says what this model does with this text when
the word is gone, and no more: two words that mean the same hide each other. Words are what spaces separate.

Source: Li, Monroe and Jurafsky 2016, "Understanding Neural Networks through Representation Erasure", arXiv 1612.08220.
"""

import re
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from bert_miniatures.serve.asked import Asked
from bert_miniatures.serve.scores import ranked, scores
from bert_miniatures.serve.served import Model
from bert_miniatures.tokenizer import Tokenizer, replace_surrogates

__all__ = ["METHOD", "explain", "pieces_of", "words_of"]

METHOD = "occlusion: the score of the first label, less its score when the word is left out"
_WORD = re.compile(r"\S+")


@dataclass(frozen=True)
class _Word:
    """A word of the first (0) or second (1) text, at these characters."""

    of: int
    start: int
    end: int


async def explain(model: Model, asked: Asked, most: int) -> dict[str, Any]:
    """Answer one text, and say which pieces it became and what each of its first words does.

    Args:
        asked: one text or pair.
        most: words that are looked at.
    """
    sides = [replace_surrogates(asked.texts[0]), *map(replace_surrogates, asked.pairs or ())]
    start = perf_counter()
    logits = await model.batcher.logits(sides[:1], sides[1:] or None)
    answered = perf_counter()
    found = scores(model.labels, logits)
    best = int(found[0].argmax())
    words = words_of(sides)
    chosen = words[:most]
    effects: list[float] = []
    if chosen:
        without = [_without(sides, word) for word in chosen]
        pairs = [row[1] for row in without] if len(sides) > 1 else None
        others = await model.batcher.logits([row[0] for row in without], pairs)
        effects = (found[0, best] - scores(model.labels, others)[:, best]).tolist()
    pieces, cut = pieces_of(model.predictor.engine.tokenizer, sides, model.max_length)
    return {
        "model": model.name,
        "answers": ranked(model.labels, found)[0],
        "pieces": pieces,
        "cut": cut,
        "max_length": model.max_length,
        "words": [
            {
                "of": "text_pair" if word.of else "text",
                "text": sides[word.of][word.start : word.end],
                "start": word.start,
                "end": word.end,
                "effect": effect,
            }
            for word, effect in zip(chosen, effects, strict=True)
        ],
        "words_left_out": len(words) - len(chosen),
        "method": METHOD,
        "milliseconds": {"answer": 1e3 * (answered - start), "words": 1e3 * (perf_counter() - answered)},
    }


def words_of(sides: list[str]) -> list[_Word]:
    """Return the words of a text, or of both texts of a pair, where they stand."""
    return [_Word(i, *match.span()) for i, side in enumerate(sides) for match in _WORD.finditer(side)]


def _without(sides: list[str], word: _Word) -> list[str]:
    return [side[: word.start] + " " + side[word.end :] if i == word.of else side for i, side in enumerate(sides)]


def pieces_of(tokenizer: Tokenizer, sides: list[str], max_length: int) -> tuple[list[list[str]], bool]:
    """Return the pieces of each text that the model sees, special tokens left out, and whether any were cut."""
    encoded = tokenizer.encode(sides[:1], sides[1:] or None, max_length=max_length)
    end = int(encoded.first[0])
    parts = [encoded.ids[1 : end - 1]] + ([encoded.ids[end:-1]] if len(sides) > 1 else [])
    return [[tokenizer.vocabulary[i] for i in part.tolist()] for part in parts], bool(encoded.truncated)
