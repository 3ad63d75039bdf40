"""`miniatures tokenize`: output, standard input, JSON, cutting, errors."""

import io
import json
import sys
from pathlib import Path

import pytest

from bert_miniatures.cli import main
from bert_miniatures.tokenizer import Tokenizer
from bert_miniatures.vocabulary import SPECIAL

SMALL = [*SPECIAL, "the", "a", "b", "sep", "un", "##aff", "##able", "!"]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]):
    """Return a function that runs `miniatures tokenize FOLDER …` and gives (exit code, stdout, stderr)."""
    Tokenizer(SMALL).save(tmp_path / "model")
    (tmp_path / "model/config.json").write_text('{"model_type": "bert"}')

    def command(*arguments: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["miniatures", "tokenize", str(tmp_path / "model"), *arguments])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        out, err = capsysbinary.readouterr()
        return code, out.decode(), err.decode()

    return command


def test_command_prints_pieces_and_ids(run) -> None:
    ids = [SMALL.index(piece) for piece in ("[CLS]", "un", "##aff", "##able", "!", "[SEP]")]
    expected = f"[CLS] un ##aff ##able ! [SEP]\n{' '.join(map(str, ids))}\n"
    assert run("Unaffable!") == (0, expected, "")
    assert run(stdin=b"Unaffable!\r\nUnaffable!") == (0, 2 * expected, "")


def test_command_json_pair_and_truncation(run) -> None:
    code, out, err = run("the the the", "a\udcff", "--pair", "sep ด", "--max-length", "6", "--json")
    assert (code, err) == (0, "warning: 1 text was cut to 6 pieces (--max-length)\n")
    first, second = json.loads(out)["texts"]
    assert first["pieces"] == ["[CLS]", "the", "the", "[SEP]", "sep", "[SEP]"]
    assert first["ids"] == [SMALL.index(piece) for piece in first["pieces"]]
    assert (first["truncated"], second["truncated"], second["text"], second["pair"]) == (
        True,
        False,
        "a\ufffd",
        "sep ด",
    )


def test_command_refuses_what_is_not_utf8(run) -> None:
    code, _, err = run(stdin=b"the\n\xff\n")
    assert (code, err) == (2, "error: standard input:2: not UTF-8 (invalid start byte at byte 0)\n")
