"""What fits a budget, what is worth a look, and which one is recommended. Pure: no clock, no files."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bert_miniatures.choose.timing import layer_parameters
from bert_miniatures.errors import ConfigError
from bert_miniatures.zoo import Miniature

__all__ = ["Budget", "Row", "bytes_of", "fits", "pareto", "pick", "seconds_of", "sentence"]

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_SIZES = {"": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_NUMBER = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*([A-Za-z]*)\s*")


@dataclass(frozen=True)
class Row:
    """One way to serve one model.

    Attributes:
        p50, p95: seconds until one text is answered, at the median and at 95 of 100.
        rate: texts a second in batches.
        memory: bytes, the most that the process ever had.
        disk: bytes of the deploy folder.
        is_measured: or else modelled.
    """

    model: Miniature
    precision: str
    threads: int
    p50: float
    p95: float
    rate: float
    memory: float
    disk: int
    is_measured: bool

    @property
    def name(self) -> str:
        """How people call it."""
        nickname = f" ({self.model.nickname})" if self.model.nickname else ""
        return f"{self.model.size}{nickname} {self.precision}, {self.threads} thread{'' if self.threads == 1 else 's'}"

    @property
    def score(self) -> float | None:
        """The published GLUE score, of fp32."""
        published = self.model.published
        return None if published is None else published["score"][0]

    @property
    def worth(self) -> tuple[int, bool]:
        """What may be expected of it, in order: the parameters of its layers; of the same model, fp32 before int8."""
        return layer_parameters(self.model), self.precision == "fp32"


@dataclass(frozen=True)
class Budget:
    """What must be kept; None: no limit.

    Attributes:
        latency: seconds, of p95.
        memory, disk: bytes.
        rate: texts a second, at least.
    """

    latency: float | None = None
    memory: float | None = None
    disk: float | None = None
    rate: float | None = None

    def shares(self, row: Row) -> dict[str, float]:
        """Return how much of each limit a row takes; above 1 it does not keep it."""
        limits = {"p95": (row.p95, self.latency), "memory": (row.memory, self.memory), "disk": (row.disk, self.disk)}
        found = {name: value / limit for name, (value, limit) in limits.items() if limit is not None}
        return found | ({"rate": self.rate / row.rate} if self.rate is not None else {})


def seconds_of(text: str) -> float:
    """Read a time, as `5ms`, `200us` or `0.1s`.

    Raises:
        ConfigError: it is none.

    Example:
        >>> seconds_of("5ms")
        0.005
    """
    found = _NUMBER.fullmatch(text)
    if not found or found[2] not in _UNITS or float(found[1]) <= 0:
        raise ConfigError(f"'{text}' is no time; expected one with its unit, as 5ms or 0.1s")
    return float(found[1]) * _UNITS[found[2]]


def bytes_of(text: str) -> float:
    """Read a size, as `100MB`, `1.5GiB` or a number of bytes.

    Raises:
        ConfigError: it is none.

    Example:
        >>> bytes_of("100MB")
        100000000.0
    """
    found = _NUMBER.fullmatch(text)
    if not found or found[2].casefold() not in _SIZES or float(found[1]) <= 0:
        raise ConfigError(f"'{text}' is no size; expected one as 100MB or 1.5GiB")
    return float(found[1]) * _SIZES[found[2].casefold()]


def fits(row: Row, budget: Budget) -> bool:
    """Tell whether a row keeps every limit."""
    return all(share <= 1 for share in budget.shares(row).values())


def pick(rows: Iterable[Row], budget: Budget) -> Row | None:
    """Return what is recommended: of those that fit, the largest, as fp32 where that fits, with the fewest threads."""
    fitting = [row for row in rows if fits(row, budget)]
    return max(fitting, key=lambda row: (row.worth, -row.threads, -row.p95), default=None)


def pareto(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that no other one beats: worth as much or more, as quick or quicker, in as little memory or less.

    The most valuable row is first.
    """
    kept = []
    for row in rows:
        beaten = (
            other.worth >= row.worth
            and other.p95 <= row.p95
            and other.memory <= row.memory
            and _key(other) != _key(row)
            for other in rows
        )
        if not any(beaten):
            kept.append(row)
    return sorted(kept, key=lambda row: (row.worth, -row.p95), reverse=True)


def _key(row: Row) -> tuple[float | str, ...]:
    """Rows that are equal in everything that counts do not beat each other."""
    return (*row.worth, row.precision, row.p95, row.memory)


def sentence(rows: Sequence[Row], budget: Budget) -> str:
    """Say in a sentence what is recommended, and why not the next one."""
    best = pick(rows, budget)
    if best is None:
        nearest = min(rows, key=lambda row: max(budget.shares(row).values()))
        return f"Nothing fits; nearest is {nearest.name}, which has {_broken(nearest, budget)}."
    said = f"{best.name}: {_facts(best, budget)}; {'measured here' if best.is_measured else 'modelled, not measured'}"
    if best.score is not None:
        said += f"; published GLUE score {best.score:g}" + (" (of fp32)" if best.precision != "fp32" else "")
    larger = [row for row in rows if row.worth[0] > best.worth[0]]
    if not larger:
        whole = "It is the largest of the 24" if best.model.size == "12/768" else "No larger one was looked at"
        return f"{said}. {whole}{'' if budget.shares(best) else '; no limit was given'}."
    least = min(row.worth[0] for row in larger)
    near = min((r for r in larger if r.worth[0] == least), key=lambda r: max(budget.shares(r).values()))
    return f"{said}. The next larger one, {near.name}, has {_broken(near, budget)}."


def _value(row: Row, name: str) -> str:
    shown = {
        "p95": f"p95 {1000 * row.p95:.3g} ms",
        "memory": f"{row.memory / 1e6:.0f} MB of memory",
        "disk": f"{row.disk / 1e6:.0f} MB on disk",
        "rate": f"{row.rate:.0f} texts/s",
    }
    return shown[name]


def _limit(budget: Budget, name: str) -> str:
    shown = {
        "p95": lambda: f"{1000 * (budget.latency or 0):g} ms",
        "memory": lambda: f"{(budget.memory or 0) / 1e6:g} MB",
        "disk": lambda: f"{(budget.disk or 0) / 1e6:g} MB",
        "rate": lambda: f"{budget.rate:g}",
    }
    return shown[name]()


def _facts(row: Row, budget: Budget) -> str:
    limited = list(budget.shares(row))
    names = [*limited, *(name for name in ("p95", "memory") if name not in limited)]
    return ", ".join(f"{_value(row, n)}{f' (limit {_limit(budget, n)})' if n in limited else ''}" for n in names)


def _broken(row: Row, budget: Budget) -> str:
    over = [name for name, share in budget.shares(row).items() if share > 1]
    return " and ".join(f"{_value(row, name)}, the limit is {_limit(budget, name)}" for name in over)
