"""The table of the 24 as `miniatures models` prints it, and the resolver from names to model folders."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from bert_miniatures import models
from bert_miniatures.errors import CheckpointError, UnknownName
from bert_miniatures.zoo import ZOO
from loopback import GUARD, miniatures, python

TINY = ZOO["2/128"]


def done(run: subprocess.CompletedProcess[str]) -> str:
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


# ------------------------------------------------------------------------------------------------ the table


def test_models_as_json_has_every_field(tmp_path: Path) -> None:
    rows = json.loads(done(miniatures(tmp_path, "models", "--json", guard=True)))["models"]
    assert len(rows) == 24
    tiny = next(row for row in rows if row["nickname"] == "tiny")
    assert tiny == {
        "size": "2/128",
        "nickname": "tiny",
        "official": "uncased_L-2_H-128_A-2",
        "layers": 2,
        "width": 128,
        "heads": 2,
        "parameters": 4385920,
        "bytes": 17543680,
        "hub": "google/bert_uncased_L-2_H-128_A-2",
        "google_zip": "https://storage.googleapis.com/bert_models/2020_02_20/uncased_L-2_H-128_A-2.zip",
        "published": tiny["published"],
        "here": None,
    }
    assert tiny["published"]["mnli"] == [70.2, 70.3]
    assert sum(row["published"] is not None for row in rows) == 4


def test_models_through_a_pipe_is_plain_and_whole(tmp_path: Path) -> None:
    said = done(miniatures(tmp_path, "models", COLUMNS="40", FORCE_COLOR="1"))
    assert said.isascii()
    assert "\x1b" not in said
    lines = said.splitlines()
    assert lines[1].split() == ["2/128", "tiny", "2", "128", "2", "4,385,920", "17.5", TINY.hub]
    assert len({line.split()[0] for line in lines[1:25]}) == 24
    assert lines[-1].split()[:6] == ["8/512", "medium", "73.5", "38.0", "89.6", "86.6/81.6"]


def test_models_on_a_terminal_has_a_frame(tmp_path: Path) -> None:
    code = "import os, sys\nos.dup2(int(sys.argv.pop(1)), 1)\nfrom bert_miniatures.cli import main\nmain()\n"
    reader, writer = pty.openpty()
    out = os.fdopen(reader, "rb", buffering=0)
    source = str(Path(models.__file__).parents[1])
    env = os.environ | {"PYTHONPATH": source, "COLUMNS": "130", "MINIATURES_HOME": str(tmp_path), "PYTHONUTF8": "1"}
    subprocess.run([sys.executable, "-c", code, str(writer), "models"], env=env, pass_fds=[writer], check=True)
    said = out.read(100_000).decode()
    os.close(writer)
    out.close()
    assert "─" in said
    assert TINY.hub in said


# ------------------------------------------------------------------------------------------------ names


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINIATURES_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def test_a_name_means_the_published_model(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = touch(home / "home" / "models" / TINY.official, "config.json", "model.safetensors")
    for name in ("tiny", "TINY", "2/128", TINY.official, TINY.hub):
        assert models.resolve(name, offline=True) == path
    assert capsys.readouterr().err == ""
    touch(home / "tiny", "config.json")
    assert models.resolve("tiny") == path
    assert "./tiny is the folder" in capsys.readouterr().err
    assert models.resolve("./tiny") == Path("tiny")


def test_a_folder_means_itself_and_a_run_its_model(home: Path) -> None:
    assert models.resolve(str(touch(home / "mine", "config.json"))) == home / "mine"
    touch(home / "run", "run.toml")
    with pytest.raises(CheckpointError, match="run: a run that has kept no model yet"):
        models.resolve("run")
    assert models.resolve(str(touch(home / "run" / "model", "config.json").parent)) == home / "run" / "model"


def test_what_is_no_model_is_said(home: Path) -> None:
    touch(home / "empty")
    with pytest.raises(CheckpointError, match=r"empty: no model folder: no config\.json"):
        models.resolve("empty")
    touch(home, "file.zip")
    with pytest.raises(CheckpointError, match=r"file\.zip is a file; expected a model folder"):
        models.resolve("file.zip")
    with pytest.raises(UnknownName, match="unknown model 'midi'; did you mean 'mini'"):
        models.resolve("midi")


def test_offline_can_be_asked_for_in_python(tmp_path: Path) -> None:
    code = GUARD + "from bert_miniatures import errors, models\ntry:\n    models.resolve('8/512', offline=True)\n"
    run = python(code + "except errors.Offline as error:\n    print(error)\n", tmp_path)
    assert run.stdout.startswith("uncased_L-8_H-512_A-8 is not on this machine"), run.stderr


def test_the_resolver_needs_no_torch(tmp_path: Path) -> None:
    code = "import sys\nfrom bert_miniatures import models\nprint({'torch', 'numpy', 'rich'} & set(sys.modules))"
    assert python(code, tmp_path).stdout == "set()\n"
