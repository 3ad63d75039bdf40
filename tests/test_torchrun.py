"""`miniatures finetune` in two processes: the losses of one, one run folder, one voice, one exit code."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bert_miniatures.checkpoint import ModelFolder, write_folder
from bert_miniatures.machine import Launch, launch
from bert_miniatures.model import build
from bert_miniatures.tokenizer import Tokenizer
from commands import Done, environment, finish, shell, start
from conftest import PIECES

SETTINGS = ["--max-length", "32", "--epochs", "9", "--batch-size", "13", "--learning-rate", "2e-3",
            "--set", "train.log_every=3", "--set", "train.save_every=0", "--set", "train.threads=1"]  # fmt: skip


@pytest.fixture(scope="module")
def plain(config, tmp_path_factory) -> Path:
    """A model without dropout: what is drawn for it depends on the number of processes."""
    still = config.model_copy(update={"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    folder = tmp_path_factory.mktemp("models") / "plain"
    weights = build(still, groups={"pooler"}, seed=7).weights()
    write_folder(folder, ModelFolder(still, weights, Tokenizer.from_vocabulary(PIECES)), card="# plain\n")
    return folder


def command(plain: Path, reviews: tuple[Path, Path], out: Path, *more: str) -> list[str]:
    files = ["--model", str(plain), "--train", str(reviews[0]), "--dev", str(reviews[1]), "--out", str(out)]
    return ["finetune", *files, *SETTINGS, *more]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def torchrun(home: Path, arguments: list[str], *more: str) -> subprocess.Popen[bytes]:
    address = ["--nproc-per-node", "2", "--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    words = [sys.executable, "-m", "torch.distributed.run", *address, *more, "-m", "bert_miniatures", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, env=environment(home), cwd=home, **pipes)


def two(
    home: Path, arguments: list[str], second: list[str] | None = None, **options: str
) -> list[subprocess.Popen[bytes]]:
    """Start two processes as a launcher does, without one, so that their own exit codes are seen."""
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        start(home, *(second or arguments if rank else arguments), env=common | {"RANK": str(rank)}, **options)
        for rank in (0, 1)
    ]  # fmt: skip


def workers(agent: subprocess.Popen[bytes]) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(agent.pid)], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


def records(run: Path) -> list[dict]:
    """What metrics.jsonl holds, but for the times."""
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").is_file() else []
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


def wait_for(run: Path, step: int, limit: float = 60) -> None:
    """Wait until a run has recorded an update."""
    end = time.monotonic() + limit
    while not any(record["step"] >= step for record in records(run)):
        assert time.monotonic() < end
        time.sleep(0.01)


def said(done: Done) -> list[str]:
    return [line for line in done.err.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def whole(plain, reviews, tmp_path_factory) -> tuple[Path, Done]:
    """An uninterrupted run of two processes."""
    home = tmp_path_factory.mktemp("whole")
    done = finish(torchrun(home, command(plain, reviews, home / "run", "--json")))
    assert done.code == 0, done.err
    return home / "run", done


@pytest.mark.slow
def test_two_processes_have_the_losses_of_one(plain, reviews, whole, tmp_path):
    run, done = whole
    alone = shell()(*command(plain, reviews, tmp_path / "alone"))
    assert alone.code == 0, alone.err
    expected, found = records(tmp_path / "alone"), records(run)
    assert [record["step"] for record in found] == [record["step"] for record in expected]
    for key in ("loss", "gradient_norm"):
        wanted = [record[key] for record in expected if key in record]
        assert [record[key] for record in found if key in record] == pytest.approx(wanted, abs=1e-4)
        assert wanted[0] != pytest.approx(wanted[-1], abs=1e-2)
    assert json.loads(done.out) == json.loads((run / "result.json").read_text())  # one document, not two
    one, other = (json.loads((path / "result.json").read_text()) for path in (tmp_path / "alone", run))
    assert other["scores"]["dev"] == pytest.approx(one["scores"]["dev"], abs=0.05)
    assert sorted(path.name for path in run.parent.iterdir()) == ["cache", "run"]
    assert done.err.count("epoch 1:") == 1
    assert "2 processes share each batch of 13" in done.err


@pytest.mark.slow
def test_killed_and_resumed_and_restarted_it_ends_with_the_same_bits(plain, reviews, whole, tmp_path):
    run = tmp_path / "run"
    first = torchrun(tmp_path, command(plain, reviews, run))
    wait_for(run, 12)
    for pid in (*workers(first), first.pid):
        os.kill(pid, signal.SIGKILL)
    finish(first)
    begun = records(run)[-1]["step"]
    assert begun < 90
    second = torchrun(tmp_path, command(plain, reviews, run, "--resume"), "--max-restarts", "1")
    wait_for(run, begun + 9)
    os.kill(workers(second)[-1], signal.SIGKILL)  # the launcher starts both again
    done = finish(second)
    assert done.code == 0, done.err
    assert said(done) == [
        "error: another of the 2 processes of this run ended; the same command with --resume goes on from the last "
        "saved state"
    ]
    assert done.err.count("resumed at step") == 2
    # The first process saves where it is when another one is lost; the mean loss that is logged begins anew there.
    norms, expected = (
        {r["step"]: (r["gradient_norm"], r["learning_rate"]) for r in records(path) if "loss" in r}
        for path in (run, whole[0])
    )
    assert norms.items() >= expected.items()
    scores = [[record for record in records(path) if "loss" not in record] for path in (run, whole[0])]
    assert scores[0] == scores[1]
    weights = Path("model", "model.safetensors")
    assert (run / weights).read_bytes() == (whole[0] / weights).read_bytes()


@pytest.mark.slow
def test_an_error_is_said_once(plain, reviews, tmp_path):
    run = tmp_path / "run"
    done = [finish(one) for one in two(tmp_path, command(plain, reviews, run, "--label", "nope"))]
    assert [one.code for one in done] == [2, 2]
    lines = [line for one in done for line in said(one)]
    assert len(lines) == 1
    assert "unknown column 'nope'" in lines[0]
    assert "Traceback" not in done[0].err + done[1].err
    assert not run.exists()


@pytest.mark.slow
def test_an_error_is_said_once_however_late_the_other_process_is(tmp_path):
    code = """
