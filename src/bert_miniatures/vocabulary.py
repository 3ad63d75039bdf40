"""What a model folder says about its tokenizer: `vocab.txt`, `tokenizer.json`, `tokenizer_config.json`.

Models in the wild come with any of these files. Each is checked here, so that a tokenizer either has the ids that its
model was trained with or is refused with a sentence: a wrong vocabulary trains without an error and ends nowhere.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_miniatures.errors import CheckpointError, DataError
from bert_miniatures.files import read_json

__all__ = ["SPECIAL", "WORD_LIMIT", "TokenizerFiles", "checked_vocabulary", "read_tokenizer_files", "read_vocabulary"]

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
WORD_LIMIT = 100  # characters; a longer word is [UNK], as in `tokenizers` (Google's Python has 200)

_UNUSABLE = re.compile("[\n\r\ud800-\udfff]")
_IN_BRACKETS = re.compile(r"\[.*\]")

# What a tokenizer.json must say to be BERT's. Old files leave keys of `model` out.
_EXPECTED: dict[tuple[str, str], Any] = {
    ("model", "type"): "WordPiece",
    ("model", "continuing_subword_prefix"): "##",
    ("model", "max_input_chars_per_word"): WORD_LIMIT,
    ("model", "unk_token"): "[UNK]",
    ("normalizer", "type"): "BertNormalizer",
    ("normalizer", "clean_text"): True,
    ("pre_tokenizer", "type"): "BertPreTokenizer",
}
# Our name -> (key of tokenizer_config.json, key of the normalizer in tokenizer.json, values that are allowed).
_SETTINGS: dict[str, tuple[str, str, tuple[bool | None, ...]]] = {
    "lowercase": ("do_lower_case", "lowercase", (True, False)),
    "strip_accents": ("strip_accents", "strip_accents", (True, False, None)),
    "split_chinese": ("tokenize_chinese_chars", "handle_chinese_chars", (True, False)),
}


@dataclass(frozen=True)
class TokenizerFiles:
    """The vocabulary and the settings of a model folder.

    Attributes:
        vocabulary: the pieces; the position of a piece is its id.
        lowercase: the model is uncased.
        strip_accents: accents are removed; None means: where the text is lower-cased.
        split_chinese: every Chinese character is a word of its own.
    """

    vocabulary: list[str]
    lowercase: bool
    strip_accents: bool | None
    split_chinese: bool


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read the tokenizer files of a model folder.

    Where vocab.txt and tokenizer.json are both there, their vocabularies must be the same. A setting comes from
    tokenizer_config.json, else from tokenizer.json. Where neither says: the model counts as uncased if no piece has a
    capital letter (tokens in square brackets aside), accents go with the case, Chinese characters are split.

    Raises:
        CheckpointError: a file is missing, damaged, or not of a BERT WordPiece tokenizer.
    """
    document, config = _document(folder / "tokenizer.json"), _document(folder / "tokenizer_config.json") or {}
    vocabulary = _vocabulary_of(folder, document)
    _refuse_added_tokens(folder, document or {}, config, set(vocabulary))
    cased = any(piece != piece.lower() for piece in vocabulary if not _IN_BRACKETS.fullmatch(piece))
    settings: dict[str, Any] = {"lowercase": not cased, "strip_accents": None, "split_chinese": True}
    for name, (key, normalizer_key, allowed) in _SETTINGS.items():
        for file, part, its_key in (
            ("tokenizer.json", (document or {}).get("normalizer", {}), normalizer_key),
            ("tokenizer_config.json", config, key),
        ):
            value = settings[name] = part.get(its_key, settings[name])
            if not any(value is choice for choice in allowed):
                raise CheckpointError(f"{folder / file}: {its_key} is {value!r}, expected true or false")
    return TokenizerFiles(vocabulary, **settings)


