"""Files of answers: every format, what an interrupted run leaves, and that it is gone on from without a difference."""

import csv
import json
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from bert_miniatures.answer_file import AnswerFile, estimated_rows, sketch
from bert_miniatures.errors import ConfigError, DataError, DiskFull, OutputExists
from commands import finish, shell, start
from test_predict import TEXTS, multilabel, regression, single  # noqa: F401  models, as fixtures

ABOUT = {"model": "m", "file": "f"}
ANSWERS = [{"label": f'l"{i},\t', "score": i / 7} for i in range(23)]


def chunks(answers, size=5):
    return [answers[i : i + size] for i in range(0, len(answers), size)]


def filled(out: Path, answers, *, resume: bool = False) -> AnswerFile:
    found = AnswerFile(out, ABOUT, chunk=5, resume=resume)
    found.write(chunks(answers[found.done :]))
    return found


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(TEXTS * 211) + "\n")
    return path


def test_cells_and_columns_are_those_of_the_answers(tmp_path):
    for suffix in (".jsonl", ".csv", ".tsv", ".parquet"):
        filled(tmp_path / f"a{suffix}", ANSWERS).finish()
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()] == ANSWERS
    for name, sign in (("a.csv", ","), ("a.tsv", "\t")):
        with (tmp_path / name).open(newline="") as file:
            rows = list(csv.DictReader(file, delimiter=sign))
        assert [{"label": row["label"], "score": float(row["score"])} for row in rows] == ANSWERS
    assert parquet.read_table(tmp_path / "a.parquet").to_pylist() == ANSWERS
    assert not list(tmp_path.glob("*.partial"))


def test_several_labels_and_numbers(tmp_path):
    several = [
        {"labels": [], "scores": {"a": 0.25, "b": 0.125}},
        {"labels": ["a", "b"], "scores": {"a": 0.75, "b": 0.5}},
    ]
    for suffix in (".csv", ".parquet"):
        filled(tmp_path / f"several{suffix}", several).finish()
    assert (tmp_path / "several.csv").read_text() == "labels,score of a,score of b\n,0.25,0.125\na|b,0.75,0.5\n"
    assert parquet.read_table(tmp_path / "several.parquet").to_pylist() == several
    filled(tmp_path / "number.csv", [{"score": -1.5}, {"score": 2.0}]).finish()
    assert (tmp_path / "number.csv").read_text() == "score\n-1.5\n2.0\n"


@given(st.integers(0, 10_000))
def test_wherever_the_file_was_cut_it_is_gone_on_from(tmp_path_factory, end):
    folder = tmp_path_factory.mktemp("cut")
    left = filled(folder / "a.jsonl", ANSWERS).partial
    content = left.read_bytes()
    head = content.index(b"\n") + 1
    left.write_bytes(content[: max(head, end % (len(content) + 1))])
    again = AnswerFile(folder / "a.jsonl", ABOUT, chunk=5, resume=True)
    assert again.done % 5 == 0
    assert left.read_bytes() == b"".join(content.splitlines(keepends=True)[: 1 + again.done])
    again.write(chunks(ANSWERS[again.done :]))
    again.finish()
    assert [json.loads(line) for line in (folder / "a.jsonl").read_text().splitlines()] == ANSWERS


def test_what_was_left_of_something_else_is_refused(tmp_path):
    filled(tmp_path / "a.csv", ANSWERS)
    with pytest.raises(OutputExists, match=r"a.csv.partial is what an interrupted run left; --resume goes on"):
        filled(tmp_path / "a.csv", ANSWERS)
    with pytest.raises(ConfigError, match=r"is of another file; remove it to begin again"):
        AnswerFile(tmp_path / "a.csv", ABOUT | {"file": "g"}, chunk=5, resume=True)
    assert AnswerFile(tmp_path / "a.csv", ABOUT | {"file": "g"}, chunk=5, resume=False).done == 0  # begins anew
    (tmp_path / "a.csv.partial").write_bytes(b"\xff\n")
    with pytest.raises(ConfigError, match=r"is of another run; remove it"):
        filled(tmp_path / "a.csv", ANSWERS, resume=True)
    with pytest.raises(ConfigError, match=r"unknown file type '.xlsx', expected .jsonl .csv .tsv .parquet"):
        filled(tmp_path / "a.xlsx", ANSWERS)


