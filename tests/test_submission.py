"""Submissions: what is written is what the server wants, every single fault is its own line, nothing crashes the check."""

import csv
import doctest
import io
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_miniatures import submission
from bert_miniatures.data.tasks import TASKS
from bert_miniatures.errors import DataError, LabelError, UnknownName
from bert_miniatures.predictions import Predictions, read, write
from bert_miniatures.submission import check_submission, write_submission

# Written down here once more, from the instructions of the server, so that the task table is not its own oracle.
WANTED = {
    "CoLA.tsv": (1_063, "0 1"),
    "SST-2.tsv": (1_821, "0 1"),
    "MRPC.tsv": (1_725, "0 1"),
    "STS-B.tsv": (1_379, ""),
    "QQP.tsv": (390_965, "0 1"),
    "MNLI-m.tsv": (9_796, "entailment neutral contradiction"),
    "MNLI-mm.tsv": (9_847, "entailment neutral contradiction"),
    "QNLI.tsv": (5_463, "entailment not_entailment"),
    "RTE.tsv": (3_000, "entailment not_entailment"),
    "WNLI.tsv": (146, "1 0"),
    "AX.tsv": (1_104, "entailment neutral contradiction"),
}
LABELS = {  # in the order of the outputs
    "CoLA.tsv": "unacceptable acceptable",
    "SST-2.tsv": "negative positive",
    "MRPC.tsv": "not_equivalent equivalent",
    "STS-B.tsv": "",
    "QQP.tsv": "not_duplicate duplicate",
    "MNLI-m.tsv": "entailment neutral contradiction",
    "MNLI-mm.tsv": "entailment neutral contradiction",
    "QNLI.tsv": "entailment not_entailment",
    "RTE.tsv": "entailment not_entailment",
    "WNLI.tsv": "entailment not_entailment",
    "AX.tsv": "entailment neutral contradiction",
}
QUICK = tuple(name for name in WANTED if name != "QQP.tsv")  # QQP is half a million lines of the same


def made(name: str, seed: int = 1, rows: int | None = None) -> Predictions:
    """Random outputs of the official size, rows in an order of their own."""
    drawn = np.random.default_rng([seed, len(name), ord(name[0])])
    rows = WANTED[name][0] if rows is None else rows
    labels = tuple(LABELS[name].split())
    logits = (4 * drawn.standard_normal((rows, max(1, len(labels))))).astype(np.float32)
    return Predictions([str(i) for i in drawn.permutation(rows)], logits, labels)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "glue.zip"
    assert write_submission({name: made(name) for name in WANTED}, path) == ()
    return path


@pytest.fixture(scope="module")
def texts(whole: Path) -> dict[str, str]:
    """The files of a right submission, without QQP."""
    with zipfile.ZipFile(whole) as archive:
        return {name: archive.read(name).decode() for name in QUICK}


def zipped(path: Path, files: dict[str, str | bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name), text, method)
    return path


def faults(path: Path) -> list[str]:
    return check_submission(path, allow_missing=True)


# ---------------------------------------------------------------------------------------------------- writing


def test_a_whole_submission(whole):
    with zipfile.ZipFile(whole) as archive:
        assert archive.namelist() == list(WANTED)
        for name, (rows, answers) in WANTED.items():
            text = archive.read(name).decode("ascii")
            found = list(csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))
            assert found[0] == ["index", "prediction"]
            assert [row[0] for row in found[1:]] == [str(i) for i in range(rows)]
            assert text.endswith("\n")
            assert "\r" not in text
            given_ = made(name)
            by_row = dict(zip(given_.row_ids, given_.logits, strict=True))
            for index, answer in found[1:200]:
                logits = by_row[index]
                if answers:
                    assert answer == answers.split()[int(logits.argmax())]
                else:
                    assert answer == f"{min(5.0, max(0.0, float(logits[0]))):.3f}"
    assert check_submission(whole) == []


