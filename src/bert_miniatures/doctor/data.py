"""Checks of training and dev data."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import numpy as np

from bert_miniatures.data.examples import Examples
from bert_miniatures.doctor.subject import READ_LENGTH, Finding, Found, Subject
from bert_miniatures.errors import MiniaturesError

__all__ = [
    "balance",
    "conflicts",
    "dev_size",
    "duplicates",
    "empty",
    "facts",
    "garbled",
    "leakage",
    "lengths",
    "not_texts",
    "readable",
    "unknown",
    "unseen",
]

RARE = 10  # rows of a class; fewer teach and prove nothing
LOPSIDED = 10  # times as many rows in the largest class as in the smallest
TWICE = 0.01  # share of rows
CUT = 0.1  # share of texts
UNKNOWN = 0.05  # share of pieces; English text has less than one in a thousand
SMALL_DEV = 50  # rows
_GARBLED = re.compile("\ufffd|Ã[\u0080-\u00bf]|â€|Â[\u0080-\u00bf]")
_NUMBER = re.compile(r"\s*[+-]?[\d.,]+\s*")

Row = tuple[str, ...]


def facts(subject: Subject) -> Iterator[str]:
    """Say what the data are."""
    if not subject.has_data or not subject.is_here:
        return
    task = subject.task
    yield from task.notes
    shown = ", ".join(f"{name} {len(examples):,} rows" for name, examples in subject.splits.items())
    labels = ", ".join(task.labels[:8]) + (" ..." if len(task.labels) > 8 else "")
    yield f"{shown}; {task.kind}{': ' if labels else ''}{labels}"
    encoded = subject.encoded
    if encoded is None:
        yield "give --model to count word pieces"
    else:
        half, most = np.percentile(encoded.lengths, [50, 95])
        yield f"{half:.0f} word pieces at the median, {most:.0f} at 95 of 100"


def readable(subject: Subject) -> Found:
    """Files, columns and labels that cannot be understood."""
    if not subject.has_data or not subject.is_here:
        return
    try:
        _ = subject.splits
    except MiniaturesError as error:
        yield Finding(
            str(error), "the run cannot begin", "correct that, or name the columns: --text --pair --label COLUMN"
        )


def _rows(examples: Examples) -> list[Row]:
    """Return the texts as they are compared: case and spaces aside."""
    columns = [examples.texts] if examples.pairs is None else [examples.texts, examples.pairs]
    return [tuple(" ".join(text.casefold().split()) for text in row) for row in zip(*columns, strict=True)]


def _first(row: Row) -> str:
    text = " | ".join(row)
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _counted(count: int) -> str:
    return "1 row" if count == 1 else f"{count:,} rows"


def balance(subject: Subject) -> Found:
    """Classes with few rows, or many fewer than others."""
    labels = subject.splits["train"].labels
    if subject.task.kind != "classification" or labels is None:
        return
    counts = np.bincount(labels[labels >= 0], minlength=len(subject.task.labels))
    least = int(counts.argmin())
    name, few, most = subject.task.labels[least], int(counts[least]), int(counts.max())
    if few < RARE:
        yield Finding(
            f"the class '{name}' has {_counted(few)} in train",
            f"fewer than {RARE} rows teach nothing that can be relied on",
            "label more of them, or join the class with another one",
        )
    elif most > LOPSIDED * few:
        yield Finding(
            f"the class '{name}' has {_counted(few)}, the largest {most:,}",
            "a model that never answers the small class looks good in accuracy",
            "--set train.class_weights=balanced, and look at macro_f1",
        )


def duplicates(subject: Subject) -> Found:
    """Rows that are there several times."""
    examples = subject.splits["train"]
    labels = [None] * len(examples) if examples.labels is None else [str(label) for label in examples.labels]
    counts = Counter(zip(_rows(examples), labels, strict=True))
    more = sum(count - 1 for count in counts.values())
    if more > TWICE * len(examples):
        (row, _), count = counts.most_common(1)[0]
        yield Finding(
            f"{_counted(more)} of {len(examples):,} in train are there before, {_first(row)} {count} times",
            "they count several times in training, and rows that are held out for dev are then in train too",
            "leave the repeated rows out of the file",
        )


def conflicts(subject: Subject) -> Found:
    """The same text with different labels."""
    examples = subject.splits["train"]
    if examples.labels is None or subject.task.kind == "regression":
        return
    labels: dict[Row, set[str]] = defaultdict(set)
    for row, label in zip(_rows(examples), examples.labels, strict=True):
        labels[row].add(str(label))
    torn = [row for row, found in labels.items() if len(found) > 1]
    if torn:
        said = "1 text has" if len(torn) == 1 else f"{len(torn):,} texts have"
        yield Finding(
            f"{said} more than one label in train, {_first(torn[0])} for one",
            "no model can answer them right; a text with several labels is another kind of task",
            "decide on one label for each, or --kind multilabel",
        )


def leakage(subject: Subject) -> Found:
    """Texts of dev that are in train."""
    if "dev" not in subject.splits:
        return
    known = set(_rows(subject.splits["train"]))
    rows = _rows(subject.splits["dev"])
    shared = [row for row in rows if row in known]
    if shared:
        yield Finding(
            f"{_counted(len(shared))} of {len(rows):,} in dev are in train too, {_first(shared[0])} for one",
            "the score counts what was learnt by heart, and is too good",
            "leave them out of train",
        )


def unseen(subject: Subject) -> Found:
    """Classes of train that dev does not have."""
    dev = subject.splits.get("dev")
    if dev is None or dev.labels is None or subject.task.kind != "classification" or dev.hidden:
        return
    absent = [name for i, name in enumerate(subject.task.labels) if not (dev.labels == i).any()]
    if absent:
        yield Finding(
            f"dev has no row of {', '.join(repr(name) for name in absent[:5])}",
            "nothing tells how well that class is recognised",
            "make dev a random part of all rows: leave --dev out, and a tenth is held out",
        )


def dev_size(subject: Subject) -> Found:
    """A dev set in which a row is a large part of a point."""
    dev = subject.splits.get("dev")
    if dev is not None and len(dev) < SMALL_DEV:
        yield Finding(
            f"dev has {_counted(len(dev))}",
            f"one row is {100 / max(1, len(dev)):.0f} points; differences of a few points are chance",
            "give more rows to dev, and compare several seeds",
        )


def empty(subject: Subject) -> Found:
    """Rows without text."""
    for name, examples in subject.splits.items():
        count = sum(1 for row in _rows(examples) if not all(row))
        if count:
            yield Finding(
                f"{_counted(count)} in {name} have an empty text",
                "the model learns to guess from nothing",
                "leave them out, or fill them in",
            )


def garbled(subject: Subject) -> Found:
    """Text that was read with the wrong encoding before it came into the file."""
    for name, examples in subject.splits.items():
        bad = [text for text in examples.texts if _GARBLED.search(text)]
        if len(bad) > TWICE * len(examples):
            yield Finding(
                f"{_counted(len(bad))} in {name} have letters from a wrong encoding, {_first((bad[0],))} for one",
                "such words are cut into pieces that mean nothing",
                "make the file anew from its source, as UTF-8",
            )


def not_texts(subject: Subject) -> Found:
    """A text column that holds numbers: most likely the wrong column."""
    texts = subject.splits["train"].texts
    numbers = sum(1 for text in texts if _NUMBER.fullmatch(text))
    if numbers > 0.5 * len(texts):
        column = subject.task.columns.text if subject.task.columns else "text"
        yield Finding(
            f"the column '{column}' is taken for the text, and {_counted(numbers)} of {len(texts):,} are numbers",
            "most likely it is not the column with the text",
            "--text COLUMN",
        )


def lengths(subject: Subject) -> Found:
    """Texts that are cut."""
    encoded, limit = subject.encoded, subject.data.max_length
    if encoded is None:
        return
    cut = float((encoded.lengths > limit).mean())
    most = subject.positions or limit
    if cut > CUT:
        better = min(most, 8 * -(-int(_percentile(encoded.lengths, 95)) // 8))
        what = f"--max-length {better}" if better > limit else "shorter texts: split them, or put what matters first"
        yield Finding(
            f"{cut:.0%} of the texts are cut at {limit} word pieces",
            "what stands behind is never read",
            what,
        )


def _percentile(values: Sequence[int] | np.ndarray, share: int) -> float:
    return float(np.percentile(np.minimum(values, READ_LENGTH), share))


def unknown(subject: Subject) -> Found:
    """Pieces that the vocabulary does not have."""
    encoded = subject.encoded
    if encoded is None or not encoded.pieces:
        return
    share = encoded.unknown / encoded.pieces
    if share > UNKNOWN:
        yield Finding(
            f"{share:.0%} of the word pieces are [UNK]",
            "another language or script, or the wrong vocabulary: the model learns little, without an error",
            "use a model whose vocabulary has these words, or make one: miniatures vocab, miniatures pretrain",
        )
