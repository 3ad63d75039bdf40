"""Texts in chunks: any format, in order, in bounded memory, errors that name the line."""

import csv
import io
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_miniatures.data import lines
from bert_miniatures.data.examples import stream_rows
from bert_miniatures.errors import ConfigError, DataError, UnknownName

LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\n\r"), max_size=12)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@given(st.lists(LINE, min_size=1, max_size=30), st.integers(1, 7), st.sampled_from(["\n", "\r\n"]))
@settings(max_examples=60, deadline=None)
def test_lines_come_back_in_order_and_whole(texts: list[str], chunk: int, end: str) -> None:
    data = "".join(text + end for text in texts).encode()
    found = list(stream_rows(io.BytesIO(data), chunk=chunk))
    assert [text for part, _ in found for text in part] == [texts[0].removeprefix("\ufeff"), *texts[1:]]
    assert all(len(part) == chunk for part, _ in found[:-1])
    assert all(pairs is None for _, pairs in found)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet", ".txt"])
def test_every_format_gives_the_same_texts(tmp_path: Path, suffix: str) -> None:
    texts = [f"text {i}, \x85 {'' if suffix == '.txt' else chr(10)}'{i * i}'" for i in range(23)]
    path = tmp_path / f"in{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.table({"id": range(23), "text": texts}), path, row_group_size=7)
    elif suffix == ".jsonl":
        write(path, "".join(json.dumps({"text": text, "label": 1}) + "\n" for text in texts))
    elif suffix == ".txt":
        write(path, "\n".join(texts))
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, delimiter="\t" if suffix == ".tsv" else ",").writerows([["text"], *([t] for t in texts)])
    found = list(stream_rows(path, chunk=5))
    assert [text for part, _ in found for text in part] == texts
    assert [len(part) for part, _ in found] == [5, 5, 5, 5, 3]


def test_pairs_and_labels_beside_them(tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", "premise,hypothesis,label,score\na,b,x,1\nc,d,y,2\n")
    assert list(stream_rows(path)) == [(["a", "c"], ["b", "d"])]
    assert list(stream_rows(path, text="hypothesis")) == [(["b", "d"], None)]
    assert list(stream_rows(path, text="label", pair="score")) == [(["x", "y"], ["1", "2"])]
    assert list(stream_rows(write(tmp_path / "u.csv", "utterance_2,label\na,x\n"))) == [(["a"], None)]


def test_empty_lines_are_empty_texts() -> None:
    assert list(stream_rows(io.BytesIO(b"a\n\n\nb"))) == [(["a", "", "", "b"], None)]


def read_stdin(data: bytes) -> str:
    code = """
from bert_miniatures.data.examples import stream_rows
try:
    print(ascii(list(stream_rows("-", chunk=2))))
except Exception as error:
    print(error)
"""
    return (
        subprocess.run([sys.executable, "-c", code], input=data, capture_output=True, check=True)
        .stdout.decode()
        .strip()
    )


def test_standard_input() -> None:
    assert read_stdin("één\nzwei\ntrois\n".encode()) == r"[(['\xe9\xe9n', 'zwei'], None), (['trois'], None)]"
    assert read_stdin(b"") == "<stdin>: the input is empty"
    says = "<stdin>:2: not UTF-8 (byte 0xe9 at byte 3 of the file); save the file as UTF-8"
    assert read_stdin(b"ok\n\xe9\n") == says


def test_rows_before_a_damaged_one_come_first(tmp_path: Path) -> None:
    path = write(tmp_path / "in.csv", "text,label\na,x\nb,y\nc\n")
    found = stream_rows(path, chunk=2)
    assert next(found) == (["a", "b"], None)
    with pytest.raises(DataError, match=r"in\.csv:4: expected 2 columns \(text, label\), got 1$"):
        next(found)


@pytest.mark.parametrize(
    ("name", "content", "rest"),
    [
        ("in.txt", "", ": the input is empty"),
        ("in.txt", b"a\nb\xff\n", ":2: not UTF-8 (byte 0xff at byte 3 of the file)"),
        ("in.txt", "a\n".encode("utf-16"), ":1: UTF-16 text, expected UTF-8"),
        ("in.txt", "a\nb\0\n", ":2: a NUL byte (byte 3 of the file)"),
        ("in.jsonl", '{"text": "a"}\n{"txt": "b"}\n', ":2: the key 'text' is missing; this line has txt"),
        (
            "in.csv",
            "I love it\nI hate it\n",
            ":1: cannot tell which column holds the text: no name tells; the columns are",
        ),
        ("in.docx", "", ": unknown file type '.docx', expected .csv .tsv .jsonl .parquet .txt or - for stdin"),
    ],
)
def test_damaged_input(tmp_path: Path, name: str, content: str | bytes, rest: str) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(DataError) as caught:
        list(stream_rows(path))
    assert str(caught.value).startswith(f"{path}{rest}")


def test_wrong_use_is_said_before_the_first_row(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^-: lines of text have no columns; leave --text and --pair out$"):
        stream_rows("-", text="text")
    with pytest.raises(ConfigError, match=r"^chunk is 0; expected 1 or more rows$"):
        stream_rows("-", chunk=0)
    with pytest.raises(UnknownName, match=r"^unknown column 'txet'; did you mean 'text'\? \(--text; "):
        stream_rows(write(tmp_path / "in.csv", "text\na\n"), text="txet")
    with pytest.raises(DataError, match=r"on\.txt: no such file; did you mean 'one\.txt'\?$"):
        stream_rows(write(tmp_path / "one.txt", "a").with_name("on.txt"))


def test_lines_without_an_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "LONGEST_LINE", 2**20)
    with pytest.raises(DataError, match=r"in\.txt:2: a line of more than 1 MiB; is this a text file\?$"):
        list(stream_rows(write(tmp_path / "in.txt", "a\n" + "b" * (2**20 + 1))))
    ok = write(tmp_path / "ok.txt", "a\n" + "b" * (2**20 - 1) + "\n")
    assert [len(text) for text in next(stream_rows(ok))[0]] == [1, 2**20 - 1]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".txt"])
def test_memory_is_that_of_a_chunk(tmp_path: Path, suffix: str) -> None:
    text = "word " * 200
    row = {".csv": f"{text}\n", ".jsonl": json.dumps({"text": text}) + "\n", ".txt": f"{text}\n"}[suffix]
    path = write(tmp_path / f"in{suffix}", ("text\n" if suffix == ".csv" else "") + row * 20_011)  # 20 MB
    tracemalloc.start()
    try:
        rows = sum(len(texts) for texts, _ in stream_rows(path, chunk=64))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert rows == 20_011
    assert peak < 1_000_000
