"""The command line. Each command is a short function in a file of this folder; errors become exit codes here.

Importing this package imports typer and nothing heavy, so that `--help` answers at once.
"""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Annotated

import typer

from bert_miniatures.errors import MiniaturesError
from bert_miniatures.files import DISK_FULL

__all__ = ["main"]

# command -> file of this folder; the function has the command's name
COMMANDS: dict[str, str] = {
    "models": "models",
    "fetch": "fetch",
    "convert": "fetch",
    "tokenize": "tokenize",
    "finetune": "finetune",
    "evaluate": "evaluate",
    "predict": "predict",
}


def main() -> None:
    """Run a command; print an error as one sentence and exit 2 (wrong input), 1 (failed work) or 130 (Ctrl-C)."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"] or ["--help"]
    if "--offline" in arguments:
        os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        _application(arguments)(arguments, prog_name="miniatures", standalone_mode=False)
    except MiniaturesError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        if debug:
            raise
        _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of a pipe went away, as in `| head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - Python flushes stdout once more at exit
        sys.exit(0)
    except MemoryError:
        _fail("out of memory; a smaller --batch-size or --set train.micro_batch_size=8 needs less", 1)
    except OSError as error:
        if debug or error.errno not in DISK_FULL:
            raise
        _fail(f"{error.filename or 'the output'}: no space left on the device", 1)
    except Exception as error:
        if debug or not hasattr(error, "format_message"):  # typer's own errors of wrong use have it
            raise
        _fail(f"{error.format_message()} ({_help_of(arguments)})", 2)


def _help_of(arguments: list[str]) -> str:
    command = f" {arguments[0]}" if arguments and arguments[0] in COMMANDS else ""
    return f"'miniatures{command} --help' shows how"


def _fail(message: str, exit_code: int) -> None:
    from bert_miniatures.cli.console import note

    note(f"error: {message}")
    sys.exit(exit_code)


def _application(arguments: list[str]) -> Callable[..., object]:
    """Build the application; where the command is known only its file is imported."""
    app = typer.Typer(
        name="miniatures",
        help="The 24 BERT miniatures: fetch, fine-tune, evaluate, predict.",
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
