"""Learning a WordPiece vocabulary from text, through the trainer of `tokenizers`.

The trainer numbers characters in the order of a hash table and breaks ties between equally frequent pairs by number, so
that its result can differ from run to run. Here it is handed what leaves no choice: words are counted first, characters
get their numbers before it starts, and words come in sorted order. The same text gives the same bytes, whatever the
order of the files and the number of threads.

Source: Schuster & Nakajima 2012, "Japanese and Korean voice search"; the layout is that of google-research/bert's
`vocab.txt`; pairs are merged by frequency, as `tokenizers` does.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

from bert_miniatures.data.corpus import EncodingErrors, Faults, Source, documents
from bert_miniatures.errors import ConfigError, DataError
from bert_miniatures.files import atomic_folder
from bert_miniatures.tokenizer import Tokenizer
from bert_miniatures.vocabulary import SPECIAL, WORD_LIMIT
from bert_miniatures.watch import Watch

__all__ = ["Learnt", "count_words", "learn_pieces", "learn_vocabulary"]

_SMALLEST = 50
_OFFICIAL_LAYOUT = 1_000  # pieces; a smaller vocabulary has no room for the unused ones
_CHARACTERS = 1_000
_COUNTED = 2_000_000  # distinct words held while counting
_TRAINED = 1_000_000  # distinct words that the trainer sees
_MIN_COUNT = 2  # of a pair that becomes a piece
_SLOW_WORDS = 2_048  # handed to the normaliser at once

# Printable ASCII: BERT's normaliser does nothing to it but the case, and its words are runs of letters and digits.
_WORDS = re.compile(
    rf"(?<![0-9A-Za-z])[0-9A-Za-z]{{1,{WORD_LIMIT}}}(?![0-9A-Za-z])|[!-/:-@\[-`{{-~]",
)


@dataclass(frozen=True)
class Learnt:
    """A vocabulary and what it was made of.

    Attributes:
        pieces: the vocabulary.
        words: in the corpus, punctuation marks included.
        distinct: how many of them are different.
        characters: that have pieces; a word with another one is [UNK].
        unknown: words with another character.
    """

    pieces: list[str]
    words: int
    distinct: int
    characters: int
    unknown: int


def learn_vocabulary(
    sources: Sequence[Source],
    out: Path,
    *,
    size: int = 30_522,
    lowercase: bool = True,
    on_errors: EncodingErrors = "error",
    overwrite: bool = False,
    watch: Watch | None = None,
) -> Learnt:
    """Learn a vocabulary and write it as tokenizer files: `vocab.txt`, `tokenizer.json`, `tokenizer_config.json`.

    Args:
        sources: from `open_corpus`.
        out: the folder.
        size: pieces, special ones included; a small corpus gives fewer.
        lowercase: an uncased vocabulary, as the 24 models have.
        on_errors: what to do with lines that are not UTF-8; see `documents`.
        overwrite: replace what is in the folder.

    Raises:
        ConfigError: the size leaves no room for pieces.
        DataError: the corpus cannot be read or has no words.
        OutputExists: the folder is not empty.
    """
    watch = watch or Watch()
    _check_size(size)
    with atomic_folder(out, overwrite=overwrite) as folder:  # refuses an existing one before the work begins
        counts = count_words(sources, lowercase=lowercase, on_errors=on_errors, watch=watch)
        learnt = learn_pieces(counts, size)
        Tokenizer.from_vocabulary(learnt.pieces, lowercase=lowercase).save(folder)
    if len(learnt.pieces) < size:
        watch.warn(f"the corpus gives {len(learnt.pieces):,} pieces, not {size:,}: no other pair occurs twice")
    if learnt.unknown:
        share = learnt.unknown / learnt.words
        watch.note(f"{share:.3%} of the words have a character that is too rare for a piece; they are [UNK]")
    return learnt


def _check_size(size: int) -> None:
    if size < _SMALLEST:
        raise ConfigError(f"a vocabulary of {size} pieces is too small; at least {_SMALLEST} are needed")


def count_words(
    sources: Sequence[Source],
    *,
    lowercase: bool = True,
    on_errors: EncodingErrors = "error",
    watch: Watch | None = None,
) -> Counter[str]:
    """Count the words of a corpus, as BERT's normaliser and pre-tokenizer divide it.

    Words over 100 characters are left out, for they are [UNK]. Where more than 2,000,000 distinct words are held the
    rarest are forgotten, once as often as needed, and a warning says so.

    Raises:
        DataError: the corpus cannot be read or has no words.
    """
    watch = watch or Watch()
    total, before, faults = sum(source.path.stat().st_size for source in sources), 0, Faults()
    split = _Splitter(lowercase)
    counts: Counter[str] = Counter()
    forgotten = 0
    for source in sources:
        for document in documents(source, on_errors=on_errors, faults=faults):
            for paragraph in document:
                for words in split(paragraph):
                    counts.update(words)
            if len(counts) > _COUNTED:
                forgotten = max(forgotten, _forget_rare(counts, _COUNTED // 2))
        before += source.path.stat().st_size
        watch.progress(before, total, f"{len(counts):,} distinct words")
    if not counts:
        names = ", ".join(str(source.path) for source in sources[:3])
        raise DataError(f"{names}: no words in the corpus")
    if faults.lines:
        watch.warn(f"{faults.lines:,} lines are not UTF-8, the first is {faults.first}; {on_errors} was asked for")
    if forgotten:
        watch.warn(f"more than {_COUNTED:,} distinct words; some met up to {forgotten} times were not counted in full")
    return counts


def _forget_rare(counts: Counter[str], keep: int) -> int:
    """Remove the rarest words until at most `keep` are left; return how often the last of them had been met."""
    floor = 0
    while len(counts) > keep:
        floor += 1
        for word in [word for word, count in counts.items() if count <= floor]:
            del counts[word]
    return floor


class _Splitter:
    """Yields lists of words of a text; what is not printable ASCII goes through `tokenizers`."""

    def __init__(self, lowercase: bool) -> None:
        self._lowercase = lowercase
        self._normalizer = normalizers.BertNormalizer(lowercase=lowercase)
        self._pre_tokenizer = pre_tokenizers.BertPreTokenizer()

    def __call__(self, text: str) -> Iterator[list[str]]:
        if text.isascii() and text.isprintable():
            yield self._ascii(text)
            return
        # A space ends a word, and no rule of the normaliser looks across one.
        parts = text.split(" ")
        plain = [part.isascii() and part.isprintable() for part in parts]
        yield self._ascii(" ".join(part for part, fast in zip(parts, plain, strict=True) if fast))
        slow = [part for part, fast in zip(parts, plain, strict=True) if not fast]
        for start in range(0, len(slow), _SLOW_WORDS):
            normal = self._normalizer.normalize_str(" ".join(slow[start : start + _SLOW_WORDS]))
            words = (word for word, _ in self._pre_tokenizer.pre_tokenize_str(normal))
            yield [word for word in words if len(word) <= WORD_LIMIT]

    def _ascii(self, text: str) -> list[str]:
        return _WORDS.findall(text.lower() if self._lowercase else text)


def learn_pieces(counts: Counter[str], size: int) -> Learnt:
    """Make the vocabulary from the counts of words.

    Layout, from 1,000 pieces on: [PAD] 0, [unused0] to [unused98] 1 to 99, [UNK] 100, [CLS] 101, [SEP] 102, [MASK] 103,
    as in the official vocabulary; in a smaller one the five special tokens are 0 to 4. Then the characters by code
    point, the same as continuations where one occurs inside a word, then the merged pieces in the order of merging.

    Args:
        counts: word -> how often; see `count_words`.
        size: pieces, special ones included.

    Example:
        >>> learnt = learn_pieces(Counter({"low": 5, "lower": 3, "!": 2}), 50)
        >>> learnt.pieces[5:]
        ['!', 'e', 'l', 'o', 'r', 'w', '##e', '##l', '##o', '##r', '##w', 'lo', 'low', '##er', 'lower']
    """
    _check_size(size)
    special = _special_pieces(size)
    kept = _frequent_characters(counts, min(_CHARACTERS, (size - len(special)) // 4))
    usable = {word: count for word, count in counts.items() if kept.issuperset(word)}
    frequent = sorted(usable, key=lambda word: (-usable[word], word))[:_TRAINED]
    inside = {character for word in usable if len(word) > 1 for character in word}
    start = [*special, *sorted(kept), *(f"##{character}" for character in sorted(inside))]
    words = counts.total()
    unknown = words - sum(usable.values())
    return Learnt(_merged(usable, sorted(frequent), start, size), words, len(counts), len(kept), unknown)


def _special_pieces(size: int) -> list[str]:
    if size < _OFFICIAL_LAYOUT:
        return list(SPECIAL)
    return [SPECIAL[0], *(f"[unused{i}]" for i in range(99)), *SPECIAL[1:]]


def _frequent_characters(counts: Counter[str], limit: int) -> set[str]:
    met: Counter[str] = Counter()
    for word, count in counts.items():
        for character in word:
            met[character] += count
    return set(sorted(met, key=lambda character: (-met[character], character))[:limit])


def _merged(counts: dict[str, int], words: Iterable[str], start: list[str], size: int) -> list[str]:
    """Run the trainer. What is in `start` has its number before the trainer meets a word."""
    trainer = trainers.WordPieceTrainer(
        vocab_size=size,
        min_frequency=_MIN_COUNT,
        special_tokens=start,
        limit_alphabet=2 * _CHARACTERS,
        continuing_subword_prefix="##",
        show_progress=False,
    )
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.train_from_iterator(_repeated(counts, words), trainer)
    ids = backend.get_vocab()
    return sorted(ids, key=ids.__getitem__)


def _repeated(counts: dict[str, int], words: Iterable[str]) -> Iterator[list[str]]:
    """Yield texts in which each word is as often as in the corpus: all that the trainer takes are texts."""
    line: list[str] = []
    room = 65_536
    for word in words:
        left = counts[word]
        while left:
            now = min(left, room)
            line.append(f"{word} " * now)
            left, room = left - now, room - now
            if not room:
                yield ["".join(line)]
                line, room = [], 65_536
    yield ["".join(line)]
