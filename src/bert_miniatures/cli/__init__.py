"""The command line. Each command is a short function in a file of this folder; errors become exit codes here.

Importing this package imports typer and nothing heavy, so that `--help` answers at once.
"""

import os
import sys
from collections.abc import Callable
from importlib import import_module

import typer

from bert_miniatures.errors import MiniaturesError

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
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    if "--offline" in arguments:
        os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        _application(arguments)(arguments, standalone_mode=True)
    except MiniaturesError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        if debug:
            raise
        _fail("interrupted", 130)
    except BrokenPipeError:  # the reader of a pipe went away, as in `| head`
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - Python flushes stdout once more at exit
        sys.exit(0)
    except MemoryError:
        _fail("out of memory; a smaller --batch-size or --set train.micro_batch_size=8 needs less", 1)


def _fail(message: str, exit_code: int) -> None:
    from bert_miniatures.cli.console import note

    note(f"error: {message}")
    sys.exit(exit_code)


def _application(arguments: list[str]) -> Callable[..., object]:
    """Build the application; where the command is known only its file is imported."""
    app = typer.Typer(
        name="miniatures",
        help="The 24 BERT miniatures: fetch, fine-tune, evaluate, predict.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    asked = next((argument for argument in arguments if argument in COMMANDS), None)
    wanted = [asked] if asked and arguments[0] == asked else list(COMMANDS)
    for name in wanted:
        function = getattr(import_module(f"bert_miniatures.cli.{COMMANDS[name]}"), name)
        app.command(name)(function)
    return app


def _options(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    if version:
        from importlib.metadata import version as installed

        print(installed("bert-miniatures"))
        raise typer.Exit
