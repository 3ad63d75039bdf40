"""The error tree. Each error is one sentence for a person and a stable `code` for a program.

    MiniaturesError                 exit  code
    ├── UserError                    2    user-error        the input or the command is wrong
    │   ├── UnknownName              2    unknown-name      no such model, task, column, option; names the nearest
    │   ├── ConfigError              2    config            a recipe value that cannot work
    │   ├── DataError                2    data              a data file: says the file and the line
    │   ├── CheckpointError          2    checkpoint        a model folder or checkpoint is damaged or does not fit
    │   ├── LabelError               2    labels            labels of model and data disagree
    │   ├── OutputExists             2    output-exists     the output folder is not empty
    │   ├── MissingExtra             2    missing-extra     an optional dependency is not installed
    │   └── Offline                  2    offline           needed a download while offline
    └── WorkFailed                   1    work-failed       the input was right, the work failed
        ├── DownloadFailed           1    download          network fault, or the bytes do not match their checksum
        ├── DiskFull                 1    disk-full         no space left; what was whole before is still whole
        ├── Diverged                 1    diverged          loss or scores became NaN or infinite
        └── ProcessLost              1    process-lost      another process that shares the work ended

Ctrl-C is `KeyboardInterrupt` and exits 130.
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DiskFull",
    "Diverged",
    "DownloadFailed",
    "LabelError",
    "MiniaturesError",
    "MissingExtra",
    "Offline",
    "OutputExists",
    "ProcessLost",
    "UnknownName",
    "UserError",
    "WorkFailed",
    "nearest",
]


class MiniaturesError(Exception):
    """Base of every error that this package raises on purpose."""

    code = "error"
    exit_code = 1


class UserError(MiniaturesError):
    """The input or the command is wrong."""

    code = "user-error"
    exit_code = 2


class UnknownName(UserError):
    """A name that is in no table.

    Args:
        kind: what was named, as in "task".
        name: what the user wrote.
        choices: the names that exist; the nearest one is suggested.
        hint: where the names are listed, put in brackets at the end.
    """

    code = "unknown-name"

    def __init__(self, kind: str, name: str, choices: Iterable[str], hint: str = "") -> None:
        self.kind, self.name, self.choices = kind, name, list(choices)
        guess = nearest(name, self.choices)
        listed = ", ".join(self.choices)
        tail = f"; did you mean '{guess}'?" if guess else f"; known: {listed}" if len(listed) <= 200 else ""
        super().__init__(f"unknown {kind} '{name}'{tail}" + (f" ({hint})" if hint else ""))


class ConfigError(UserError):
    """A recipe value that cannot work."""

    code = "config"


class DataError(UserError):
    """A data file that cannot be used; the message begins with `file:line:` where there is a line."""

    code = "data"


class CheckpointError(UserError):
    """A model folder or checkpoint that is damaged, incomplete or of another shape than it says."""

    code = "checkpoint"


class LabelError(UserError):
    """The labels of a model and of the data do not agree."""

    code = "labels"


class OutputExists(UserError):
    """The output folder is not empty and neither --resume nor --overwrite was given."""

    code = "output-exists"


class MissingExtra(UserError):
    """An optional dependency is not installed.

    Args:
        what: the work that needs it, as in "exporting to ONNX".
        extra: the extra that brings it, as in "deploy".
    """

    code = "missing-extra"

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs the '{extra}' extra: pip install 'bert-miniatures[{extra}]'")


class Offline(UserError):
    """Something had to be downloaded and the network may not be used."""

    code = "offline"


class WorkFailed(MiniaturesError):
    """The input was right, the work failed."""

    code = "work-failed"


class DownloadFailed(WorkFailed):
    """A network fault, or bytes that do not match their checksum."""

    code = "download"


class DiskFull(WorkFailed):
    """No space left on the device. What was whole before is still whole."""

    code = "disk-full"


class Diverged(WorkFailed):
    """The loss or a score became NaN or infinite."""

    code = "diverged"


class ProcessLost(WorkFailed):
    """Another process that shares the work ended before the work was done."""

    code = "process-lost"


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice that looks most like `name`, or None where none is near.

    Example:
        >>> nearest("mlni", ["mnli", "qnli", "cola"])
        'mnli'
    """
    by_folded = {choice.casefold(): choice for choice in choices}
    found = difflib.get_close_matches(name.casefold(), by_folded, n=1, cutoff=0.6)
    return by_folded[found[0]] if found else None
