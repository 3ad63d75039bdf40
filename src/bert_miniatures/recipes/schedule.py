"""Which cells of a sweep run, how far, and when: all of them, or those that a search asks for (recipes/adaptive.py)."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

__all__ = ["Everything", "Schedule"]


class Schedule(Protocol):
    """What a sweep asks."""

    def start(self) -> list[tuple[str, int | None]]:
        """Return what runs first: a cell and the update to pause at, None being its end."""

    def heard(self, name: str, answer: Mapping[str, Any]) -> list[tuple[str, int | None]]:
        """Take a worker's answer about a cell; return what runs next."""

    def share(self, name: str) -> float:
        """Return how much of a cell it is asked to run by now, 0 to 1."""

    def later(self) -> float:
        """Return the forecast seconds of work that was not handed out yet."""

    def left_behind(self) -> list[str]:
        """Return the cells that will not be run to their end."""


class Everything:
    """Runs all cells, one after the other."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = list(names)

    def start(self) -> list[tuple[str, int | None]]:
        """Return all cells."""
        return [(name, None) for name in self._names]

    def heard(self, name: str, answer: Mapping[str, Any]) -> list[tuple[str, int | None]]:
        """Nothing depends on what a cell scored."""
        return []

    def share(self, name: str) -> float:
        """Each cell is run to its end."""
        return 1.0

    def later(self) -> float:
        """All cells are handed out at the start."""
        return 0.0

    def left_behind(self) -> list[str]:
        """No cell is."""
        return []
