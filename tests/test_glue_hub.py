"""GLUE from the Hub: the same rows as from an official folder, and nothing half-done whatever breaks."""

import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_miniatures.data.examples import Examples, read_glue
from bert_miniatures.data.glue_find import find_glue
from bert_miniatures.data.glue_hub import origin
from bert_miniatures.data.glue_parquet import Damaged, write_official
from bert_miniatures.data.tasks import TASKS
from bert_miniatures.errors import ConfigError, DataError
from bert_miniatures.tokenizer import Tokenizer
from bert_miniatures.watch import Watch
from conftest import PIECES
from loopback import GUARD, Hub, Repository, Server, miniatures, python

NAME = "datasets/nyu-mll/glue"


class Row(NamedTuple):
    """What a row says: one text or two, and the label by its name, or the score."""

    a: str
    b: str
    label: Any


class Layout(NamedTuple):
    """A task as the Hub has it and as the official archive has it, written down a second time.

    Attributes:
        columns: of the Hub.
        names: labels in the order of the Hub's numbers.
        raw: what the official file says, label by label.
        labelled, test: header and row of the official files, `|` for tabs.
    """

    columns: list[str]
    names: list[str]
    raw: list[str]
    labelled: tuple[str, str]
    test: tuple[str, str]


NLI = ["entailment", "neutral", "contradiction"]
RTE = ["entailment", "not_entailment"]
PAIR = ["sentence1", "sentence2"]
ZERO_ONE = ["0", "1"]
PARSES = "index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|sentence2_parse"
CELLS = "{i}|31|31n|fiction|( x )|( y )|(ROOT x)|(ROOT y)|{a}|{b}"
THREE = ("index|sentence1|sentence2|label", "{i}|{a}|{b}|{label}")
THREE_TEST = ("index|sentence1|sentence2", "{i}|{a}|{b}")
STSB = "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2"
LAYOUTS = {
    "cola": Layout(["sentence"], ["unacceptable", "acceptable"], ZERO_ONE, ("", "gj04|{label}|*|{a}"),
                   ("index|sentence", "{i}|{a}")),
    "sst2": Layout(["sentence"], ["negative", "positive"], ZERO_ONE, ("sentence|label", "{a}|{label}"),
                   ("index|sentence", "{i}|{a}")),
    "mrpc": Layout(PAIR, ["not_equivalent", "equivalent"], ZERO_ONE,
                   ("Quality|#1 ID|#2 ID|#1 String|#2 String", "{label}|7|9|{a}|{b}"),
                   ("index|#1 ID|#2 ID|#1 String|#2 String", "{i}|7|9|{a}|{b}")),
    "stsb": Layout(PAIR, [], [], (f"{STSB}|score", "{i}|news|MSR|2012|5|x|y|{a}|{b}|{label}"),
                   (STSB, "{i}|news|MSR|2012|5|x|y|{a}|{b}")),
    "qqp": Layout(["question1", "question2"], ["not_duplicate", "duplicate"], ZERO_ONE,
                  ("id|qid1|qid2|question1|question2|is_duplicate", "{i}|3|4|{a}|{b}|{label}"),
                  ("id|question1|question2", "{i}|{a}|{b}")),
    "mnli": Layout(["premise", "hypothesis"], NLI, NLI,
                   (f"{PARSES}|sentence1|sentence2|label1|gold_label", CELLS + "|{label}|{label}"),
                   (f"{PARSES}|sentence1|sentence2", CELLS)),
    "qnli": Layout(["question", "sentence"], RTE, RTE, ("index|question|sentence|label", THREE[1]),
                   ("index|question|sentence", THREE_TEST[1])),
    "rte": Layout(PAIR, RTE, RTE, THREE, THREE_TEST),
    "wnli": Layout(PAIR, ["not_entailment", "entailment"], ZERO_ONE, THREE, THREE_TEST),
    "ax": Layout(["premise", "hypothesis"], NLI, NLI, THREE, THREE_TEST),
}  # fmt: skip
MNLI_DEV = ("|".join([PARSES, "sentence1|sentence2|label1|label2|label3|label4|label5|gold_label"]),
            CELLS + "|{label}" * 6)  # fmt: skip


