"""What a client may ask for, and for how long it is waited. Every number of the service is here."""

from dataclasses import dataclass, fields

from bert_miniatures.errors import ConfigError

__all__ = ["Limits"]


@dataclass(frozen=True)
class Limits:
    """Bounds of the service.

    Attributes:
        body: bytes of a request.
        texts: texts, or pairs of them, in a request.
        characters: of one text. The model reads far fewer; a longer text than `max_length` pieces is cut and counted.
        queue: texts that wait for one model; the next request is answered 429.
        batch: positions that are computed together, estimated from the characters.
        window: seconds that a batch waits for company when the one before had some.
        timeout: seconds from the whole request to its answer.
        reading: seconds that the head of a request may take, its body too, and a client to read its answer.
        idle: seconds that a connection may be silent between two requests.
        connections: that are open at once.
        words: of a text whose effect is measured for the page; the rest are left out, and said.
        draining: seconds that a stopping service waits for its answers.
    """

    body: int = 1 << 20
    texts: int = 256
    characters: int = 100_000
    queue: int = 1024
    batch: int = 4096
    window: float = 0.002
    timeout: float = 10.0
    reading: float = 10.0
    idle: float = 30.0
    connections: int = 1000
    words: int = 64
    draining: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0 and not (field.name == "window" and value == 0):
                raise ConfigError(f"{field.name} = {value}: must be more than 0")
        if self.queue < max(self.texts, self.words + 1):
            raise ConfigError(
                f"a queue of {self.queue} texts cannot take a request of {max(self.texts, self.words + 1)}; "
                "make the queue longer, or --texts smaller"
            )
