"""What a report says about one model on one task: curves, grid, seeds, confusion, calibration, worst errors."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_miniatures import predictions
from bert_miniatures.choice import Cell, Choice
from bert_miniatures.data.examples import Examples
from bert_miniatures.data.tasks import TASKS
from bert_miniatures.errors import DataError
from bert_miniatures.files import RunFolder
from bert_miniatures.outputs import shares
from bert_miniatures.predictions import Predictions
from bert_miniatures.report import figures
from bert_miniatures.report.facts import Grid, calibrated, cells_of, confusion, grids, losses
from bert_miniatures.report.markup import Html, table, tag
from bert_miniatures.report.texts import dev_rows
from bert_miniatures.results import RunResult

__all__ = ["details"]

WORST = 8
LONGEST = 300  # characters of a text that are shown
CELLS = 14  # rows of the figure of seeds
CLASSES = 20  # of a confusion matrix


def details(choice: Choice, runs: Sequence[RunResult]) -> Iterator[Html]:
    """Yield the parts about one choice, in order."""
    cells = cells_of(choice, runs)
    yield tag("p", _said(choice))
    found = [*_curves(choice, cells), *_seeds(choice, cells)]
    if found:
        yield figures.row(found)
    for grid in grids(choice, cells):
        yield from _grid(choice, grid)
    yield from _answers(choice)


def _said(choice: Choice) -> str:
    if choice.mean is None:
        return f"No run has a score on dev{f': {choice.run.finding}' if choice.run.finding else ''}."
    spread = "" if choice.deviation is None else f", standard deviation {100 * choice.deviation:.1f}"
    sure = "" if choice.error is None else f", standard error {100 * choice.error:.1f}"
    rows = choice.run.rows.get("dev", 0)
    return (
        f"{choice.run.metric} {100 * choice.mean:.1f} on {rows:,} dev rows, {choice.best.settings}: the best of "
        f"{choice.cells} cell{'s' * (choice.cells != 1)}, {choice.seeds} seed{'s' * (choice.seeds != 1)}{spread}{sure}."
    )


# ------------------------------------------------------------------------------------------------------ curves


def _points(run: RunResult, metric: str | None) -> list[tuple[float, float]]:
    """Return (epoch, value) of a run's records: of the loss, or of a dev score in per cent."""
    records = RunFolder(run.path).records()
    steps = [record["step"] for record in records if "step" in record]
    per_epoch = max(steps, default=1) / max(1, run.epochs)
    found = []
    for record in records:
        value = record.get("loss") if metric is None else (record.get("scores") or {}).get(metric)
        if value is not None and np.isfinite(value) and (metric is None or record.get("split") == "dev"):
            found.append((record["step"] / per_epoch, value * (1 if metric is None else 100)))
    return found


def _curves(choice: Choice, cells: Sequence[Cell]) -> Iterator[Html]:
    best, metric = choice.best.runs[:8], choice.run.metric
    others = [
        points
        for cell in cells
        if cell.runs != choice.best.runs
        for points in [_points(cell.runs[0], metric)]
        if points
    ]
    lost = {f"seed {run.seed}": points for run in best if (points := _points(run, None))}
    if lost:
        ends = [points[-1][1] for points in lost.values()]
        yield figures.curves(
            lost, [], title="Training loss of the best cell", across="epoch", up="loss",
            said=f"From {max(points[0][1] for points in lost.values()):.3g} to {np.mean(ends):.3g} at the end.",
        )  # fmt: skip
    scored = {f"seed {run.seed}": points for run in best if (points := _points(run, metric))}
    if scored:
        behind = f"; grey: {len(others)} other cells" if others else ""
        yield figures.curves(
            scored, others[:60], title=f"Dev {metric} by epoch", across="epoch", up="per cent",
            said=f"The best cell{behind}.",
        )  # fmt: skip