def test_an_error_leaves_what_came_before(tmp_path):
    def failing(after: int):
        yield from chunks(ANSWERS)[:after]
        raise DataError("texts.csv:17: ragged")

    for after, done in ((0, 0), (2, 10)):
        (tmp_path / "a.csv.partial").unlink(missing_ok=True)
        with pytest.raises(DataError, match="ragged"):
            AnswerFile(tmp_path / "a.csv", ABOUT, chunk=5, resume=False).write(failing(after))
        assert (tmp_path / "a.csv.partial").exists() == (done > 0)
        assert not (tmp_path / "a.csv").exists()
    assert AnswerFile(tmp_path / "a.csv", ABOUT, chunk=5, resume=True).done == 10


def test_a_full_disk(tmp_path):
    answers = AnswerFile(tmp_path / "a.csv", ABOUT, chunk=5, resume=False)
    answers.partial.unlink()
    answers.partial.symlink_to("/dev/full")
    with pytest.raises(DiskFull):
        answers.write(chunks(ANSWERS))


def test_rows_are_guessed_from_the_beginning(tmp_path):
    (tmp_path / "a.txt").write_text("one line\n" * 3001)
    assert estimated_rows(tmp_path / "a.txt") == 3001
    (tmp_path / "empty.txt").write_text("")
    assert estimated_rows(tmp_path / "empty.txt") == 1
    filled(tmp_path / "a.parquet", ANSWERS).finish()
    assert estimated_rows(tmp_path / "a.parquet") == 23
    assert sketch(tmp_path / "a.txt") != sketch(tmp_path / "a.parquet")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_killed_and_resumed_it_answers_as_uninterrupted(single, texts, tmp_path, suffix):  # noqa: F811
    whole, out = tmp_path / f"whole{suffix}", tmp_path / f"out{suffix}"
    assert shell()("predict", single, texts, "--out", whole).code == 0
    process = start(tmp_path, "predict", single, texts, "--out", out)
    partial, end = out.with_name(f"{out.name}.partial"), time.monotonic() + 60
    while not partial.exists() or partial.stat().st_size < 100_000:
        assert process.poll() is None, finish(process).err
        assert time.monotonic() < end
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    finish(process)
    assert partial.exists()
    assert not out.exists()
    refused = shell()("predict", single, texts, "--out", out)
    assert (refused.code, "--resume goes on from it" in refused.error) == (2, True)
    done = shell()("predict", single, texts, "--out", out, "--resume")
    assert done.code == 0, done.err
    assert "rows are answered already" in done.err
    assert out.read_bytes() == whole.read_bytes()


def test_files_of_every_kind_of_model(multilabel, regression, tmp_path):  # noqa: F811
    (tmp_path / "t.csv").write_text("text\n" + "\n".join(TEXTS) + "\n")
    for model, columns in ((multilabel, {"labels", "scores"}), (regression, {"score"})):
        done = shell()("predict", model, tmp_path / "t.csv", "--out", tmp_path / f"{model.name}.parquet")
        assert done.code == 0, done.err
        table = parquet.read_table(tmp_path / f"{model.name}.parquet")
        assert (table.num_rows, set(table.column_names)) == (len(TEXTS), columns)
        lines = shell()("predict", model, tmp_path / "t.csv").rows
        assert table.to_pylist() == lines


def test_resuming_with_nothing_left_begins(single, tmp_path):  # noqa: F811
    (tmp_path / "t.txt").write_text("good film\nbad film\n")
    done = shell()("predict", single, tmp_path / "t.txt", "--out", tmp_path / "a.csv", "--resume")
    assert done.code == 0, done.err
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 3