import sys, time
from bert_miniatures.distributed import joined
from bert_miniatures.errors import UserError
from bert_miniatures.machine import launch
try:
    with joined(launch()):
        time.sleep(3 * launch().rank)
        raise UserError("the same for both")
except UserError as error:
    print(error)
    sys.exit(2)
"""
    done = [finish(one) for one in two(tmp_path, [], code=code)]
    assert [(one.code, one.out) for one in done] == [(2, "the same for both\n"), (2, "")]


@pytest.mark.slow
def test_other_data_in_the_second_process_is_an_error(plain, reviews, tmp_path):
    run, other = tmp_path / "run", tmp_path / "other.csv"
    other.write_text(reviews[0].read_text().replace("good", "very good", 1))
    both = two(tmp_path, command(plain, reviews, run), command(plain, (other, reviews[1]), run))
    done = [finish(one) for one in both]
    assert [one.code for one in done] == [2, 2]
    assert [line for one in done for line in said(one)] == [
        f"error: process 1 of 2 on {socket.gethostname()} reads another train data than process 0; all need the same "
        "command and the same files"
    ]
    assert not run.exists()


@pytest.mark.slow
def test_ctrl_c_in_one_process_saves_and_ends_both(plain, reviews, whole, tmp_path):
    run = tmp_path / "run"
    both = two(tmp_path, command(plain, reviews, run))
    wait_for(run, 6)
    both[1].send_signal(signal.SIGINT)
    done = [finish(one) for one in both]
    assert [one.code for one in done] == [130, 130]
    assert [line for one in done for line in said(one)] == ["error: interrupted"]
    step = int(done[0].err.split("stopped at step ")[1].split()[0])
    assert (run / "state" / "state.safetensors").is_file()
    assert not (run / "result.json").exists()
    alone = shell()(*command(plain, reviews, run, "--resume"))  # what two processes saved, one may go on with
    assert alone.code == 0
    assert f"resumed at step {step} of 99" in alone.err
    expected = {record["step"]: record["loss"] for record in records(whole[0]) if "loss" in record}
    found = {record["step"]: record["loss"] for record in records(run) if "loss" in record}
    last = sorted(expected)[-5:]
    assert [found[at] for at in last] == pytest.approx([expected[at] for at in last], abs=1e-4)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, Launch()),
        ({"WORLD_SIZE": "1", "RANK": "0"}, Launch()),
        ({"WORLD_SIZE": "8"}, Launch()),  # of something else
        ({"WORLD_SIZE": "8", "RANK": "3"}, Launch(3, 8, 8, 0)),
        (
            {"WORLD_SIZE": "8", "RANK": "3", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_RESTART_COUNT": "2"},
            Launch(3, 8, 4, 2),
        ),
    ],
)
def test_the_launchers_environment(given, expected, monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert launch() == expected


def test_wrong_use_is_said_by_the_first_process_alone(tmp_path):
    done = [
        shell()("finetune", "--lable", "x", "--out", tmp_path / "run", env={"WORLD_SIZE": "2", "RANK": str(rank)})
        for rank in (0, 1)
    ]
    assert [one.code for one in done] == [2, 2]
    assert "No such option: --lable" in done[0].error
    assert done[1].err == ""


def test_a_team_of_one_does_the_work_once():
    from bert_miniatures.distributed import Team

    team = Team()
    assert (team.rank, team.world, team.first) == (0, 1, True)
    assert team.any(True)
    assert not team.any(False)
    document = {"a": [1, np.nan]}
    assert team.share(document) is document
    calls: list[int] = []
    team.first_then_others(lambda: calls.append(1))
    assert calls == [1]
    team.check_same({"b": 3})
    with pytest.raises(RuntimeError, match="gloo"), team.losses():
        raise RuntimeError("gloo")
