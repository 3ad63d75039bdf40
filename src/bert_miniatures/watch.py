"""How long work tells what it does: notes, warnings and progress, without knowing who listens."""

__all__ = ["Watch", "clock"]


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

    def progress(self, done: int, total: int, text: str = "", left: float | None = None) -> None:
        """Hear how far the work is.

        Args:
            text: what else there is to say.
            left: seconds, where the work knows better than the pace so far.
        """


def clock(seconds: float) -> str:
    """Write a duration as h:mm:ss.

    Example:
        >>> clock(75), clock(5400)
        ('1:15', '1:30:00')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