def layout_of(task: str, split: str) -> tuple[str, str]:
    if task == "mnli" and split.startswith("dev"):
        return MNLI_DEV
    return LAYOUTS[task].test if split.startswith("test") else LAYOUTS[task].labelled


def write_tsv(task: str, split: str, rows: list[Row], folder: Path) -> None:
    """Write an official file."""
    header, line = layout_of(task, split)
    raw = dict(zip(LAYOUTS[task].names, LAYOUTS[task].raw, strict=True))
    lines = [header.replace("|", "\t")] if header else []
    for i, row in enumerate(rows):
        said = {"i": i, "a": row.a, "b": row.b, "label": raw.get(row.label, row.label)}
        lines.append("\t".join(cell.format(**said) for cell in line.split("|")))
    path = folder / TASKS[task].folder / TASKS[task].splits[split].file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")


def parquet(path: Path, task: str, split: str, rows: list[Row], *, named: bool = False, first: int = 0) -> Path:
    """Write a file of the Hub; with `named` as the library `datasets` does, label names beside the columns."""
    layout = LAYOUTS[task]
    hidden, kind = (-1.0, pyarrow.float32()) if task == "stsb" else (-1, pyarrow.int64())
    labels = [
        hidden if split.startswith("test") else layout.names.index(row.label) if layout.names else row.label
        for row in rows
    ]
    columns: dict[str, Any] = {name: pyarrow.array([row[at] for row in rows]) for at, name in enumerate(layout.columns)}
    columns |= {
        "label": pyarrow.array(labels, kind),
        "idx": pyarrow.array(range(first, first + len(rows)), pyarrow.int32()),
    }
    table = pyarrow.table(columns)
    if named and layout.names:
        features = {"label": {"names": layout.names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path)
    return path


def said(task: str, found: Examples) -> list[tuple]:
    """Return what examples say: texts, labels by name, row ids."""
    assert found.labels is not None
    names = TASKS[task].labels
    labels = [None if y != y or y < 0 else names[int(y)] if names else float(y) for y in found.labels]
    return list(zip(found.texts, found.pairs or found.texts, labels, found.row_ids, strict=True))


LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r")
TEXTS = st.text(LETTERS, max_size=9) | st.sampled_from(['"', "\ufeffx", "a|b", "\u2028", "x\x85y", "\\t", "{a}", " "])


@st.composite
def rows_of(draw: st.DrawFn, task: str) -> list[Row]:
    labels = st.sampled_from(LAYOUTS[task].names or [0.0, 5.0, 3.8, 2.3333, 1.75, 0.6])
    return draw(st.lists(st.builds(Row, TEXTS, TEXTS, labels), min_size=1, max_size=7))


def some(task: str, count: int, seed: int) -> list[Row]:
    """Rows without a pattern."""
    drawn, names = random.Random(f"{task} {seed}"), LAYOUTS[task].names
    words = ["film", "not", "é", "“so”", "a|b", "?", "  ", "Ünïcode", "x"]
    texts = [" ".join(drawn.choices(words, k=drawn.randint(1, 7))) for _ in range(2 * count)]
    labels = drawn.choices(names or [0.0, 5.0, 3.8, 2.3333], k=count)
    return [Row(a, b, label) for a, b, label in zip(texts[::2], texts[1::2], labels, strict=True)]


def published(tmp: Path, task: str, rows: int = 11) -> tuple[dict[str, bytes], dict[str, list[Row]]]:
    """Return the files of a task at the Hub and the rows that they hold; train comes in two parts."""
    splits = {name: some(task, rows + at, at) for at, name in enumerate(TASKS[task].splits)}
    files = {}
    for split, found in splits.items():
        parts = [found[:5], found[5:]] if split == "train" else [found]
        for at, part in enumerate(parts):
            name = f"{task}/{split.replace('dev', 'validation')}-0000{at}-of-0000{len(parts)}.parquet"
            files[name] = parquet(tmp / name, task, split, part, named=at == 0, first=5 * at).read_bytes()
    return files, splits


# ------------------------------------------------------------------------------------------------ the law


@pytest.mark.parametrize("task", TASKS)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_parquet_says_what_the_official_file_says(
    task: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    tmp = tmp_path_factory.mktemp("law")
    parts, ours = {}, tmp / "ours" / TASKS[task].folder
    for split in TASKS[task].splits:
        rows = data.draw(rows_of(task))
        write_tsv(task, split, rows, tmp / "official")
        parts[split] = [parquet(tmp / f"{split}.parquet", task, split, rows, named=data.draw(st.booleans()))]
    ours.mkdir(parents=True)
    assert write_official(TASKS[task], parts, ours) == 0
    for split in parts:
        official, found = (read_glue(TASKS[task], tmp / name, split) for name in ("official", "ours"))
        assert said(task, found) == said(task, official)
        assert [text.replace("official/", "ours/") for text in official.warnings] == list(found.warnings)
        header = layout_of(task, split)[0].replace("|", "\t")
        assert not header or (ours / TASKS[task].splits[split].file).read_text().splitlines()[0] == header


def short(label: Any) -> Any:
    """Return a score with the seven digits that the Hub keeps of it."""
    return float(str(np.float32(label))) if isinstance(label, float) else label


@pytest.mark.parametrize("task", ["cola", "mrpc", "stsb", "rte", "wnli"])
def test_real_rows_survive(task: str, glue: Path, tmp_path: Path) -> None:
    parts = {}
    for split in TASKS[task].splits:
        rows = [Row(a, b, short(label)) for a, b, label, _ in said(task, read_glue(TASKS[task], glue, split))]
        parts[split] = [parquet(tmp_path / f"{split}.parquet", task, split, rows)]
    (tmp_path / TASKS[task].folder).mkdir()
    assert write_official(TASKS[task], parts, tmp_path / TASKS[task].folder) == 0
    for split in parts:
        official, found = read_glue(TASKS[task], glue, split), read_glue(TASKS[task], tmp_path, split)
        assert said(task, found) == [(a, b, short(label), i) for a, b, label, i in said(task, official)]
        assert not found.warnings


def test_tabs_and_line_ends_never_shift_columns(tmp_path: Path) -> None:
    texts = ["a\tb", "two\nlines\r\nthree", "plain", "\r", "\t\t"]
    rows = [Row(text, "good\n", "entailment") for text in texts]
    parts = {"dev": [parquet(tmp_path / "x.parquet", "rte", "dev", rows)]}
    (tmp_path / "RTE").mkdir()
    assert write_official(TASKS["rte"], parts, tmp_path / "RTE") == 4 + 5
    found = read_glue(TASKS["rte"], tmp_path, "dev")
    assert found.texts == ["a b", "two lines  three", "plain", " ", "  "]
    assert found.pairs == ["good "] * 5
    tokenizer = Tokenizer.from_vocabulary(PIECES)
    before, after = (tokenizer.encode(list(t), max_length=32) for t in (texts, found.texts))
    assert before.ids.tolist() == after.ids.tolist()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"label": [0, 2]}, "row 2: label 2 is not one of 0, 1"),
        ({"label": [0, -1]}, "row 2: label -1 is not one of 0, 1"),
        ({"label": [0, None]}, "row 2: label None is not one of 0, 1"),
        ({"sentence1": ["a", None]}, "row 2: expected a text, got None"),
        ({"sentence1": [1, 2]}, "row 1: expected a text, got 1"),
        ({"idx": [0, None]}, "row 2: expected a number in column 'idx', got None"),
        ({"sentence2": None}, "expected the columns sentence1, sentence2, label, idx; got sentence1, label, idx"),
        ({"sentence1": [], "sentence2": [], "label": [], "idx": []}, "has columns and no rows"),
    ],
)
def test_what_is_not_the_task_is_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    columns = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [0, 1], "idx": [0, 1]} | change
    table = pyarrow.table({name: cells for name, cells in columns.items() if cells is not None})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet: ") as error:
        write_official(TASKS["rte"], {"dev": [tmp_path / "x.parquet"]}, tmp_path)
    assert str(error.value).endswith(says)


