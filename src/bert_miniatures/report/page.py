"""The report as a page: what stands in it, in which order."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bert_miniatures.choice import Choice, choose
from bert_miniatures.data.tasks import TASKS
from bert_miniatures.errors import DataError
from bert_miniatures.files import atomic_write, read_json
from bert_miniatures.report import figures
from bert_miniatures.report.facts import parameters
from bert_miniatures.report.markup import Html, joined, page, table, tag
from bert_miniatures.report.parts import details
from bert_miniatures.results import RunResult, collect, title
from bert_miniatures.table import Table, glue_table, own_table
from bert_miniatures.watch import Watch, clock
from bert_miniatures.zoo import ZOO

__all__ = ["LIMIT", "report", "write_report"]

LIMIT = 3_000_000  # bytes; what does not fit is left out and said


def write_report(folders: Iterable[Path], out: Path, watch: Watch | None = None) -> int:
    """Write the report of the finished runs in and below these folders; return its size in bytes.

    Raises:
        DataError: there is no finished run.
        MissingExtra: matplotlib is not installed.
    """
    watch, places = watch or Watch(), list(folders)
    runs = collect(places, watch)
    if not runs:
        raise DataError(f"no finished run in or below {', '.join(map(str, places))}; 'miniatures finetune' makes one")
    text = report(runs, watch)
    with atomic_write(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return len(text.encode())


def report(runs: Sequence[RunResult], watch: Watch | None = None) -> str:
    """Return the report of these runs as one HTML document that loads nothing."""
    watch = watch or Watch()
    choices = choose(runs)
    parts = [_head(runs, choices), _warnings(runs, watch), _scores(runs), _sizes(choices)]
    size, shown, left = len(joined(parts).encode()) + len(_environment(choices).encode()), [], 0
    for number, choice in enumerate(choices, 1):
        watch.progress(number - 1, len(choices), named(choice))
        part = tag("section", tag("h2", named(choice), id=f"c{number}"), *details(choice, runs))
        size += len(part.encode())
        if size > LIMIT - 50_000:
            left = len(choices) - number + 1
            break
        shown.append(part)
    watch.progress(len(choices), len(choices))
    if left:
        said = (
            f"The details of {left} of {len(choices)} choices are left out to keep the file small; give fewer folders."
        )
        watch.warn(said)
        shown.append(tag("p", said))
    names = [named(choice) for choice in choices[: len(shown) - bool(left)]]
    return page(f"Report: {_what(choices)}", [*parts, _contents(names), *shown, _environment(choices)])


def named(choice: Choice) -> str:
    """Return what a choice is about: BERT-Tiny on SST-2."""
    return f"{title(choice.model)} on {_task(choice.subject)}"


def _task(subject: str) -> str:
    return TASKS[subject].title if subject in TASKS else subject


def _what(choices: Sequence[Choice]) -> str:
    models, subjects = {title(c.model) for c in choices}, {_task(c.subject) for c in choices}
    shown = [next(iter(g)) if len(g) == 1 else f"{len(g)} {n}" for g, n in ((models, "models"), (subjects, "tasks"))]
    return " on ".join(shown)


def _head(runs: Sequence[RunResult], choices: Sequence[Choice]) -> Html:
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    cells = sum(choice.cells for choice in choices)
    counted = f"{_plural(len(runs), 'finished run')} in {_plural(cells, 'cell')}; {made}."
    return joined([tag("h1", _what(choices)), tag("p", counted, class_="soft")])


def _plural(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _contents(names: Sequence[str]) -> Html | None:
    if len(names) < 2:
        return None
    return tag(
        "nav", tag("ul", *(tag("li", tag("a", n, href=f"#c{i}")) for i, n in enumerate(names, 1))), aria_label="runs"
    )


def _warnings(runs: Sequence[RunResult], watch: Watch) -> Html | None:
    said = [*glue_table(runs).warnings, *own_table(runs).warnings]
    said += [f"{run.path}: {run.finding}" for run in runs if run.finding and run.score is None]
    lost = [run for run in runs if run.finding and run.score is not None]
    if lost:
        said.append(f"{len(lost)} of {len(runs)} runs went nowhere, such as {lost[0].path}: {lost[0].finding}")
    said = list(dict.fromkeys([*watch.warnings, *said]))
    if not said:
        return None
    more = [f"and {len(said) - 20} more, which 'miniatures table' prints"] if len(said) > 20 else []
    listed = tag("ul", *(tag("li", text) for text in [*said[:20], *more]))
    return tag("div", tag("strong", "What to know before reading the numbers"), listed, class_="warnings")


# ----------------------------------------------------------------------------------------------------- tables


def _scores(runs: Sequence[RunResult]) -> Html:
    found = [(name, made) for name, made in (("GLUE", glue_table(runs)), ("Own data", own_table(runs))) if made.rows]
    parts = [tag("h2", "Scores")]
    for name, made in found:
        parts += [tag("h3", name)] if len(found) > 1 else []
        parts += [_as_html(made), tag("ul", *(tag("li", note) for note in made.notes), class_="soft")]
    return tag("section", *parts)


def _as_html(made: Table) -> Html:
    """Return a table without the columns that are empty in every row."""
    head, *rows = csv.reader(io.StringIO(made.csv()))
    kept = [i for i in range(len(head)) if i == 0 or any(row[i] for row in rows)]
    return table([head[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _sizes(choices: Sequence[Choice]) -> Html | None:
    """Draw score against size where at least two sizes are there, published ones included."""
    ours: dict[str, list[tuple[float, float]]] = {}
    theirs: dict[str, list[tuple[float, float]]] = {}
    for choice in choices:
        count = parameters(choice.run)
        if count is not None and choice.mean is not None:
            ours.setdefault(_task(choice.subject), []).append((count / 1e6, 100 * choice.mean))
    for name, task in ((_task(key), key) for key in TASKS):
        rows = [(model.parameters / 1e6, (model.published or {}).get(task)) for model in ZOO.values()]
        if name in ours:
            theirs[name] = [(size, scores[0]) for size, scores in rows if scores]
    if len({x for points in (*ours.values(), *theirs.values()) for x, _ in points}) < 2:
        return None
    said = (
        "Filled: ours, dev, mean over seeds of the best cell. Hollow: published, test. First metric of each task, so "
        "only shapes of one task compare."
    )
    words = {"title": "Score against size", "across": "million parameters", "up": "per cent", "said": said}
    drawn = [figures.sizes(group, theirs, **words) for group in _by_four(ours)]
    return tag("section", tag("h2", "Score against size"), figures.row(drawn))


def _by_four(ours: Mapping[str, Any]) -> list[dict[str, Any]]:
    items = list(ours.items())
    return [dict(items[i : i + 4]) for i in range(0, len(items), 4)]


def _environment(choices: Sequence[Choice]) -> Html:
    """Show on what the chosen runs were made; equal ones once."""
    groups: dict[str, list[tuple[Choice, dict[str, Any]]]] = {}
    for choice in choices:
        document = read_json(choice.run.path / "result.json")
        same = {key: document.get(key) for key in ("versions", "device", "threads")}
        groups.setdefault(json.dumps(same, sort_keys=True), []).append((choice, document))
    parts = [tag("h2", "Environment")]
    for members in groups.values():
        first = members[0][1]
        facts = {"device": first.get("device", ""), "threads": first.get("threads", "")} | (first.get("versions") or {})
        parts.append(tag("p", joined(f"{key} {value}; " for key, value in facts.items()), class_="soft"))
        rows = [
            (named(c), str(c.run.path), c.run.seed, clock(d.get("seconds") or 0), d.get("finished", ""), *_sums(d))
            for c, d in members
        ]
        head = ("Choice", "Best run", "Seed", "Time", "Finished", "Start SHA-256", "Train SHA-256", "Dev SHA-256")
        parts.append(table(head, rows, numbers=False))
    return tag("section", *parts)


def _sums(document: Mapping[str, Any]) -> tuple[str, ...]:
    data = document.get("data_sha256") or {}
    return tuple(str(s or "")[:12] for s in (document.get("parent_sha256"), data.get("train"), data.get("dev")))
