"""Every fenced block of README.md and docs/ is run: Python in one namespace a page, commands as a shell would.

A page has two readers, each in a folder of his own with what the page takes for granted: one types the commands, one
the Python. Every command is also parsed by the real application, forms like `miniatures fetch MODEL [--json]` too. What
is not run has its reason in a table below.
"""

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from bert_miniatures.cli import _application
from bert_miniatures.errors import UserError
from commands import Done, shell

ROOT = Path(__file__).parents[1]
PAGES = {page.name: page for page in (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))}
GENERATED = {"api.md": "signatures and docstrings", "commands.md": "usage lines"}  # compared in tests/test_docs.py

# Blocks that are run by another test: (page, how the block begins) -> the test file, which names the page.
ELSEWHERE = {
    ("data.md", ">>> "): "test_data_docs.py",
    ("tokenizer.md", ">>> "): "test_tokenizer_docs.py",
    ("submission.md", ">>> "): "test_submission.py",
    ("sweep.md", 'models = ["tiny"'): "test_plan.py",
    ("sweep.md", "[grid]"): "test_plan.py",
    ("deploy.md", "import onnxruntime"): "test_clients.py",
    ("deploy.md", "from optimum.onnxruntime import"): "test_clients.py",
    ("deploy.md", "from sentence_transformers import"): "test_clients.py",
    ("deploy.md", "import openvino"): "test_clients.py",
    ("deploy.md", "import { env, pipeline }"): "test_clients.py",
    ("deploy.md", "import { AutoModelForSequenceClassification"): "test_clients.py",
}

# Blocks that are no commands and no program: (page, how the block begins) -> what it is.
LISTINGS = {
    ("architecture.md", " zoo ──►"): "a drawing",
    ("architecture.md", "model folder "): "what is in folders",
    ("architecture.md", "for progress in train("): "the shape of a loop",
    ("data.md", "glue/"): "names of files",
    ("distillation.md", '{"text": "a gripping film"'): "a line of a file",
    ("distillation.md", "(1 - w)"): "a formula",
    ("sweep.md", "sweep/"): "what is in a folder",
    ("sweep.md", "to fit into"): "part of what a sweep prints",
}

# Commands that are parsed and not run: (page, how the command begins) -> why.
NOT_RUN: dict[tuple[str, str], str] = {
    ("choose.md", "miniatures choose"): "measures for up to two minutes; tests/test_choose.py",
    ("models.md", "miniatures fetch tiny --from google"): "network; tests/test_cli_fetch.py",
    ("models.md", "HF_ENDPOINT=http://127.0.0.1:9 miniatures fetch"): "network; tests/test_cli_fetch.py",
    ("models.md", "miniatures fetch 2/128 --archive uncased"): "needs Google's archive; tests/test_cli_fetch.py",
    ("models.md", "miniatures fetch mini --archive uncased"): "needs Google's archive; tests/test_cli_fetch.py",
    ("models.md", "miniatures fetch tiny --archive half.zip"): "needs Google's archive; tests/test_cli_fetch.py",
    ("sweep.md", "miniatures sweep --model tiny --train mine.csv"): "as the one below; tests/test_adaptive.py",
    ("reproduction.md", "miniatures glue"): "needs all of GLUE; tests/test_sweep.py",
    ("reproduction.md", "miniatures submit"): "needs the runs of that; tests/test_submission.py",
    ("report.md", "miniatures sweep"): "needs GLUE; tests/test_sweep.py",
    ("report.md", "miniatures track"): "follows until Ctrl-C; tests/test_trackers.py",
    ("serve.md", "miniatures serve"): "serves until Ctrl-C; tests/test_serve_command.py",
    ("tutorial.md", "miniatures serve"): "serves until Ctrl-C; tests/test_serve_command.py",
    ("README.md", "miniatures serve"): "serves until Ctrl-C; tests/test_serve_command.py",
    ("tokenizer.md", "miniatures tokenize"): "run with its output in tests/test_tokenizer_docs.py",
    ("tokenizer.md", "printf 'first line"): "run with its output in tests/test_tokenizer_docs.py",
}

