"""Own files: which columns, which kind, which labels; every damaged file is one sentence with its line."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bert_miniatures.data.examples import Examples, own_task, read_file
from bert_miniatures.data.tasks import TASKS, Columns, Task
from bert_miniatures.errors import ConfigError, DataError, UnknownName

TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
ROWS = st.lists(st.tuples(TEXTS, TEXTS, st.sampled_from("abc")), min_size=1, max_size=9)
ABC = Task(
    "own", "classification", ("a", "b", "c"), ("accuracy",), pair=True, columns=Columns("text", "text2", "label")
)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_rows(path: Path, columns: dict[str, list[object]]) -> Path:
    """Write a table with the standard library or pyarrow."""
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    elif path.suffix == ".jsonl":
        write(path, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(columns), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def says(error: pytest.ExceptionInfo[BaseException], path: Path, rest: str) -> None:
    assert str(error.value).startswith(f"{path}{rest}"), str(error.value)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@given(rows=ROWS)
@example(rows=[("a,b\t\"c\"\n'd'\r\ne", "\x85 \u2028 \x0b \x1c", "a"), ("", " ", "b"), ("\ufeff", '"', "c")])
@settings(max_examples=25, deadline=None)
def test_what_was_written_is_read(tmp_path_factory, suffix: str, rows: list[tuple[str, str, str]]) -> None:
    first, second, labels = (list(column) for column in zip(*rows, strict=True))
    path = tmp_path_factory.mktemp("own") / f"data{suffix}"
    write_rows(path, {"text": first, "text2": second, "label": labels})
    found = read_file(path, ABC)
    assert (found.texts, found.pairs) == (first, second)
    assert [ABC.labels[i] for i in found.labels] == labels
    assert found.row_ids == [str(i) for i in range(len(rows))]
    assert read_file(path, ABC, rows=1).texts == first[:1]


def test_the_checksum_is_that_of_texts_and_labels_not_of_the_file(tmp_path: Path) -> None:
    columns = {"text": ["ab", "c"], "label": ["a", "b"]}
    task = Task("own", "classification", ("a", "b"), ("accuracy",), pair=False, columns=Columns("text", None, "label"))
    same = {read_file(write_rows(tmp_path / f"d{s}", columns), task).checksum for s in (".csv", ".jsonl", ".parquet")}
    assert len(same) == 1
    for other in ({"text": ["a", "bc"], "label": ["a", "b"]}, {"text": ["ab", "c"], "label": ["b", "a"]}):
        assert read_file(write_rows(tmp_path / "other.csv", other), task).checksum not in same


def test_rows_can_be_taken_in_another_order(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "d.csv", {"text": ["one", "two", "three"], "label": ["a", "b", "a"]})
    whole = read_file(path, own_task(path))
    part = whole.take(np.array([2, 0]))
    assert (part.texts, part.labels.tolist(), part.row_ids) == (["three", "one"], [0, 0], ["2", "0"])
    assert part.checksum != whole.checksum == whole.take(range(3)).checksum


# ---- columns


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("text,label", Columns("text", None, "label")),
        ("id,Review,Stars", Columns("Review", None, "Stars")),
        ("label,sentence2,sentence1", Columns("sentence1", "sentence2", "label")),
        ("premise,hypothesis,gold_label", Columns("premise", "hypothesis", "gold_label")),
        ("question,sentence,label", Columns("question", "sentence", "label")),
        ("title,intent", Columns("title", None, "intent")),
        ("idx,what,class", Columns("what", None, "class")),
        ("message,outcome", Columns("message", None, "outcome")),
    ],
)
def test_columns_are_guessed_by_name(tmp_path: Path, header: str, columns: Columns) -> None:
    others = ",x" * header.count(",")
    task = own_task(write(tmp_path / "train.csv", f"{header}\n0{others[:-1]}p\n1{others[:-1]}q\n"))
    assert task.columns == columns
    assert "guessed from the names" in task.notes[0]
    assert f"the text is column '{columns.text}'" in task.notes[0]


def test_named_columns_are_taken_and_not_noted(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "a,b,c\nx,y,p\nx,y,q\n")
    task = own_task(path, text="a", pair="b", label="c")
    assert (task.columns, task.notes, task.pair) == (Columns("a", "b", "c"), (), True)
    assert (
        own_task(write(tmp_path / "u.csv", "premise,hypothesis,label\nx,y,p\nx,y,q\n"), text="hypothesis").pair is False
    )


@pytest.mark.parametrize(
    ("header", "rest"),
    [
        ("review,comment,label", ":1: cannot tell which column holds the text: 'review', 'comment' all look like it; "
         "the columns are 'review', 'comment', 'label'; say --text COLUMN"),
        ("text,label,score", ":1: cannot tell which column holds the label: 'label', 'score' all look like it; the"),
        ("a,b", ":1: cannot tell which column holds the text: no name tells; the columns are 'a', 'b'; say --text"),
        ("text,a,b", ":1: cannot tell which column holds the label: no name tells; the columns are 'text', 'a', 'b'"),
        ("title,text,label", ":1: cannot tell which column holds the text: 'title', 'text' all look like it"),
    ],
)  # fmt: skip
def test_a_guess_is_never_a_draw(tmp_path: Path, header: str, rest: str) -> None:
    path = write(tmp_path / "train.csv", f"{header}\n{'x,' * header.count(',')}y\n")
    with pytest.raises(DataError) as caught:
        own_task(path)
    says(caught, path, rest)


def test_unknown_columns_and_kinds_name_the_nearest(tmp_path: Path) -> None:
    path = write(tmp_path / "train.csv", "text,intent\na,b\nb,c\n")
    with pytest.raises(
        UnknownName, match=r"^unknown column 'intnet'; did you mean 'intent'\? \(--label; .* has text, int"
    ):
        own_task(path, label="intnet")
    with pytest.raises(ConfigError, match=r"^column 'text' is named for two things: --label and another option$"):
        own_task(path, text="text", label="text")
    with pytest.raises(UnknownName, match=r"^unknown kind 'regresion'; did you mean 'regression'"):
        own_task(path, kind="regresion")


# ---- kinds


def task_of(tmp_path: Path, labels: list[object], kind: str | None = None, suffix: str = ".jsonl") -> Task:
    columns = {"text": [f"text {i}" for i in range(len(labels))], "label": labels}
    return own_task(write_rows(tmp_path / f"train{suffix}", columns), kind=kind)


@pytest.mark.parametrize(
    ("labels", "kind", "names", "note"),
    [
        (["b", "a", "b"], "classification", ("a", "b"), ""),
        (
            ["10", "9", "1"],
            "classification",
            ("1", "9", "10"),
            "whole numbers, 1 to 10: read as 3 classes; say --kind regr",
        ),
        ([0, 1, 0], "classification", ("0", "1"), "whole numbers, 0 to 1: read as 2 classes; say --kind regression if"),
        (["\u0661.5", "2"], "classification", ("2", "\u0661.5"), ""),
        ([True, False], "classification", ("false", "true"), ""),
        (
            list(range(21)),
            "classification",
            tuple(map(str, range(21))),
            "21 different numbers look like scores: say --kind",
        ),
        (["1.5E-1", "+2", ".3"], "regression", (), "the labels are numbers with decimals: read as regression"),
        ([0.25, 1.0], "regression", (), "the labels are numbers with decimals: read as regression"),
        ([["x"], ["y", "x"], []], "multilabel", ("x", "y"), "the labels are lists"),
        (["a|b", "b"], "classification", ("a|b", "b"), "some labels contain '|': say --kind multilabel if a row can"),
        (
            [f"{i}x" for i in range(30)],
            "classification",
            None,
            "the label column has 30 different values in 30 rows; is",
        ),
    ],
)
def test_the_kind_is_read_off_the_labels(tmp_path: Path, labels: list[object], kind: str, names, note: str) -> None:
    task = task_of(tmp_path, labels)
    assert task.kind == kind
    assert names is None or task.labels == names
    assert note in task.notes[-1]
    assert len(task.notes) == (2 if note else 1)
    assert task.metrics[0] == {"classification": "accuracy", "regression": "pearson", "multilabel": "micro_f1"}[kind]


@pytest.mark.parametrize("labels", [["1.0", "0.0"], [5.0, 3.0]])
def test_whole_numbers_with_decimals_must_be_named(tmp_path: Path, labels: list[object]) -> None:
    with pytest.raises(DataError, match=r"train\.jsonl: the labels are whole numbers written with decimals, such as "):
        task_of(tmp_path, labels)
    assert task_of(tmp_path, labels, kind="regression").kind == "regression"
    assert len(task_of(tmp_path, labels, kind="classification").labels) == 2


def test_label_order_does_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    assert task_of(tmp_path, ["c", "a", "b"]).labels == task_of(tmp_path, ["b", "c", "a", "a"]).labels


@pytest.mark.parametrize(("suffix", "kind"), [(".csv", "multilabel"), (".jsonl", None), (".parquet", None)])
def test_multilabel(tmp_path: Path, suffix: str, kind: str | None) -> None:
    sets: list[object] = [["x", "z"], [], ["y"]]
    labels = ["x | z", "", "y"] if suffix == ".csv" else sets
    task = task_of(tmp_path, labels, kind, suffix)
    found = read_file(tmp_path / f"train{suffix}", task)
    assert task.labels == ("x", "y", "z")
    assert found.labels.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert found.hidden == 0


@pytest.mark.parametrize(
    ("labels", "kind", "rest"),
    [
        (["a", "a"], None, ": every row has the label 'a'; at least two classes are needed"),
        (["a", "", "b"], None, ":2: the label is missing"),
        (["a", None, "b"], None, ":2: the label is missing"),
        ([1.5, None], None, ":2: the score is missing"),
        ([1.5, float("nan")], None, ":2: score 'nan' is not a finite number"),
        (["1.5", "Infinity"], "regression", ":2: score 'Infinity' is not a finite number"),
        (["1.5", "high"], "regression", ":2: score 'high' is not a number"),
        ([2.5, 2.5], None, ": every score is 2.5; there is nothing to learn"),
        (["a", ["b"]], "classification", ":2: expected one label, got ['b']; --kind multilabel takes several"),
        ([["a"], ["a"]], None, ": every row has the same labels (a); nothing to tell apart"),
    ],
)
def test_labels_that_cannot_be_learnt(tmp_path: Path, labels: list[object], kind: str | None, rest: str) -> None:
    with pytest.raises(DataError) as caught:
        task_of(tmp_path, labels, kind)
    says(caught, tmp_path / "train.jsonl", rest)


def test_labels_of_dev_that_train_does_not_have(tmp_path: Path) -> None:
    task = task_of(tmp_path, ["refund", "delivery"])
    dev = write(tmp_path / "dev.csv", "text,label\nx,refund\ny,delivry\n")
    with pytest.raises(DataError) as caught:
        read_file(dev, task)
    assert str(caught.value) == f"{dev}:3: label 'delivry' is not one of delivery, refund; did you mean 'delivery'?"
    parquet = write_rows(tmp_path / "dev.parquet", {"text": ["x", "y"], "label": ["refund", "other"]})
    with pytest.raises(DataError) as caught:
        read_file(parquet, task)
    assert str(caught.value) == f"{parquet}: row 2: label 'other' is not one of delivery, refund"


def test_hidden_labels_are_taken_only_where_allowed(tmp_path: Path) -> None:
    task = task_of(tmp_path, ["a", "b"])
    dev = write(tmp_path / "dev.csv", "text,label\nx,a\ny,\n")
    with pytest.raises(DataError, match=r"dev\.csv:3: the label is missing$"):
        read_file(dev, task)
    found = read_file(dev, task, allow_hidden=True)
    assert (found.labels.tolist(), found.hidden) == ([0, -1], 1)
    bare = write(tmp_path / "bare.csv", "text\nx\ny\n")
    with pytest.raises(UnknownName, match=r"^unknown column 'label'; known: text"):
        read_file(bare, task)
    assert read_file(bare, task, allow_hidden=True).labels.tolist() == [-1, -1]
    scores = Task("own", "regression", (), ("pearson",), pair=False, columns=Columns("text", None, "label"))
    assert read_file(write(tmp_path / "s.csv", "text,label\nx,1.5\ny,\n"), scores, allow_hidden=True).hidden == 1
    sets = Task("own", "multilabel", ("a", "b"), ("micro_f1",), pair=False, columns=Columns("text", None, "label"))
    lines = '{"text": "x", "label": ["b"]}\n{"text": "y", "label": null}\n'
    assert read_file(write(tmp_path / "m.jsonl", lines), sets, allow_hidden=True).labels.tolist() == [[0, 1], [-1, -1]]


def test_own_files_for_a_glue_task(tmp_path: Path) -> None:
    path = write(tmp_path / "reviews.csv", "review,label\nfine,positive\nbad,negative\n")
    assert read_file(path, TASKS["sst2"]).labels.tolist() == [1, 0]
    with pytest.raises(DataError, match=r"raw\.csv:2: label '1' is not one of negative, positive$"):
        read_file(write(tmp_path / "raw.csv", "review,label\nfine,1\n"), TASKS["sst2"])
    with pytest.raises(DataError, match=r"reviews\.csv:1: the task compares two texts; say --pair COLUMN; the columns"):
        read_file(path, TASKS["rte"])
    pairs = write(tmp_path / "p.csv", "sentence1,sentence2,label\nfine,bad,positive\n")
    with pytest.raises(
        DataError, match=r"'sentence1' and 'sentence2' look like two texts, the task has one; say --text"
    ):
        read_file(pairs, TASKS["sst2"])


# ---- damaged files


@pytest.mark.parametrize(
    ("name", "content", "rest"),
    [
        ("a.csv", "", ": the file is empty"),
        ("a.csv", "\n\n", ": the file is empty"),
        ("a.csv", "text,label\n", ": has columns (text, label) and no rows"),
        ("a.csv", "text,text,label\n", ":1: column 'text' is there 2 times"),
        (
            "a.csv",
            'text,label\n"x\ny",a\n\nz,b,c\n',
            ":5: expected 2 columns (text, label), got 3; a text with the separator",
        ),
        ("a.csv", "text,label\nx\n", ":2: expected 2 columns (text, label), got 1"),
        ("a.csv", 'text,label\nx,a\n"y,b\nz,c\n', ":3: a quote that opens in this row is never closed"),
        ("a.csv", 'text,label\n"x"y,a\n', ":2: text after a closing quote; inside quotes a quote is written twice"),
        (
            "a.csv",
            "text,label\rx,a\ry,b\r",
            ":1: a carriage return inside a row; save the file with ordinary line ends",
        ),
        (
            "a.csv",
            b"text,label\nx,a\ncaf\xe9,b\n",
            ":3: not UTF-8 (byte 0xe9 at byte 18 of the file); save the file as",
        ),
        ("a.csv", "text,label\nx,a\n".encode("utf-16"), ":1: UTF-16 text, expected UTF-8; save the file as UTF-8"),
        ("a.csv", "text,label\nx\0,a\n", ":2: a NUL byte (byte 12 of the file); the file is damaged or not text"),
        ("a.tsv", "text\tlabel\nx\ta\tb\n", ":2: expected 2 columns (text, label), got 3"),
        ("a.jsonl", "", ": the file is empty"),
        (
            "a.jsonl",
            '{"text": "x", "label": "a"}\n{"text": "y"}\n',
            ":2: the key 'label' is missing; this line has text",
        ),
        (
            "a.jsonl",
            '{"text": "x", "label": "a"}\n\n{"text": 3}\n',
            ":3: the key 'label' is missing; this line has text",
        ),
        ("a.jsonl", '{"text": "x", "label": "a"}\n["y", "b"]\n', ":2: expected an object such as {"),
        ("a.jsonl", '{"text": "x", "label": "a"}\n{"text": \n', ":2: not JSON (Expecting value)"),
        ("a.jsonl", '{"text": "x", "label": "a"}\n' + "[" * 100_000, ":2: not JSON (nested too deeply)"),
        ("a.jsonl", '{"text": "x", "label": "a"}\n{"text": 3, "label": "b"}\n', ":2: expected a text, got 3"),
        ("a.jsonl", '{"text": "x\\ud83d", "label": "a"}\n', ":1: half a character (U+D83D alone) in the text"),
        ("a.jsonl", '{"text": "x\\u0000", "label": "a"}\n', ":1: a NUL character in the text"),
        ("a.parquet", "text,label\n", ": not a whole Parquet file ("),
        ("a.parquet", "", ": not a whole Parquet file ("),
        ("a.xlsx", "", ": unknown file type '.xlsx', expected .csv .tsv .jsonl .parquet"),
        (
            "a.json",
            "[]",
            ": unknown file type '.json', expected .csv .tsv .jsonl .parquet; one JSON object a line goes",
        ),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: str | bytes, rest: str) -> None:
    path = write(tmp_path / name, content)
    task = Task("own", "classification", ("a", "b"), ("accuracy",), pair=False, columns=Columns("text", None, "label"))
    with pytest.raises(DataError) as caught:
        read_file(path, task)
    says(caught, path, rest)


def test_a_cut_parquet_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.parquet", {"text": ["x"] * 500, "label": ["a", "b"] * 250})
    whole = path.read_bytes()
    for length in (7, len(whole) // 2, len(whole) - 1):
        with pytest.raises(DataError, match=r"a\.parquet: not a whole Parquet file"):
            own_task(write(path, whole[:length]))
    write_rows(path, {"text": [], "label": []})
    with pytest.raises(DataError, match=r"a\.parquet: has columns \(text, label\) and no rows$"):
        own_task(path)
    write_rows(path, {"text": [1, 2], "label": ["a", "b"]})
    with pytest.raises(DataError, match=r"a\.parquet: row 1: expected a text, got 1$"):
        read_file(path, own_task(path))


def test_files_that_are_not_there(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "text,label\n")
    for path, rest in (
        (tmp_path / "trian.csv", ": no such file; did you mean 'train.csv'?"),
        (tmp_path / "x" / "train.csv", f": no such file; there is no folder {tmp_path / 'x'}, {tmp_path} exists"),
        (tmp_path / "q.csv", f": no such file; {tmp_path} has train.csv"),
    ):
        with pytest.raises(DataError) as caught:
            own_task(path)
        assert str(caught.value) == f"{path}{rest}"
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match=r"folder\.csv: is a folder, expected a file$"):
        own_task(tmp_path / "folder.csv")


def test_a_text_of_100_000_words_and_empty_texts(tmp_path: Path) -> None:
    long = "word " * 100_000
    path = write_rows(tmp_path / "a.csv", {"text": [long, "", " "], "label": ["a", "b", "a"]})
    found: Examples = read_file(path, own_task(path))
    assert found.texts == [long, "", " "]
    assert found.warnings == (f"{path}: 2 rows have an empty text (of 3); kept",)
    nothing = write_rows(tmp_path / "a.jsonl", {"text": ["x", None], "label": ["a", "b"]})
    assert read_file(nothing, own_task(nothing)).texts == ["x", ""]


@given(content=st.binary(max_size=60), suffix=st.sampled_from([".csv", ".tsv", ".jsonl", ".parquet"]))
@example(content=b'text,label\n"', suffix=".csv")
@settings(max_examples=150, deadline=None)
def test_any_bytes_are_read_or_refused_in_a_sentence(tmp_path_factory, content: bytes, suffix: str) -> None:
    path = write(tmp_path_factory.mktemp("any") / f"a{suffix}", b"text,label\nx,a\n" * (suffix == ".csv") + content)
    try:
        own_task(path)
    except (DataError, UnknownName) as error:
        said = str(error)
    else:
        said = str(path)
    assert said.startswith(str(path))


def test_the_csv_dialect_is_rfc_4180(tmp_path: Path) -> None:
    text = 'he said ""no"", twice'
    path = write(tmp_path / "a.csv", f'text,label\r\n"{text}",a\r\n5" screen,b\r\n')
    found = read_file(path, own_task(path))
    assert found.texts == ['he said "no", twice', '5" screen']
    assert found.texts == [row[0] for row in csv.reader(io.StringIO(path.read_text("utf-8")))][1:]
