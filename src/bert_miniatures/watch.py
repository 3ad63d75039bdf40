"""How long work tells what it does: notes, warnings and progress, without knowing who listens."""

__all__ = ["Watch"]


class Watch:
    """Hears nothing and says nothing; the command line passes one that writes to stderr.

    Attributes:
        warnings: all warnings so far; they go into result.json.
    """

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        """Hear something about the work."""

    def warn(self, text: str) -> None:
        """Hear something that the user should know."""
        self.warnings.append(text)

    def progress(self, done: int, total: int, text: str = "") -> None:
        """Hear how far the work is."""