# Commands that are run and print something else in the test: (page, how the command begins) -> what.
NOT_COMPARED = {
    ("models.md", "miniatures models"): "the column `here`",
}

# What a page takes for granted beside train.csv, dev.csv, new.csv, texts.csv, reviews.txt, more.txt and `tiny`.
INPUTS: dict[str, dict[str, str]] = {
    "bundle.md": {"runs/first": "run", "mine": "run/model"},
    "deploy.md": {"runs/mine": "run", "runs/support": "run"},
    "distillation.md": {"runs/teacher": "run"},
    "doctor.md": {"old-model": "old"},
    "evidence.md": {".demo/support": "run"},
    "report.md": {"runs/first": "run", "runs/second": "run", "sweep/third": "run"},
    "starter.md": {"runs/second": "run", "runs/third": "run"},
    "sweep.md": {
        "mymodel": "model",
        "mine.csv": "train.csv",
        "reviews/train.csv": "train.csv",
        "reviews/dev.csv": "dev.csv",
    },
}
VARIABLES = {"MODEL": "tiny"}  # what the shell of a page has set

FORM = re.compile(r"(?<!\$)\b[A-Z]{2,}\b|…|\.\.\.|\[")  # a word to fill in, something left out, something optional
# Options in the text of other programs: tests/fixtures/make_tf_fixture.py, benchmarks/
OTHERS = {"--large", "--table", "--corpus", "--curve", "--compound", "--students"}
PROGRAMS = {"cat", "curl", "echo", "export", "make", "pip", "printf", "python", "tensorboard", "torchrun"}


# ------------------------------------------------------------------------------------------------- what pages hold


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    page: str
    line: int
    language: str
    text: str


@dataclass(frozen=True)
class Command:
    """A line for the shell, joined where it goes on, without the remark beside it, and what the page prints below."""

    page: str
    line: int
    text: str
    output: str

    @property
    def words(self) -> list[str]:
        """The arguments of `miniatures`, the first value of each choice, without marks of forms; [] where it is absent."""
        plain = re.sub(r"[][…]|\.\.\.", " ", self.text.rsplit(" | ", 1)[-1].removesuffix(" &"))
        found = ["7" if word == "N" else word.split("|")[0] for word in shlex.split(plain)]
        names = [at for at, word in enumerate(found) if word in ("miniatures", "bert_miniatures")]
        return found[names[0] + 1 :] if names else []

    @property
    def is_form(self) -> bool:
        return FORM.search(self.text) is not None


def reason(found: Block | Command, table: dict[tuple[str, str], str]) -> str | None:
    """Return what a table says of a block or a command."""
    told = (why for (page, begin), why in table.items() if page == found.page and found.text.startswith(begin))
    return next(told, None)


def blocks() -> Iterator[Block]:
    """Yield every fenced block that is not written by tools/reference.py."""
    for name, page in PAGES.items():
        text = page.read_text(encoding="utf-8")
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
            if name not in GENERATED:
                yield Block(name, text.count("\n", 0, found.start()) + 2, found[1], found[2])


def commands(block: Block) -> Iterator[Command]:
    """Yield the commands of a block: the lines after "$ " with what they print, or every line where none has it."""
    text = re.sub(r"\n {4,}(?=\[)", " ", re.sub(r"\\\n\s*", "", block.text))
    prompted = text.startswith("$ ")
    for part in re.split(r"^\$ " if prompted else "\n", text, flags=re.MULTILINE):
        line, _, output = part.partition("\n")
        if line:
            yield Command(block.page, block.line, re.split(r"\s{2,}", line)[0], output)


BLOCKS = list(blocks())
PYTHON = [b for b in BLOCKS if b.language == "python" and not reason(b, ELSEWHERE) and not reason(b, LISTINGS)]
SHELL = [b for b in BLOCKS if b.language in ("", "sh", "console") and not reason(b, LISTINGS)]
COMMANDS = [command for block in SHELL for command in commands(block)]
RUN = [c for c in COMMANDS if c.words and not c.is_form and not reason(c, NOT_RUN)]


def ids(found: list[Any]) -> list[str]:
    return [f"{one.page}:{one.line}" for one in found]


