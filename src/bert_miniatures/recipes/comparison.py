"""The table at the end of a distillation: teacher, student fine-tuned alone, distilled, distilled then fine-tuned."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_miniatures.checkpoint import read_folder
from bert_miniatures.data.examples import Examples
from bert_miniatures.errors import DataError, UserError
from bert_miniatures.files import RunFolder, read_json
from bert_miniatures.recipes.method import nulls
from bert_miniatures.recipes.teachers import bytes_of

__all__ = ["alone", "facts_of", "row_of", "speed", "table"]

_SECONDS = 1.0  # of measuring a model's speed
_CHUNK = 32


def row_of(
    name: str, model: str, scores: Mapping[str, float | None], facts: Mapping[str, Any], pace: float | None
) -> dict[str, Any]:
    """Return a row of the table; what is not known is null."""
    sizes = {key: facts.get(key) for key in ("parameters", "bytes")}
    return {"name": name, "model": model, "scores": nulls(scores), **sizes, "texts_per_second": pace}


def facts_of(folder: Path) -> dict[str, int]:
    """Return parameters and bytes of a model folder."""
    weights = read_folder(folder).weights
    return {"parameters": sum(weight.size for weight in weights.values()), "bytes": bytes_of(folder)}


def speed(answer: Callable[[Sequence[str], Sequence[str] | None], Any], examples: Examples) -> float:
    """Measure texts per second on this machine, tokenisation included, in batches of 32 for about a second.

    Args:
        answer: gives a model's logits for texts and, where there are any, second texts.
        examples: whose texts are answered.
    """
    chunks = [
        (examples.texts[i : i + _CHUNK], None if examples.pairs is None else examples.pairs[i : i + _CHUNK])
        for i in range(0, len(examples), _CHUNK)
    ]
    answer(*chunks[0])  # the first is slower
    began, rows, number = time.perf_counter(), 0, 0
    while (passed := time.perf_counter() - began) < _SECONDS:
        texts, pairs = chunks[number % len(chunks)]
        answer(texts, pairs)
        rows, number = rows + len(texts), number + 1
    return round(rows / passed, 1)


def alone(
    out: Path, named: Path | None, *, task: str, metric: str, parent: str, dev: str | None
) -> tuple[Path, Mapping[str, Any]] | None:
    """Find a finished run of the same student that was fine-tuned without a teacher.

    Args:
        out: the run folder of the distillation; runs are looked for beside it.
        named: the run that the user gave.
        task, metric: of the data; of several runs the one with the best dev score counts.
        parent: fingerprint of the student's weights.
        dev: checksum of the dev set.

    Raises:
        DataError: the run that was given is not finished, or another student or dev set.
    """
    if named is not None:
        found = RunFolder(named)
        if not found.is_finished():
            raise DataError(f"{named}: no finished run (no result.json) to compare with")
        document = read_json(found.result)
        if not _same(document, task, parent, dev):
            raise DataError(f"{named}: a run of another student, task or dev set, or one with a teacher")
        return named, document
    best: tuple[float, Path, Mapping[str, Any]] | None = None
    for result in sorted(out.absolute().parent.glob("*/result.json")):
        try:
            document = read_json(result)
        except UserError:  # somebody else's file
            continue
        if not isinstance(document, dict) or not _same(document, task, parent, dev):
            continue
        score = document["scores"].get("dev", {}).get(metric)
        if score is not None and (best is None or score > best[0]):
            best = score, result.parent, document
    return best and (best[1], best[2])


def _same(document: Mapping[str, Any], task: str, parent: str, dev: str | None) -> bool:
    data = document.get("data_sha256", {})
    known = document.get("task") == task and document.get("parent_sha256") == parent and data.get("dev") == dev
    return known and not document.get("teachers")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Write the rows for a terminal; what is not known is a dash."""
    names = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    head = ["", *names, "parameters", "MB", "texts/s"]
    lines = [head]
    for row in rows:
        size, pace = row["bytes"], row["texts_per_second"]
        scores = [_number(row["scores"].get(name), ".4f") for name in names]
        lines.append(
            [row["name"], *scores, _number(row["parameters"], ",d"), _number(size and size / 1e6, ".1f"),
             _number(pace, ",.0f")]
        )  # fmt: skip
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    padded = [[cell.rjust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *cells[1:]]) for line, cells in zip(lines, padded, strict=True)
    )


def _number(value: Any, how: str) -> str:
    return "-" if value is None else format(value, how)
