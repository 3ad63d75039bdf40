"""HTTP servers on 127.0.0.1 that speak what storage servers and the Hub speak, and fail in the ways that they fail.

Also the processes that talk to them and the archives that they serve.
"""

import base64
import hashlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
import zipfile
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import google_crc32c


@dataclass
class Asked:
    """A request as the server saw it."""

    method: str
    path: str
    headers: dict[str, str]


class Server:
    """A server of files on a free port; use it as a context manager.

    Attributes:
        files: path -> bytes.
        asked: the requests so far.
        statuses: answers to the next requests, one each, in place of the file: 503, 404, ...; None lets one through.
        cuts: bytes after which the connection of the next answers breaks, one each; None lets one through.
        ranges: whether `Range` is honoured.
        etag: path -> ETag; by default made from the bytes. "" sends none.
        goog_hash: send `x-goog-hash`; a string is sent as it is.
        length: send Content-Length; without it the body is chunked.
        if_range: whether `If-Range` is honoured.
        retry_after: value of Retry-After beside the answers of `statuses`.
        delay: seconds before each answer.
        most: bytes that an answer to a `Range` may have; 0 is no bound.
    """

    def __init__(self, files: dict[str, bytes] | None = None) -> None:
        self.files = dict(files or {})
        self.asked: list[Asked] = []
        self.statuses: list[int | None] = []
        self.cuts: list[int | None] = []
        self.ranges, self.length = True, True
        self.etag: dict[str, str] = {}
        self.goog_hash: bool | str = False
        self.last_modified, self.retry_after = "", ""
        self.if_range, self.delay, self.most = True, 0.0, 0
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.http.shutdown()
        self.http.server_close()

    def handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.serve(self)

            def do_HEAD(self) -> None:
                server.serve(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(request.path).path)
        self.asked.append(Asked(request.command, path, {key.lower(): value for key, value in request.headers.items()}))
        time.sleep(self.delay)
        status = self.statuses.pop(0) if self.statuses else None
        if status is not None:
            headers = {"Retry-After": self.retry_after} if self.retry_after else {}
            return reply(request, status, b"not now", headers)
        self.answer(request, path)

    def answer(self, request: BaseHTTPRequestHandler, path: str) -> None:
        if path not in self.files:
            return reply(request, 404, b"no such file")
        self.send_file(request, self.files[path], self.etag.get(path, f'"{oid(self.files[path])}"'), {})

    def send_file(self, request: BaseHTTPRequestHandler, data: bytes, etag: str, headers: dict[str, str]) -> None:
        """Answer as RFC 9110 says, except for what the attributes forbid."""
        headers = headers | ({"ETag": etag} if etag else {})
        headers |= {"Last-Modified": self.last_modified} if self.last_modified else {}
        if self.goog_hash:
            headers["x-goog-hash"] = self.goog_hash if isinstance(self.goog_hash, str) else goog_hash(data)
        asked = request.headers.get("Range", "")
        whole = len(data)
        same = not self.if_range or request.headers.get("If-Range", etag) in {etag, self.last_modified}
        status, start = 200, 0
        if self.ranges and asked.startswith("bytes=") and same:
            start = int(asked.removeprefix("bytes=").split("-")[0])
            data = data[: start + self.most] if self.most else data
            if start >= len(data):
                return reply(request, 416, b"", {"Content-Range": f"bytes */{len(data)}"})
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{whole}"
        reply(request, status, data[start:], headers, self.cuts.pop(0) if self.cuts else None, chunked=not self.length)


def reply(
    request: BaseHTTPRequestHandler,
    status: int,
    body: bytes,
    headers: dict[str, str] | None = None,
    cut: int | None = None,
    *,
    chunked: bool = False,
) -> None:
    request.send_response(status)
    for key, value in (headers or {}).items():
        request.send_header(key, value)
    chunked = chunked and request.command == "GET" and status == 200
    request.send_header(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(body)))))
    request.end_headers()
    if request.command == "HEAD":
        return
    sent = body if cut is None else body[:cut]
    if sent:  # a chunk of no bytes would be the end
        request.wfile.write(b"%x\r\n%s\r\n" % (len(sent), sent) if chunked else sent)
    if cut is not None:
        request.wfile.flush()
        request.close_connection = True
    elif chunked:
        request.wfile.write(b"0\r\n\r\n")


