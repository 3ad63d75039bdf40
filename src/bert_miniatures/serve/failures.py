"""Why a request is not answered: a status, a stable code for programs, a sentence for people.

The body is `{"error": sentence, "code": code}`: "error" is a string, as the Open Inference Protocol and Hugging Face's
servers have it.
"""

import json
from collections.abc import Mapping

__all__ = ["CODES", "Refused"]

# code -> (status, what it means); the documents for clients are made of this table
CODES: dict[str, tuple[int, str]] = {
    "not-http": (400, "not a request of HTTP/1.1, or it ended before it was whole"),
    "key": (401, "the bearer key is missing or wrong"),
    "not-found": (404, "no such path"),
    "unknown-model": (404, "no model of this name"),
    "method": (405, "the path has no such method"),
    "too-slow": (408, "the request was not whole in time"),
    "body-too-large": (413, "more bytes than a request may have"),
    "too-many-texts": (413, "more texts than a request may have"),
    "text-too-long": (413, "more characters than a text may have"),
    "not-json-type": (415, "the content type is not application/json, or the body is compressed"),
    "not-utf8": (422, "the body is not UTF-8"),
    "not-json": (422, "the body is not JSON"),
    "input": (422, "the body is JSON and not what the path wants"),
    "queue-full": (429, "as many texts wait as may; Retry-After says when to come again"),
    "head-too-large": (431, "more bytes of headers than a request may have"),
    "failed": (500, "a fault of the service"),
    "timeout": (503, "no answer in time"),
    "stopping": (503, "the service is stopping"),
    "connections": (503, "as many connections are open as may"),
}


class Refused(Exception):
    """A request that is answered with an error.

    Args:
        code: of `CODES`, which has the status.
        message: one sentence; it never quotes the request's texts.
        retry_after: seconds, where coming again helps.
    """

    def __init__(self, code: str, message: str, *, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.code, self.status, self.retry_after = code, CODES[code][0], retry_after

    def headers(self) -> Mapping[str, str]:
        """Return what else the answer's head holds."""
        if self.retry_after is not None:
            return {"retry-after": str(self.retry_after)}
        return {"www-authenticate": "Bearer"} if self.status == 401 else {}

    def body(self) -> bytes:
        """Return the answer's body."""
        return json.dumps({"error": str(self), "code": self.code}, ensure_ascii=False).encode()
