"""Which columns hold the texts and the label. Guesses go by name only, are said, and are never a draw."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bert_miniatures.data.tasks import Columns
from bert_miniatures.errors import ConfigError, DataError, UnknownName

__all__ = ["find_columns"]

COUPLES = (
    ("text", "text2"), ("text", "text_pair"), ("text", "text_b"), ("text1", "text2"), ("text_a", "text_b"),
    ("sentence", "sentence2"), ("sentence1", "sentence2"), ("sentence_a", "sentence_b"),
    ("question", "sentence"), ("question", "answer"), ("question", "context"), ("question", "passage"),
    ("question1", "question2"), ("premise", "hypothesis"), ("query", "passage"), ("query", "document"),
)  # fmt: skip
TEXTS = {
    "body", "comment", "content", "description", "document", "message", "premise", "query", "question", "question1",
    "review", "sentence", "sentence1", "sentence_a", "text", "text1", "text_a", "title", "tweet", "utterance",
}  # fmt: skip
LABELS = {
    "category", "class", "gold", "gold_label", "intent", "is_duplicate", "label", "labels", "rating", "score",
    "sentiment", "similarity", "stars", "target", "topic",
}  # fmt: skip
ROW_NUMBERS = {"", "guid", "id", "idx", "index", "row", "row_id", "unnamed: 0"}


@dataclass
class _Search:
    """The state of one search: what is left to choose from, and what was guessed."""

    path: Path
    names: Sequence[str]
    left: list[str]
    guesses: list[str]

    def among(self, choices: Iterable[str]) -> list[str]:
        choices = set(choices)
        return [name for name in self.left if name.casefold() in choices]

    def take(self, role: str, name: str, *, guessed: bool = True) -> str:
        self.left.remove(name)
        if guessed:
            self.guesses.append(f"{role} is column '{name}'")
        return name

    def unclear(self, what: str, option: str, candidates: Sequence[str] = ()) -> DataError:
        listed = ", ".join(repr(name) for name in self.names[:12])
        which = f"{', '.join(repr(name) for name in candidates)} all look like it" if candidates else "no name tells"
        unclear = f"{self.path}:1: cannot tell which column holds {what}: {which}"
        return DataError(f"{unclear}; the columns are {listed}; say {option} COLUMN")


def find_columns(
    path: Path,
    names: Sequence[str],
    *,
    text: str | None = None,
    pair: str | None = None,
    label: str | None = None,
    wants_label: str = "needed",
) -> tuple[Columns, tuple[str, ...]]:
    """Find the columns of an own file: those that were named, the others by their name.

    Args:
        path: the file, for errors.
        names: its columns.
        text, pair, label: columns that the user named. With `text` alone named, the rows are single texts.
        wants_label: "needed": a file without a label column is an error; "optional": it may lack one; "ignored": only
            texts are read.

    Returns:
        The columns, and one sentence that names all guesses (or nothing).

    Raises:
        UnknownName: a column that was named is not there.
        ConfigError: one column was named for two things.
        DataError: no name, or more than one, looks right; the columns are listed.

    Example:
        >>> find_columns(Path("a.csv"), ["id", "review", "stars"])[0]
        Columns(text='review', pair=None, label='stars')
    """
    search = _Search(path, names, list(names), [])
    given = {"--text": text, "--pair": pair, "--label": label}
    for option, name in given.items():
        if name is not None and name not in names:
            raise UnknownName("column", name, names, f"{option}; {path} has {', '.join(names[:12])}")
        if name is not None and name not in search.left:
            raise ConfigError(f"column '{name}' is named for two things: {option} and another option")
        if name is not None:
            search.take(option, name, guessed=False)
    labels_by_name = search.among(LABELS)
    if label is None and wants_label != "ignored":
        label = _guess_label(search, labels_by_name)
    if text is None:
        text, pair = _guess_texts(search, pair, has_label=bool(label or labels_by_name))
    if label is None and wants_label == "needed":
        label = _last_left(search)
    said = f"{path.name}: {', '.join(search.guesses)}, guessed from the names" if search.guesses else ""
    return Columns(text, pair, label), (said,) if said else ()


def _guess_label(search: _Search, found: list[str]) -> str | None:
    if len(found) > 1:
        raise search.unclear("the label", "--label", found)
    return search.take("the label", found[0]) if found else None


def _guess_texts(search: _Search, pair: str | None, *, has_label: bool) -> tuple[str, str | None]:
    candidates = search.among(TEXTS)
    couples = [] if pair else [couple for couple in COUPLES if len(search.among(couple)) == 2]
    if len(couples) == 1 and all(name.casefold() in couples[0] for name in candidates):
        first, second = sorted(search.among(couples[0]), key=lambda name: couples[0].index(name.casefold()))
        return search.take("the text", first), search.take("the second text", second)
    if len(candidates) > 1 or couples:
        both = [name for couple in couples for name in search.among(couple)]
        raise search.unclear("the text", "--text", list(dict.fromkeys(candidates + both)))
    if not candidates and has_label:
        # A known label name shows that line 1 is a header; what is left over beside it can only be the text.
        candidates = [name for name in search.left if name.casefold() not in ROW_NUMBERS | LABELS]
        candidates = candidates if len(candidates) == 1 else []
    if not candidates:
        raise search.unclear("the text", "--text")
    return search.take("the text", candidates[0]), pair


def _last_left(search: _Search) -> str:
    """Take the only column that is neither text nor row number as the label."""
    left = [name for name in search.left if name.casefold() not in ROW_NUMBERS]
    if len(left) != 1:
        raise search.unclear("the label", "--label")
    return search.take("the label", left[0])