def test_both_ends_of_the_stsb_scale_are_cut_and_there_is_no_minus_zero(tmp_path):
    found = made("STS-B.tsv")
    found.logits[:5, 0] = [-0.0, -0.0001, 5.0004, 1e30, 2.71828]
    rows = Predictions([str(i) for i in range(1_379)], found.logits, ())
    write_submission({"STS-B.tsv": rows}, tmp_path / "glue.zip", allow_missing=True)
    with zipfile.ZipFile(tmp_path / "glue.zip") as archive:
        lines = archive.read("STS-B.tsv").decode().splitlines()
    assert lines[1:6] == ["0\t0.000", "1\t0.000", "2\t5.000", "3\t5.000", "4\t2.718"]


def test_same_predictions_same_bytes(tmp_path):
    files = {name: made(name) for name in QUICK}
    write_submission(files, tmp_path / "a.zip", allow_missing=True)
    write_submission(dict(reversed(files.items())), tmp_path / "b.zip", allow_missing=True)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


def test_labels_are_matched_by_name(tmp_path):
    found = made("MNLI-m.tsv")
    turned = Predictions(found.row_ids, found.logits[:, [2, 0, 1]], ("contradiction", "Entailment", "neutral"))
    for name, one in (("a", found), ("b", turned)):
        write_submission({"MNLI-m.tsv": one}, tmp_path / name, allow_missing=True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    wrong = Predictions(found.row_ids, found.logits, ("LABEL_0", "LABEL_1", "LABEL_2"))
    with pytest.raises(LabelError, match=r"MNLI-m\.tsv: the model's labels are LABEL_0"):
        write_submission({"MNLI-m.tsv": wrong}, tmp_path / "c", allow_missing=True)


def test_all_missing_files_are_named_in_one_sentence(tmp_path):
    files = {name: made(name) for name in QUICK if name != "RTE.tsv"}
    with pytest.raises(DataError) as error:
        write_submission(files, tmp_path / "glue.zip")
    assert str(error.value) == "the submission lacks QQP.tsv, RTE.tsv; --allow-missing writes the rest"
    assert write_submission(files, tmp_path / "glue.zip", allow_missing=True) == ("QQP.tsv", "RTE.tsv")
    assert check_submission(tmp_path / "glue.zip") == ["QQP.tsv: missing", "RTE.tsv: missing"]
    assert faults(tmp_path / "glue.zip") == []
    with pytest.raises(DataError, match="there are no predictions"):
        write_submission({}, tmp_path / "none.zip", allow_missing=True)
    with pytest.raises(UnknownName, match=r"unknown file of a submission 'Rte\.tsv'; did you mean 'RTE\.tsv'"):
        write_submission({"Rte.tsv": made("RTE.tsv")}, tmp_path / "glue.zip", allow_missing=True)


def _with(found: Predictions, ids: list[str]) -> Predictions:
    return Predictions(ids, found.logits, found.labels)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: made("WNLI.tsv", rows=71), r"WNLI\.tsv: 71 predictions, the server expects 146: the test data is partial"),
        (lambda found: made("WNLI.tsv", rows=149), "149 predictions, the server expects 146: this is not the official"),
        (lambda found: _with(found, ["a7", *found.row_ids[1:]]), "row 'a7' of the test file is not numbered"),
        (lambda found: _with(found, [str(i + 1) for i in range(146)]), "the test rows are not 0 to 145: 0 is not there exactly once"),
        (lambda found: _with(found, [found.row_ids[1], *found.row_ids[1:]]), "is not there exactly once"),
    ],
)  # fmt: skip
def test_rows_that_are_not_the_official_ones_are_refused(change, said, tmp_path):
    with pytest.raises(DataError, match=said):
        write_submission({"WNLI.tsv": change(made("WNLI.tsv"))}, tmp_path / "glue.zip", allow_missing=True)
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_not_finite_are_refused(tmp_path):
    found = made("CoLA.tsv")
    found.logits[7, 0], found.logits[9, 1] = np.nan, np.inf
    with pytest.raises(DataError, match=r"CoLA\.tsv: the outputs of 2 of 1,063 rows are NaN or infinite"):
        write_submission({"CoLA.tsv": found}, tmp_path / "glue.zip", allow_missing=True)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    names=st.sets(st.sampled_from(QUICK), min_size=1, max_size=4),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
)
def test_what_is_written_has_no_faults(seed, names, scale, tmp_path_factory):
    path = tmp_path_factory.mktemp("law") / "glue.zip"
    files = {}
    for name in names:
        found = made(name, seed)
        files[name] = Predictions(found.row_ids, found.logits * np.float32(scale), found.labels)
    missing = write_submission(files, path, allow_missing=True)
    assert faults(path) == []
    assert check_submission(path) == [f"{name}: missing" for name in missing]


