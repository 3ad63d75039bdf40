"""What `push` sends to a server that speaks the Hub's upload protocol, and what it never sends."""

import base64
import hashlib
import json
import shutil
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from bert_miniatures.checkpoint import read_folder
from bert_miniatures.push import FILES
from commands import Done, finish, start
from loopback import Asked, Server, reply

TOKEN = "hf_secret"


class UploadHub(Server):
    """The part of the Hub's protocol that a commit uses.

    `POST /api/repos/create`, `POST /api/models/REPO/preupload/main` (small files or large ones), `POST
    REPO.git/info/lfs/objects/batch`, `PUT` of large files, and `POST /api/models/REPO/commit/main`, where the files
    appear together.

    Attributes:
        visibility: repository -> "private" or "public".
        committed: files of the last commit.
        refused: the method and path that are answered with 403, if any.
    """

    def __init__(self) -> None:
        super().__init__()
        self.visibility: dict[str, str] = {}
        self.large: dict[str, bytes] = {}
        self.committed: dict[str, bytes] = {}
        self.refused = ""

    def handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(super().handler()):  # type: ignore[misc]
            def do_POST(self) -> None:  # noqa: N802
                server.serve(self)

            def do_PUT(self) -> None:  # noqa: N802
                server.serve(self)

        return Handler

    def answer(self, request: BaseHTTPRequestHandler, path: str) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0)))
        if request.command != "PUT" and request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return reply(request, 401, b"{}", {"X-Error-Message": "Invalid username or password."})
        if self.refused and self.refused in path:
            return reply(request, 403, b"{}", {"X-Error-Message": "no right to write"})
        if request.command == "PUT":
            self.large[hashlib.sha256(body).hexdigest()] = body
            return reply(request, 200, b"")
        answers = {"validate-yaml": lambda body: {"errors": [], "warnings": []}} | {
            "create": self.create,
            "preupload": self.preupload,
            "batch": self.batch,
            "commit": self.commit,
        }
        what = next((name for name in answers if f"/{name}" in path), None)
        if what is None:
            return reply(request, 404, b"{}")
        answer = json.dumps(answers[what](body)).encode()
        return reply(request, 200, answer, {"Content-Type": "application/json"})

    def create(self, body: bytes) -> Any:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        self.visibility.setdefault(name, asked.get("visibility", "public"))
        return {"url": f"{self.url}/{name}"}

    def preupload(self, body: bytes) -> Any:
        paths = [file["path"] for file in json.loads(body)["files"]]
        large = (".safetensors", ".onnx")
        return {
            "files": [
                {"path": path, "uploadMode": "lfs" if path.endswith(large) else "regular", "shouldIgnore": False}
                for path in paths
            ]
        }

    def batch(self, body: bytes) -> Any:
        objects = [
            one | {"actions": {"upload": {"href": f"{self.url}/put/{one['oid']}", "header": {}}}}
            for one in json.loads(body)["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def commit(self, body: bytes) -> Any:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.committed[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.committed[value["path"]] = self.large[value["oid"]]
        return {"commitUrl": f"{self.url}/me/mine/commit/c0ffee", "commitOid": "c0ffee", "success": True}

    def seen(self) -> list[Asked]:
        return [one for one in self.asked if "yaml" not in one.path]


@pytest.fixture
def hub():
    with UploadHub() as server:
        yield server


def push(home, hub, *arguments, token: str = TOKEN, **env: str) -> Done:
    known = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(home / "hf"),
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
    } | env
    return finish(start(home, "push", *arguments, env=known))


def test_a_run_sends_its_model_and_nothing_else(tiny, hub, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny, run / "model")
    for name in ("run.toml", "metrics.jsonl", "predictions/dev.parquet", "model/train.csv"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("somebody's texts")
    done = push(tmp_path, hub, run, "me/mine")
    assert (done.code, done.out) == (0, f"{hub.url}/me/mine/commit/c0ffee\n"), done.err
    assert hub.visibility == {"me/mine": "private"}
    sent = {path.relative_to(tiny).as_posix(): path.read_bytes() for path in tiny.rglob("*") if path.is_file()}
    assert hub.committed == sent
    assert set(sent) <= set(FILES)
    for name, data in hub.committed.items():
        (tmp_path / "back").mkdir(exist_ok=True)
        (tmp_path / "back" / name).write_bytes(data)
    assert read_folder(tmp_path / "back").fingerprint == read_folder(tiny).fingerprint
    assert TOKEN not in done.err + done.out


def test_public_is_asked_for(tiny, hub, tmp_path):
    assert push(tmp_path, hub, tiny, "me/mine", "--public").code == 0
    assert hub.visibility == {"me/mine": "public"}


def test_what_is_damaged_is_not_sent(tiny, hub, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(tiny, broken)
    raw = bytearray((broken / "model.safetensors").read_bytes())
    raw[-7] ^= 1
    (broken / "model.safetensors").write_bytes(raw)
    done = push(tmp_path, hub, broken, "me/mine")
    assert done.code == 2
    assert "damaged" in done.error
    assert hub.seen() == []


def test_nothing_is_asked_and_nothing_is_half_there(tiny, hub, tmp_path):
    for arguments, env, code, said in [
        (("me/mine",), {"token": ""}, 2, "there is no token for the Hub; HF_TOKEN"),
        (("me/mi ne",), {}, 2, "'me/mi ne' cannot be a repository"),
        (("me/mine", "--offline"), {}, 2, "the network is forbidden"),
        (("me/mine",), {"token": "wrong"}, 1, "HTTP 401"),
    ]:
        done = push(tmp_path, hub, tiny, *arguments, **env)
        assert (done.code, done.out) == (code, ""), done.err
        assert said in done.error
    hub.refused = "/commit/"
    done = push(tmp_path, hub, tiny, "me/mine")
    assert (done.code, done.out) == (1, "")
    assert "HTTP 403" in done.error
    assert hub.committed == {}