def test_every_block_is_known():
    """A block that is neither a program, a command nor in a table fails here."""
    for name in PAGES.keys() - GENERATED.keys():
        assert PAGES[name].read_text(encoding="utf-8").count("```") == 2 * sum(b.page == name for b in BLOCKS), name
    known = {*PYTHON, *SHELL, *(b for b in BLOCKS if reason(b, ELSEWHERE) or reason(b, LISTINGS))}
    left = [b for b in BLOCKS if b not in known and b.language != "text"]
    assert not left, f"{ids(left)}: add a reason to a table"
    strange = [c for c in COMMANDS if not c.words and c.text.split()[0] not in PROGRAMS and "=$(" not in c.text]
    assert not strange, f"{strange}: no commands; if the block is none, add it to LISTINGS"
    assert len(PYTHON) >= 8
    assert len(RUN) >= 25


def test_no_reason_is_stale():
    for table, found in ((ELSEWHERE, BLOCKS), (LISTINGS, BLOCKS), (NOT_RUN, COMMANDS), (NOT_COMPARED, RUN)):
        for page, begin in table:
            assert any(one.page == page and one.text.startswith(begin) for one in found), (page, begin)
    for (page, begin), file in ELSEWHERE.items():
        assert page in (ROOT / "tests" / file).read_text(encoding="utf-8"), (page, begin, file)


# ------------------------------------------------------------------------------------------------- parsed


@functools.cache
def application() -> Any:
    return typer.main.get_command(_application([]))


@pytest.mark.parametrize("command", COMMANDS, ids=ids(COMMANDS))
def test_commands_exist_with_their_options(command: Command):
    """Parse with the application that `miniatures` runs; the function behind is not called."""
    program, *rest = shlex.split(command.text)
    if command.words:
        group = application()
        with group.make_context("miniatures", command.words) as root:
            name, found, arguments = group.resolve_command(root, command.words)
            found.make_context(name, arguments, parent=root)
    elif program == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert set(re.findall(r"\w+", rest[-1].partition("[")[2])) <= set(extras)
    elif program == "make":
        assert f"\n{rest[0]}:" in (ROOT / "Makefile").read_text()
    elif program == "python" and rest[0] != "-c":
        assert (ROOT / rest[0]).is_file()