def _seeds(choice: Choice, cells: Sequence[Cell]) -> Iterator[Html]:
    several = sorted((cell for cell in cells if len(cell.scores) > 1), key=lambda cell: -cell.mean)
    if not several:
        return
    rows: dict[str, list[float]] = {}
    epochs = {cell.runs[0].epochs for cell in several}
    same = f", {epochs.pop()} epochs" if len(epochs) == 1 else ""
    for cell in several[:CELLS]:
        name = cell.settings.replace("batch ", "").removesuffix(same)
        while name in rows:
            name += " "  # cells that differ in something else
        rows[name] = [100 * score for score in cell.scores]
    widest = max(100 * (max(cell.scores) - min(cell.scores)) for cell in several)
    more = f" The best {CELLS} of {len(several)} cells." if len(several) > CELLS else ""
    yield figures.seeds(
        rows, title="Seeds: batch size, learning rate", across=f"dev {choice.run.metric}, per cent", up="",
        said=f"Points are seeds, bars mean and standard deviation; in a cell up to {widest:.1f} points apart.{more}",
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------------- grid


def _grid(choice: Choice, grid: Grid) -> Iterator[Html]:
    batches = sorted({batch for batch, _ in grid.cells})
    rates = sorted({rate for _, rate in grid.cells}, reverse=True)
    known = [cell.mean for cell in grid.cells.values() if cell.scores]
    low, high = min(known, default=0.0), max(known, default=0.0)
    rows = [[f"batch {b}", *(_cell(choice, grid, (b, rate), low, high) for rate in rates)] for b in batches]
    yield tag("h3", f"Batch size by learning rate: {grid.rest}")
    yield tag("div", table(["", *(f"{rate:g}" for rate in rates)], rows), class_="map")
    band = (
        ""
        if grid.band is None
        else f" ≈ marks cells within the noise of the best one, at most {100 * grid.band:.1f} points."
    )
    said = f"Dev {choice.run.metric} in per cent, mean over seeds; the chosen cell is outlined.{band}"
    yield tag("p", said, class_="soft")


def _cell(choice: Choice, grid: Grid, place: tuple[int, float], low: float, high: float) -> Html:
    cell = grid.cells.get(place)
    if cell is None:
        return tag("td", "")
    if not cell.scores:
        return tag("td", "failed")
    depth = round(60 * (cell.mean - low) / (high - low)) if high > low else 30
    state = "chosen" if cell.runs == choice.best.runs else "near" if place in grid.near else None
    look = f"background: color-mix(in srgb, var(--accent) {depth}%, var(--paper))"
    told = {"chosen": "the chosen cell", "near": "within the noise of the chosen cell"}.get(state or "")
    return tag("td", f"{100 * cell.mean:.1f}", class_=state, style=look, title=told)


# ----------------------------------------------------------------------------------------------------- answers


def _answers(choice: Choice) -> Iterator[Html]:
    """Say how the chosen run answered the dev set."""
    run = RunFolder(choice.run.path)
    file = run.predictions / "dev.parquet"
    if not file.is_file():
        yield tag("p", "The run kept no predictions, so there are no confusion, calibration and errors.", class_="soft")
        return
    try:
        found = predictions.read(file)
    except DataError as error:
        yield tag("p", str(error), class_="soft")
        return
    if found.gold is None or not np.isfinite(found.logits).all():
        yield tag("p", "The predictions have no right answers beside them, or are not finite.", class_="soft")
        return
    kind = _kind(choice, found)
    yield from _KINDS[kind](found)
    yield from _worst(kind, found, *dev_rows(run, found.checksum))


def _kind(choice: Choice, found: Predictions) -> str:
    if choice.subject in TASKS:
        return TASKS[choice.subject].kind
    assert found.gold is not None
    return "regression" if not found.labels else "multilabel" if found.gold.ndim == 2 else "classification"


def _classes(found: Predictions) -> Iterator[Html]:
    assert found.gold is not None
    gold, chosen = found.gold.astype(np.int64), found.logits.argmax(1)
    known = gold >= 0
    sure = shares("classification", found.logits).max(1)[known]
    if len(found.labels) <= CLASSES:
        yield tag("h3", "Confusion of the best run")
        yield _matrix(confusion(gold, chosen, len(found.labels)), found.labels)
    yield figures.row([_calibration(sure, (chosen == gold)[known], "answers")])


def _matrix(counts: npt.NDArray[np.int64], labels: Sequence[str]) -> Html:
    whole = np.maximum(1, counts.sum(1, keepdims=True))
    rows = []
    for name, line, of in zip(labels, counts, whole[:, 0], strict=True):
        cells = [
            tag(
                "td",
                f"{n:,} ({n / of:.0%})",
                style=f"background: color-mix(in srgb, var(--accent) {round(60 * n / of)}%, var(--paper))",
            )
            for n in line.tolist()
        ]
        rows.append([name, *cells])
    return tag("div", table(["is ↓ answered →", *labels], rows), class_="map")


def _calibration(sure: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], what: str) -> Html:
    found = calibrated(sure, right)
    way = "more" if sure.mean() > right.mean() else "less"
    said = (
        f"Expected calibration error {100 * found.error:.1f} points ({len(sure):,} {what}, bins of equal width): "
        f"sure by {sure.mean():.1%}, right in {right.mean():.1%}; {way} sure than right. Larger points are more {what}."
    )
    return figures.reliability(found, title="Calibration on dev", across="how sure", up="share right", said=said)


