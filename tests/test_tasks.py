"""The GLUE table, and the reader of official files on made-up folders and on the real ones."""

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bert_miniatures.data.examples import read_glue
from bert_miniatures.data.tasks import KINDS, TASKS, Task, fold, task_named
from bert_miniatures.errors import ConfigError, DataError, UnknownName
from bert_miniatures.metrics import METRICS
from bert_miniatures.zoo import PUBLISHED

GLUE = Path(__file__).parents[1] / "../shared/glue"
needs_glue = pytest.mark.skipif(not GLUE.is_dir(), reason="../shared/glue is not here")
EVERY_SPLIT = [(task, split) for task in TASKS.values() for split in task.splits]
# rows of the files in ../shared/glue that are not the whole official file, or are absent (None)
PARTIAL = {
    ("mnli", "train"): 32_717, ("mnli", "dev_mismatched"): 1_000, ("mnli", "test_matched"): None,
    ("mnli", "test_mismatched"): None, ("qnli", "train"): 12_096, ("qqp", "train"): 34_979, ("qqp", "dev"): 7_600,
    ("qqp", "test"): None,
}  # fmt: skip


def test_the_ten_tasks() -> None:
    assert " ".join(TASKS) == "cola sst2 mrpc stsb qqp mnli qnli rte wnli ax"
    assert {task.name: task.labels for task in TASKS.values() if task.name not in {"mnli", "ax"}} == {
        "cola": ("unacceptable", "acceptable"),
        "sst2": ("negative", "positive"),
        "mrpc": ("not_equivalent", "equivalent"),
        "stsb": (),
        "qqp": ("not_duplicate", "duplicate"),
        "qnli": ("entailment", "not_entailment"),
        "rte": ("entailment", "not_entailment"),
        "wnli": ("entailment", "not_entailment"),
    }
    assert TASKS["mnli"].labels == TASKS["ax"].labels == ("entailment", "neutral", "contradiction")


def test_official_row_counts() -> None:
    rows = {name: tuple(split.rows for split in task.splits.values()) for name, task in TASKS.items()}
    assert rows == {
        "cola": (8551, 1043, 1063), "sst2": (67349, 872, 1821), "mrpc": (3668, 408, 1725), "stsb": (5749, 1500, 1379),
        "qqp": (363846, 40430, 390965), "mnli": (392702, 9815, 9832, 9796, 9847), "qnli": (104743, 5463, 5463),
        "rte": (2490, 277, 3000), "wnli": (635, 71, 146), "ax": (1104,),
    }  # fmt: skip


def test_columns_of_the_official_files() -> None:
    found = {
        task.name: [(split.header, split.text, split.label, split.index) for split in task.splits.values()]
        for task in TASKS.values()
    }
    cola, two = [(False, (3,), 1, None)] * 2, [(True, (1, 2), 3, 0)] * 2
    one_test, two_test = (True, (1,), None, 0), (True, (1, 2), None, 0)
    assert found == {
        "cola": [*cola, one_test],
        "sst2": [(True, (0,), 1, None), (True, (0,), 1, None), one_test],
        "mrpc": [(True, (3, 4), 0, None), (True, (3, 4), 0, None), (True, (3, 4), None, 0)],
        "stsb": [(True, (7, 8), 9, 0), (True, (7, 8), 9, 0), (True, (7, 8), None, 0)],
        "qqp": [(True, (3, 4), 5, 0), (True, (3, 4), 5, 0), two_test],
        "mnli": [(True, (8, 9), 11, 0), *[(True, (8, 9), 15, 0)] * 2, *[(True, (8, 9), None, 0)] * 2],
        "qnli": [*two, two_test],
        "rte": [*two, two_test],
        "wnli": [*two, two_test],
        "ax": [two_test],
    }


def test_every_row_is_consistent() -> None:
    for task in TASKS.values():
        assert task.kind in KINDS
        assert all(task.kind in METRICS[metric].kinds for metric in task.metrics)
        assert set(task.raw_labels.values()) == set(task.labels)
        assert task.notes
        for split in task.splits.values():
            assert len(split.text) == (2 if task.pair else 1)
            used = [*split.text, *(place for place in (split.label, split.index) if place is not None)]
            assert max(used) < split.columns
        # One published number for each metric, and for each file of the submission where there are two.
        assert len(PUBLISHED["tiny"][task.name]) == max(len(task.metrics), 1) or task.name == "mnli"
    assert TASKS["ax"].predicted_by == "mnli"