@pytest.mark.parametrize("page", sorted(PAGES))
def test_options_in_the_text_exist(page: str):
    """Options of a command that is named beside them are that command's; others are of some command."""
    options = {
        name: {one for p in c.params for one in (*p.opts, *p.secondary_opts)}
        for name, c in application().commands.items()
    }
    text = re.sub(r"^```.*?^```$", "", PAGES[page].read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`((?:miniatures [a-z]|--)[^`\n]+)`", text):
        command = re.match(r"miniatures (\w+)", span)
        known = options[command[1]] if command else set().union(*options.values()) | OTHERS
        unknown = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", span)) - known - {"--help", "--debug", "--version"}
        assert not unknown, f"{page}: `{span}`: {unknown}"


# ------------------------------------------------------------------------------------------------- run


@pytest.fixture(scope="module")
def stock(tiny, reviews, tmp_path_factory) -> Path:
    """Make one of each input: the files, `tiny` (its sizes, 73 pieces), a run of it, a folder as old as transformers 1."""
    from bert_miniatures import finetune
    from bert_miniatures.checkpoint import ModelFolder, write_folder
    from bert_miniatures.config import ModelConfig
    from bert_miniatures.model import build
    from bert_miniatures.tokenizer import Tokenizer

    folder = tmp_path_factory.mktemp("stock")
    for file in reviews:
        shutil.copy(file, folder)
    texts = [line.split(",")[0] for line in (folder / "dev.csv").read_text().splitlines()]
    for name, rows in {"new.csv": texts, "texts.csv": texts, "reviews.txt": texts[1:], "more.txt": texts[1:]}.items():
        (folder / name).write_text("\n".join(rows) + "\n")
    tokenizer = Tokenizer.from_folder(tiny)
    config = ModelConfig(vocab_size=73, hidden_size=128, num_hidden_layers=2, num_attention_heads=2,
                         intermediate_size=512, max_position_embeddings=512)  # fmt: skip
    weights = build(config, groups={"pooler", "mlm", "nsp"}, seed=7).weights()
    write_folder(folder / "model", ModelFolder(config, weights, tokenizer), card="# tiny\n")
    shutil.copytree(folder / "model", folder / "old")
    (folder / "old" / "tokenizer_config.json").unlink()
    sizes = json.loads((folder / "old" / "config.json").read_text())
    (folder / "old" / "config.json").write_text(json.dumps({k: v for k, v in sizes.items() if k != "model_type"}))
    files = {name: str(folder / f"{name}.csv") for name in ("train", "dev")}
    finetune(str(folder / "model"), folder / "run", data=files, train={"epochs": 1})
    return folder


@pytest.fixture
def place(stock: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return what makes a reader's folder for a page and goes there."""

    def made(page: str) -> Path:
        folder = tmp_path / "here"
        files = [path.name for path in stock.iterdir() if path.is_file()]
        cached = {f"{tmp_path}/cache/models/uncased_L-2_H-128_A-2": "model"}
        for target, source in ({name: name for name in files} | cached | INPUTS.get(page, {})).items():
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (stock / source).is_dir() else shutil.copy)(stock / source, folder / target)
        (folder / "tests").symlink_to(ROOT / "tests")
        monkeypatch.chdir(folder)
        for name, value in VARIABLES.items():
            monkeypatch.setenv(name, value)
        return folder

    return made


def typed(command: Command, folder: Path) -> Done:
    """Run a command as a shell would; what stands before the pipe is run by one."""
    before, _, _ = command.text.rpartition(" | ")
    given = subprocess.run(["bash", "-c", before], capture_output=True, check=True).stdout if before else b""
    return shell()(*(os.path.expandvars(word) for word in command.words), stdin=given, cwd=folder)


def plain(text: str) -> str:
    """Leave out what differs from machine to machine: numbers, places of caches, the spaces between columns, labels."""
    text = text.replace(os.environ["MINIATURES_HOME"], "/home/me/.cache/bert-miniatures")
    text = re.sub(r'"label": "\w+"', '"label": ""', text.replace(str(Path.home()), "/home/me"))
    return " ".join(re.sub(r"-?\d[\d.,:]*(e-?\d+)?", "0", text).split())


def int8_is_no_gain(folder: Path) -> bool:
    """Tell whether an export kept fp32 alone, as it does where 8-bit integers happen to be slower."""
    return any('"written": false' in path.read_text() for path in folder.glob("deploy/*/miniature.json"))


@pytest.mark.slow
@pytest.mark.parametrize("page", dict.fromkeys(command.page for command in RUN))
def test_commands_run(page: str, place):
    """Each line that the page shows is printed, and files that it shows with `cat` are there."""
    folder = place(page)
    for command in (command for command in COMMANDS if command.page == page and command.text.startswith("cat ")):
        (folder / command.text.split()[1]).write_text(command.output)
    for command in (command for command in RUN if command.page == page):
        done = typed(command, folder)
        if done.code and "--int8" in command.words and int8_is_no_gain(folder):
            pytest.skip("8-bit integers are slower here")
        fails = (2,) if command.output.startswith("error: ") else (0, 1) if command.words[0] == "doctor" else (0,)
        assert done.code in fails, (command, done)
        assert "Traceback" not in done.err
        printed = f" {plain(done.out + done.err)} "
        for line in map(plain, command.output.splitlines() if not reason(command, NOT_COMPARED) else ()):
            assert line in ("", "...") or f" {line} " in printed, (command.text, line, done)


@pytest.mark.slow
@pytest.mark.parametrize("page", dict.fromkeys(block.page for block in PYTHON))
def test_python_runs(page: str, place, stock: Path):
    folder = place(page)
    rows = [line.split(",") for line in (stock / "dev.csv").read_text().splitlines()[1:]]
    seen: dict[str, Any] = {"texts": [text for text, _ in rows], "labels": [label for _, label in rows]}
    for block in (block for block in PYTHON if block.page == page):
        try:
            exec(compile("\n" * (block.line - 1) + block.text, str(PAGES[page]), "exec"), seen)
        except UserError:
            if not int8_is_no_gain(folder):
                raise
            pytest.skip("8-bit integers are slower here")
