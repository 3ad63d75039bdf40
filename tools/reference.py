"""Write docs/commands.md and docs/api.md from the code.

    python tools/reference.py          write both
    python tools/reference.py --check  tell whether they are what the code says; exit 1 if not

Commands come from the same objects that print `--help`, functions and classes from their signatures and docstrings.
"""

import inspect
import re
import sys
from pathlib import Path
from typing import Any

import typer

import bert_miniatures
from bert_miniatures.cli import COMMANDS, _application

DOCS = Path(__file__).parents[1] / "docs"
HEAD = "<!-- written by tools/reference.py from the code: edit that, not this -->\n\n"
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Example", "Source")


# ------------------------------------------------------------------------------------------------- commands


def commands() -> str:
    """Return docs/commands.md."""
    group: Any = typer.main.get_command(_application([]))
    parts = ["# Commands\n\nWhat `miniatures COMMAND --help` prints, for all commands.\n"]
    with group.make_context("miniatures", [], resilient_parsing=True) as root:
        for name in COMMANDS:
            command = group.commands[name]
            with command.make_context(name, [], parent=root, resilient_parsing=True) as context:
                usage = context.command_path + " " + " ".join(command.collect_usage_pieces(context))
                records = [param.get_help_record(context) for param in command.get_params(context)]
            rows = [
                f"| `{cell(left)}` | {cell(right)} |" for left, right in filter(None, records) if "--help" not in left
            ]
            parts.append(
                f"## {name}\n\n{sentence(command.help)}\n\n```\n{usage}\n```\n\n| | |\n|---|---|\n"
                + "\n".join(rows)
                + "\n"
            )
    return HEAD + "\n".join(parts)


def cell(text: str) -> str:
    """Make a text fit into a cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def sentence(text: str | None) -> str:
    return " ".join((text or "").split())


# ------------------------------------------------------------------------------------------------- the Python API


def api() -> str:
    """Return docs/api.md."""
    parts = [
        "# Python API\n\nEverything that `import bert_miniatures` offers. Importing a name imports what it needs.\n"
    ]
    for name in sorted(bert_miniatures.__all__, key=str.lower):
        found = getattr(bert_miniatures, name)
        if not callable(found):
            parts.append(f"## {name}\n\n{tables(name, found)}\n")
            continue
        parts.append(f"## {name}\n\n```python\n{name}{signature(found)}\n```\n\n{prose(inspect.getdoc(found) or '')}\n")
        for method, function in inspect.getmembers(found, inspect.isroutine) if inspect.isclass(found) else ():
            ours = str(getattr(function, "__module__", "")).startswith("bert_miniatures")
            if ours and (not method.startswith("_") or method == "__call__"):
                text = prose(inspect.getdoc(function) or "")
                parts.append(f"### {name}.{method}\n\n```python\n{method}{signature(function)}\n```\n\n{text}\n")
    return HEAD + "\n".join(parts)


def tables(name: str, found: Any) -> str:
    keys = ", ".join(f"`{key}`" for key in found)
    return f"A mapping of {len(found)} entries, `{type(next(iter(found.values()))).__name__}` each: {keys}."


def signature(found: Any) -> str:
    """Return a signature, an argument a line where it is long; default values that are objects are left out."""
    try:
        known = inspect.signature(found)
    except (TypeError, ValueError):
        return "(...)"
    whole = re.sub(
        r"<[^<>]* at 0x[0-9a-f]+>",
        "...",
        re.sub(r"\b(bert_miniatures|collections\.abc|typing|pathlib(\._local)?)\.", "", str(known)),
    )
    return (
        whole
        if len(whole) < 90
        else re.sub(r", (?=[\w*]+(?:[:=,]| =|\)))", ",\n    ", whole.replace("(", "(\n    ", 1))
    )


def prose(doc: str) -> str:
    """Turn a docstring of sections into Markdown."""
    lines: list[str] = []
    section, code = "", False
    for line in doc.splitlines():
        head = re.fullmatch(r"(\w+):", line.strip())
        if head and head[1] in SECTIONS and not line.startswith(" "):
            section, code = head[1], head[1] == "Example"
            lines += [f"**{section}**", ""] + ["```python"] * code
            continue
        if code and not line.startswith(" "):
            code, section = False, ""
            lines += ["```", ""]
        lines.append(
            listed(line.removeprefix("    ")) if section and not code else line.removeprefix("    " * bool(section))
        )
    return "\n".join(lines + ["```"] * code).replace("  # doctest: +SKIP", "").strip()


def listed(line: str) -> str:
    """Make an item of a list of `name: what` and of `Error: when`."""
    named = re.match(r"([\w, .*]+): (.*)", line)
    return f"- `{named[1]}`: {named[2]}" if named else line


PAGES = {"commands.md": commands, "api.md": api}


def main() -> None:
    old = [
        name
        for name, make in PAGES.items()
        if not (DOCS / name).is_file() or (DOCS / name).read_text("utf-8") != make()
    ]
    if "--check" in sys.argv:
        sys.exit(f"{', '.join(old)}: not what the code says; python tools/reference.py" if old else 0)
    for name in old:
        (DOCS / name).write_text(PAGES[name](), encoding="utf-8")
        print(f"docs/{name}")


if __name__ == "__main__":
    main()
