"""More texts for a small task: words of the texts there are, replaced by what a masked-LM head finds likely.

Source: Jiao et al. 2020, "TinyBERT", arXiv 1909.10351, algorithm 1. Different from there: all chosen words of a text
are masked at once, words of several pieces too, and a word is drawn by its probability among the likeliest.
"""

import hashlib
import re
import time
import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bert_miniatures.config import DataConfig
from bert_miniatures.data.examples import Examples, read_file, read_glue
from bert_miniatures.data.glue import glue_file
from bert_miniatures.data.glue_find import find_glue
from bert_miniatures.data.tasks import TASKS, Task
from bert_miniatures.distill_config import DistillConfig
from bert_miniatures.errors import DataError
from bert_miniatures.files import cache_folder, read_json, write_json
from bert_miniatures.recipes.filling import Filler
from bert_miniatures.soft_labels import hashes_of
from bert_miniatures.transfer import locked
from bert_miniatures.watch import Watch

__all__ = ["Made", "Rules", "augment", "augmented", "more_texts", "normalised"]

_FORMAT = 1
_BLOCK = 256  # rows that are masked together, sorted by length; the text does not depend on how many are wanted
_BATCH = 32
_TRIES = 20  # for each text that is wanted
_WORD = re.compile(r"\w+")

Rows = tuple[Sequence[str], Sequence[str] | None]


@dataclass(frozen=True)
class Rules:
    """How texts are made.

    Attributes:
        amount: how many.
        seed: decides which words are replaced, and by what.
        share: of the words of a text; one at least.
        top: how many of the likeliest words are drawn from.
    """

    amount: int
    seed: int = 1
    share: float = 0.2
    top: int = 15


@dataclass(frozen=True)
class Made:
    """Texts that were made.

    Attributes:
        texts, pairs: as in `Examples`.
        repeated: how many were dropped because they were there already.
        held_out: how many were dropped because they are texts of dev or test.
        seconds: that it took when it was done.
    """

    texts: list[str]
    pairs: list[str] | None
    repeated: int = 0
    held_out: int = 0
    seconds: float = 0.0


def normalised(text: str, pair: str | None = None) -> str:
    """Return what texts are compared by: lower case, no accents, words alone.

    Example:
        >>> normalised("A  café, isn't it?") == normalised("a cafe isn t it")
        True
        >>> normalised("?!")
        '?!'
    """
    if pair is not None:
        return f"{normalised(text)}\t{normalised(pair)}"
    plain = unicodedata.normalize("NFKD", text).casefold()
    words = _WORD.findall("".join(letter for letter in plain if not unicodedata.combining(letter)))
    return " ".join(words) or text.strip()


def augment(rows: Rows, rules: Rules, filler: Filler, barred: Collection[str]) -> tuple[Made, bool]:
    """Make texts, or read them where the same ones were made before; tell which.

    They are kept in the cache folder: a resumed run, another seed and another student learn from the same ones.

    Args:
        rows: the texts whose words are replaced, and the second ones of pairs.
        barred: `normalised` texts that are never made.
    """
    key = hashlib.sha256(f"{_FORMAT} {filler.fingerprint} {rules}".encode())
    key.update(hashes_of(*rows).tobytes())
    key.update("\n".join(sorted(barred)).encode("utf-8", "surrogatepass"))
    path = cache_folder() / "augmented" / f"{key.hexdigest()}.json"
    with locked(path):
        found = _read(path)
        if found is not None:
            return found, True
        began = time.monotonic()
        filler.model.to("cuda" if torch.cuda.is_available() else "cpu")
        made = augmented(rows, rules, filler, barred)
        made = replace(made, seconds=round(time.monotonic() - began, 3))
        write_json(path, asdict(made))
        return made, False


def _read(path: Path) -> Made | None:
    """Return what was kept; nothing where it is damaged, for it can be made again."""
    try:
        document: dict[str, Any] = read_json(path) if path.is_file() else {}
        return Made(**document)
    except (DataError, TypeError):
        return None