def test_submission_files_and_what_the_server_wants() -> None:
    files = {sub.file: (task, sub) for task in TASKS.values() for sub in task.submission}
    titles = ["CoLA", "SST-2", "MRPC", "STS-B", "QQP", "MNLI-m", "MNLI-mm", "QNLI", "RTE", "WNLI", "AX"]
    assert list(files) == [f"{title}.tsv" for title in titles]
    for task, sub in files.values():
        assert task.splits[sub.split].label is None
        assert set(sub.answers) == set(task.labels)
        assert sub.answers == {name: raw for raw, name in task.raw_labels.items()}
    assert files["WNLI.tsv"][1].answers == {"entailment": "1", "not_entailment": "0"}
    assert files["CoLA.tsv"][1].answers == {"unacceptable": "0", "acceptable": "1"}
    assert files["AX.tsv"][1].answers == {name: name for name in TASKS["mnli"].labels}
    assert files["STS-B.tsv"][0].score_range == (0.0, 5.0)
    assert files["STS-B.tsv"][1].decimals == 3


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("SST-2", "sst2"), ("sst-2", "sst2"), ("STS-B", "stsb"), ("CoLA", "cola"), ("MNLI-m", "mnli"),
        ("MNLI-mm", "mnli"), ("mnli_matched", "mnli"), ("AX", "ax"), ("diagnostic", "ax"), ("QNLIv2", "qnli"),
    ],
)  # fmt: skip
def test_tasks_are_found_in_any_spelling(name: str, found: str) -> None:
    assert task_named(name).name == found


def test_unknown_names_suggest_the_nearest() -> None:
    with pytest.raises(
        UnknownName, match=r"^unknown task 'mlni'; did you mean 'mnli'\? \('miniatures finetune --help'"
    ):
        task_named("mlni")
    with pytest.raises(UnknownName, match=r"^unknown split of SST-2 'dve'; did you mean 'dev'\?$"):
        TASKS["sst2"].split_named("dve")
    with pytest.raises(UnknownName, match=r"^unknown split of AX 'train'; known: test$"):
        TASKS["ax"].split_named("train")
    assert TASKS["mnli"].split_named("dev") == "dev_matched"
    assert TASKS["mnli"].split_named("test") == "test_matched"


# ---- the real files


@needs_glue
@pytest.mark.parametrize(("task", "split"), EVERY_SPLIT, ids=[f"{task.name}-{split}" for task, split in EVERY_SPLIT])
def test_real_files(task: Task, split: str) -> None:
    layout = task.splits[split]
    rows = PARTIAL.get((task.name, split), layout.rows)
    if rows is None:
        with pytest.raises(DataError, match=rf"{layout.file}: no such file; .* has dev.*train\.tsv$"):
            read_glue(task, GLUE, split)
        return
    found = read_glue(task, GLUE, split)
    assert len(found) == rows == len(found.row_ids)
    assert (found.pairs is not None) == task.pair
    assert found.hidden == (rows if layout.label is None else 0)
    partial = f"{task.title} {split} has {rows:,} rows, the official file has {layout.rows:,}: partial data"
    expected = () if rows == layout.rows else (f"{partial}, a submission would be refused",)
    assert found.warnings == expected
    # The oracle is the csv module without quoting; it ends lines at "\n" only because the file is opened so.
    with (GLUE / task.folder / layout.file).open(encoding="utf-8", newline="\n") as file:
        cells = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1 if layout.header else 0 :]
    assert found.texts == [row[layout.text[0]] for row in cells]
    if layout.label is not None and task.labels:
        assert [task.labels[i] for i in found.labels] == [task.raw_labels[row[layout.label]] for row in cells]
    if layout.index is not None:
        assert found.row_ids == [row[layout.index] for row in cells]


@needs_glue
def test_real_labels_and_the_shares_that_the_notes_claim() -> None:
    share = {name: np.bincount(read_glue(TASKS[name], GLUE, "dev").labels) for name in ("cola", "mrpc", "wnli")}
    assert share["cola"].tolist() == [322, 721]  # 69 % acceptable
    assert share["mrpc"].tolist() == [129, 279]  # F1 of always 'equivalent': 2 * 279 / (408 + 279) = 81.2 %
    assert share["wnli"].tolist() == [31, 40]  # 'entailment' is class 0, the file calls it 1
    scores = read_glue(TASKS["stsb"], GLUE, "dev")
    assert (scores.labels.min(), scores.labels.max()) == (0.0, 5.0)
    assert len(read_glue(TASKS["stsb"], GLUE, "dev", rows=13)) == 13
    assert read_glue(TASKS["stsb"], GLUE, "dev", rows=13).warnings == ()