def test_other_label_names_are_refused(tmp_path: Path) -> None:
    path = parquet(tmp_path / "x.parquet", "mnli", "train", some("mnli", 5, 0), named=True)
    table = pyarrow.parquet.read_table(path)
    other = table.rename_columns([*PAIR, "label", "idx"]).replace_schema_metadata(table.schema.metadata)
    pyarrow.parquet.write_table(other, path)
    with pytest.raises(DataError, match="the labels are entailment, neutral, contradiction; expected entailment, not_"):
        write_official(TASKS["rte"], {"dev": [path]}, tmp_path)


def test_no_truncation_gives_rows(tmp_path: Path) -> None:
    data = parquet(tmp_path / "x.parquet", "rte", "dev", some("rte", 29, 1)).read_bytes()
    for size in range(0, len(data), 13):
        (tmp_path / "cut.parquet").write_bytes(data[:size])
        with pytest.raises(Damaged, match=r"cut\.parquet: not a whole Parquet file"):
            write_official(TASKS["rte"], {"dev": [tmp_path / "cut.parquet"]}, tmp_path)


# ------------------------------------------------------------------------------------------------ who is asked


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Server() as large, Hub({NAME: Repository({})}, large) as server:
        yield server


FIND = """
import sys
from pathlib import Path
from bert_miniatures import errors
from bert_miniatures.cli.console import ConsoleWatch
from bert_miniatures.data.glue_find import find_glue
from bert_miniatures.data.tasks import TASKS
for name in sys.argv[1:]:
    try:
        print(find_glue(TASKS[name], None, ConsoleWatch()))
    except errors.MiniaturesError as error:
        print(type(error).__name__, error)
"""


