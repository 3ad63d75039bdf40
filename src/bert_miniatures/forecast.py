"""What a sweep will cost, from a few timed steps of each distinct cost before it starts."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bert_miniatures.budget import makespan
from bert_miniatures.config import FinetuneConfig
from bert_miniatures.distill_config import DistillConfig, inputs_key
from bert_miniatures.errors import DataError
from bert_miniatures.files import read_json, write_json
from bert_miniatures.plan import group_of
from bert_miniatures.watch import clock

__all__ = ["Cost", "cost_key", "known_costs", "read_costs", "seconds_of", "table", "total", "updates_of", "write_costs"]

_FORWARD = 0.4  # of a training step: a third of its multiplications, and the data must be collated all the same


@dataclass(frozen=True)
class Cost:
    """What was measured for one model, task and batch size.

    Attributes:
        step: seconds of one update.
        start: seconds from the beginning of a run to its first update, its inputs being in memory.
        load: seconds to read and encode the inputs; each worker pays them once.
        steps: how many updates were timed.
        train_rows, dev_rows: examples; all labelled dev splits together.
    """

    step: float
    start: float
    load: float
    steps: int
    train_rows: int
    dev_rows: int


def cost_key(config: FinetuneConfig) -> str:
    """Return what decides the cost of an update: cells with the same key are timed once.

    Seed, learning rate, epochs and whatever else leaves the work of an update alone are not in it.
    """
    train = config.train.model_dump(mode="json", include={"micro_batch_size", "exact_speedups", "precision", "threads"})
    parts: list[Any] = [config.data.model_dump(mode="json"), train]
    if isinstance(config, DistillConfig):  # how many rows there are, and whether a teacher reads them too
        parts += [inputs_key(config), config.states_of, bool(config.hidden_weight), bool(config.relation_weight)]
    rest = json.dumps(parts, sort_keys=True)
    digest = hashlib.sha256(rest.encode()).hexdigest()[:8]
    return f"{config.model} {config.data.task or config.data.train} batch {config.train.batch_size} {digest}"


def updates_of(config: FinetuneConfig, cost: Cost) -> int:
    """Return the number of updates of a run."""
    return math.ceil(cost.train_rows / config.train.batch_size) * config.train.epochs


def seconds_of(config: FinetuneConfig, cost: Cost) -> float:
    """Return the seconds of a run: its updates, an evaluation after each epoch and one at the end, start and end.

    An evaluated example costs 0.4 of a trained one; writing the results is taken to last as long as starting.
    """
    evaluated = (config.train.epochs + 1) * cost.dev_rows * _FORWARD / config.train.batch_size
    return (updates_of(config, cost) + evaluated) * cost.step + 2 * cost.start


def read_costs(path: Path, workers: int) -> dict[str, Cost]:
    """Return the costs of forecast.json that were measured with this number of workers; none where it is damaged."""
    try:
        document = read_json(path)
        return (
            {key: Cost(**found) for key, found in document["costs"].items()} if document["workers"] == workers else {}
        )
    except (DataError, KeyError, TypeError, AttributeError):
        return {}


def write_costs(path: Path, workers: int, costs: Mapping[str, Cost]) -> None:
    """Keep measured costs, so that a resumed sweep does not pay for them again."""
    write_json(path, {"workers": workers, "costs": {key: asdict(cost) for key, cost in costs.items()}})


def known_costs(cells: Mapping[str, FinetuneConfig], costs: Mapping[str, Cost]) -> dict[str, float]:
    """Return the seconds of each cell; a cell whose cost could not be measured takes the mean of the others."""
    found = {n: seconds_of(c, costs[cost_key(c)]) for n, c in cells.items() if cost_key(c) in costs}
    mean = sum(found.values()) / len(found) if found else 1.0
    return {name: found.get(name, mean) for name in cells}


def table(cells: Mapping[str, FinetuneConfig], costs: Mapping[str, Cost], workers: int) -> str:
    """Return the forecast as a table with a line per model, task and batch size, and the total."""
    lines = [("cells", "", "batch", "count", "ms/step", "steps each", "time each", "together")]
    for (group, batch), names in _by_cost(cells).items():
        cost = costs.get(cost_key(cells[names[0]]))
        if cost is None:
            lines.append((group, "", str(batch), str(len(names)), "unknown", "", "", ""))
            continue
        each = [seconds_of(cells[name], cost) for name in names]
        steps = {updates_of(cells[name], cost) for name in names}
        shown = str(min(steps)) if len(steps) == 1 else f"{min(steps)}-{max(steps)}"
        facts = (f"{1000 * cost.step:.1f}", shown, clock(sum(each) / len(each)), clock(sum(each)))
        lines.append((group, "", str(batch), str(len(names)), *facts))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    text = "\n".join("  ".join(_set(cell, w, i) for i, (cell, w) in enumerate(zip(line, widths, strict=True)) if w)
                     for line in lines)  # fmt: skip
    return f"{text}\n{len(cells)} cells, {workers} at once: about {clock(total(cells, costs, workers))}"


def total(cells: Mapping[str, FinetuneConfig], costs: Mapping[str, Cost], workers: int) -> float:
    """Return the seconds on the wall, with what reading the inputs takes."""
    seconds = known_costs(cells, costs)
    loads: dict[str, float] = {}
    for name, config in cells.items():
        cost = costs.get(cost_key(config))
        loads[group_of(name)] = max(loads.get(group_of(name), 0.0), cost.load if cost else 0.0)
    return makespan(seconds.values(), workers) + sum(loads.values())


def _set(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column < 2 else cell.rjust(width)


def _by_cost(cells: Mapping[str, FinetuneConfig]) -> dict[tuple[str, int], list[str]]:
    found: dict[tuple[str, int], list[str]] = {}
    for name, config in cells.items():
        found.setdefault((group_of(name), config.train.batch_size), []).append(name)
    return dict(sorted(found.items(), key=lambda item: (_place(item[0][0], cells), item[0][1])))


def _place(group: str, cells: Iterable[str]) -> int:
    return next(i for i, name in enumerate(cells) if group_of(name) == group)
