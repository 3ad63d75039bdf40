"""What commands say, and where: results on stdout, notes, warnings and progress on stderr."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

from bert_miniatures.watch import Watch, clock

__all__ = ["ConsoleWatch", "emit_json", "lines_of_stdin", "note", "silence", "warn"]


def note(text: str) -> None:
    """Say something about the work, on stderr."""
    _say(f"{text}\n")


def _say(text: str) -> None:
    """Write to stderr; where that cannot be (a closed pipe or terminal, a full disk) the work goes on in silence."""
    try:
        print(text, end="", file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


def silence(stream: TextIO) -> None:
    """Send what a stream still holds, and all that follows, nowhere."""
    with contextlib.suppress(OSError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())


def warn(text: str) -> None:
    """Say something that the user should know, on stderr, in yellow where that can be seen."""
    mark = "warning: "
    if sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
        mark = f"\x1b[33m{mark}\x1b[0m"
    note(mark + text)


def emit_json(document: Any) -> None:
    """Print one JSON document on stdout. NaN has no place in JSON and becomes null."""
    print(json.dumps(_finite(document), indent=2, ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def lines_of_stdin() -> Iterator[str]:
    """Yield the lines of standard input, without their line ends.

    Raises:
        DataError: a line is not UTF-8.
    """
    from bert_miniatures.errors import DataError

    if sys.stdin.isatty():
        note("one text a line; Ctrl-D ends")
    for number, line in enumerate(sys.stdin.buffer, start=1):
        try:
            yield line.decode("utf-8").removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError as error:
            raise DataError(f"standard input:{number}: not UTF-8 ({error.reason} at byte {error.start})") from None


class ConsoleWatch(Watch):
    """Writes to stderr: a line that is redrawn on a terminal, a line every ten seconds elsewhere.

    Where the work does not know what is left, the pace since the watch began says it: honest after --resume too.
    """

    def __init__(self) -> None:
        super().__init__()
        self._line = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._drawn = False
        self._first: tuple[float, int] | None = None
        self._done = 0
        self._last = 0.0

    def __enter__(self) -> "ConsoleWatch":
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def note(self, text: str) -> None:
        """Say something about the work."""
        self._clear()
        note(text)

    def warn(self, text: str) -> None:
        """Say something that the user should know, once, and remember it."""
        if text in self.warnings:
            return
        super().warn(text)
        self._clear()
        warn(text)

    def progress(self, done: int, total: int, text: str = "", left: float | None = None) -> None:
        """Show how far the work is and when it will be done."""
        now = time.monotonic()
        if self._first is None or done < self._done:  # other work began, with a pace of its own
            self._first = (now, done)
            self._last = now
        self._done = done
        wait = 0.1 if self._line else 10.0
        if now - self._last < wait and done < total:
            return
        self._last = now
        since, first = self._first
        if left is None and done > first:
            left = (now - since) / (done - first) * (total - done)
        eta = f", {clock(left)} left" if left is not None and done < total else ""
        shown = f"{done}/{total} ({done / max(1, total):.0%}){eta}{', ' if text else ''}{text}"
        if self._line:
            _say(f"\r\x1b[K{shown}")
            self._drawn = True
        else:
            note(shown)

    def _clear(self) -> None:
        if self._drawn:
            _say("\r\x1b[K")
            self._drawn = False
