"""Connections that end: uvicorn's protocol with a bound on heads, on silence, on readers that do not read.

Also a client that has closed its half after the request is answered all the same, and errors below HTTP are JSON.
"""

import asyncio
import socket
from functools import partial
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from bert_miniatures.serve.failures import Refused
from bert_miniatures.serve.limits import Limits

__all__ = ["Connection", "protocol"]

_HEAD = 32 << 10  # bytes


def protocol(limits: Limits) -> type[asyncio.Protocol]:
    """Return the protocol class for uvicorn."""
    return type("LimitedConnection", (Connection,), {"limits": limits})


class _Joining:
    """A transport that sends what is written within one turn of the loop at once: head and body in one system call."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._parts: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send at the end of this turn."""
        if not self._parts:
            self._loop.call_soon(self._send)
        self._parts.append(data)

    def close(self) -> None:
        """Send what is written, then close."""
        self._send()
        self._transport.close()

    def _send(self) -> None:
        if self._parts and not self._transport.is_closing():
            self._transport.write(b"".join(self._parts))
        self._parts.clear()


class Connection(HttpToolsProtocol):
    """A connection with limits."""

    limits: Limits

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept, or say that there is no room."""
        super().connection_made(cast(asyncio.Transport, _Joining(transport, self.loop)))
        # an answer must not wait; asyncio does not see that a socket that was made elsewhere is one of TCP
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._in_head, self._head = False, 0
        self._wait: asyncio.TimerHandle | None = None
        if len(self.connections) > self.limits.connections:
            self._refuse(Refused("connections", "as many connections are open as may", retry_after=1))
            return
        self.timeout_keep_alive_task = self.loop.call_later(self.limits.idle, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clocks."""
        self._stop_clock()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read; a head that is not whole must become so in time and within its size."""
        super().data_received(data)
        if not self._in_head:
            return
        self._head += len(data)
        if self._head > _HEAD:
            self._refuse(Refused("head-too-large", f"the head has more than {_HEAD:,} bytes"))
        elif self._wait is None:
            late = Refused("too-slow", f"the head was not whole within {self.limits.reading:g} seconds")
            self._wait = self.loop.call_later(self.limits.reading, partial(self._refuse, late))

    def on_message_begin(self) -> None:
        """Begin a head."""
        super().on_message_begin()
        self._in_head, self._head = True, 0

    def on_headers_complete(self) -> None:
        """End a head."""
        self._in_head = False
        self._stop_clock()
        super().on_headers_complete()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """Answer a client that has said all, then close; the end of half a request is an error."""
        if self.cycle is None or self.cycle.response_complete:
            return self._refuse_if(self._in_head)
        if self.cycle.more_body:
            return self._refuse_if(not self.cycle.response_started)
        self.cycle.keep_alive = False
        return True

    def _refuse_if(self, wanted: bool) -> bool:
        if wanted:
            self._refuse(Refused("not-http", "the request ended before it was whole"))
        return wanted  # what is kept open is closed by `_refuse`, when the answer is written

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        self._refuse(Refused("not-http", "not a request of HTTP/1.1"))

    def pause_writing(self) -> None:
        """Give a client that does not read some time, then leave."""
        super().pause_writing()
        if self._wait is None:
            self._wait = self.loop.call_later(self.limits.reading, self.transport.abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        self._stop_clock()
        super().resume_writing()

    def timeout_keep_alive_handler(self) -> None:
        """Close a silent connection, at the latest when it had time to read what it was sent."""
        super().timeout_keep_alive_handler()
        self._stop_clock()
        self._wait = self.loop.call_later(self.limits.reading, self.transport.abort)

    def _refuse(self, refused: Refused) -> None:
        if self.transport.is_closing():
            return
        self._in_head = False
        body = refused.body()
        headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
        lines = [f"{name}: {value}\r\n".encode() for name, value in (headers | dict(refused.headers())).items()]
        self.transport.write(b"".join([STATUS_LINE[refused.status], *lines, b"\r\n", body]))
        self.transport.close()

    def _stop_clock(self) -> None:
        if self._wait is not None:
            self._wait.cancel()
            self._wait = None