def find(hub: Hub | None, tmp: Path, *tasks: str, guard: bool = False, **more: Any) -> Any:
    address = {} if hub is None else {"HF_ENDPOINT": hub.url}
    return python((GUARD if guard else "") + FIND, tmp, *tasks, **address, **more)


def put(hub: Hub, tmp: Path, *tasks: str) -> dict[str, dict[str, list[Row]]]:
    """Publish tasks; return their rows."""
    found = {task: published(tmp / "published", task) for task in tasks}
    hub.repositories[NAME].files = {name: data for files, _ in found.values() for name, data in files.items()}
    return {task: splits for task, (_, splits) in found.items()}


def same(home: Path, rows: dict[str, dict[str, list[Row]]], tmp: Path) -> None:
    for task, splits in rows.items():
        for split, expected in splits.items():
            write_tsv(task, split, expected, tmp / "official")
            official = read_glue(TASKS[task], tmp / "official", split)
            found = read_glue(TASKS[task], home, split)
            assert said(task, found) == said(task, official)
            assert found.warnings[0].startswith(f"{TASKS[task].title} {split} has {len(expected)} rows, the official")


def left(home: Path) -> list[str]:
    """Return what is in our cache but locks."""
    return sorted(path.name for path in home.glob("*") if not path.name.endswith(".lock"))


def test_all_ten_tasks_come_once_and_each_alone(hub: Hub, tmp_path: Path) -> None:
    rows, home = put(hub, tmp_path, *TASKS), tmp_path / "ours" / "glue"
    hub.token = "hf_loopback"
    run = find(hub, tmp_path, "cola", HF_TOKEN=hub.token)
    assert run.stdout.split() == [str(home)], run.stderr
    got = {request.path for request in hub.asked if "/resolve/" in request.path}
    commit = hub.repositories[NAME].commit
    names = ["train-00000-of-00002", "train-00001-of-00002", "validation-00000-of-00001", "test-00000-of-00001"]
    assert got == {f"/{NAME}/resolve/{commit}/cola/{name}.parquet" for name in names}
    assert hub.large is not None
    assert {request.headers.get("authorization") for request in hub.large.asked} == {None}
    assert f"fetching CoLA from {hub.url}/{NAME}\n" in run.stderr
    assert f"CoLA is read from {home}/CoLA, fetched from {hub.url}/{NAME}, version {commit[:12]}\n" in run.stderr
    run = find(hub, tmp_path, *TASKS, HF_TOKEN=hub.token)
    assert run.stdout.split() == [str(home)] * 10, run.stderr
    assert sum("/cola/" in request.path for request in hub.asked) == len(names)
    same(home, rows, tmp_path)
    hub.asked.clear()
    assert find(hub, tmp_path, *TASKS, guard=True).stdout.split() == [str(home)] * 10
    assert hub.asked == []
    shutil.rmtree(home)  # the Hub's cache is enough, without a socket
    run = find(None, tmp_path, "mnli", "wnli", guard=True, HF_HUB_OFFLINE="1")
    assert run.stdout.split() == [str(home)] * 2, run.stderr
    assert "WNLI is in the Hub's cache" in run.stderr
    same(home, {task: rows[task] for task in ("mnli", "wnli")}, tmp_path)


