"""WordPiece: text to ids, through the `tokenizers` library, with a memo of words in front of it for ASCII text.

The ids are those of `tokenizers` and of transformers' BertTokenizerFast. English text repeats its words, so most of
them need no WordPiece at all: an ASCII text is lower-cased, split by one regular expression, and each word is looked up
in a dict that cuts into pieces only words that it has not seen. A row is kept as the bytes of its int32 ids, so that
rows are cut and joined without a Python object per piece. Texts with other characters go to `tokenizers` whole, which
is imported, with a vocabulary of its own, when the first of them comes: 10 MB that a small service may never need.

Special tokens never come from text: the backend has none, so a "[SEP]" that a user typed is three pieces.

Source: Devlin et al. 2019, arXiv 1810.04805; google-research/bert `tokenization.py` and `run_classifier.py`.
"""

import hashlib
import json
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from bert_miniatures.errors import ConfigError, DataError
from bert_miniatures.files import atomic_write, write_json
from bert_miniatures.vocabulary import SPECIAL, WORD_LIMIT, checked_vocabulary, read_tokenizer_files, read_vocabulary
from bert_miniatures.zoo import POSITIONS

if TYPE_CHECKING:
    import tokenizers

__all__ = ["MEMO_WORDS", "SPECIAL", "WORD_LIMIT", "Encoded", "Tokenizer", "kept_of_pair", "replace_surrogates"]

MEMO_WORDS = 65_536  # words in the memo; a full memo is emptied, so that no stream of random words can fill the memory
_LONG_TEXT = 10_000  # characters; a longer text is read piece by piece until it has filled its row
_BATCH = 1_024  # texts handed to `tokenizers` at once; its encodings are large
_FINGERPRINT_VERSION = 1

_WORDS = re.compile(r"[0-9A-Za-z]+|[!-/:-@\[-`{-~]")
_SURROGATES = re.compile("[\ud800-\udfff]")
_CUT = re.compile(r"[ \n!-/:-@\[-`{-~\u3001\u3002\uff0c]")  # spaces, ASCII and Chinese punctuation
# BertNormalizer on ASCII: tab and line ends are spaces, every other control character is dropped.
_CONTROLS = {code: " " if chr(code) in "\t\n\r" else None for code in (*range(32), 127)}

Ints = NDArray[np.int32]
Lengths = NDArray[np.int64]


@dataclass(frozen=True)
class Encoded:
    """Rows of ids, one after the other, without padding.

    The counts are of what the model sees: the pieces that are left after a row was cut.

    Attributes:
        ids: int32 [sum of lengths], each row as `[CLS] a [SEP]` or `[CLS] a [SEP] b [SEP]`.
        lengths: int32 [N], in word pieces, special tokens included.
        first: int32 [N], how many positions of the row belong to segment 0 (`[CLS] a [SEP]`).
        pieces: word pieces in all rows, special tokens not counted.
        unknown: how many of them are [UNK].
        truncated: rows that were cut to `max_length`.
    """

    ids: Ints
    lengths: Ints
    first: Ints
    pieces: int
    unknown: int
    truncated: int


class _Memo(dict[str, bytes]):
    """ASCII word -> its ids as int32 bytes. A full memo starts again from empty."""

    def __init__(self, id_of: dict[str, int]) -> None:
        super().__init__()
        self._id_of = id_of

    def __missing__(self, word: str) -> bytes:
        if len(word) > WORD_LIMIT:
            return array("i", (self._id_of["[UNK]"],)).tobytes()
        if len(self) >= MEMO_WORDS:
            self.clear()
        row = self[word] = array("i", self._cut(word)).tobytes()
        return row

    def _cut(self, word: str) -> list[int]:
        """Return the ids of the longest piece that the word begins with, then of the longest of the rest, ..."""
        ids, start, mark = [], 0, ""
        while start < len(word):
            for end in range(len(word), start, -1):
                found = self._id_of.get(mark + word[start:end])
                if found is not None:
                    break
            else:
                return [self._id_of["[UNK]"]]
            ids.append(found)
            start, mark = end, "##"
        return ids


