"""A running service in a thread of the test process, and clients that are as rude as the tests want."""

import http.client
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bert_miniatures.serve.app import create_app
from bert_miniatures.serve.limits import Limits
from bert_miniatures.serve.meters import Meters
from bert_miniatures.serve.running import Service, listen, server_config
from bert_miniatures.serve.served import Model, Models
from bert_miniatures.watch import Watch

JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["content-type"] == "application/json", self.body
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The code of an error, which has a sentence and nothing else beside it."""
        assert self.status >= 400, self.body
        assert self.json.keys() == {"error", "code"}
        assert len(self.json["error"]) > 10
        return self.json["code"]


class Running:
    """A service that listens, with the models that it has."""

    def __init__(self, port: int, models: Models, meters: Meters, service: Service) -> None:
        self.port, self.models, self.meters, self.service = port, models, meters, service
        self.url = f"http://127.0.0.1:{port}"

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        """Ask; what is not bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        sent = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, sent, (JSON if sent is not None else {}) | named)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self("GET", path, **headers)

    def post(self, path: str, body: Any, **headers: str) -> Answer:
        return self("POST", path, body, **headers)

    def infer(self, name: str, **tensors: list[str]) -> Answer:
        """Ask the way of the Open Inference Protocol."""
        inputs = [{"name": k, "shape": [len(v)], "datatype": "BYTES", "data": v} for k, v in tensors.items()]
        return self.post(f"/v2/models/{name}/infer", {"inputs": inputs})

    def meter(self, name: str, **labels: str) -> float:
        """Read one number of /metrics."""
        return self.meters.registry.get_sample_value(f"miniatures_{name}", labels) or 0.0

    def raw(self, *parts: bytes, pause: float = 0.0, half_close: bool = False) -> bytes:
        """Send bytes with pauses between them and read until the service closes or is silent for ten seconds."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            for i, part in enumerate(parts):
                time.sleep(pause if i else 0)
                try:
                    connection.sendall(part)
                except (BrokenPipeError, ConnectionResetError):
                    break
            if half_close:
                connection.shutdown(socket.SHUT_WR)
            return read_all(connection)


def read_all(connection: socket.socket) -> bytes:
    found = b""
    try:
        while part := connection.recv(65536):
            found += part
    except ConnectionResetError:
        pass
    return found


def post_bytes(path: str, body: bytes, *headers: str) -> bytes:
    """Return a request as bytes; the connection is closed after it."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", "Connection: close", *headers]
    if not any(header.startswith(("Content-Length", "Transfer-Encoding")) for header in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@contextmanager
def running(folders: dict[str, Path], key: str | None = None, **limits: Any) -> Iterator[Running]:
    """Serve folders until the block ends."""
    chosen, meters = Limits(**limits), Meters()
    models = Models([Model(name, str(folder), chosen, meters, threads=1) for name, folder in folders.items()])
    app = create_app(models, chosen, meters, key)
    with listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        service = Service(server_config(app, chosen), "", Watch())
        thread = threading.Thread(target=service.run, args=([listening],))
        thread.start()
        while not service.started:
            time.sleep(0.01)
            assert thread.is_alive()
        try:
            yield Running(port, models, meters, service)
        finally:
            service.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


@contextmanager
def held(server: Running, seconds: float | None = None) -> Iterator[threading.Event]:
    """Let the first model compute nothing until the event is set, or until the block ends."""
    engine, go = server.models.first.predictor.engine, threading.Event()
    logits = engine.logits

    def wait(texts: Any, pairs: Any) -> Any:
        go.wait(seconds or 30)
        return logits(texts, pairs)

    engine.logits = wait  # type: ignore[method-assign]
    try:
        yield go
    finally:
        go.set()
        del engine.logits


def memory() -> int:
    """Return this process's resident bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