# --------------------------------------------------------------------------------------------------- checking

# the file, what is done to its lines (header first), the one line that the check says
Lines = list[str]
CHANGES: list[tuple[str, Callable[[Lines], Lines], str]] = [
    ("CoLA.tsv", lambda t: ["id\tlabel", *t[1:]], "CoLA.tsv:1: header 'id\\tlabel', expected 'index\\tprediction'"),
    ("CoLA.tsv", lambda t: t[1:], "CoLA.tsv:1: no header, expected 'index\\tprediction'"),
    ("CoLA.tsv", lambda t: t[:-1], "CoLA.tsv: 1,062 rows, expected 1,063"),
    ("CoLA.tsv", lambda t: [*t, "1063\t0"], "CoLA.tsv: 1,064 rows, expected 1,063"),
    ("CoLA.tsv", lambda t: t[:11] + t[12:], "CoLA.tsv: 1,062 rows, expected 1,063; line 12 has index '11', expected 10"),
    ("CoLA.tsv", lambda t: [*t[:3], t[2], *t[3:]], "CoLA.tsv: 1,064 rows, expected 1,063; line 4 has index '1', expected 2"),
    ("CoLA.tsv", lambda t: [*t[:7], t[8], t[7], *t[9:]], "CoLA.tsv: line 8 has index '7', expected 6 (rows in index order, 0 to 1062)"),
    ("CoLA.tsv", lambda t: [t[0], *(f"{int(r.split()[0]) + 1}\t{r.split()[1]}" for r in t[1:])], "CoLA.tsv: line 2 has index '1', expected 0 (rows in index order, 0 to 1062)"),
    ("CoLA.tsv", lambda t: [*t[:5], "4.0\t1", *t[6:]], "CoLA.tsv: line 6 has index '4.0', expected 4 (rows in index order, 0 to 1062)"),
    ("CoLA.tsv", lambda t: [*t[:5], "4\t2", *t[6:]], "CoLA.tsv:6: prediction '2' is not one of 0, 1"),
    ("CoLA.tsv", lambda t: [*t[:5], "4\t1 ", *t[6:]], "CoLA.tsv:6: prediction '1 ' is not one of 0, 1"),
    ("CoLA.tsv", lambda t: [*t[:5], "4\t", *t[6:]], "CoLA.tsv:6: prediction '' is not one of 0, 1"),
    ("CoLA.tsv", lambda t: [*t[:5], "4 1", *t[6:]], "CoLA.tsv:6: 1 columns, expected 2"),
    ("CoLA.tsv", lambda t: [*t[:5], "4\t1\t", "5\t1\tx", *t[7:]], "CoLA.tsv:6: 3 columns, expected 2 (and 1 more)"),
    ("CoLA.tsv", lambda t: [*t[:5], "", *t[5:]], "CoLA.tsv:6: empty line"),
    ("CoLA.tsv", lambda t: [*t, ""], "CoLA.tsv:1065: empty line"),
    ("CoLA.tsv", lambda t: [*t[:5], "4\té", *t[6:]], "CoLA.tsv:6: prediction 'é' is not one of 0, 1"),
    ("CoLA.tsv", lambda t: [], "CoLA.tsv: empty file"),
    ("WNLI.tsv", lambda t: [*t, *t * 20], "WNLI.tsv: 3,087 lines, expected 147"),
    ("MNLI-m.tsv", lambda t: [t[0], *(f"{i}\t{i % 3}" for i in range(9_796))], "MNLI-m.tsv:2: prediction '0' is not one of entailment, neutral, contradiction (and 9,795 more)"),
    ("QNLI.tsv", lambda t: [*t[:3], "2\tneutral", *t[4:]], "QNLI.tsv:4: prediction 'neutral' is not one of entailment, not_entailment"),
    ("STS-B.tsv", lambda t: [*t[:3], "2\t5.001", *t[4:]], "STS-B.tsv:4: prediction 5.001 is outside 0 to 5"),
    ("STS-B.tsv", lambda t: [*t[:3], "2\t-0.001", *t[4:]], "STS-B.tsv:4: prediction -0.001 is outside 0 to 5"),
    ("STS-B.tsv", lambda t: [*t[:3], "2\t1e999", *t[4:]], "STS-B.tsv:4: prediction 1e999 is outside 0 to 5"),
    ("STS-B.tsv", lambda t: [*t[:3], "2\tnan", "3\tinf", *t[5:]], "STS-B.tsv:4: prediction 'nan' is not a number such as 2.500 (and 1 more)"),
    ("STS-B.tsv", lambda t: [*t[:3], "2\t3,14", *t[4:]], "STS-B.tsv:4: prediction '3,14' is not a number such as 2.500"),
    ("STS-B.tsv", lambda t: [*t[:3], "2\t٣.14", *t[4:]], "STS-B.tsv:4: prediction '٣.14' is not a number such as 2.500"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "change", "said"), CHANGES)
