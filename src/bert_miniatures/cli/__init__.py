"""The command line. Each command is a short function in a file of this folder; errors become exit codes here.

Importing this package imports typer and nothing heavy, so that `--help` answers at once.
"""

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from io import TextIOWrapper
from types import FrameType
from typing import Annotated

import typer

from bert_miniatures.errors import MiniaturesError
from bert_miniatures.files import DISK_FULL
from bert_miniatures.machine import LINGERING, launch

__all__ = ["main"]

# command -> file of this folder; the function has the command's name
COMMANDS: dict[str, str] = {
    "models": "models",
    "fetch": "fetch",
    "convert": "fetch",
    "tokenize": "tokenize",
    "fill": "fill",
    "vocab": "vocab",
    "pretrain": "pretrain",
    "label": "label",
    "finetune": "finetune",
    "distill": "distill",
    "evaluate": "evaluate",
    "predict": "predict",
    "export": "export",
    "serve": "serve",
    "sweep": "sweep",
    "glue": "sweep",
    "table": "table",
    "submit": "submit",
    "doctor": "doctor",
    "choose": "choose",
    "report": "report",
    "track": "track",
    "bundle": "bundle",
    "push": "push",
}


def main() -> None:
    """Run a command; print an error as one sentence and exit 2 (wrong input), 1 (failed work) or 130 (Ctrl-C)."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"] or ["--help"]
    if "--offline" in arguments:
        os.environ["HF_HUB_OFFLINE"] = "1"
    _prepare_streams()
    try:
        with _terminated_is_interrupted():
            code = _run(arguments)
            sys.stdout.flush()  # at exit it would be too late for a sentence
    except BrokenPipeError:  # the reader of stdout went away, as in `| head`; stderr is written by `note` alone
        code = 0
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            raise
        sentence, code = _told(error, arguments)
        if launch().rank and _is_wrong_use(error):  # torchrun's processes all have the same command
            time.sleep(LINGERING)
        else:
            _note(f"error: {sentence}")
    _leave(code)


def _run(arguments: list[str]) -> int:
    """Run the command without typer's own `main`, which ends an interrupted command as if it were done."""
    command = typer.main.get_command(_application(arguments))
    try:
        with command.make_context("miniatures", arguments) as context:
            command.invoke(context)
    except typer.Exit as done:  # --help, --version
        return int(done.exit_code)
    return 0


def _told(error: BaseException, arguments: list[str]) -> tuple[str, int]:
    """Return the sentence for an error and the exit code."""
    if isinstance(error, MiniaturesError):
        return str(error), error.exit_code
    if isinstance(error, typer.Abort) or _follows_ctrl_c(error):
        return "interrupted", 130
    if isinstance(error, Exception) and hasattr(error, "format_message"):  # as `_is_wrong_use`
        return f"{error.format_message()} ({_help_of(arguments)})", 2
    first = next(iter(str(error).splitlines()), "")
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _NO_MEMORY.search(first)):
        return "out of memory; a smaller --batch-size or --set train.micro_batch_size=8 needs less", 1
    if isinstance(error, OSError) and error.errno is not None:
        full = error.errno in DISK_FULL
        return f"{error.filename or 'the output'}: {'no space left on the device' if full else error.strerror}", 1
    return f"{type(error).__name__}: {first} (this should not happen; --debug shows where)", 1


def _follows_ctrl_c(error: BaseException | None) -> bool:
    """Tell whether this is Ctrl-C, or what came of it: heard inside a lock's own code it ends as a RuntimeError."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _is_wrong_use(error: BaseException) -> bool:
    return hasattr(error, "format_message")  # typer's own errors have it


_NO_MEMORY = re.compile("can't allocate memory|not enough memory|out of memory", re.IGNORECASE)  # torch's words


def _help_of(arguments: list[str]) -> str:
    command = f" {arguments[0]}" if arguments and arguments[0] in COMMANDS else ""
    return f"'miniatures{command} --help' shows how"


def _note(text: str) -> None:
    from bert_miniatures.cli.console import note

    note(text)


def _leave(code: int) -> None:
    try:
        sys.stdout.flush()
    except OSError:  # what is left cannot be written; Python would try once more and change the exit code
        from bert_miniatures.cli.console import silence

        silence(sys.stdout)
    if code:
        sys.exit(code)


def _prepare_streams() -> None:
    """Give a closed stream (`>&-`) a place to go to, and results the encoding of JSON, whatever the locale is."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - as long as the process
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.encoding.lower() != "utf-8":
        if sys.stdout.isatty():
            sys.stdout.reconfigure(errors="backslashreplace")
        else:
            sys.stdout.reconfigure(encoding="utf-8")


@contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does: clean up, save, exit 130."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGTERM)
    hear = before is signal.SIG_DFL and threading.current_thread() is threading.main_thread()
    if hear:
        signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        if hear:
            signal.signal(signal.SIGTERM, before)


def _application(arguments: list[str]) -> typer.Typer:
    """Build the application; where the command is known only its file is imported."""
    app = typer.Typer(
        name="miniatures",
        help="The 24 BERT miniatures: fetch, fine-tune, evaluate, predict.",
        epilog="Every command takes --debug, which shows where an error comes from.",
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    wanted = arguments[:1] if arguments and arguments[0] in COMMANDS else list(COMMANDS)
    for name in wanted:
        function = getattr(import_module(f"bert_miniatures.cli.{COMMANDS[name]}"), name)
        app.command(name)(function)
    return app


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version as installed

        print(installed("bert-miniatures"))
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """The 24 BERT miniatures: fetch, fine-tune, evaluate, predict."""
