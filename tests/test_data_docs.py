"""Every example in docs/data.md runs and prints what the page says."""

import doctest
from pathlib import Path

import pytest

from bert_miniatures import metrics
from bert_miniatures.data import columns, examples, labels, stream, tasks

PAGE = Path(__file__).parents[1] / "docs" / "data.md"


def test_examples_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testfile(str(PAGE), module_relative=False, encoding="utf-8")
    assert failed == 0
    assert tried > 50


@pytest.mark.parametrize("module", [columns, examples, labels, metrics, stream, tasks])
def test_examples_of_docstrings(module) -> None:
    names = {"Path": Path, "np": metrics.np, **vars(module)}
    failed, tried = doctest.testmod(module, extraglobs=names)
    assert failed == 0
    assert tried > 0