def test_a_single_fault_in_a_file_is_its_own_line(name, change, said, texts, tmp_path):
    lines = change(texts[name].splitlines())
    path = zipped(tmp_path / "glue.zip", {name: "".join(f"{line}\n" for line in lines)})
    assert faults(path) == [said]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw.replace(b"\n", b"\r\n"), "RTE.tsv: lines end with a carriage return (CR LF); expected LF alone"),
        (lambda raw: raw.replace(b"\n", b"\r"), "RTE.tsv: lines end with a carriage return (CR LF); expected LF alone"),
        (lambda raw: b"\xef\xbb\xbf" + raw, "RTE.tsv: begins with a byte order mark; expected none"),
        (lambda raw: raw.decode().encode("utf-16"), "RTE.tsv:1: not UTF-8 (invalid start byte)"),
        (lambda raw: raw.replace(b"7\te", b"7\t\xff", 1), "RTE.tsv:8: not UTF-8 (invalid start byte)"),
    ],
)  # fmt: skip
def test_a_single_fault_in_the_bytes_is_its_own_line(change, said, texts, tmp_path):
    raw = "".join(f"{line}\n" for line in ["index\tprediction", *(f"{i}\tentailment" for i in range(3_000))]).encode()
    found = faults(zipped(tmp_path / "glue.zip", {"RTE.tsv": change(raw)}))
    assert len(found) == 1
    assert found[0].split(":")[0] == said.split(":")[0]
    assert found[0].endswith(said.split(":", 2)[-1]) if "UTF-8" in said else found[0] == said


def test_a_last_line_without_its_end_and_other_writings_of_numbers_are_no_fault(texts, tmp_path):
    lines = texts["STS-B.tsv"].splitlines()
    lines[1:6] = ["0\t5", "1\t3.14159274101", "2\t4e-05", "3\t.5", "4\t0"]
    assert faults(zipped(tmp_path / "glue.zip", {"STS-B.tsv": "\n".join(lines)})) == []