def read_vocabulary(path: Path) -> list[str]:
    """Read a vocab.txt, one piece a line. A byte order mark, CRLF and empty lines at the end are left out.

    Raises:
        CheckpointError: the file cannot be read, is not UTF-8, or is not a BERT vocabulary.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    return checked_vocabulary([line.removesuffix("\r") for line in text.rstrip("\r\n").split("\n")], str(path))


def checked_vocabulary(pieces: list[str], where: str) -> list[str]:
    """Return the pieces if a tokenizer can be made of them.

    Args:
        pieces: one string per id.
        where: the file, for the message.

    Raises:
        CheckpointError: no piece at all, an empty or repeated piece, one with a line break, or no special token.
    """
    if not any(pieces):
        raise CheckpointError(f"{where}: the vocabulary is empty")
    seen: dict[str, int] = {}
    for line, piece in enumerate(pieces, start=1):
        if not piece or _UNUSABLE.search(piece):
            raise CheckpointError(f"{where}:{line}: expected one piece, got {piece[:40]!r}")
        if seen.setdefault(piece, line) != line:
            raise CheckpointError(f"{where}:{line}: {piece!r} is already on line {seen[piece]}; each may be there once")
    if missing := [token for token in SPECIAL if token not in seen]:
        raise CheckpointError(f"{where}: the vocabulary has no {', '.join(missing)}; BERT needs {' '.join(SPECIAL)}")
    return pieces


def _document(path: Path) -> dict[str, Any] | None:
    """Read a JSON object of the folder, or return None where the file is absent."""
    if not path.is_file():
        return None
    try:
        document = read_json(path)
    except DataError as error:
        raise CheckpointError(str(error)) from error
    if not isinstance(document, dict):
        raise CheckpointError(f"{path}: expected a JSON object, got {type(document).__name__}")
    return document


def _vocabulary_of(folder: Path, document: dict[str, Any] | None) -> list[str]:
    """Return the vocabulary of tokenizer.json (`document`), of vocab.txt, or of both where they agree."""
    path = folder / "vocab.txt"
    if document is None:
        if not path.is_file():
            raise CheckpointError(
                f"{folder} has neither vocab.txt nor tokenizer.json; a model folder needs one of them"
            )
        return read_vocabulary(path)
    pieces = _json_vocabulary(folder / "tokenizer.json", document)
    if path.is_file() and (lines := read_vocabulary(path)) != pieces:
        at = next((i for i, (a, b) in enumerate(zip(lines, pieces, strict=False)) if a != b), None)
        how = f"{len(lines)} and {len(pieces)} pieces" if at is None else f"id {at}: {lines[at]!r} and {pieces[at]!r}"
        raise CheckpointError(f"{folder}: vocab.txt and tokenizer.json disagree ({how}); remove the wrong one")
    return pieces


def _json_vocabulary(path: Path, document: dict[str, Any]) -> list[str]:
    """Return the vocabulary of a tokenizer.json that is BERT's in every respect."""
    for (section, key), expected in _EXPECTED.items():
        part = document.get(section)
        absent = expected if section == "model" and isinstance(part, dict) else None
        found = part.get(key, absent) if isinstance(part, dict) else None
        if found != expected:
            raise CheckpointError(
                f"{path}: {section}.{key} is {found!r}, expected {expected!r}; only BERT's WordPiece tokenizer is read"
            )
    ids = document["model"].get("vocab")
    if not isinstance(ids, dict) or not all(type(i) is int for i in ids.values()):
        raise CheckpointError(f"{path}: model.vocab is not a table of pieces and their ids")
    if set(ids.values()) != set(range(len(ids))):
        raise CheckpointError(f"{path}: the ids of the {len(ids)} pieces are not 0 to {len(ids) - 1}, each once")
    return checked_vocabulary(sorted(ids, key=ids.__getitem__), str(path))


def _refuse_added_tokens(folder: Path, document: dict[str, Any], config: dict[str, Any], known: set[str]) -> None:
    """Refuse tokens that are to be found in a text before WordPiece; special tokens of the vocabulary are never."""
    for file, token, special in _added_tokens(folder, document, config):
        if token not in known or not special:
            raise CheckpointError(
                f"{folder / file}: the added token {token!r} is no special token of the vocabulary; "
                "tokens that are cut out of a text before WordPiece are not supported"
            )


def _added_tokens(folder: Path, document: dict[str, Any], config: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Yield (file, token, is special) of every added token that the folder names."""
    try:
        for token in document.get("added_tokens") or ():
            yield "tokenizer.json", token["content"], token["special"]
        for token in (config.get("added_tokens_decoder") or {}).values():
            yield "tokenizer_config.json", token["content"], token["special"]
    except (AttributeError, KeyError, TypeError):
        raise CheckpointError(f"{folder}: the list of added tokens is damaged") from None
    for content in _document(folder / "added_tokens.json") or ():
        yield "added_tokens.json", content, content in SPECIAL
