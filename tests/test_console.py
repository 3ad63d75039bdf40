"""What the terminal and a log show of work that goes on: how far it is, what is left, each warning once."""

import sys

import pytest

from bert_miniatures.cli import console
from bert_miniatures.cli.console import ConsoleWatch


class Clock:
    """Time that goes on when it is told to."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console, "time", clock)
    return clock


def test_what_is_left_is_the_pace_or_what_the_work_says(time, capsys):
    with ConsoleWatch() as watch:
        watch.progress(50, 100, "loss 0.7")  # resumed: these 50 are no pace of ours
        time.now += 10
        watch.progress(60, 100, "loss 0.6")
        time.now += 10
        watch.progress(61, 100, left=3661)
        time.now += 9
        watch.progress(62, 100)  # too soon for a log
        watch.progress(100, 100, "loss 0.5", left=7)
    assert capsys.readouterr().err.splitlines() == [
        "60/100 (60%), 0:40 left, loss 0.6",
        "61/100 (61%), 1:01:01 left",
        "100/100 (100%), loss 0.5",
    ]


def test_other_work_has_a_pace_of_its_own(time, capsys):
    with ConsoleWatch() as watch:
        watch.progress(0, 1000)
        time.now += 70
        watch.progress(1000, 1000)
        watch.progress(10, 40)
        time.now += 10
        watch.progress(20, 40)
    assert capsys.readouterr().err.splitlines() == ["1000/1000 (100%)", "20/40 (50%), 0:20 left"]


def test_a_terminal_has_one_line_that_is_redrawn(time, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    with ConsoleWatch() as watch:
        for done in (1, 2, 3):
            watch.progress(done, 9, left=9 - done)
            time.now += 0.2
        watch.note("epoch 1")
        watch.warn("odd")
    clear = "\r\x1b[K"
    assert (
        capsys.readouterr().err
        == f"{clear}2/9 (22%), 0:07 left{clear}3/9 (33%), 0:06 left{clear}epoch 1\nwarning: odd\n"
    )


def test_a_warning_is_said_once(capsys):
    with ConsoleWatch() as watch:
        for text in ("one", "two", "one"):
            watch.warn(text)
    assert capsys.readouterr().err == "warning: one\nwarning: two\n"
    assert watch.warnings == ["one", "two"]
