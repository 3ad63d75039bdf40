"""From models to a listening server, and to its end: what is in flight is answered before the process leaves."""

import contextlib
import ipaddress
import logging
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import uvicorn

from bert_miniatures.errors import UserError
from bert_miniatures.serve.app import create_app
from bert_miniatures.serve.connection import protocol
from bert_miniatures.serve.limits import Limits
from bert_miniatures.serve.meters import Meters
from bert_miniatures.serve.served import Model, Models, named
from bert_miniatures.watch import Watch

__all__ = ["Service", "is_loopback", "listen", "serve", "server_config"]

_SWITCH = 0.0005  # seconds after which a thread that computes in Python lets the event loop on; Python's own is 0.005


def serve(
    sources: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    threads: int | None = None,
    precision: str = "fp32",
    key: str | None = None,
    watch: Watch | None = None,
) -> None:
    """Serve models until the process is told to stop (SIGTERM, Ctrl-C).

    Args:
        sources: `MODEL` or `NAME=MODEL` each, as for `Predictor`; the first one answers at /predict.
        host: an address of this machine; "127.0.0.1" can be reached from this machine alone.
        port: 0 takes a free one.
        limits: of size and time.
        threads: of each model; None for all cores but one.
        precision: as for `Predictor`.
        key: the bearer key that clients must send.

    Raises:
        UserError: the address cannot be had, or a model cannot be opened.
    """
    limits, watch, meters = limits or Limits(), watch or Watch(), Meters()
    with listen(host, port) as listening:
        address = _address(listening)
        opened = [
            Model(name, source, limits, meters, threads=threads, precision=precision)
            for name, source in named(sources).items()
        ]
        app = create_app(Models(opened), limits, meters, key)
        _warn(host, key, watch)
        names = ", ".join(model.name for model in opened)
        service = Service(server_config(app, limits), f"{names} at {address}; Ctrl-C stops", watch)
        sys.setswitchinterval(_SWITCH)
        service.run([listening])


def server_config(app: Any, limits: Limits) -> uvicorn.Config:
    """Return uvicorn's settings."""
    return uvicorn.Config(
        app,
        http=protocol(limits),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,  # a path may hold what a client wrote
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=max(1, round(limits.idle)),
        timeout_graceful_shutdown=max(1, round(limits.draining)),
    )


class Service(uvicorn.Server):
    """uvicorn's server, which says when it listens and ends well when it is told to."""

    def __init__(self, config: uvicorn.Config, greeting: str, watch: Watch) -> None:
        super().__init__(config)
        self._greeting, self._watch = greeting, watch

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, then say so."""
        await super().startup(sockets)
        self._watch.note(self._greeting)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what is in flight."""
        self._watch.note("stopping; what is in flight is answered")
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at SIGTERM and Ctrl-C; uvicorn's own would raise them again afterwards, as if the end were a fault."""
        if threading.current_thread() is not threading.main_thread():  # no other hears signals
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that is bound, before the models are loaded: a port in use is said at once.

    Raises:
        UserError: the address is no address, of another machine, or in use.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(f"cannot listen at {host}:{port} ({reason}); another --port or --host may be free") from None


def is_loopback(host: str) -> bool:
    """Tell whether an address can be reached from this machine alone."""
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _warn(host: str, key: str | None, watch: Watch) -> None:
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    if is_loopback(host):
        return
    who = "anybody who can reach it may ask" if key is None else "the key travels unencrypted"
    watch.warn(f"{host} can be reached from other machines, and {who}; put a proxy with TLS in front of it")