@pytest.mark.parametrize(
    ("rename", "said"),
    [
        ({"RTE.tsv": None}, ["RTE.tsv: missing"]),
        ({"RTE.tsv": "rte.tsv"}, ["rte.tsv: unknown name; did you mean RTE.tsv?"]),
        ({"SST-2.tsv": "SST2.tsv"}, ["SST2.tsv: unknown name; did you mean SST-2.tsv?"]),
        ({"": "notes.md"}, ["notes.md: unknown name"]),
        ({"": "MNLI.tsv"}, ["MNLI.tsv: unknown name"]),
        ({"MNLI-mm.tsv": "MNLI.tsv"}, ["MNLI.tsv: unknown name; did you mean MNLI-mm.tsv?"]),
        ({"": "a\nb.tsv"}, ["'a\\nb.tsv': unknown name"]),
        ({"RTE.tsv": "glue/RTE.tsv"}, ["glue/: the zip must be flat, 1 file is in this folder"]),
        ({"RTE.tsv": "a\\RTE.tsv"}, ["a/: the zip must be flat, 1 file is in this folder"]),
        ({"": "glue/"}, ["glue/: a folder"]),
        ({"": "__MACOSX/._RTE.tsv"}, ["__MACOSX/: the zip must be flat, 1 file is in this folder"]),
        ({"RTE.tsv": "/RTE.tsv"}, ["/: the zip must be flat, 1 file is in this folder"]),
        ({name: f"glue/{name}" for name in QUICK}, ["glue/: the zip must be flat, 10 files are in this folder"]),
    ],
)
def test_a_single_fault_in_the_names_is_its_own_line(rename, said, texts, whole, tmp_path):
    files: dict[str, str | bytes] = {}
    with zipfile.ZipFile(whole) as archive:
        for name in archive.namelist() if "RTE.tsv" in rename and rename["RTE.tsv"] is None else QUICK:
            new = rename.get(name, name)
            if new is not None:
                files[new] = archive.read(name)
    if "" in rename:
        files[rename[""]] = b""
    path = zipped(tmp_path / "glue.zip", files, zipfile.ZIP_DEFLATED)
    if "missing" in said[0]:
        assert check_submission(path) == said
    else:
        assert faults(path) == said


def test_a_file_twice(texts, tmp_path):
    with zipfile.ZipFile(tmp_path / "glue.zip", "w") as archive:
        archive.writestr("WNLI.tsv", texts["WNLI.tsv"])
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("WNLI.tsv", texts["WNLI.tsv"])
    assert faults(tmp_path / "glue.zip") == ["WNLI.tsv: 2 times in the zip"]


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (8, 1, "WNLI.tsv: encrypted"),
        (10, 12, "WNLI.tsv: compressed by method 12; expected stored or deflated"),
        (24, 1 << 30, "WNLI.tsv: 1,073,741,824 bytes unpacked; a file of a submission has less than 16,777,216"),
        (16, 0, "WNLI.tsv: damaged (Bad CRC-32 for file 'WNLI.tsv')"),
    ],
)
def test_faults_in_the_table_of_contents(place, value, said, texts, tmp_path):
    """Overwrite a field of the zip's central directory: flags, method, size, checksum."""
    path = zipped(tmp_path / "glue.zip", {"WNLI.tsv": texts["WNLI.tsv"], "RTE.tsv": texts["RTE.tsv"]})
    raw = bytearray(path.read_bytes())
    start = raw.index(b"PK\x01\x02") + place
    form = "<H" if place in (8, 10) else "<I"
    raw[start : start + struct.calcsize(form)] = struct.pack(form, value)
    path.write_bytes(raw)
    assert faults(path) == [said]


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    import tracemalloc

    path = zipped(
        tmp_path / "glue.zip", {"QQP.tsv": bytes(80 << 20), "AX.tsv": b"\n" * (16 << 20)}, zipfile.ZIP_DEFLATED
    )
    tracemalloc.start()
    found = faults(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [
        "QQP.tsv: 83,886,080 bytes unpacked; a file of a submission has less than 16,777,216",
        "AX.tsv: empty file",
    ]
    assert peak < 80 << 20
    path.write_bytes(bytes((16 << 20) + 1))
    assert faults(path) == [f"{path}: 16,777,217 bytes; a submission has less than 16,777,216"]


def test_no_zip_at_all(tmp_path):
    assert faults(tmp_path / "no.zip") == [f"{tmp_path / 'no.zip'}: no such file"]
    assert faults(tmp_path) == [f"{tmp_path}: cannot be read (Is a directory)"]
    (tmp_path / "file").write_bytes(b"index\tprediction\n")
    assert faults(tmp_path / "file") == [f"{tmp_path / 'file'}: not a zip file (File is not a zip file)"]
    (tmp_path / "file").write_bytes(b"")
    assert faults(tmp_path / "file") == [f"{tmp_path / 'file'}: not a zip file (File is not a zip file)"]
    assert len(faults(tmp_path / "file" / "below.zip")) == 1


def test_every_cut_and_every_changed_bit_is_survived(texts, tmp_path):
    path = zipped(tmp_path / "glue.zip", {"WNLI.tsv": texts["WNLI.tsv"]}, zipfile.ZIP_DEFLATED)
    raw = path.read_bytes()
    assert faults(path) == []
    drawn = random.Random(3)
    for cut in [*range(4), *(drawn.randrange(len(raw)) for _ in range(60)), len(raw) - 1]:
        path.write_bytes(raw[:cut])
        said = faults(path)
        assert len(said) == 1, cut
        assert ("cut short" in said[0]) == (cut >= 4), cut
    for _ in range(300):
        changed = bytearray(raw)
        changed[drawn.randrange(len(raw))] ^= 1 << drawn.randrange(8)
        path.write_bytes(changed)
        assert all("\n" not in line for line in check_submission(path))


@settings(max_examples=40, deadline=None)
@given(raw=st.binary(max_size=200), head=st.sampled_from([b"", b"PK\x03\x04", b"PK\x05\x06" + bytes(18)]))
def test_any_bytes_are_survived(raw, head, tmp_path_factory):
    path = tmp_path_factory.mktemp("any") / "glue.zip"
    path.write_bytes(head + raw)
    assert check_submission(path)


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="01\t\n\r x\ufeff\x00é", max_size=60))
def test_any_text_is_survived_and_said_in_whole_lines(text, tmp_path_factory):
    path = zipped(tmp_path_factory.mktemp("any") / "glue.zip", {"WNLI.tsv": text})
    said = faults(path)
    assert said
    assert all(line.isprintable() for line in said)


