"""Tokenizer files as they are found in the wild: read, repaired or refused with a sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Rust
from tokenizers import models, normalizers, pre_tokenizers

from bert_miniatures.errors import CheckpointError
from bert_miniatures.tokenizer import Tokenizer
from bert_miniatures.vocabulary import read_tokenizer_files, read_vocabulary

PIECES = ["[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##b", "ab", "é", "\u2028", "中"]


def write(folder: Path, document: dict[str, Any] | None = None, config: dict[str, Any] | None = None) -> Path:
    """Write a model folder: vocab.txt if there is no tokenizer.json."""
    if document is None:
        (folder / "vocab.txt").write_text("\n".join(PIECES) + "\n", encoding="utf-8", newline="\n")
    else:
        (folder / "tokenizer.json").write_text(json.dumps(document), encoding="utf-8")
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def bert_document(**normalizer: Any) -> dict[str, Any]:
    """Return a tokenizer.json as `tokenizers` itself writes it, with truncation and padding switched on."""
    rust = Rust(models.WordPiece({piece: i for i, piece in enumerate(PIECES)}, unk_token="[UNK]"))
    rust.normalizer = normalizers.BertNormalizer(**normalizer)
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.enable_truncation(4)
    rust.enable_padding(length=4)
    return json.loads(rust.to_str())


# ---------------------------------------------------------------------------------------------------------- vocab.txt


@pytest.mark.parametrize(
    "data",
    [
        "\n".join(PIECES).encode(),
        "\n".join(PIECES).encode() + b"\n\n\n",
        "\r\n".join(PIECES).encode() + b"\r\n",
        b"\xef\xbb\xbf" + "\r\n".join(PIECES).encode(),
    ],
    ids=["no line end", "empty lines at the end", "CRLF", "byte order mark"],
)
def test_line_ends_and_marks(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "vocab.txt").write_bytes(data)
    assert read_vocabulary(tmp_path / "vocab.txt") == PIECES


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the vocabulary is empty"),
        (b"\n\r\n", "the vocabulary is empty"),
        ("\n".join(PIECES).encode("utf-16"), "not UTF-8 .* save it as UTF-8"),
        ("\n".join([*PIECES, "è"]).encode("latin-1", "replace"), "not UTF-8"),
        ("\n".join([*PIECES, "a"]).encode(), r"vocab.txt:13: 'a' is already on line 7"),
        ("\n".join(["[PAD]", "", *PIECES[1:]]).encode(), "vocab.txt:2: expected one piece, got ''"),
        ("\r".join(PIECES).encode(), "vocab.txt:1: expected one piece"),
        ("\n".join(PIECES[:-8]).encode(), r"has no \[SEP\], \[MASK\]; BERT needs"),
    ],
)
def test_unusable_vocabularies(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "vocab.txt").write_bytes(data)
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_folder(tmp_path)


@pytest.mark.parametrize("token", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
def test_each_special_token_is_needed(token: str) -> None:
    with pytest.raises(CheckpointError, match=rf"has no \{token}; BERT needs"):
        Tokenizer([piece for piece in PIECES if piece != token])


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has neither vocab\.txt nor tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)
    with pytest.raises(CheckpointError, match=r"nowhere\.txt: cannot be read \(No such file"):
        Tokenizer.from_vocabulary(tmp_path / "nowhere.txt")


# ----------------------------------------------------------------------------------------------------- tokenizer.json


def test_truncation_and_padding_of_the_file_are_off(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_folder(write(tmp_path, bert_document()))
    assert tokenizer.pieces("ab " * 9) == ["ab"] * 9
    assert tokenizer.encode(["ab"]).lengths.tolist() == [3]
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id) == (
        0,
        2,
        3,
        4,
        5,
    )


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("model", {"type": "BPE", "vocab": {}, "merges": []}, "model.type is 'BPE', expected 'WordPiece'"),
        ("model", {"type": "Unigram", "vocab": []}, "model.type is 'Unigram'"),
        ("model", None, "model.type is None"),
        ("model", {"type": "WordPiece", "max_input_chars_per_word": 200}, "max_input_chars_per_word is 200"),
        ("model", {"type": "WordPiece", "continuing_subword_prefix": ""}, "continuing_subword_prefix is ''"),
        ("model", {"type": "WordPiece", "unk_token": "<unk>"}, "unk_token is '<unk>'"),
        ("model", {"type": "WordPiece"}, "model.vocab is not a table"),
        ("model", {"type": "WordPiece", "vocab": {"a": []}}, "model.vocab is not a table"),
        ("model", {"type": "WordPiece", "vocab": {"a": 0, "b": 2}}, "the ids of the 2 pieces are not 0 to 1"),
        ("model", {"type": "WordPiece", "vocab": {}}, "the vocabulary is empty"),
        ("model", {"type": "WordPiece", "vocab": {"\ud800": 0}}, "expected one piece"),
        ("normalizer", None, "normalizer.type is None"),
        ("normalizer", {"type": "Lowercase"}, "normalizer.type is 'Lowercase', expected 'BertNormalizer'"),
        ("normalizer", {"type": "BertNormalizer", "clean_text": False}, "clean_text is False"),
        ("pre_tokenizer", {"type": "ByteLevel"}, "pre_tokenizer.type is 'ByteLevel'"),
        ("added_tokens", [{"content": "<user>", "special": True}], "added token '<user>'"),
        ("added_tokens", [{"content": "ab", "special": False}], "added token 'ab'"),
        ("added_tokens", [7], "list of added tokens is damaged"),
    ],
)
def test_other_tokenizers_are_refused(tmp_path: Path, section: str, value: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        Tokenizer.from_folder(write(tmp_path, bert_document() | {section: value}))


@pytest.mark.parametrize("text", ["", "{", "[]", "\udcff"])
def test_damaged_json(tmp_path: Path, text: str) -> None:
    write(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        Tokenizer.from_folder(tmp_path)


def test_both_vocabularies_must_agree(tmp_path: Path) -> None:
    write(write(tmp_path), bert_document())
    assert Tokenizer.from_folder(tmp_path).vocabulary == PIECES
    for lines, message in (
        ([*PIECES[:6], *PIECES[:5:-1]], "id 6: '中' and 'a'"),
        ([*PIECES, "x"], "13 and 12 pieces"),
    ):
        (tmp_path / "vocab.txt").write_text("\n".join(lines), encoding="utf-8", newline="\n")
        with pytest.raises(CheckpointError, match=f"disagree .{message}"):
            Tokenizer.from_folder(tmp_path)


# ----------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(("extra", "lowercase"), [([], True), (["Paris"], False), (["##É"], False), (["[X]"], True)])
def test_case_is_taken_from_the_vocabulary_where_nothing_says_it(
    tmp_path: Path, extra: list[str], lowercase: bool
) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*PIECES, *extra]), encoding="utf-8", newline="\n")
    assert Tokenizer.from_folder(tmp_path).lowercase is lowercase


def test_settings_come_from_the_config_then_from_the_json(tmp_path: Path) -> None:
    write(tmp_path, bert_document(lowercase=False, strip_accents=True, handle_chinese_chars=False))
    files = read_tokenizer_files(tmp_path)
    assert (files.lowercase, files.strip_accents, files.split_chinese) == (False, True, False)
    write(tmp_path, bert_document(lowercase=False, strip_accents=True), {"do_lower_case": True, "strip_accents": None})
    files = read_tokenizer_files(tmp_path)
    assert (files.lowercase, files.strip_accents, files.split_chinese) == (True, None, True)
    assert Tokenizer.from_folder(tmp_path).pieces("É É") == ["[UNK]"] * 2
    write(tmp_path, None, {"do_lower_case": True, "strip_accents": False})
    assert Tokenizer.from_folder(tmp_path).pieces("É ab") == ["é", "ab"]


@pytest.mark.parametrize("key", ["do_lower_case", "strip_accents", "tokenize_chinese_chars"])
def test_settings_that_are_no_truth_value(tmp_path: Path, key: str) -> None:
    with pytest.raises(CheckpointError, match=rf"tokenizer_config.json: {key} is 'yes', expected true or false"):
        Tokenizer.from_folder(write(tmp_path, None, {key: "yes"}))


def test_added_tokens_of_old_folders(tmp_path: Path) -> None:
    known = {"0": {"content": "[PAD]", "special": True}}
    assert Tokenizer.from_folder(write(tmp_path, None, {"added_tokens_decoder": known})).vocabulary == PIECES
    (tmp_path / "added_tokens.json").write_text('{"[PAD]": 0, "<user>": 12}')
    with pytest.raises(CheckpointError, match=r"added_tokens\.json: the added token '<user>'"):
        Tokenizer.from_folder(tmp_path)