# ---- made-up files


def glue_with(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return folder


def sst2(tmp_path: Path, content: bytes) -> Path:
    return glue_with(tmp_path, "SST-2/dev.tsv", content)


SAID = "SST-2 dev has 1 row, the official file has 872: partial data, a submission would be refused"


@pytest.mark.parametrize("folder", ["SST-2", "sst2", "sst-2", "SST2", "Sst_2"])
def test_the_folder_is_found_in_other_spellings(tmp_path: Path, folder: str) -> None:
    found = read_glue(TASKS["sst2"], glue_with(tmp_path, f"{folder}/dev.tsv", b"sentence\tlabel\nfine \t1\n"), "dev")
    assert (found.texts, found.labels.tolist(), found.warnings) == (["fine "], [1], (SAID,))
    assert found.source == str(tmp_path / folder / "dev.tsv")


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfsentence\tlabel\nfine\t1\n",  # byte order mark
        b"sentence\tlabel\r\nfine\t1\r\n",
        b"sentence\tlabel\nfine\t1",  # no end of the last line
        b"sentence\tlabel\nfine\t1\n\n\n",
    ],
)
def test_line_ends_and_marks(tmp_path: Path, content: bytes) -> None:
    assert read_glue(TASKS["sst2"], sst2(tmp_path, content), "dev").texts == ["fine"]


