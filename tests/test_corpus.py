# ruff: noqa: RUF001 - sentences have real quotation marks
"""Corpus files to documents and sentences: every format, every fault, bounded memory."""

import gzip
import json
import lzma
import random
import subprocess
import sys
import textwrap
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_miniatures.data import corpus
from bert_miniatures.data.corpus import Faults, document_hash, documents, open_corpus
from bert_miniatures.data.sentences import split_sentences
from bert_miniatures.errors import DataError, UnknownName
from conftest import SHARED

DOCUMENTS = [["One. Two.", "Drei, vier: fünf – 六."], ["Seven."], ["Eight.", "Nine.", "Ten."]]
TEXT = "\n\n".join("\n".join(document) for document in DOCUMENTS) + "\n"
JSONL = "".join(json.dumps({"id": i, "text": "\n".join(found)}) + "\n" for i, found in enumerate(DOCUMENTS))
PACKED = {
    "": lambda data: data,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


def read(path, **options):
    column = options.pop("column", None)
    (source,) = open_corpus([path], column=column)
    return list(documents(source, **options))


def parquet(path, columns, **options):
    pq.write_table(pa.table(columns), path, **options)
    return path


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize(("kind", "content"), [(".txt", TEXT), (".jsonl", JSONL)])
def test_every_format_gives_the_same_documents(tmp_path, kind, packing, content):
    path = tmp_path / f"corpus{kind}{packing}"
    path.write_bytes(PACKED[packing](content.encode()))
    assert read(path) == DOCUMENTS
    if packing and kind == ".txt":
        assert read(path.rename(tmp_path / f"corpus{packing}")) == DOCUMENTS


@pytest.mark.parametrize("type_", [pa.string(), pa.large_string()])
def test_parquet_takes_text_or_the_only_column_with_texts(tmp_path, type_):
    cells = pa.array(["\n".join(found) for found in DOCUMENTS], type_)
    number = pa.array([1, 2, 3])
    assert read(parquet(tmp_path / "a.parquet", {"other": cells, "text": cells})) == DOCUMENTS
    assert read(parquet(tmp_path / "b.parquet", {"n": number, "body": cells})) == DOCUMENTS
    both = parquet(tmp_path / "c.parquet", {"n": number, "body": cells, "title": cells})
    assert read(both, column="title") == DOCUMENTS
    with pytest.raises(DataError, match=r"c\.parquet: which column has the text\? It has n, body, title; say --text"):
        read(both)
    with pytest.raises(UnknownName, match=r"unknown column in .*'titel'; did you mean 'title'"):
        read(both, column="titel")
    with pytest.raises(DataError, match="column 'n' has no texts but int64"):
        read(both, column="n")


def test_windows_line_ends_spaces_byte_order_mark_and_blank_lines(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf\r\n\r\n  One. \r\nTwo.\r\n \t \r\n\r\n\r\nThree.")
    assert read(path) == [["One.", "Two."], ["Three."]]


def test_rows_without_text_are_no_documents(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": null}\n\n{"text": " \\n"}\n{"text": "One."}\n')
    assert read(path) == [["One."]]
    assert read(parquet(tmp_path / "a.parquet", {"text": [None, "", "One."]})) == [["One."]]


# ---- faults: one sentence each


def fault(path, match, error=DataError, **options):
    with pytest.raises(error, match=match) as caught:
        read(path, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("packing", [".gz", ".xz", ".zst"])
def test_wrong_truncated_and_damaged_compression(tmp_path, packing):
    path = tmp_path / f"a.txt{packing}"
    path.write_bytes(TEXT.encode())
    fault(path, rf"a\.txt\{packing}: is no \{packing} file \(it begins with the bytes 4f 6e 65")
    drawn = random.Random(3)
    whole = PACKED[packing]("".join(f"{drawn.random()} words.\n" for _ in range(9973)).encode())
    path.write_bytes(whole[: len(whole) // 2])
    fault(path, rf"the \{packing} file is damaged or cut short")
    if packing == ".zst":
        return  # most writers of it leave the checksum out
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    fault(path, "damaged or cut short|not UTF-8|a NUL byte")  # what comes before the checksum may be met first


@pytest.mark.parametrize("packing", [".gz", ".xz", ".zst"])
def test_a_compressed_file_without_its_suffix(tmp_path, packing):
    path = tmp_path / "a.txt"
    path.write_bytes(PACKED[packing](TEXT.encode()))
    fault(path, rf"a\.txt: is a \{packing} file by its first bytes")


def test_binary_utf16_and_nothing(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\nso far\x00\x01\x02\n")
    fault(path, r"a\.txt:2: a NUL byte; the file is damaged or no UTF-8 text")
    fault(path, r"a\.txt:2: a NUL byte", on_errors="replace")
    path.write_bytes("UTF-16 text\n".encode("utf-16"))
    fault(path, r"a\.txt:1: UTF-16 text, expected UTF-8")
    path.write_bytes(b"")
    fault(path, r"a\.txt: the file is empty")
    fault(tmp_path / "b.txt", r"b\.txt: no such file; did you mean 'a\.txt'")
    fault(tmp_path, "unknown file type")
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    fault(
        tmp_path / "a.pdf", r"unknown file type '\.pdf', expected \.txt \.jsonl \.parquet, or text with \.gz \.xz \.zst"
    )
    with pytest.raises(DataError, match="the corpus has no files"):
        open_corpus([])


def test_a_folder_called_like_a_text_is_no_text(tmp_path):
    (tmp_path / "a.txt").mkdir()
    fault(tmp_path / "a.txt", "is a folder, expected a file")


def test_the_same_text_twice_is_an_error(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text(TEXT)
    with pytest.raises(DataError, match=r"b\.txt: has the same bytes as .*a\.txt; each text may be given once"):
        open_corpus([tmp_path / "a.txt", tmp_path / "b.txt"])


@pytest.mark.parametrize("kind", [".txt", ".jsonl", ".parquet"])
def test_bytes_that_are_not_utf8(tmp_path, kind):
    path = tmp_path / f"a{kind}"
    texts = [b"One.", b"Caf\xe9 noir.", b"Three.", b"\xfff\xfe"]
    if kind == ".parquet":
        parquet(path, {"text": pa.array(texts, pa.binary()).view(pa.string())})
    else:
        start, end = (b'{"text": "', b'"}\n') if kind == ".jsonl" else (b"", b"\n\n")
        path.write_bytes(b"".join(start + text + end for text in texts))
    where = {".txt": r"a\.txt:3", ".jsonl": r"a\.jsonl:2", ".parquet": r"a\.parquet: row 2"}[kind]
    fault(path, where + r": not UTF-8 \(byte 0xe9 at byte \d+ of the line\); .*--encoding-errors replace or skip")
    faults = Faults()
    assert read(path, on_errors="replace", faults=faults) == [
        ["One."],
        ["Caf\ufffd noir."],
        ["Three."],
        ["\ufffdf\ufffd"],
    ]
    assert faults.lines == 2
    assert faults.first.endswith(where[-1])
    faults = Faults()
    assert read(path, on_errors="skip", faults=faults) == [["One."], ["Three."]]
    assert faults.lines == 2


@pytest.mark.parametrize(
    ("line", "match"),
    [
        ("nothing", r"a\.jsonl:2: not JSON \(Expecting value\)"),
        ("[1]", r"a\.jsonl:2: expected an object such as .*got \[1\]"),
        ('{"txt": "a"}', r"unknown key in .*a\.jsonl:2: 'text'; did you mean 'txt'"),
        ('{"text": 7}', r"a\.jsonl:2: expected a text in 'text', got 7"),
        ('{"text": "\\ud800"}', r"a\.jsonl:2: not UTF-8 \(byte 0xed"),
        ("[" * 100_000, r"a\.jsonl:2: not JSON \(nested too deeply\)"),
    ],
)
def test_damaged_json_lines(tmp_path, line, match):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "One."}\n' + line + "\n")
    fault(path, match, (DataError, UnknownName))


def test_damaged_parquet(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"text": [f"Sentence {i}." for i in range(1009)]})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    fault(path, "not a whole Parquet file")
    path.write_text("text\n")
    fault(path, r"is no \.parquet file")
    gz = tmp_path / "a.parquet.gz"
    gz.write_bytes(gzip.compress(whole))
    fault(gz, r"\.parquet is compressed inside")


# ---- long lines, long documents


def test_a_long_document_is_divided_and_loses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_LONGEST_DOCUMENT", 100)
    paragraphs = [f"Paragraph {i} of one document." for i in range(23)]
    text, jsonl = tmp_path / "a.txt", tmp_path / "a.jsonl"
    text.write_text("\n".join(paragraphs))
    jsonl.write_text(json.dumps({"text": "\n".join(paragraphs)}))
    for path in (text, jsonl):
        found = read(path)
        assert [paragraph for document in found for paragraph in document] == paragraphs
        assert len(found) > 4
        assert all(100 < sum(map(len, document)) <= 130 for document in found[:-1])


def test_a_long_line_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "_LONGEST_LINE", 2**20)
    path = tmp_path / "a.txt.gz"
    path.write_bytes(gzip.compress(b"fine\n" + b"x" * (2**20 + 1)))
    fault(path, r"a\.txt\.gz:2: a line of more than 1 MiB")
    fault(parquet(tmp_path / "a.parquet", {"text": ["y" * (2**20 + 1)]}), "row 1: a text of more than 1 MiB")


MEASURE = """
    import sys
    from bert_miniatures.data.corpus import documents, open_corpus
    from bert_miniatures.errors import DataError

    def peak():  # not ru_maxrss, which begins with the peak of the process that started this one
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM"))

    sources = open_corpus(sys.argv[1:])
    before, characters = peak(), 0
    try:
        for document in documents(sources[0]):
            characters += sum(map(len, document))
    except DataError as error:
        print(error)
    print(characters, peak() - before)
"""


def measure(path):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(MEASURE), str(path)], capture_output=True, text=True, check=True
    )
    *said, last = done.stdout.splitlines()
    return said, *map(int, last.split())


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_file(tmp_path):
    """50 MB in one document of many lines, and 100 MB in one line: gzip makes both small on the disk."""
    lines, line = tmp_path / "lines.txt.gz", tmp_path / "line.txt.gz"
    block = b"A line of a corpus that has no empty lines at all.\n" * 20_000
    with gzip.open(lines, "wb", 1) as many:
        for _ in range(50):
            many.write(block)
    with gzip.open(line, "wb", 1) as one:
        for _ in range(100):
            one.write(b"x" * 2**20)
    said, characters, grown = measure(lines)
    assert not said
    assert characters == 50 * (len(block) - 20_000)
    assert grown < 35
    said, characters, grown = measure(line)
    assert "line.txt.gz:1: a line of more than 16 MiB" in said[0]
    assert grown < 60


# ---- identity


def test_order_and_names_do_not_matter(tmp_path):
    for i, name in enumerate(("a.txt", "b.txt", "c.txt")):
        (tmp_path / name).write_text(f"Document {i}.\n")
    names = [tmp_path / name for name in ("a.txt", "b.txt", "c.txt")]
    forward = [source.sha256 for source in open_corpus(names)]
    assert forward == [source.sha256 for source in open_corpus(names[::-1])] == sorted(forward)


@given(st.lists(st.text("ab \n", min_size=1), min_size=1), st.lists(st.text("ab \n", min_size=1), min_size=1))
def test_the_hash_of_a_document_depends_on_its_text(first, second):
    same = "\n".join(first) == "\n".join(second)
    assert (document_hash(first) == document_hash(second)) == same


# ---- sentences

SENTENCES = [
    ("Mr. Smith left. Mrs. Jones stayed.", ["Mr. Smith left.", "Mrs. Jones stayed."]),
    ("It cost 3.50 dollars. Cheap!", ["It cost 3.50 dollars.", "Cheap!"]),
    ('"Why?" he asked. "I know," she said. "Go!" He went.', ['"Why?" he asked.', '"I know," she said.', '"Go!"', "He went."]),
    ("J. R. R. Tolkien wrote it. A. Milne did not.", ["J. R. R. Tolkien wrote it.", "A. Milne did not."]),
    ("He joined the U.S. Navy. He left the U.S. The ship sank.", ["He joined the U.S. Navy.", "He left the U.S.", "The ship sank."]),
    ("See Fig. 3 and p. 7. It shows e.g. Kenya.", ["See Fig. 3 and p. 7.", "It shows e.g. Kenya."]),
    ("At 5 p.m. they met. In 1990. 20 people came.", ["At 5 p.m. they met.", "In 1990.", "20 people came."]),
    ("1. Introduction. 2. Methods.", ["1. Introduction.", "2. Methods."]),
    ("Wait... what? Yes... No.", ["Wait... what?", "Yes...", "No."]),
    ("(It rained.) We left. “Really?” ‘Yes.’ Fine.", ["(It rained.)", "We left.", "“Really?”", "‘Yes.’", "Fine."]),
    ("これは文です。もう一つ！終わり", ["これは文です。", "もう一つ！", "終わり"]),
    ("No end", ["No end"]),
    ("  ", []),
]  # fmt: skip


@pytest.mark.parametrize(("text", "sentences"), SENTENCES)
def test_sentences(text, sentences):
    assert split_sentences(text) == sentences


@given(st.text() | st.text("aA1.!?\"' \t()。”J"))
def test_splitting_loses_and_adds_nothing_but_space(text):
    found = split_sentences(text)
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(sentence == sentence.strip() and sentence for sentence in found)


def test_splitting_is_linear():
    for unit in (".", '"', "A. ", "1. ", "a.' ", ".)", '. "', ' . ("', ".   ", "。", "x"):
        split_sentences(unit * (400_000 // len(unit)) + ". A")


@pytest.mark.skipif(not (SHARED / "corpus").is_dir(), reason="needs ../shared/corpus")
def test_a_real_file():
    (source,) = open_corpus([SHARED / "corpus/wiki-wiki_008.txt.xz"])
    read_so_far: list[int] = []
    found = [next(documents(source, heard=read_so_far.append)) for _ in range(1)]
    sentences = [sentence for paragraph in found[0] for sentence in split_sentences(paragraph)]
    assert 20 < sum(map(len, sentences)) / len(sentences) < 250
    assert read_so_far
