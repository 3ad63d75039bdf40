"""How long the user's texts are: what every speed depends on."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from bert_miniatures.data.stream import stream_rows
from bert_miniatures.download import hub_snapshot
from bert_miniatures.errors import ConfigError, DataError
from bert_miniatures.models import converted, is_model
from bert_miniatures.tokenizer import Tokenizer
from bert_miniatures.zoo import POSITIONS, ZOO

__all__ = ["DEFAULT", "Profile", "of_file", "of_number", "of_texts"]

DEFAULT = 32  # word pieces, where the user says nothing
ROWS = 2000  # of a file that are read
KEPT = 256  # lengths that stand for all
PIECES_PER_WORD = 1.2  # of English words in the published vocabulary, where no vocabulary is here to count with
_WORDS = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Profile:
    """Lengths of typical texts.

    Attributes:
        lengths: in word pieces, special tokens included; ascending, at most 256 of them.
        said: where they are from.
    """

    lengths: tuple[int, ...]
    said: str

    def quantile(self, share: float) -> int:
        """Return the length that this share of the texts does not exceed.

        Example:
            >>> Profile((8, 8, 9, 100), "").quantile(0.5)
            8
        """
        return self.lengths[max(0, int(np.ceil(share * len(self.lengths))) - 1)]


def of_number(length: int) -> Profile:
    """Take all texts to be equally long.

    Raises:
        ConfigError: no model reads texts of that length.
    """
    if not 3 <= length <= POSITIONS:
        raise ConfigError(
            f"--lengths {length}: expected 3 to {POSITIONS} word pieces, special tokens included, or a file"
        )
    return Profile((length,), f"every text has {length} word pieces")


def of_file(path: Path, max_length: int, *, text: str | None = None, pair: str | None = None) -> Profile:
    """Count the word pieces of a file's first rows.

    Args:
        path: .csv .tsv .jsonl .parquet, or .txt with a text a line.
        max_length: where texts are cut, as in fine-tuning.
        text, pair: names of the columns; guessed by name where None.

    Raises:
        DataError: the file cannot be read.
    """
    texts: list[str] = []
    pairs: list[str] = []
    for some, others in islice(stream_rows(path, text=text, pair=pair), ROWS // 1024 + 1):
        texts += some
        pairs += others or []
    return of_texts(texts[:ROWS], pairs[:ROWS] or None, max_length, str(path))


def of_texts(texts: Sequence[str], pairs: Sequence[str] | None, max_length: int, source: str) -> Profile:
    """Count the word pieces of texts, with the vocabulary of any of the 24 that is here; they share it."""
    if not texts:
        raise DataError(f"{source}: no texts")
    tokenizer = _tokenizer()
    if tokenizer is not None:
        lengths = tokenizer.encode(texts, pairs, max_length=max_length).lengths
        how = "counted"
    else:
        columns: Iterable[Sequence[str]] = [texts] if pairs is None else [texts, pairs]
        pieces = sum(np.array([PIECES_PER_WORD * len(_WORDS.findall(text)) for text in column]) for column in columns)
        lengths = np.clip(np.rint(pieces + (2 if pairs is None else 3)), 3, max_length).astype(np.int64)
        how = f"estimated at {PIECES_PER_WORD} a word, for none of the 24 is here to count with"
    ordered = np.sort(lengths)
    taken = ordered[np.linspace(0, len(ordered) - 1, min(KEPT, len(ordered))).round().astype(int)]
    profile = Profile(tuple(int(n) for n in taken), "")
    told = f"{profile.quantile(0.5)} word pieces at the median, {profile.quantile(0.95)} at 95 of 100"
    return Profile(profile.lengths, f"{source}: {told} of {len(texts):,} texts, {how}, cut at {max_length}")


def _tokenizer() -> Tokenizer | None:
    """Return the tokenizer of whichever of the 24 is on this machine."""
    for model in ZOO.values():
        folder = converted(model) if is_model(converted(model)) else hub_snapshot(model)
        if folder is not None:
            return Tokenizer.from_folder(folder)
    return None
