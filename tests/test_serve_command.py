"""The command: without torch, with a key, at a port that is taken, to the end; and what it never writes."""

import http.client
import json
import re
import signal
import threading
import time

import pytest

from bert_miniatures.cli import main
from bert_miniatures.exporting import export
from bert_miniatures.predict import Predictor
from commands import finish, start
from deploy import LABELS, TEXTS, classifier, written
from serving import listen

BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {"torch", "transformers", "sklearn", "scipy", "onnx", "pyarrow"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
"""


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("command")
    export(written(classifier(tiny, LABELS["single"]), folder / "model"), folder / "out")
    return folder / "out"


def started(home, *arguments, **options):
    """Start the command and return the process, the port, and what it said before it listened."""
    process = start(home, "serve", *arguments, "--port", 0, **options)
    said = ""
    while not (found := re.search(r"at http://[^/]*:(\d+)/", said)):
        line = process.stderr.readline().decode()
        assert line, said
        said += line
    return process, int(found[1]), said


def post(port, text, path="/predict", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("POST", path, json.dumps({"inputs": text}), {"Content-Type": "application/json"} | headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_without_torch_until_it_is_told_to_stop(folder, tmp_path):
    process, port, said = started(tmp_path, folder, code=BLOCK)
    assert "warning" not in said
    expected = Predictor(folder, threads=1)(TEXTS[:31])
    found, statuses = [], []

    def ask() -> None:
        for text in TEXTS[:31]:
            status, answer = post(port, text)
            statuses.append(status)
            found.append(answer[0][0])

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join()
    assert post(port, "secret words", "/predict?text=secret") == (200, post(port, "secret words")[1])
    assert post(port, ["secret", 3])[0] == 422
    late = threading.Thread(target=lambda: statuses.append(post(port, TEXTS)[0]))
    late.start()
    time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    late.join()
    done = finish(process)
    assert done.code == 0, done.err
    assert statuses == [200] * 32
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-5)
    assert done.out == ""
    assert "secret" not in said + done.err
    assert done.err.splitlines() == ["stopping; what is in flight is answered"]


def test_ctrl_c_and_other_machines(folder, tmp_path):
    (tmp_path / "key").write_text("swordfish\n")
    process, port, said = started(tmp_path, f"mine={folder}", "--host", "0.0.0.0", "--key-file", "key")
    assert "warning: 0.0.0.0 can be reached from other machines, and the key travels unencrypted" in said
    assert "mine at http://0.0.0.0:" in said
    assert "swordfish" not in said
    assert post(port, "a")[0] == 401
    assert post(port, "a", "/models/mine/predict", Authorization="Bearer swordfish")[0] == 200
    process.send_signal(signal.SIGINT)
    assert finish(process).code == 0


def test_mistakes(folder, tmp_path, monkeypatch, capsys):
    def error(*arguments, port=0):
        monkeypatch.setattr("sys.argv", ["miniatures", "serve", *map(str, arguments), "--port", str(port)])
        with pytest.raises(SystemExit) as left:
            main()
        assert left.value.code == 2
        return capsys.readouterr().err

    with listen("127.0.0.1", 0) as taken:
        assert "Address already in use" in error(folder, port=taken.getsockname()[1])
    assert "the key cannot be read (No such file" in error(folder, "--key-file", tmp_path / "none")
    (tmp_path / "key").write_text("two words")
    assert "one word" in error(folder, "--key-file", tmp_path / "key")
    assert "two models are called 'out'" in error(folder, folder)
    assert "unknown model 'nothing-here'" in error("nothing-here")
    assert "cannot take a request of 256" in error(folder, "--queue", 5)
    assert "has no onnx/model_quantized.onnx" in error(folder, "--int8")
    monkeypatch.setenv("MINIATURES_KEY", "sword fish")
    assert "fish" not in error(folder)
