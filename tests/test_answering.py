"""From runs to a submission: test rows answered once, AX by the MNLI run, what is missing named, the command."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bert_miniatures import cli
from bert_miniatures.data.tasks import TASKS
from bert_miniatures.errors import DataError
from bert_miniatures.predict import Predictor
from bert_miniatures.predictions import read
from bert_miniatures.recipes.answering import answer_tests
from bert_miniatures.recipes.finetune import finetune
from bert_miniatures.submission import FILES
from bert_miniatures.watch import Watch


class Heard(Watch):
    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def sentence(drawn: np.random.Generator) -> str:
    return " ".join(drawn.choice(["good", "bad", "film", "the", "was", "not"], size=3))


def glue_made(folder: Path) -> Path:
    """A GLUE folder of nonsense: little to train on, official numbers of test rows; CoLA, MNLI without test, AX, WNLI."""
    drawn = np.random.default_rng(13)

    def put(place: str, header: str, row: Callable[[int], str], rows: int) -> None:
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        lines = ([header] if header else []) + [row(i) for i in range(rows)]
        (folder / place).write_text("\n".join(lines) + "\n")

    for split in ("train", "dev"):
        put(f"CoLA/{split}.tsv", "", lambda i: f"x\t{i % 2}\t*\t{'good' if i % 2 else 'bad'} {sentence(drawn)}", 24)
    put("CoLA/test.tsv", "index\tsentence", lambda i: f"{i}\t{sentence(drawn)}", 1_063)
    labels = ("entailment", "neutral", "contradiction")
    mnli = "\t".join("abcdefgh")
    for split, columns in (("train", 12), ("dev_matched", 16), ("dev_mismatched", 16)):
        blanks = "\t".join(["x"] * (columns - 11))
        head = "\t".join("abcdefghijklmnop"[:columns])
        put(
            f"MNLI/{split}.tsv",
            head,
            lambda i, b=blanks: f"{i}\t{mnli[2:]}\t{sentence(drawn)}\t{sentence(drawn)}\t{b}\t{labels[i % 3]}",
            12,
        )
    put(
        "AX/diagnostic.tsv",
        "index\tsentence1\tsentence2",
        lambda i: f"{i}\t{sentence(drawn)}\t{sentence(drawn)}",
        1_104,
    )
    return folder


@pytest.fixture(scope="module")
def runs(tiny, tmp_path_factory) -> tuple[Path, Path]:
    """Two finished runs, on CoLA and MNLI, and the GLUE folder that they learnt from."""
    folder = tmp_path_factory.mktemp("submit")
    glue = glue_made(folder / "glue")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIATURES_HOME", str(folder / "cache"))
        for task in ("cola", "mnli"):
            finetune(
                tiny,
                folder / "runs" / task,
                data={"task": task, "glue": glue, "max_length": 32},
                train={"epochs": 1, "threads": 1},
            )
    return folder / "runs", glue


def test_tests_are_answered_once_and_ax_by_the_mnli_run(runs):
    folder, glue = runs
    places = {task: folder / task for task in ("cola", "mnli")}
    heard = Heard()
    with pytest.raises(
        DataError, match=r"the submission lacks SST-2\.tsv, .*MNLI-m\.tsv, .*; --allow-missing writes the rest"
    ):
        answer_tests(places, glue, heard)
    assert not (folder / "cola" / "predictions" / "test.parquet").exists()  # said before the work begins
    assert any(
        "MNLI-m.tsv is missing: " in text and "test_matched.tsv: no such file" in text for text in heard.warnings
    )
    assert any(text == "RTE.tsv is missing: no run on rte with a score" for text in heard.warnings)
    found = answer_tests(places, glue, heard, allow_missing=True)
    assert list(found) == ["CoLA.tsv", "AX.tsv"]
    rows = [line.split("\t") for line in (glue / "AX" / "diagnostic.tsv").read_text().splitlines()[1:40]]
    expected = Predictor(folder / "mnli").logits([row[1] for row in rows], [row[2] for row in rows])
    np.testing.assert_allclose(found["AX.tsv"].logits[:39], expected, atol=1e-5)
    assert read(folder / "mnli" / "predictions" / "ax.parquet").task == "ax"
    again = Heard()
    second = answer_tests(places, glue, again, allow_missing=True)
    assert [text for text in again.notes if "read from" not in text] == []
    for name in found:
        np.testing.assert_array_equal(found[name].logits, second[name].logits)


def test_other_weights_or_other_rows_are_answered_again(runs, tmp_path):
    folder, glue = runs
    run, data = tmp_path / "cola", tmp_path / "glue"
    shutil.copytree(folder / "cola", run)
    shutil.copytree(glue / "CoLA", data / "CoLA")
    answer_tests({"cola": run}, data, allow_missing=True)
    test = data / "CoLA" / "test.tsv"
    test.write_text(test.read_text().replace("0\t", "0\tgood ", 1))
    for change in (
        lambda: None,
        lambda: (run / "model" / "tokenizer_config.json").write_text('{"model_max_length": 512}'),
    ):
        change()
        heard = Heard()
        answer_tests({"cola": run}, data, heard, allow_missing=True)
        assert any("1,063 rows are answered" in text for text in heard.notes)
    (run / "predictions" / "test.parquet").write_bytes(b"PAR1")
    heard = Heard()
    answer_tests({"cola": run}, data, heard, allow_missing=True)
    assert any("rows are answered" in text for text in heard.notes)


def test_a_part_of_the_test_rows_is_missing_data(runs, tmp_path):
    folder, glue = runs
    shutil.copytree(glue / "CoLA", tmp_path / "CoLA")
    lines = (glue / "CoLA" / "test.tsv").read_text().splitlines()
    (tmp_path / "CoLA" / "test.tsv").write_text("\n".join(lines[:100]) + "\n")
    heard = Heard()
    with pytest.raises(DataError, match="nothing to submit"):
        answer_tests({"cola": folder / "cola"}, tmp_path, heard, allow_missing=True)
    assert any("test.tsv has 99 rows, the official file has 1,063" in text for text in heard.warnings)


@pytest.fixture
def miniatures(monkeypatch, capsys):
    monkeypatch.setitem(cli.COMMANDS, "submit", "submit")

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["miniatures", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_the_command(miniatures, runs, tmp_path):
    folder, glue = runs
    out = tmp_path / "glue.zip"
    code, said, heard = miniatures("submit", folder, "-o", out)
    assert code == 2
    assert heard.splitlines()[-1].startswith(
        "error: the submission lacks SST-2.tsv, MRPC.tsv, STS-B.tsv, QQP.tsv, MNLI-m.tsv"
    )
    assert not out.exists()
    code, said, heard = miniatures("submit", folder, "-o", out, "--glue", glue, "--allow-missing")
    assert code == 0
    lines = [line.split("\t") for line in said.splitlines()]
    assert [line[:3] for line in lines[:2]] == [
        ["CoLA.tsv", "CoLA", str(folder / "cola")],
        ["AX.tsv", "AX, by mnli", str(folder / "mnli")],
    ]
    assert lines[0][3].startswith("dev matthews ")
    assert lines[1][3].startswith("dev accuracy ")
    assert lines[2][0].startswith(f"{out}: 2 files, ok; missing: SST-2.tsv, ")
    for note in (*TASKS["cola"].notes, *TASKS["ax"].notes):
        assert note in heard
    assert TASKS["wnli"].notes[0] not in heard
    assert miniatures("submit", "--check", out, "--allow-missing")[:2] == (0, "ok\n")
    code, said, _ = miniatures("submit", "--check", out)
    assert (code, said.splitlines()) == (
        2,
        [f"{name}: missing" for name in FILES if name not in ("CoLA.tsv", "AX.tsv")],
    )


def test_wrong_use_of_the_command(miniatures, runs, tmp_path):
    folder, _ = runs
    assert "say where the runs are" in miniatures("submit")[2]
    assert "--check takes a zip and nothing else" in miniatures("submit", folder, "--check", tmp_path / "x.zip")[2]
    assert "no such folder" in miniatures("submit", tmp_path / "no", "-o", tmp_path / "x.zip")[2]
    (tmp_path / "empty").mkdir()
    assert (
        "no finished run with a score on a GLUE task"
        in miniatures("submit", tmp_path / "empty", "-o", tmp_path / "x.zip")[2]
    )
    shutil.copytree(folder, tmp_path / "two")
    result = tmp_path / "two" / "cola" / "result.json"
    result.write_text(json.dumps(json.loads(result.read_text()) | {"model": "mini"}))
    code, _, heard = miniatures("submit", tmp_path / "two", "-o", tmp_path / "x.zip", "--allow-missing")
    assert code == 2
    assert "has runs of 2 models; say --model with one of " in heard
    assert "4/256" in heard
    code, said, _ = miniatures(
        "submit", tmp_path / "two", "-o", tmp_path / "x.zip", "--allow-missing", "--model", "mini"
    )
    assert code == 0
    assert said.startswith("CoLA.tsv\t")
    assert "AX.tsv" not in said.splitlines()[1].split(";")[0]
    assert (
        "unknown model 'medium'"
        in miniatures("submit", tmp_path / "two", "-o", tmp_path / "x.zip", "--model", "medium")[2]
    )
