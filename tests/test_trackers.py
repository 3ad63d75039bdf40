"""Trackers: what TensorBoard and trackio hold afterwards is what metrics.jsonl has, each record once."""

import contextlib
import json
import os
import sqlite3
import threading
import time
import warnings
from pathlib import Path

import pytest

from bert_miniatures.errors import DataError, OutputExists, UnknownName
from bert_miniatures.trackers import track, values_of
from commands import finish, shell, start, until

RECORDS = [
    {"step": 2, "epoch": 1, "loss": 0.75, "losses": {"pairs": 0.5}, "learning_rate": 1e-4},
    {"step": 4, "epoch": 1, "loss": 0.5, "losses": {"pairs": 0.25}, "learning_rate": 5e-5},
    {"step": 4, "epoch": 1, "split": "dev", "scores": {"f1": 0.875, "accuracy": None}},
]
EXPECTED = {
    "train/loss": [(2, 0.75), (4, 0.5)],
    "train/losses/pairs": [(2, 0.5), (4, 0.25)],
    "train/learning_rate": [(2, pytest.approx(1e-4)), (4, pytest.approx(5e-5))],
    "dev/f1": [(4, 0.875)],
}


def lines(records) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def run_at(folder: Path, records=RECORDS, finished: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / "run.toml").write_text("")
    (folder / "metrics.jsonl").write_text(lines(records))
    if finished:
        (folder / "result.json").write_text("{}")
    return folder


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Return what TensorBoard itself reads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.util.tensor_util import make_ndarray

        found = EventAccumulator(str(folder)).Reload()
    tags = found.Tags()["tensors"]
    return {tag: [(e.step, float(make_ndarray(e.tensor_proto))) for e in found.Tensors(tag)] for tag in tags}


def test_names_of_numbers():
    assert values_of(RECORDS[2]) == {"dev/f1": 0.875}
    assert values_of({"step": 1, "loss": 2, "seconds": 0.5}) == {"train/loss": 2.0, "train/seconds": 0.5}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_reads_what_the_runs_wrote(tmp_path):
    run_at(tmp_path / "runs" / "a")
    run_at(tmp_path / "runs" / "deep" / "b", RECORDS[:1])
    assert track([tmp_path / "runs"], "tensorboard", out=tmp_path / "tb") == 2
    assert scalars(tmp_path / "tb" / "a") == EXPECTED
    assert scalars(tmp_path / "tb" / "deep" / "b")["train/loss"] == [(2, 0.75)]
    with pytest.raises(OutputExists, match="holds this run already"):
        track([tmp_path / "runs"], "tensorboard", out=tmp_path / "tb")
    track([tmp_path / "runs" / "a", tmp_path / "runs" / "deep"], "tensorboard", out=tmp_path / "two")
    assert sorted(path.name for path in (tmp_path / "two").rglob("*") if path.is_dir()) == ["a", "b", "deep"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_run_is_followed_through_half_lines_and_a_resume(tmp_path, monkeypatch):
    monkeypatch.setattr("bert_miniatures.trackers._PAUSE", 0.01)
    run = run_at(tmp_path / "runs" / "a", RECORDS[:1], finished=False)

    def work() -> None:
        with (run / "metrics.jsonl").open("a") as file:
            file.write(lines(RECORDS[1:2])[:20])
            file.flush()
            time.sleep(0.1)
            file.write(lines(RECORDS[1:2])[20:])
        time.sleep(0.1)
        # a resumed run goes back to its saved state, and its seconds are others
        (run / ".metrics.tmp").write_text(lines([RECORDS[0] | {"seconds": 1.25}]))
        os.replace(run / ".metrics.tmp", run / "metrics.jsonl")
        time.sleep(0.1)
        with (run / "metrics.jsonl").open("a") as file:
            file.write(lines(RECORDS[1:]))
        run_at(tmp_path / "runs" / "later")
        (run / "result.json").write_text("{}")

    thread = threading.Thread(target=work)
    thread.start()
    assert track([tmp_path / "runs"], "tensorboard", out=tmp_path / "tb", follow=True) == 2
    thread.join()
    assert scalars(tmp_path / "tb" / "a") == scalars(tmp_path / "tb" / "later") == EXPECTED


def stored(store: Path) -> list[tuple[str, int, dict[str, float]]]:
    """Return run, step and numbers of what trackio has; nothing before its table is made."""
    with contextlib.closing(sqlite3.connect(store)) as opened:
        if not opened.execute("SELECT 1 FROM sqlite_master WHERE name = 'metrics'").fetchone():
            return []
        rows = opened.execute("SELECT run_name, step, metrics FROM metrics ORDER BY run_name, id").fetchall()
    return [(run, step, json.loads(text)) for run, step, text in rows]


@pytest.mark.slow
def test_trackio_holds_what_the_runs_wrote(tmp_path):
    run_at(tmp_path / "runs" / "a")
    late = run_at(tmp_path / "runs" / "b", RECORDS[:1], finished=False)
    store = tmp_path / "store" / "mine.db"
    asked = ("track", "runs", "--to", "trackio", "--project", "mine", "--follow")
    process = start(tmp_path, *asked, env={"TRACKIO_DIR": str(store.parent)})
    until(lambda: store.exists() and len(stored(store)) == 4)
    with (late / "metrics.jsonl").open("a") as file:
        file.write(lines(RECORDS[1:]))
    (late / "result.json").write_text("{}")
    done = finish(process)
    assert done.code == 0, done.err
    assert done.out == "2 runs; look at them with: trackio show --project mine\n"
    expected = [(record["step"], values_of(record)) for record in RECORDS]
    assert stored(store) == [(run, *row) for run in "ab" for row in expected]
    with contextlib.closing(sqlite3.connect(store)) as opened:
        assert opened.execute("SELECT count(DISTINCT run_id) FROM metrics").fetchone() == (2,)


def test_what_cannot_be_tracked_is_said(tmp_path):
    run = run_at(tmp_path / "run")
    with pytest.raises(UnknownName, match="tensorboard"):
        track([run], "tensorbord")
    with pytest.raises(DataError, match="no such folder"):
        track([tmp_path / "nowhere"], "tensorboard")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no runs"):
        track([tmp_path / "empty"], "tensorboard")
    (run / "metrics.jsonl").write_text('{"step": 1}\n["no object"]\n')
    done = shell()("track", run, "--to", "tensorboard", "--out", tmp_path / "tb", cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert "metrics.jsonl: expected an object in each line" in done.error
