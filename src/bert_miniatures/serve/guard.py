"""What every request passes on its way in and out: key, size, time, counting, and errors as JSON.

Plain ASGI. It reads the whole body before a route sees the request: routes have nothing to do with slow clients.
"""

import asyncio
import hashlib
import hmac
import logging
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from time import perf_counter
from typing import Any

from bert_miniatures.serve.failures import Refused
from bert_miniatures.serve.limits import Limits
from bert_miniatures.serve.meters import Meters

__all__ = ["Guard"]

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_DISCARDED = 16 << 20  # bytes of a body too large that are read to the end, lest the client lose the answer
_SAFE = [(b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store")]
_log = logging.getLogger("bert_miniatures.serve")


class Guard:
    """The outermost layer of the service.

    Args:
        app: the routes.
        limits: of size and time.
        meters: where requests are counted.
        open_paths: paths that need no key.
        key: the bearer key; None lets everybody in.
    """

    def __init__(self, app: App, *, limits: Limits, meters: Meters, open_paths: set[str], key: str | None) -> None:
        self._app, self._limits, self._meters, self._open = app, limits, meters, open_paths
        self._key = None if key is None else _digest(key.encode())

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status = perf_counter(), 0

        async def send_seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), *_SAFE]
            await send(message)

        try:
            body = await self._admitted(scope, receive)
            await self._app(scope, _once(body, receive), send_seen)
        except Refused as refused:
            await _reply(send_seen, refused)
        except Exception as error:
            _log.error("%s", _place(error))
            if not status:
                await _reply(send_seen, Refused("failed", "the service failed at this request; its log says where"))
        finally:
            self._meters.request(_route(scope, status), status or 499, perf_counter() - start)

    async def _admitted(self, scope: MutableMapping[str, Any], receive: Receive) -> bytes:
        """Check key and head, and return the body."""
        headers = dict(scope["headers"])
        if self._key is not None and scope["path"] not in self._open:
            scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
            if not hmac.compare_digest(_digest(key.strip()), self._key) or scheme.lower() != b"bearer":
                raise Refused("key", "the header 'Authorization: Bearer KEY' is missing, or the key is wrong")
        if scope["method"] in {"GET", "HEAD"}:
            return b""
        try:
            async with asyncio.timeout(self._limits.reading):
                body = await self._body(headers, receive)
        except TimeoutError:
            raise Refused("too-slow", f"the body was not whole within {self._limits.reading:g} seconds") from None
        if body:
            _check_type(headers)
        return body

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """Read the body; of one that is too large the rest is read and dropped."""
        length = headers.get(b"content-length", b"")
        told = int(length) if length.isdigit() else 0
        if told > _DISCARDED or (told > self._limits.body and b"expect" in headers):
            raise self._too_large()
        parts: list[bytes] = []
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refused("not-http", "the client left before the request was whole")
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size > _DISCARDED:
                raise self._too_large()
            if size <= self._limits.body:
                parts.append(part)
        if size > self._limits.body:
            raise self._too_large()
        return b"".join(parts)

    def _too_large(self) -> Refused:
        return Refused("body-too-large", f"the body has more than {self._limits.body:,} bytes")


def _check_type(headers: dict[bytes, bytes]) -> None:
    kind = headers.get(b"content-type", b"application/json").split(b";")[0].strip().lower()
    if kind != b"application/json" and not (kind.startswith(b"application/") and kind.endswith(b"+json")):
        raise Refused("not-json-type", "the content type must be application/json: -H 'Content-Type: application/json'")
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Refused("not-json-type", "the body is compressed; send it as it is")


def _digest(key: bytes) -> bytes:
    """Hash a key, so that comparing takes the same time for any length."""
    return hashlib.sha256(key).digest()


def _once(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body, then waits for the end of the connection."""
    given = False

    async def give() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return give


async def _reply(send: Send, refused: Refused) -> None:
    body = refused.body()
    headers = {"content-type": "application/json", "content-length": str(len(body))} | dict(refused.headers())
    if refused.code in {"body-too-large", "too-slow", "not-http"}:  # the rest of the body may still come
        headers["connection"] = "close"
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refused.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _route(scope: MutableMapping[str, Any], status: int) -> str:
    """Return the route's path; what a client wrote has no place among the counters."""
    route = scope.get("route")
    return getattr(route, "path", "") or ("refused" if status in {400, 401, 408, 413, 415} else "other")


def _place(error: Exception) -> str:
    """Say what failed and where, without the message: it may quote a text."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    where = " < ".join(f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno}" for frame in reversed(frames))
    return f"{type(error).__name__} at {where}"