class Tokenizer:
    """BERT's WordPiece tokenizer.

    Args:
        vocabulary: the pieces; the position of a piece is its id.
        lowercase: lower-case the text (an uncased model).
        strip_accents: remove accents; None means: where the text is lower-cased.
        split_chinese: every Chinese character is a word of its own (`tokenize_chinese_chars`).

    Attributes:
        fingerprint: SHA-256 of everything that decides ids; two tokenizers with the same one give the same ids.

    Raises:
        CheckpointError: the vocabulary is empty, has an unusable or repeated piece, or lacks a special token.

    Example:
        >>> pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "un", "##aff", "##able", "!"]
        >>> Tokenizer(pieces).pieces("Unaffable!")
        ['un', '##aff', '##able', '!']
    """

    def __init__(
        self,
        vocabulary: Sequence[str],
        *,
        lowercase: bool = True,
        strip_accents: bool | None = None,
        split_chinese: bool = True,
    ) -> None:
        self.vocabulary = checked_vocabulary(list(vocabulary), "vocabulary")
        self.lowercase, self.strip_accents, self.split_chinese = lowercase, strip_accents, split_chinese
        self._id_of = {piece: i for i, piece in enumerate(self.vocabulary)}
        self.pad_id, self.unk_id, self.cls_id, self.sep_id, self.mask_id = (self._id_of[token] for token in SPECIAL)
        strips = lowercase if strip_accents is None else strip_accents
        rules = [_FINGERPRINT_VERSION, lowercase, strips, split_chinese, self.vocabulary]
        self.fingerprint = hashlib.sha256(json.dumps(rules).encode()).hexdigest()
        self._memo = _Memo(self._id_of)

    @cached_property
    def _backend(self) -> "tokenizers.Tokenizer":
        """The Rust tokenizer. It has no added tokens, so nothing in a text can become a special token."""
        import tokenizers
        from tokenizers import decoders, models, normalizers, pre_tokenizers

        model = models.WordPiece(self._id_of, unk_token="[UNK]", max_input_chars_per_word=WORD_LIMIT)
        backend = tokenizers.Tokenizer(model)
        backend.normalizer = normalizers.BertNormalizer(
            clean_text=True,
            handle_chinese_chars=self.split_chinese,
            strip_accents=self.strip_accents,
            lowercase=self.lowercase,
        )
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece(prefix="##")
        return backend

    @classmethod
    def from_folder(cls, folder: Path) -> "Tokenizer":
        """Read the tokenizer of a model folder: `tokenizer.json` or `vocab.txt`, and `tokenizer_config.json`.

        The rules are those of `read_tokenizer_files`: both vocabularies, where they are there, must be the same, and
        tokenizer_config.json goes before tokenizer.json for the settings. A folder that does not say whether it is
        uncased is so if no piece has a capital letter (tokens in square brackets aside). Truncation and padding that
        tokenizer.json switches on are ignored.

        Raises:
            CheckpointError: a file is missing, damaged, or not of a BERT WordPiece tokenizer.
        """
        files = read_tokenizer_files(Path(folder))
        return cls(
            files.vocabulary,
            lowercase=files.lowercase,
            strip_accents=files.strip_accents,
            split_chinese=files.split_chinese,
        )

    @classmethod
    def from_vocabulary(cls, pieces: Sequence[str] | Path, lowercase: bool = True) -> "Tokenizer":
        """Make a tokenizer from a list of pieces or a `vocab.txt`, with BERT's settings.

        Raises:
            CheckpointError: the vocabulary cannot be read, or not be used.
        """
        return cls(read_vocabulary(pieces) if isinstance(pieces, Path) else pieces, lowercase=lowercase)

    def ids(self, text: str) -> list[int]:
        """Return the ids of a text of any length, without special tokens."""
        ids: list[int] = np.frombuffer(self._rows([text], None)[0], dtype=np.int32).tolist()
        return ids

    def pieces(self, text: str) -> list[str]:
        """Return the word pieces of a text, without special tokens."""
        return [self.vocabulary[i] for i in self.ids(text)]

    def encode(self, texts: Sequence[str], pairs: Sequence[str] | None = None, *, max_length: int = 128) -> Encoded:
        """Turn texts, or pairs of texts, into rows of ids with [CLS] and [SEP].

        A single text keeps its first `max_length - 2` pieces. Of a pair that is too long, pieces go from the end of the
        longer text, one at a time (`kept_of_pair`). Empty strings, NUL and texts of any length are fine; a lone
        surrogate is read as U+FFFD.

        Args:
            texts: N texts, the first of each pair.
            pairs: N second texts, or None.
            max_length: in word pieces, special tokens included.

        Raises:
            ConfigError: `max_length` leaves no room for a piece of each text (3 for single texts, 5 for pairs).
            DataError: there are not as many pairs as texts.

        Example:
            >>> pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
            >>> Tokenizer(pieces).encode(["a a"], ["b"]).ids.tolist()
            [2, 5, 5, 3, 6, 3]
        """
        room = _room(texts, pairs, max_length)
        first = self._rows(texts, room + 1)
        a = _piece_counts(first)
        second = None if pairs is None else self._rows(pairs, room + 1)
        b = np.zeros_like(a) if second is None else _piece_counts(second)
        keep_a, keep_b = kept_of_pair(a, b, room)
        _cut_rows(first, a, keep_a)
        if second is not None:
            _cut_rows(second, b, keep_b)
        ids = self._join(first, second)
        pieces = int(keep_a.sum() + keep_b.sum())
        specials = 2 if second is None else 3
        return Encoded(
            ids=ids,
            lengths=(keep_a + keep_b + specials).astype(np.int32),
            first=(keep_a + 2).astype(np.int32),
            pieces=pieces,
            unknown=int(np.count_nonzero(ids == self.unk_id)),
            truncated=int(np.count_nonzero((keep_a < a) | (keep_b < b))),
        )

    def _join(self, first: list[bytes], second: list[bytes] | None) -> Ints:
        """Lay the rows one after the other, with special tokens, in one writable array."""
        if not first:
            return np.empty(0, dtype=np.int32)
        cls, sep = (array("i", [i]).tobytes() for i in (self.cls_id, self.sep_id))
        rows = first if second is None else [a + sep + b for a, b in zip(first, second, strict=True)]
        rows[0] = cls + rows[0]
        rows[-1] += sep
        return np.frombuffer(bytearray(sep + cls).join(rows), dtype=np.int32)

    def _rows(self, texts: Sequence[str], limit: int | None) -> list[bytes]:
        """Return each text's ids as int32 bytes: all of them, or at least the first `limit`."""
        rows: list[bytes] = []
        others: list[int] = []
        for text in texts:
            if text.isascii():
                rows.append(self._ascii_row(text, limit))
            elif len(text) > _LONG_TEXT:
                rows.append(self._long_row(text, limit))
            else:
                others.append(len(rows))
                rows.append(b"")
        for start in range(0, len(others), _BATCH):
            block = others[start : start + _BATCH]
            batch = [replace_surrogates(texts[i]) for i in block]
            for i, encoding in zip(
                block, self._backend.encode_batch_fast(batch, add_special_tokens=False), strict=True
            ):
                rows[i] = array("i", encoding.ids).tobytes()
        return rows

    def _ascii_row(self, text: str, limit: int | None) -> bytes:
        """Look each word up. Every word gives at least one piece, so a long text may stop after `limit` words."""
        if not text.isprintable():
            text = text.translate(_CONTROLS)
        if self.lowercase:
            text = text.lower()
        if len(text) <= _LONG_TEXT:
            return b"".join(map(self._memo.__getitem__, _WORDS.findall(text)))
        return b"".join(self._memo[match[0]] for match in islice(_WORDS.finditer(text), limit))

    def _long_row(self, text: str, limit: int | None) -> bytes:
        """Read a long text in parts.

        A part begins at a space or a punctuation mark: a word ends there, and no rule of the normalizer looks across.
        """
        ids = array("i")
        end = 0
        while end < len(text) and (limit is None or len(ids) < limit):
            cut = _CUT.search(text, end + _LONG_TEXT)
            start, end = end, cut.start() if cut else len(text)
            ids.extend(self._backend.encode(replace_surrogates(text[start:end]), add_special_tokens=False).ids)
        return ids.tobytes()

    def save(self, folder: Path, *, positions: int = POSITIONS) -> None:
        """Write `vocab.txt`, `tokenizer.json` and `tokenizer_config.json`, which transformers' AutoTokenizer opens.

        Args:
            positions: of the model; transformers cuts texts there.

        Raises:
            DiskFull: no space left on the device.
            UserError: the folder cannot be written to.
        """
        import tokenizers
        from tokenizers import processors

        folder = Path(folder)
        complete = tokenizers.Tokenizer.from_str(self._backend.to_str())
        complete.add_special_tokens(list(SPECIAL))
        complete.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0",
            pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
            special_tokens=[("[CLS]", self.cls_id), ("[SEP]", self.sep_id)],
        )
        with atomic_write(folder / "vocab.txt") as temporary:
            text = "".join(piece + "\n" for piece in self.vocabulary)
            temporary.write_text(text, encoding="utf-8", newline="\n")
        with atomic_write(folder / "tokenizer.json") as temporary:
            temporary.write_text(complete.to_str(pretty=True), encoding="utf-8", newline="\n")
        config = {
            "tokenizer_class": "BertTokenizer",
            "do_lower_case": self.lowercase,
            "strip_accents": self.strip_accents,
            "tokenize_chinese_chars": self.split_chinese,
            "model_max_length": positions,  # without it transformers does not cut
        }
        names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
        write_json(folder / "tokenizer_config.json", config | dict(zip(names, SPECIAL, strict=True)))