def _several(found: Predictions) -> Iterator[Html]:
    assert found.gold is not None
    given, gold = shares("multilabel", found.logits), found.gold.astype(np.int64)
    known, chosen = gold.min(1) >= 0, shares("multilabel", found.logits) >= 0.5
    rows = [
        (
            name,
            int((gold[known, i] == 1).sum()),
            int(chosen[known, i].sum()),
            int((chosen[known, i] & (gold[known, i] == 1)).sum()),
        )
        for i, name in enumerate(found.labels)
    ]
    yield tag("h3", "Labels of the best run")
    yield table(("Label", "is there", "answered", "both"), rows)
    sure = np.maximum(given, 1 - given)[known]
    yield figures.row([_calibration(sure.ravel(), (chosen == gold)[known].ravel(), "decisions")])


def _scores(found: Predictions) -> Iterator[Html]:
    assert found.gold is not None
    known = np.isfinite(found.gold.astype(np.float64))
    gold, said = found.gold[known].astype(np.float64), found.logits[known, 0].astype(np.float64)
    words = f"On average {np.abs(gold - said).mean():.2f} off, {(said - gold).mean():+.2f} with its sign."
    yield figures.row(
        [figures.scatter(gold, said, title="Answers on dev", across="true score", up="answer", said=words)]
    )


_KINDS = {"classification": _classes, "multilabel": _several, "regression": _scores}


def _worst(kind: str, found: Predictions, rows: Examples | None, why: str) -> Iterator[Html]:
    """List the rows that are most wrong: sure of a wrong class, or far from the score."""
    assert found.gold is not None
    wrong, gold = losses(kind, found.logits, found.gold), found.gold
    known = np.isfinite(gold.astype(np.float64)) if kind == "regression" else gold.reshape(len(gold), -1).min(1) >= 0
    missed = known & _is_wrong(kind, found)
    order = [i for i in np.argsort(-wrong, kind="stable") if missed[i]][:WORST]
    yield tag("h3", "Worst errors")
    if not order:
        yield tag("p", "None: every dev row is answered right.", class_="soft")
        return
    if rows is None:
        yield tag("p", f"Without texts: {why}.", class_="soft")
    pairs = rows is not None and rows.pairs is not None
    head = ["Row", "is", "answered", *(["Text"] if rows else []), *(["Second text"] if pairs else [])]
    listed = [_named(head, _error(kind, found, rows, int(i))) for i in order]
    yield tag("div", table(head, listed, numbers=False), class_="errors")


def _named(head: Sequence[str], row: Sequence[str]) -> list[Any]:
    """Give each cell its column's name, for phones, where a row is a block; texts come last."""
    cells = zip(head[1:], row[1:], strict=True)
    return [row[0], *(tag("td", c, data_name=n, class_="text" if "ext" in n else None) for n, c in cells)]


def _is_wrong(kind: str, found: Predictions) -> npt.NDArray[np.bool_]:
    assert found.gold is not None
    if kind == "classification":
        return np.asarray(found.logits.argmax(1) != found.gold)
    if kind == "multilabel":
        return np.asarray(((found.logits >= 0) != (found.gold == 1)).any(1))
    return np.ones(len(found.logits), np.bool_)


def _error(kind: str, found: Predictions, rows: Examples | None, i: int) -> list[str]:
    assert found.gold is not None
    if kind == "regression":
        told = [f"{float(found.gold[i]):.2f}", f"{float(found.logits[i, 0]):.2f}"]
    elif kind == "multilabel":
        there = [
            [n for n, yes in zip(found.labels, which, strict=True) if yes]
            for which in (found.gold[i] == 1, found.logits[i] >= 0)
        ]
        told = [", ".join(names) or "none" for names in there]
    else:
        given = shares(kind, found.logits[i : i + 1])[0]
        best = int(given.argmax())
        told = [found.labels[int(found.gold[i])], f"{found.labels[best]} ({given[best]:.0%} sure)"]
    texts = [column[i] for column in (rows.texts, rows.pairs) if column is not None] if rows else []
    return [found.row_ids[i], *told, *map(_cut, texts)]


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[:LONGEST] + " …"
