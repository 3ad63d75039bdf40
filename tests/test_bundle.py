"""Bundles: what is unpacked is what was packed, byte for byte, or nothing at all."""

import json
import zipfile
from pathlib import Path

import pytest

from bert_miniatures import Predictor, finetune
from bert_miniatures.bundle import MANIFEST, bundle, unbundle
from bert_miniatures.errors import CheckpointError, OutputExists, UnknownName, UserError
from bert_miniatures.files import sha256_of
from commands import shell


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def run(tiny, reviews, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bundled") / "first"
    finetune(tiny, folder, data={"train": reviews[0], "max_length": 37}, train={"epochs": 1, "threads": 1})
    return folder


@pytest.fixture(scope="module")
def packed(run, tmp_path_factory) -> Path:
    bundle(run, file := tmp_path_factory.mktemp("packed") / "first.zip")
    return file


def test_a_run_comes_back_byte_for_byte(run, packed, tmp_path):
    said = unbundle(packed, tmp_path / "there")
    assert contents(tmp_path / "there") == contents(run)
    assert (said["kind"], said["name"]) == ("run", "first")
    assert {name: facts["sha256"] for name, facts in said["files"].items()} == {
        name: sha256_of(run / name) for name in contents(run)
    }
    assert Predictor(tmp_path / "there")(["good film"]) == Predictor(run)(["good film"])


def test_a_model_and_its_bundle_are_always_the_same(tiny, tmp_path):
    for name in ("a.zip", "b.zip"):
        assert bundle(tiny, tmp_path / name)["kind"] == "model"
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as packed:
        assert {entry.date_time for entry in packed.infolist()} == {(1980, 1, 1, 0, 0, 0)}  # not when it was packed
    unbundle(tmp_path / "a.zip", tmp_path / "there")
    assert contents(tmp_path / "there") == contents(tiny)


def test_state_hidden_files_and_links(run, tmp_path):
    folder = tmp_path / "copy"
    for name, data in contents(run).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    for name in ("state/state.safetensors", ".result.json.tmp", "model/.lock"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    (folder / "model" / "vocab.txt").rename(tmp_path / "blob")
    (folder / "model" / "vocab.txt").symlink_to(tmp_path / "blob")
    bundle(folder, tmp_path / "f.zip")
    unbundle(tmp_path / "f.zip", tmp_path / "there")
    assert contents(tmp_path / "there") == contents(run)


def rewritten(source: Path, target: Path, change) -> Path:
    """Copy a zip; `change` takes its files as a dictionary."""
    with zipfile.ZipFile(source) as old:
        files = {name: old.read(name) for name in old.namelist()}
    change(files)
    with zipfile.ZipFile(target, "w") as new:
        for name, data in files.items():
            new.writestr(name, data)
    return target


def _other_format(files):
    files[MANIFEST] = json.dumps(json.loads(files[MANIFEST]) | {"format": 2}).encode()


def _other_name(files):
    files[MANIFEST] = json.dumps(json.loads(files[MANIFEST]) | {"name": "../else"}).encode()


CHANGES = {
    "is not the file that was packed": lambda files: files.update(
        {"first/result.json": files["first/result.json"] + b" "}
    ),
    "'first/model/vocab.txt' is missing": lambda files: files.pop("first/model/vocab.txt"),
    "'first/more' is not listed": lambda files: files.update({"first/more": b"x"}),
    "no bundle, for there is no bundle.json": lambda files: files.pop(MANIFEST),
    "bundle format 2, this version reads format 1": _other_format,
    "is (missing|not listed)": _other_name,
}


@pytest.mark.parametrize("said", CHANGES)
def test_what_was_changed_on_the_way_is_refused(said, packed, tmp_path):
    file = rewritten(packed, tmp_path / "changed.zip", CHANGES[said])
    with pytest.raises(CheckpointError, match=said):
        unbundle(file, tmp_path / "there")
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == ["changed.zip"]


def test_a_damaged_zip_is_refused(packed, tmp_path):
    data = packed.read_bytes()
    (tmp_path / "half.zip").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        unbundle(tmp_path / "half.zip", tmp_path / "there")
    assert not (tmp_path / "there").exists()


def test_nothing_is_overwritten_unasked(run, packed, tmp_path):
    (tmp_path / "f.zip").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputExists):
        bundle(run, tmp_path / "f.zip")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").touch()
    with pytest.raises(OutputExists):
        unbundle(packed, tmp_path / "there")
    with pytest.raises(UserError, match="is inside"):
        bundle(run, run / "model" / "f.zip")
    with pytest.raises(UnknownName):
        bundle("nothing", tmp_path / "g.zip")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "run.toml").touch()
    with pytest.raises(CheckpointError, match="not finished"):
        bundle(tmp_path / "begun", tmp_path / "g.zip")
    assert not (tmp_path / "g.zip").exists()


def test_the_commands(run, tmp_path):
    def do(*arguments):
        return shell()(*arguments, cwd=tmp_path)

    assert do("bundle", run, "-o", "f.zip").out == "f.zip\n"
    assert do("fetch", "--archive", "f.zip", "--out", "there").out == "there\n"
    assert contents(tmp_path / "there") == contents(run)
    assert do("fetch", "--archive", "f.zip", "--out", "there", "--overwrite", "--json").json["kind"] == "run"
    assert "--out DIR" in do("fetch", "--archive", "f.zip").error
    assert "which model?" in do("fetch").error