@given(st.lists(st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"])), min_size=1, max_size=7))
@example(['" an open quote', 'and "another', "a\x85b\u2028c\x0bd\x1ce"])
@settings(max_examples=40, deadline=None)
def test_texts_are_kept_as_they_are(tmp_path_factory, texts: list[str]) -> None:
    content = "sentence\tlabel\n" + "".join(f"{text}\t{i % 2}\n" for i, text in enumerate(texts))
    found = read_glue(TASKS["sst2"], sst2(tmp_path_factory.mktemp("glue"), content.encode()), "dev")
    assert found.texts == texts
    assert found.labels.tolist() == [i % 2 for i in range(len(texts))]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"sentence\tlabel\na\t0\nb\t1\tc\n", ":3: expected 2 columns, got 3"),
        (b"sentence\tlabel\na\n", ":2: expected 2 columns, got 1"),
        (b"sentence\tlabel\na\t0\n\nb\t1\n", ":3: expected 2 columns, got 1"),
        (b"index\tsentence\tlabel\n", ":1: expected 2 columns, got 3"),
        (b"sentence\tlabel\na\tpositive\n", ":2: label 'positive' is not one of 0, 1"),
        (b"sentence\tlabel\na\t\n", ":2: the label is missing"),
        (b"a\t0\nb\t1\n", ":1: expected a header line, got a row"),
        (b"sentence\tlabel\nok\t1\nbad \xff\t0\n", ":3: not UTF-8 (byte 0xff at byte 24 of the file); save the file"),
        (b"\xff\xfes\0e\0", ":1: UTF-16 text, expected UTF-8; save the file as UTF-8"),
        (b"", ": the file is empty"),
        (b"\xef\xbb\xbf", ": the file is empty"),
        (b"\n\n", ": the file is empty"),
        (b"sentence\tlabel\n", ": has a header and no rows"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, says: str) -> None:
    with pytest.raises(DataError) as caught:
        read_glue(TASKS["sst2"], sst2(tmp_path, content), "dev")
    assert str(caught.value).startswith(f"{tmp_path / 'SST-2' / 'dev.tsv'}{says}")


def test_a_misspelt_label_names_the_nearest(tmp_path: Path) -> None:
    header = "\t".join(["index", "sentence1", "sentence2", "label"])
    glue_with(tmp_path, "QNLI/dev.tsv", f"{header}\n0\ta\tb\tentailment\n1\ta\tb\tentailmnt\n".encode())
    with pytest.raises(DataError) as caught:
        read_glue(TASKS["qnli"], tmp_path, "dev")
    says = "label 'entailmnt' is not one of entailment, not_entailment; did you mean 'entailment'?"
    assert str(caught.value) == f"{tmp_path / 'QNLI' / 'dev.tsv'}:3: {says}"


@pytest.mark.parametrize(
    ("score", "says"),
    [
        ("5.001", "score 5.001 is outside 0 to 5"), ("-0.1", "score -0.1 is outside 0 to 5"),
        ("nan", "score 'nan' is not a finite number"), ("-inf", "score '-inf' is not a finite number"),
        ("1e999", "score '1e999' is not a finite number"), ("five", "score 'five' is not a number"),
        ("1_0", "score '1_0' is not a number"), ("", "the score is missing"),
    ],
)  # fmt: skip
def test_scores_out_of_range(tmp_path: Path, score: str, says: str) -> None:
    rows = [["index", *"123456", "s1", "s2", "score"], [*"0123456", "a", "b", "2.5"], [*"1123456", "a", "b", score]]
    glue_with(tmp_path, "STS-B/dev.tsv", "\n".join("\t".join(row) for row in rows).encode())
    with pytest.raises(DataError) as caught:
        read_glue(TASKS["stsb"], tmp_path, "dev")
    assert str(caught.value) == f"{tmp_path / 'STS-B' / 'dev.tsv'}:3: {says}"


def test_short_rows_of_qqp_are_left_out_and_counted(tmp_path: Path) -> None:
    content = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n5\t1\t2\tcut\nhere\t0\n6\t1\t2\ta\tb\t1\n"
    found = read_glue(TASKS["qqp"], glue_with(tmp_path, "QQP/train.tsv", content.encode()), "train")
    assert (found.texts, found.pairs, found.row_ids) == (["a"], ["b"], ["6"])
    assert found.warnings[0] == "QQP train: 2 short rows were left out, as every reader of the official file does"
    glue_with(tmp_path, "QQP/test.tsv", b"id\tquestion1\tquestion2\n0\ta\n")
    with pytest.raises(DataError, match=r"test\.tsv:2: expected 3 columns, got 2$"):
        read_glue(TASKS["qqp"], tmp_path, "test")


def test_hidden_labels(tmp_path: Path) -> None:
    glue_with(tmp_path, "SST-2/test.tsv", b"index\tsentence\r\n0\ta\r\n1\t\r\n")
    found = read_glue(TASKS["sst2"], tmp_path, "test")
    assert found.texts == ["a", ""]
    assert (found.labels.tolist(), found.hidden, found.labels.dtype) == ([-1, -1], 2, np.int64)
    assert found.warnings[1] == f"{tmp_path / 'SST-2' / 'test.tsv'}: 1 row has an empty text (of 2); kept"
    columns = "\t".join(str(i) for i in range(9))
    glue_with(tmp_path, "STS-B/test.tsv", f"{columns.replace('0', 'index')}\n{columns}\n".encode())
    assert math.isnan(read_glue(TASKS["stsb"], tmp_path, "test").labels[0])


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    glue = sst2(tmp_path / "glue", b"sentence\tlabel\na\t0\n")
    for task, folder, says in (
        ("sst2", tmp_path / "gleu", f"{tmp_path / 'gleu'}: no such folder; {tmp_path} is the nearest that exists; "
         f"did you mean {glue}?"),
        ("rte", glue, f"{glue / 'RTE'}: no such folder; {glue} has SST-2"),
        ("sst2", glue / "SST-2", f"{glue / 'SST-2' / 'SST-2'}: no such folder; {glue / 'SST-2'} has no folders; "
         f"give the folder above it: {glue}"),
    ):  # fmt: skip
        with pytest.raises(DataError) as caught:
            read_glue(TASKS[task], folder, "dev")
        assert str(caught.value) == says
    with pytest.raises(DataError, match=r"train\.tsv: no such file; .*SST-2 has dev\.tsv$"):
        read_glue(TASKS["sst2"], glue, "train")
    with pytest.raises(ConfigError, match=r"^rows is 0; expected 1 or more$"):
        read_glue(TASKS["sst2"], glue, "dev", rows=0)


def test_more_rows_than_official(tmp_path: Path) -> None:
    rows = "".join(f"{i}\ta\tb\tentailment\n" for i in range(278))
    glue_with(tmp_path, "RTE/dev.tsv", f"index\tsentence1\tsentence2\tlabel\n{rows}".encode())
    said = "RTE dev has 278 rows, the official file has 277: not the official data, a submission would be refused"
    assert read_glue(TASKS["rte"], tmp_path, "dev").warnings == (said,)


def test_folding_keeps_names_apart() -> None:
    assert fold("SST-2") == fold("sst_2") == "sst2"
    assert len({fold(task.title) for task in TASKS.values()}) == len(TASKS)