def augmented(rows: Rows, rules: Rules, filler: Filler, barred: Collection[str]) -> Made:
    """Make texts: a pure function of its arguments, and the first texts of a larger amount are those of a smaller one.

    Each round takes every row once, in an order of its own. It ends when there are enough texts, or when a round gives
    nothing new.
    """
    texts, pairs = rows
    words = _Words(filler, rules.top)
    out_texts: list[str] = []
    out_pairs: list[str] | None = None if pairs is None else []
    seen = {normalised(text, None if pairs is None else pairs[i]) for i, text in enumerate(texts)}
    repeated = held_out = tried = 0
    while len(out_texts) < rules.amount and tried <= _TRIES * rules.amount + len(texts):
        before = len(out_texts)
        for text, pair in _round(rows, rules, words, tried // max(1, len(texts))):
            tried += 1
            key = normalised(text, pair)
            if key in seen or key in barred:
                repeated, held_out = repeated + (key in seen), held_out + (key not in seen)
                continue
            seen.add(key)
            out_texts.append(text)
            if out_pairs is not None and pair is not None:
                out_pairs.append(pair)
            if len(out_texts) == rules.amount:
                break
        if len(out_texts) == before:
            break
    return Made(out_texts, out_pairs, repeated, held_out)


def _round(rows: Rows, rules: Rules, words: "_Words", number: int) -> Iterator[tuple[str, str | None]]:
    """Give a changed copy of every row."""
    texts, pairs = rows
    order = np.random.default_rng([rules.seed, number]).permutation(len(texts))
    for start in range(0, len(order), _BLOCK):
        block = [int(row) for row in order[start : start + _BLOCK]]
        drawn = [np.random.default_rng([rules.seed, number, row]) for row in block]
        masked: list[_Masked] = []
        for row, random in zip(block, drawn, strict=True):
            masked += _mask([texts[row], *([] if pairs is None else [pairs[row]])], rules.share, random)
        step = 1 if pairs is None else 2
        randoms = [random for random in drawn for _ in range(step)]
        filled = words.fill(masked, randoms)
        for i in range(0, len(filled), step):
            yield filled[i], None if pairs is None else filled[i + 1]


@dataclass(frozen=True)
class _Masked:
    """A text without some of its words: the parts between them, and they themselves."""

    parts: list[str]
    words: list[str]


def _mask(texts: Sequence[str], share: float, drawn: np.random.Generator) -> list[_Masked]:
    """Choose words of the texts of one row: each by chance, one of all at least."""
    spans = [[match.span() for match in _WORD.finditer(text)] for text in texts]
    count = sum(map(len, spans))
    chosen = drawn.random(count) < share
    if count and not chosen.any():
        chosen[drawn.integers(count)] = True
    found, first = [], 0
    for text, own in zip(texts, spans, strict=True):
        mine = [span for span, is_chosen in zip(own, chosen[first : first + len(own)], strict=True) if is_chosen]
        first += len(own)
        ends = [0, *(end for _, end in mine)]
        starts = [*(start for start, _ in mine), len(text)]
        parts = [text[a:b] for a, b in zip(ends, starts, strict=True)]
        found.append(_Masked(parts, [text[a:b] for a, b in mine]))
    return found


class _Words:
    """Draws words for masked places."""

    def __init__(self, filler: Filler, top: int) -> None:
        self.filler, names = filler, filler.tokenizer.vocabulary
        # no piece within a word, no punctuation, nothing in brackets
        self.usable = torch.tensor([i for i, name in enumerate(names) if _WORD.fullmatch(name)], dtype=torch.int64)
        if not len(self.usable):
            raise DataError("the vocabulary of the model that fills in has no whole word")
        self.names = [names[i] for i in self.usable.tolist()]
        self.top = min(top + 1, len(self.names))  # one of them may be the word itself

    def fill(self, rows: Sequence[_Masked], drawn: Sequence[np.random.Generator]) -> list[str]:
        """Return the texts with other words; a word that lies beyond what the model reads stays."""
        likely: dict[int, list[_Likely]] = {}
        order = sorted((i for i, row in enumerate(rows) if row.words), key=lambda i: sum(map(len, rows[i].parts)))
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            for i, scores in zip(batch, self.filler.scores([rows[i].parts for i in batch]), strict=True):
                likely[i] = self._likeliest(scores[:, self.usable], rows[i].words)
        # two texts of a pair draw from one sequence, so that the order counts
        return [
            _joined(row, likely.get(i, []), random) for i, (row, random) in enumerate(zip(rows, drawn, strict=True))
        ]

    def _likeliest(self, scores: Tensor, words: Sequence[str]) -> list["_Likely"]:
        """Return what may stand in the place of each word, as far as there are scores [K, U]."""
        values, places = scores.double().topk(self.top)
        found = []
        for value, place, word in zip(values.tolist(), places.tolist(), words, strict=False):
            names = [self.names[i] for i in place]
            kept = [i for i, name in enumerate(names) if name.casefold() != word.casefold()][: max(1, self.top - 1)]
            shares = np.exp(np.array([value[i] for i in kept]) - value[0])
            found.append(([names[i] for i in kept], np.cumsum(shares)))
        return found


_Likely = tuple[list[str], npt.NDArray[np.float64]]  # words, and their shares added up


def _joined(row: _Masked, likely: Sequence[_Likely], drawn: np.random.Generator) -> str:
    """Put words where others were; a capital letter stays one."""
    words = list(row.words)
    for i, (names, shares) in enumerate(likely):
        if names:
            found = names[int(np.searchsorted(shares, drawn.random() * shares[-1], side="right"))]
            words[i] = found.capitalize() if words[i][:1].isupper() else found
    return "".join(part + word for part, word in zip(row.parts, [*words, ""], strict=True))


# ---------------------------------------------------------------------------------------------------- in a distillation


def more_texts(
    config: DistillConfig, task: Task, source: Examples, splits: Mapping[str, Examples], watch: Watch
) -> tuple[Examples, dict[str, Any]]:
    """Make the texts that a distillation asks for; return them, without labels, and what result.json says of them.

    Args:
        source: the texts whose words are replaced.
        splits: what is scored on.
    """
    rules = Rules(config.augment, config.augment_seed, config.augment_share, config.augment_top)
    name = config.augment_with or config.model
    barred = _held(task, config.data, splits, watch)
    made, known = augment((source.texts, source.pairs), rules, Filler(name), barred)
    count = len(made.texts)
    dropped = f"{made.repeated:,} duplicates and {made.held_out:,} texts of dev or test dropped"
    took = f"; read from the cache, {made.seconds:.1f} s when they were made" if known else f", {made.seconds:.1f} s"
    watch.note(f"augment: {count:,} texts made of {len(source):,} with {name}; {dropped}{took}")
    if count < rules.amount:
        watch.warn(
            f"augment: {count:,} of {rules.amount:,} texts could be made, then only the same ones came again; more "
            "text, or a larger augment_share or augment_top, gives more"
        )
    facts = {"model": name, **asdict(rules), "made": count, "repeated": made.repeated, "held_out": made.held_out}
    digest = hashlib.sha256(hashes_of(made.texts, made.pairs).tobytes()).hexdigest()
    examples = Examples(made.texts, made.pairs, None, [str(i) for i in range(count)], "made texts", digest)
    return examples, facts | {"seconds": made.seconds}


def _held(task: Task, data: DataConfig, splits: Mapping[str, Examples], watch: Watch) -> set[str]:
    """Return the normalised texts of dev and test, all rows of them, and of what the same model answers besides."""
    found = [examples for name, examples in splits.items() if name != "train"]
    if data.dev is not None:
        found.append(read_file(data.dev, task))
    if data.task:
        folder = find_glue(task, data.glue, watch)
        answered = [task, *(other for other in TASKS.values() if other.predicted_by == task.name)]
        wanted = [(one, split) for one in answered for split in one.splits if split != "train"]
        found += [read_glue(one, folder, split) for one, split in wanted if _is_here(one, folder, split)]
    return {
        normalised(text, None if one.pairs is None else one.pairs[i])
        for one in found
        for i, text in enumerate(one.texts)
    }


def _is_here(task: Task, folder: Path, split: str) -> bool:
    try:
        return glue_file(task, folder, split).is_file()
    except DataError:  # only train and dev need to be here
        return False
