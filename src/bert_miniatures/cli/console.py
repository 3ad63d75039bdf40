"""What commands say, and where: results on stdout, notes and warnings on stderr."""

import json
import os
import sys
from typing import Any

__all__ = ["emit_json", "note", "warn"]


def note(text: str) -> None:
    """Say something about the work, on stderr."""
    print(text, file=sys.stderr, flush=True)


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