def oid(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()


def goog_hash(data: bytes) -> str:
    crc = base64.b64encode(google_crc32c.Checksum(data).digest()).decode()
    md5 = base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode()
    return f"crc32c={crc},md5={md5}"


@dataclass
class Repository:
    """A repository of the Hub."""

    files: dict[str, bytes]
    commit: str = field(default="c0ffee" * 6 + "beef")


class Hub(Server):
    """The part of the Hub's protocol that a download uses.

    `GET /api/models/REPO` lists files; `HEAD|GET /REPO/resolve/REVISION/FILE` gives ETag and X-Repo-Commit. A data set is
    at `/api/datasets/REPO` and `/datasets/REPO/resolve/...`. Weights and Parquet are large files: the answer is a
    redirect to another server with X-Linked-Etag and X-Linked-Size, as the real one's.

    Attributes:
        repositories: name -> repository; a data set's name begins with `datasets/`.
        large: the server that large files are on.
        token: where given, requests without it are answered 401.
    """

    def __init__(self, repositories: dict[str, Repository], large: Server | None = None, token: str = "") -> None:
        super().__init__()
        self.repositories, self.large, self.token = repositories, large, token

    def serve(self, request: BaseHTTPRequestHandler) -> None:
        if request.path.startswith("/api/") and not request.path.startswith(("/api/models/", "/api/datasets/")):
            return reply(request, 404, b"{}")  # the library asks for more than a download needs
        super().serve(request)

    def answer(self, request: BaseHTTPRequestHandler, path: str) -> None:
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return reply(request, 401, b"{}", {"X-Error-Message": "Invalid username or password."})
        if path.startswith("/api/"):
            name = path.removeprefix("/api/").removeprefix("models/").split("/revision/")[0]
            return self.list(request, name)
        name, _, rest = path.lstrip("/").partition("/resolve/")
        file = rest.partition("/")[2]
        repository = self.repositories.get(name)
        if repository is None:
            return reply(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})
        headers = {"X-Repo-Commit": repository.commit}
        if file not in repository.files:
            return reply(request, 404, b"", headers | {"X-Error-Code": "EntryNotFound"})
        data = repository.files[file]
        if self.large is not None and file.endswith((".bin", ".safetensors", ".parquet")):
            digest = hashlib.sha256(data).hexdigest()
            self.large.files[f"/{digest}"] = data
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            return reply(request, 302, b"", headers | {"Location": f"{self.large.url}/{digest}"})
        self.send_file(request, data, f'"{oid(data)}"', headers)

    def list(self, request: BaseHTTPRequestHandler, name: str) -> None:
        repository = self.repositories.get(name)
        if repository is None:
            return reply(request, 404, b"{}", {"X-Error-Code": "RepoNotFound"})
        listed = [{"rfilename": file} for file in repository.files]
        name = name.removeprefix("datasets/")
        document = {"_id": "0", "id": name, "modelId": name, "sha": repository.commit, "siblings": listed}
        reply(request, 200, json.dumps(document).encode(), {"Content-Type": "application/json"})


FILES = {
    "bert_config.json": b'{"hidden_size": 128}\n',
    "bert_model.ckpt.data-00000-of-00001": bytes(range(251)) * 7,
    "bert_model.ckpt.index": b"\x00index",
    "vocab.txt": b"[PAD]\n[UNK]\n",
}


def make_zip(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as bundle:
        for name, data in files.items():
            bundle.writestr(name, data)
    return path


DROPPED = ("HF_", "MINIATURES_", "TRANSFORMERS_", "GLUE_")  # of the environment

# Raises at the first socket, address look-up included, whoever opens it.
GUARD = """
import sys
def guard(event, arguments):
    if event.startswith("socket."):
        raise AssertionError(f"a socket was used: {event}")
sys.addaudithook(guard)
"""


def python(
    code: str, home: Path, *arguments: str, limit: int | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, with every cache below `home`; `HF_*` is read when it starts.

    Args:
        limit: bytes that a file may have; writing more fails as on a full disk.
    """
    kept = {key: value for key, value in os.environ.items() if not key.startswith(DROPPED)}
    source = str(Path(__file__).parents[1] / "src")
    places = {"MINIATURES_HOME": str(home / "ours"), "HF_HOME": str(home / "hf"), "PYTHONPATH": source}
    nobody = {"HF_ENDPOINT": "http://127.0.0.1:9", "MINIATURES_GOOGLE_URL": "http://127.0.0.1:9", "NO_PROXY": "*"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=kept | places | nobody | {"OMP_NUM_THREADS": "1"} | env,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=None if limit is None else lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )


def miniatures(home: Path, *arguments: str, guard: bool = False, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the command line; with `guard` the process dies at its first socket."""
    code = (GUARD if guard else "") + "\nfrom bert_miniatures.cli import main\nmain()\n"
    return python(code, home, *arguments, **env)