def test_the_order_of_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Heard(Watch):
        def note(self, text: str) -> None:
            self.last = text

    rte, heard, given = TASKS["rte"], Heard(), tmp_path / "given"
    cached = tmp_path / "cache" / "glue"
    (cached / "rte").mkdir(parents=True)
    monkeypatch.setenv("GLUE_DIR", str(tmp_path))
    assert find_glue(rte, given, heard) == given  # whatever is there: reading it says what is wrong
    assert find_glue(rte, None, heard) == tmp_path
    assert heard.last == f"RTE is read from $GLUE_DIR, {tmp_path}"
    monkeypatch.setenv("GLUE_DIR", str(tmp_path / "slip"))
    with pytest.raises(ConfigError, match=r"^\$GLUE_DIR is .*slip, and there is no such folder"):
        find_glue(rte, None, heard)
    monkeypatch.delenv("GLUE_DIR")
    assert find_glue(rte, None, heard) == cached
    assert heard.last == f"RTE is read from {cached}/rte"
    assert origin(cached / "rte") == ("", 0)
    (cached / "rte" / "hub.json").write_text("{}")
    with pytest.raises(DataError, match=r"hub\.json: expected address, revision and changed; remove "):
        find_glue(rte, None, heard)


def test_changed_texts_are_a_warning_every_time(hub: Hub, tmp_path: Path) -> None:
    put(hub, tmp_path, "ax")
    row = [Row("a\tb", "c\nd", "neutral"), Row("e", "f", "neutral"), Row("g", "h\n", "neutral")]
    data = parquet(tmp_path / "x", "ax", "test", row).read_bytes()
    hub.repositories[NAME].files["ax/test-00000-of-00001.parquet"] = data
    for _ in range(2):
        run = find(hub, tmp_path, "ax")
        assert "warning: AX: 3 texts had a tab or the end of a line inside; each is a space now\n" in run.stderr
    assert read_glue(TASKS["ax"], tmp_path / "ours" / "glue", "test").texts == ["a b", "e", "g"]


COMMANDS = """
import sys
from bert_miniatures.cli import main
model, out = sys.argv[1:]
for line in (f"finetune --task cola --model {model} --out {out}/cola --epochs 1 --max-length 16 --set train.threads=1",
             f"evaluate {out}/cola --split train", f"submit {out} -o {out}.zip --allow-missing",
             f"sweep --task cola --task rte --model {model} --out {out}-sweep --workers 1 --dry-run"):
    sys.argv = ["miniatures", *line.split()]
    try:
        main()
    except SystemExit as done:
        print("exit", done.code)
"""


@pytest.mark.slow
def test_the_commands_use_it(hub: Hub, tiny: Path, tmp_path: Path) -> None:
    put(hub, tmp_path, "cola")
    run = python(COMMANDS, tmp_path, str(tiny), str(tmp_path / "runs"), HF_ENDPOINT=hub.url)
    assert run.stdout.startswith("dev: matthews "), run.stderr
    assert run.stdout.splitlines()[2].startswith("matthews\t")
    assert run.stderr.count("fetching CoLA from ") == 1
    assert run.stderr.count("CoLA is read from ") == 4
    assert "CoLA.tsv is missing: " in run.stderr
    assert "test.tsv has 13 rows, the official file has 1,063" in run.stderr
    assert "error: RTE is not on this machine, and it could not be fetched" in run.stderr
    assert f"{hub.url}/{NAME}: has no rte/train-*.parquet and no rte/validation-*" in run.stderr
    assert "glue" not in (tmp_path / "runs" / "cola" / "run.toml").read_text()


# ------------------------------------------------------------------------------------------------ what breaks