# ----------------------------------------------------------------------------------- files of predictions, page


def test_predictions_are_read_as_written_and_as_runs_write_them(tmp_path):
    from bert_miniatures.data.examples import Examples
    from bert_miniatures.evaluation import predictions_of

    found = made("AX.tsv", rows=13)
    gold = np.arange(13) % 3
    full = Predictions(found.row_ids, found.logits, found.labels, gold, "ax", "abc", "def")
    write(tmp_path / "ours.parquet", full)
    examples = Examples(["x"] * 13, None, gold, list(found.row_ids), "x", "abc")
    write(tmp_path / "run.parquet", predictions_of(TASKS["ax"], examples, found.logits))
    for name, model in (("ours", "def"), ("run", "")):
        again = read(tmp_path / f"{name}.parquet")
        assert (again.row_ids, again.labels) == (list(found.row_ids), found.labels)
        np.testing.assert_array_equal(again.logits, found.logits)
        np.testing.assert_array_equal(again.gold, gold)
        assert (again.task, again.checksum, again.model) == ("ax", "abc", model)
    raw = (tmp_path / "ours.parquet").read_bytes()
    (tmp_path / "ours.parquet").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(DataError, match="not a file of predictions"):
        read(tmp_path / "ours.parquet")


def test_other_parquet_files_are_no_predictions(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "x.parquet"
    logits, rows = [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], ["0", "1", "2"]
    for columns, labels, said in (
        ({"text": rows}, "", "not a file of predictions"),
        ({"row": rows, "logits": [[0.1], [0.2, 0.3], [0.4, 0.5]]}, "", "not a file of predictions"),
        ({"row": rows, "logits": logits}, "a\tb\tc", "2 outputs a row, 3 label names"),
    ):
        parquet.write_table(pa.table(columns).replace_schema_metadata({"labels": labels}), path)
        with pytest.raises(DataError, match=said):
            read(path)


def test_scores_have_no_labels(tmp_path):
    found = made("STS-B.tsv", rows=7)
    write(tmp_path / "x.parquet", found)
    again = read(tmp_path / "x.parquet")
    assert (again.labels, again.gold, again.logits.shape) == ((), None, (7, 1))


def test_examples_of_docstrings_and_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[1] / "docs" / "submission.md"
    assert doctest.testfile(str(page), module_relative=False, encoding="utf-8").failed == 0
    assert doctest.testmod(submission).failed == 0
