"""What fits into a time budget: durations, how long cells take on several workers, which cells to leave out."""

import heapq
import re
from collections.abc import Iterable, Mapping, Sequence

from bert_miniatures.config import FinetuneConfig
from bert_miniatures.errors import ConfigError
from bert_miniatures.plan import group_of, places, without_seed

__all__ = ["fit", "makespan", "parse_duration", "preference"]

_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


def parse_duration(text: str) -> float:
    """Return seconds.

    Raises:
        ConfigError: not a duration.

    Example:
        >>> parse_duration("2h"), parse_duration("1h30m"), parse_duration("90s")
        (7200.0, 5400.0, 90.0)
    """
    written = text.strip().lower()
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", written)
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != written or seconds <= 0:
        raise ConfigError(f"'{text}' is not a time; write 2h, 90m, 1h30m or 3600s")
    return float(seconds)


def makespan(seconds: Iterable[float], workers: int) -> float:
    """Return how long jobs take that are handed out in this order, each to the worker that is free first.

    Example:
        >>> makespan([3, 1, 1, 1], workers=2)
        3.0
    """
    free = [0.0] * max(1, workers)
    for cost in seconds:
        heapq.heapreplace(free, free[0] + cost)
    return max(free)


def fit(
    cells: Mapping[str, FinetuneConfig], costs: Mapping[str, float], budget: float, workers: int, *, first_seed: int = 1
) -> tuple[list[str], list[str]]:
    """Choose the cells that fit into a budget; say what is left out.

    The rule: seeds go first, then the edges of the grid, then large tasks. In rounds each group (model and task)
    takes its next cell of the first seed, the group with the cheapest one first, in the order of `preference`; a cell
    that does not fit is left out. Further seeds follow: all cells of a group or none, the cheapest group first, which
    never fits where a cell of the first seed did not. Epochs are never cut: the learning rate's schedule would be
    another one.

    Args:
        cells: what is to be done.
        costs: seconds of each.
        budget: seconds on the wall.
        workers: how many cells run at once.
        first_seed: the seed that goes before the others.

    Returns:
        Names of the chosen cells in the order of `cells`, and sentences about the others.
    """
    chosen: set[str] = set()

    def take(names: Sequence[str]) -> None:
        wanted = [name for name in cells if name in chosen or name in names]
        if makespan((costs[name] for name in wanted), workers) <= budget:
            chosen.update(names)

    queues = {group: [n for n in _preferred(cells, costs, names) if cells[n].train.seed == first_seed]
              for group, names in _groups(cells).items()}  # fmt: skip
    while any(queues.values()):
        for group in sorted((group for group in queues if queues[group]), key=lambda g: costs[queues[g][0]]):
            take([queues[group].pop(0)])
    more: dict[tuple[int, str], list[str]] = {}
    for name, config in cells.items():
        if config.train.seed != first_seed:
            more.setdefault((config.train.seed, group_of(name)), []).append(name)
    for _, names in sorted(more.items(), key=lambda item: (item[0][0], sum(costs[n] for n in item[1]), item[0][1])):
        take(names)
    return [name for name in cells if name in chosen], _left_out(cells, chosen, first_seed)


def preference(cells: Mapping[str, FinetuneConfig]) -> dict[str, float]:
    """Return how far each cell of a grid is from its middle: each setting at its edge adds 1.

    Example:
        >>> from bert_miniatures.plan import SweepConfig, expand
        >>> plan = SweepConfig(models=("tiny",), tasks=("rte",), grid={"batch_size": (8, 16, 32, 64, 128)})
        >>> list(preference(expand(plan)).values())
        [1.0, 0.5, 0.0, 0.5, 1.0]
    """
    return {
        name: sum(abs(position / ((count - 1) / 2) - 1) for position, count in place)
        for name, place in places(cells).items()
    }


def _groups(cells: Mapping[str, FinetuneConfig]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in cells:
        found.setdefault(group_of(name), []).append(name)
    return found


def _preferred(cells: Mapping[str, FinetuneConfig], costs: Mapping[str, float], names: list[str]) -> list[str]:
    far = preference({name: cells[name] for name in names})
    return sorted(names, key=lambda name: (round(far[name], 9), costs[name], name))


def _left_out(cells: Mapping[str, FinetuneConfig], chosen: set[str], first_seed: int) -> list[str]:
    said = []
    for group, names in _groups(cells).items():
        single = [name for name in names if cells[name].train.seed == first_seed]
        kept = [name for name in single if name in chosen]
        if not any(name in chosen for name in names):
            said.append(f"{group}: left out, all {len(names)} cells")
            continue
        if len(kept) < len(single):
            few = len(single) - len(kept) < len(kept)
            listed = [name for name in single if name not in chosen] if few else kept
            settings = ", ".join(without_seed(name).rsplit("/", 1)[1] for name in listed)
            without = "all without" if few else "only"
            said.append(f"{group}: {len(kept)} of {len(single)} cells of the grid, {without} {settings}")
        seeds = {cells[name].train.seed for name in names}
        kept_seeds = {cells[name].train.seed for name in names if name in chosen}
        if len(kept_seeds) < len(seeds):
            said.append(f"{group}: {len(kept_seeds)} of {len(seeds)} seeds")
    return said