def kept_of_pair(first: Lengths, second: Lengths, room: int) -> tuple[Lengths, Lengths]:
    """Tell how many pieces of each text of a pair are kept.

    The closed form of "while the pair is too long, drop the last piece of the longer text, of the second where both are
    equal". transformers' `longest_first` differs by one piece where both texts are over half of an odd `room` and the
    first is not the longer: it gives the odd piece to the second text, Google to the first.

    Args:
        first: int64 [N], pieces of the first texts.
        second: int64 [N], pieces of the second texts.
        room: pieces that fit into a row beside the special tokens.

    Source: google-research/bert `run_classifier.py`, `_truncate_seq_pair`.

    Example:
        >>> [int(kept[0]) for kept in kept_of_pair(np.array([9]), np.array([4]), 7)]
        [4, 3]
    """
    kept_first = np.minimum(first, np.maximum(room - second, (room + 1) // 2))
    return kept_first, np.minimum(second, room - kept_first)


def replace_surrogates(text: str) -> str:
    """Put U+FFFD for each lone surrogate, which is in no encodable text (a file name, broken JSON) and in no id."""
    return _SURROGATES.sub("\ufffd", text)


def _room(texts: Sequence[str], pairs: Sequence[str] | None, max_length: int) -> int:
    """Check the arguments of `encode` and return how many pieces fit beside the special tokens."""
    if isinstance(texts, str) or isinstance(pairs, str):
        raise TypeError("encode takes a list of texts; put a single text into one: encode([text])")
    if pairs is not None and len(pairs) != len(texts):
        raise DataError(f"{len(texts)} texts and {len(pairs)} second texts do not make pairs")
    specials, least, what = (2, 3, "a text") if pairs is None else (3, 5, "a pair")
    if max_length < least:
        raise ConfigError(
            f"max_length {max_length} is too small: {what} with its special tokens needs at least {least}"
        )
    return max_length - specials


def _piece_counts(rows: list[bytes]) -> Lengths:
    return np.fromiter(map(len, rows), dtype=np.int64, count=len(rows)) // 4


def _cut_rows(rows: list[bytes], counts: Lengths, kept: Lengths) -> None:
    for i in np.flatnonzero(kept < counts).tolist():
        rows[i] = rows[i][: 4 * int(kept[i])]