@pytest.mark.parametrize("task", ["cola", "mrpc", "ax"])
def test_offline_says_what_is_missing_and_opens_no_socket(task: str, tiny: Path, tmp_path: Path) -> None:
    run = find(None, tmp_path, task, guard=True, HF_HUB_OFFLINE="1")
    folder, file = TASKS[task].folder, "diagnostic.tsv" if task == "ax" else "train.tsv"
    assert run.stdout.startswith(
        f"Offline {TASKS[task].title} is not on this machine, and --offline or HF_HUB_OFFLINE forbids to fetch it; "
        f"looked in\n  $GLUE_DIR: not set\n  {tmp_path}/ours/glue/{folder}: not there\n"
        f"  {tmp_path}/hf/hub/datasets--nyu-mll--glue: not there\n"
        f"Add --glue DIR where GLUE is on this machine, as DIR/{folder}/{file}; "
    ), run.stderr
    official = {"cola": "glue/data/CoLA.zip, whose content is to be in DIR/CoLA, or",
                "ax": "glue/data/AX.tsv, which is to be DIR/AX/diagnostic.tsv, or"}  # fmt: skip
    assert official.get(task, "where there is a network,\n  type hf") in run.stdout
    assert f"type hf download nyu-mll/glue --repo-type dataset --include '{task}/*'" in run.stdout
    assert run.stderr == ""
    assert not (tmp_path / "ours").exists()


def test_offline_and_unreachable_on_the_command_line(tiny: Path, tmp_path: Path) -> None:
    line = ["finetune", "--task", "cola", "--model", str(tiny), "--out", str(tmp_path / "run")]
    run = miniatures(tmp_path, *line, "--offline", guard=True)
    assert (run.returncode, run.stdout) == (2, "")
    assert "error: CoLA is not on this machine, and --offline or HF_HUB_OFFLINE forbids to fetch it" in run.stderr
    run = miniatures(tmp_path, *line)
    assert (run.returncode, run.stdout) == (1, "")
    assert "(http://127.0.0.1:9/datasets/nyu-mll/glue: ConnectError: " in run.stderr
    assert "--glue DIR" in run.stderr
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "run").exists()


def test_a_refusal_is_said(hub: Hub, tmp_path: Path) -> None:
    put(hub, tmp_path, "rte")
    hub.token = "hf_loopback"
    assert "HTTP 401; HF_TOKEN and HF_ENDPOINT decide what is seen there)" in find(hub, tmp_path, "rte").stdout
    hub.token = ""
    hub.statuses = [200, 404]  # the first answer is no JSON, the second says that there is no such repository
    run = find(hub, tmp_path, "rte", "rte")
    assert "Unreachable RTE is not on this machine, and it could not be fetched" in run.stdout
    assert "DownloadFailed RTE is not on this machine, and it could not be fetched" in run.stdout
    del hub.repositories[NAME].files["rte/train-00001-of-00002.parquet"]
    assert "/datasets/nyu-mll/glue: has no rte/train-*.parquet)" in find(hub, tmp_path, "rte").stdout
    assert not left(tmp_path / "ours" / "glue")


def test_a_server_that_dies_is_gone_on_with(hub: Hub, tmp_path: Path) -> None:
    rows, home = put(hub, tmp_path, "rte"), tmp_path / "ours" / "glue"
    assert hub.large is not None
    hub.large.cuts = [None, 700]  # the second file breaks once: the same process asks for the rest
    small = "from huggingface_hub import constants\nconstants.DOWNLOAD_CHUNK_SIZE = 100\n"  # bytes that come at once
    run = python(small + FIND, tmp_path, "rte", HF_ENDPOINT=hub.url)
    assert run.stdout.split() == [str(home)], run.stderr
    assert [request.headers.get("range") for request in hub.large.asked] == [None, None, "bytes=700-", None, None]
    same(home, rows, tmp_path)
    shutil.rmtree(tmp_path / "ours")
    shutil.rmtree(tmp_path / "hf")
    hub.large.statuses = [None, 403]  # the first file comes, the second is refused
    assert "RTE is not on this machine, and it could not be fetched (" in find(hub, tmp_path, "rte").stdout
    assert not left(home)
    hub.large.asked.clear()
    assert find(hub, tmp_path, "rte").stdout.split() == [str(home)]
    assert len(hub.large.asked) == 3  # the first one is there
    same(home, rows, tmp_path)


def test_damaged_files_are_fetched_again(hub: Hub, tmp_path: Path) -> None:
    rows, home = put(hub, tmp_path, "wnli"), tmp_path / "ours" / "glue"
    name = "wnli/validation-00000-of-00001.parquet"
    whole = hub.repositories[NAME].files[name]
    hub.repositories[NAME].files[name] = whole[: len(whole) // 2]
    run = find(hub, tmp_path, "wnli")
    assert run.stdout.startswith(f"DownloadFailed {hub.url}/{NAME}: "), run.stderr
    assert f"{name}: not a whole Parquet file (" in run.stdout
    assert run.stdout.endswith("; fetched twice\n")
    assert not left(home)
    hub.repositories[NAME] = Repository(hub.repositories[NAME].files | {name: whole}, commit="beef" * 10)
    assert find(hub, tmp_path, "wnli").stdout.split() == [str(home)]
    same(home, rows, tmp_path)
    shutil.rmtree(home)
    blob = (tmp_path / "hf/hub/datasets--nyu-mll--glue/snapshots" / ("beef" * 10) / name).resolve()
    flipped = bytearray(whole)
    flipped[len(whole) // 3] ^= 1
    blob.write_bytes(flipped)
    run = find(hub, tmp_path, "wnli", HF_HUB_OFFLINE="1")
    assert run.stdout.startswith("DataError "), run.stderr
    assert f"{name}: its SHA-256 is not the one that the Hub said; remove it, and it is fetched again" in run.stdout
    assert not left(home)
    assert find(hub, tmp_path, "wnli").stdout.split() == [str(home)]
    same(home, rows, tmp_path)
    shutil.rmtree(home)
    store = blob.with_name("f" * 64)  # a store of blobs with names of its own
    blob.rename(store)
    blob.symlink_to(store)
    assert find(None, tmp_path, "wnli", guard=True, HF_HUB_OFFLINE="1").stdout.split() == [str(home)]


@pytest.mark.parametrize("moment", ["/RTE", "hub.json", "test.tsv"])
def test_a_process_that_is_killed_leaves_nothing_that_looks_whole(hub: Hub, tmp_path: Path, moment: str) -> None:
    rows, home = put(hub, tmp_path, "rte"), tmp_path / "ours" / "glue"
    killer = f"""
import os, signal, sys
def kill(event, arguments):
    place = str(arguments[1 if event == "os.rename" else 0]) if event in ("os.rename", "open") else ""
    if place.endswith({moment!r}) and "/glue/" in place:
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(kill)
"""
    run = python(killer + FIND, tmp_path, "rte", HF_ENDPOINT=hub.url)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert all(name.startswith(".RTE.") for name in left(home))
    assert left(home)
    assert find(hub, tmp_path, "rte").stdout.split() == [str(home)]
    assert left(home) == ["RTE"]
    same(home, rows, tmp_path)


def test_a_full_disk_leaves_nothing(hub: Hub, tmp_path: Path) -> None:
    rows = [Row("so " * 900, "so " * 900, "entailment")] * 499  # 2.7 MB of text, which Parquet writes once
    files = {
        f"rte/{name}-00000-of-00001.parquet": parquet(tmp_path / name, "rte", name, rows).read_bytes()
        for name in ("train", "validation", "test")
    }
    hub.repositories[NAME].files = files
    largest = max(map(len, files.values()))
    assert largest < 200_000
    for limit, place in ((largest // 2, "hf/hub/datasets--nyu-mll--glue"), (1_000_000, "ours/glue/RTE")):
        run = find(hub, tmp_path, "rte", limit=limit)
        full = "no space left on the device; nothing half-written was kept"
        assert run.stdout == f"DiskFull {tmp_path}/{place}: {full}\n", run.stderr
        assert not left(tmp_path / "ours" / "glue")
    assert find(hub, tmp_path, "rte").stdout.split() == [str(tmp_path / "ours" / "glue")]


def test_processes_at_once_fetch_once(hub: Hub, tmp_path: Path) -> None:
    put(hub, tmp_path, "ax")
    hub.delay = 0.3
    starter = f"""
import subprocess, sys
code = {FIND!r}
runs = [subprocess.Popen([sys.executable, "-c", code, "ax"], stdout=subprocess.PIPE, text=True) for _ in range(3)]
print(*(run.communicate()[0].strip() for run in runs), sep="\\n")
"""
    run = python(starter, tmp_path, HF_ENDPOINT=hub.url)
    assert run.stdout.split() == [str(tmp_path / "ours" / "glue")] * 3, run.stderr
    assert hub.large is not None
    assert [request.method for request in hub.large.asked].count("GET") == 1
    assert os.listdir(tmp_path / "ours" / "glue" / "AX") != []
