"""Sweeps of tiny real models: what is on the disk, what a second call does, faults of every kind, kill -9."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from bert_miniatures.config import FinetuneConfig
from bert_miniatures.errors import CheckpointError, ConfigError, DataError, OutputExists, UserError
from bert_miniatures.plan import SweepConfig, expand
from bert_miniatures.recipes.finetune import run_finetune
from bert_miniatures.recipes.sweep import run_sweep
from bert_miniatures.sweep_folder import SweepFolder
from bert_miniatures.watch import Watch
from commands import until


class Heard(Watch):
    """Remembers what was said."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def plan_of(tiny, reviews, **changes) -> SweepConfig:
    document = {
        "models": [str(tiny)],
        "data": {"train": str(reviews[0]), "dev": str(reviews[1]), "max_length": 32},
        "grid": {"batch_size": [16, 8], "learning_rate": [3e-3, 1e-9], "epochs": [3]},
        "train": {"save_every": 0},
    }
    return SweepConfig.of(document | changes)


@pytest.fixture(scope="module")
def swept(tiny, reviews, tmp_path_factory) -> Path:
    """A finished sweep of four cells; two of them learn nothing."""
    os.environ["MINIATURES_HOME"] = str(tmp_path_factory.mktemp("cache"))
    out = tmp_path_factory.mktemp("sweeps") / "out"
    run_sweep(plan_of(tiny, reviews), out, workers=2)
    return out


def results(out: Path) -> dict[str, dict]:
    """Return the scores of each finished cell."""
    found = {}
    for path in sorted(out.rglob("result.json")):
        document = json.loads(path.read_text())
        found[str(path.parent.relative_to(out))] = {
            key: document[key] for key in ("scores", "finding", "seed", "steps")
        }
    return found


# ------------------------------------------------------------------------------------------- what is on the disk


def test_each_cell_is_a_run_folder_and_only_the_best_has_weights(swept):
    assert sorted(results(swept)) == [
        f"tiny/train/bs{size}-lr{rate}-epochs3-seed1" for size in (16, 8) for rate in ("1e-9", "3e-3")
    ]
    weights = list(swept.rglob("model.safetensors"))
    assert len(weights) == 1
    best = max(results(swept).items(), key=lambda item: item[1]["scores"]["dev"]["accuracy"])[0]
    assert weights[0].parent.parent == swept / best
    for name in results(swept):
        assert {path.name for path in (swept / name).iterdir()} - {"model"} == {
            "run.toml",
            "metrics.jsonl",
            "predictions",
            "result.json",
        }
    assert {path.name for path in swept.iterdir()} == {".lock", "sweep.toml", "forecast.json", "workers.log", "tiny"}


def test_a_cell_is_the_same_run_as_finetune_makes(swept, tiny, reviews, tmp_path):
    """Workers share inputs between cells; nothing of one cell is in the next."""
    for name, config in expand(plan_of(tiny, reviews)).items():
        alone = run_finetune(config, tmp_path / name)
        assert alone["scores"] == results(swept)[name]["scores"]
        assert FinetuneConfig.of(tomllib.loads((swept / name / "run.toml").read_text())) == config


def test_a_second_call_does_nothing_and_a_larger_plan_only_what_is_new(swept, tiny, reviews, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(swept, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("result.json")}
    summary = run_sweep(plan_of(tiny, reviews), out, workers=1)
    assert (summary.done, summary.cells, summary.forecast) == (4, 4, "")
    larger = plan_of(tiny, reviews, grid={"batch_size": [16, 8, 32], "learning_rate": [3e-3, 1e-9], "epochs": [3]})
    heard = Heard()
    summary = run_sweep(larger, out, workers=1, watch=heard)
    assert summary.done == 6
    assert "4 of 6 cells are done already" in heard.notes
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(out.rglob("model.safetensors"))) == 1


def test_a_degenerate_cell_is_a_result_and_is_named(swept, tiny, reviews):
    summary = run_sweep(plan_of(tiny, reviews), swept, workers=1)
    assert sorted(summary.degenerate) == ["tiny/train/bs16-lr1e-9-epochs3-seed1", "tiny/train/bs8-lr1e-9-epochs3-seed1"]
    assert not summary.failed
    assert summary.choices[0].cells == 4


def test_seeds_have_mean_and_deviation_and_keep_all_keeps_all(tiny, reviews, tmp_path):
    plan = plan_of(tiny, reviews, seeds=2, grid={"batch_size": [16], "learning_rate": [3e-3, 2e-3], "epochs": [3]})
    heard = Heard()
    summary = run_sweep(plan, tmp_path / "out", workers=1, keep_all=True, watch=heard)
    choice = summary.choices[0]
    assert (choice.cells, choice.seeds, summary.done) == (2, 2, 4)
    assert choice.deviation is not None
    assert len(list((tmp_path / "out").rglob("model.safetensors"))) == 4
    assert any("4 cells, 1 at once: about" in text for text in heard.notes)


# ------------------------------------------------------------------------------------------- plan, budget, search


def test_a_dry_run_says_the_plan_and_the_cost_and_writes_nothing(tiny, reviews, tmp_path):
    heard = Heard()
    plan = plan_of(tiny, reviews, grid={"learning_rate": [3e-3, 1e-3], "epochs": [99]})
    summary = run_sweep(plan, tmp_path / "out", workers=1, dry_run=True, watch=heard)
    assert not (tmp_path / "out").exists()
    assert summary.cells == 2
    assert summary.seconds > 0
    assert any("ms/step" in text for text in heard.notes)


def test_a_budget_leaves_cells_out_and_says_so(swept, tiny, reviews, tmp_path):
    out, heard = tmp_path / "out", Heard()
    shutil.copytree(swept, out)
    plan = plan_of(tiny, reviews)
    for name in list(expand(plan))[1:]:
        shutil.rmtree(out / name)
    with pytest.raises(ConfigError, match="no cell fits into 0:00; the cheapest one takes about"):
        run_sweep(plan, out, workers=2, budget=0.001)
    known = json.loads((out / "forecast.json").read_text())
    for cost in known["costs"].values():
        cost.update({"step": 100.0, "start": 0.0})  # so that the choice does not depend on the machine
    (out / "forecast.json").write_text(json.dumps(known))
    summary = run_sweep(plan, out, workers=2, budget=3300.0, watch=heard)
    assert (summary.done, summary.cells) == (2, 4)
    assert summary.left_out == ["tiny/train: 1 of 3 cells of the grid, only bs16-lr1e-9-epochs3"]
    assert any("2 of 3 cells are left out:" in text for text in heard.notes)


def test_adaptive_leaves_bad_cells_behind(tiny, reviews, tmp_path):
    pytest.importorskip("optuna", reason="the 'sweep' extra is not installed")
    grid = {"batch_size": [4, 8, 16], "learning_rate": [1e-2, 3e-3, 1e-9], "epochs": [4]}
    out = tmp_path / "out"
    summary = run_sweep(plan_of(tiny, reviews, grid=grid, seeds=2), out, workers=1, adaptive=True)
    assert summary.done == 2  # one cell got through, with both seeds
    assert summary.choices[0].mean > 0.8
    assert summary.left_out[0].startswith("tiny/train: 16 cells left behind early")
    assert len(json.loads((out / "tiny/train/adaptive.json").read_text())["cells"]) == 9
    assert sorted(path.name for path in (out / "tiny/train").iterdir()) == sorted(
        ["adaptive.json", *(Path(name).name for name in results(out))]
    )
    again = run_sweep(plan_of(tiny, reviews, grid=grid, seeds=2), out, workers=1, adaptive=True)
    assert (again.done, again.left_out) == (2, summary.left_out)


# ------------------------------------------------------------------------------------------- bad input


def test_failed_and_diverged_cells_are_recorded_and_the_rest_is_done(tiny, reviews, tmp_path):
    out, grid = tmp_path / "out", {"class_weights": ["none", {"nobody": 2.0}], "learning_rate": [3e-3, 1e30]}
    plan, heard = plan_of(tiny, reviews, grid=grid, train={"epochs": 1, "clip": 0.0}), Heard()
    summary = run_sweep(plan, out, workers=1, watch=heard)
    name = "tiny/train/bs32-lr3e-3-class_weights-nobody-2.0-seed1"
    assert sorted(summary.failed) == [name.replace("3e-3", "1e30"), name]
    assert "'nobody' is not one of negative, positive" in summary.failed[name]
    assert json.loads((out / name / "failed.json").read_text())["exit"] == 2
    assert any("failed: " in text for text in heard.warnings)
    assert summary.done == 2
    assert "the loss became" in summary.degenerate["tiny/train/bs32-lr1e30-seed1"]
    assert summary.choices[0].run.learning_rate == 3e-3
    again = run_sweep(plan, out, workers=1)
    assert (again.done, again.failed) == (2, summary.failed)  # they were tried again


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"models": ["tinny"]}, UserError, "did you mean 'tiny'"),
        ({"models": ["."]}, CheckpointError, "no model folder"),
        ({"data": {"train": "nowhere.csv"}}, DataError, r"nowhere\.csv: no such file"),
        ({"data": {}, "tasks": ["rte", "mrpc"]}, DataError, r"MRPC: no such folder; .* has RTE"),
        ({"grid": {"batch_size": [-8]}}, ConfigError, "batch_size = -8"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_begun(changes, error, said, tiny, reviews, tmp_path):
    changes = {key: value.copy() if isinstance(value, dict) else value for key, value in changes.items()}
    if "tasks" in changes:
        (tmp_path / "glue" / "RTE").mkdir(parents=True)
        for name in ("train", "dev"):
            (tmp_path / "glue" / "RTE" / f"{name}.tsv").write_text("index\tsentence1\tsentence2\tlabel\n")
        changes["data"] = {"glue": str(tmp_path / "glue")}
    with pytest.raises(error, match=said) as caught:
        run_sweep(plan_of(tiny, reviews, **changes), tmp_path / "out", workers=1)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_data_that_cannot_be_read_end_the_sweep_before_it_begins(tiny, reviews, tmp_path):
    (tmp_path / "dev.csv").write_text("text,label\ngood film,fantastic\n")
    data = {"train": str(reviews[0]), "dev": str(tmp_path / "dev.csv"), "max_length": 32}
    with pytest.raises(UserError, match=r"tiny/train: .*dev\.csv:2: label 'fantastic'"):
        run_sweep(plan_of(tiny, reviews, data=data), tmp_path / "out", workers=1)
    assert not results(tmp_path / "out")


def test_the_same_cell_with_other_settings_is_refused(swept, tiny, reviews):
    plan = plan_of(tiny, reviews, train={"save_every": 0, "warmup": 0.5})
    with pytest.raises(
        ConfigError,
        match=r"bs16-lr3e-3-epochs3-seed1' is here with other settings: .*train\.warmup = 0\.1, now it is 0\.5",
    ):
        run_sweep(plan, swept, workers=1)


def test_a_folder_with_something_else_is_refused(tiny, reviews, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OutputExists, match=r"thesis\.txt and is no sweep's folder"):
        run_sweep(plan_of(tiny, reviews), tmp_path, workers=1)
    assert (tmp_path / "thesis.txt").read_text() == "mine"


# ------------------------------------------------------------------------------------------- faults


def command(tiny, reviews, out: Path, *more: str, sizes: str = "[4, 8]", epochs: int = 8) -> list[str]:
    grid = out.parent / "grid.toml"
    grid.write_text(
        f"[grid]\nbatch_size = {sizes}\nlearning_rate = [3e-3, 1e-3]\nepochs = [{epochs}]\n[train]\nsave_every = 0.1\nlog_every = 1\n"
    )
    arguments = ["--model", str(tiny), "--train", str(reviews[0]), "--dev", str(reviews[1]), "--max-length", "32"]
    return [
        sys.executable,
        "-m",
        "bert_miniatures",
        "sweep",
        *arguments,
        "--grid",
        str(grid),
        "--out",
        str(out),
        "--workers",
        "2",
        *more,
    ]


@contextmanager
def started(arguments: list[str], **options) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def workers_of(process: int) -> list[int]:
    """Return the process numbers of a sweep's workers."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[1]) == process:
                found.append(int(stat.parent.name))
        except (OSError, IndexError):  # it ended meanwhile
            continue
    return found


def wait_for_work(out: Path) -> None:
    """Wait until a cell has done some updates."""
    until(lambda: any(path.stat().st_size > 500 for path in out.rglob("metrics.jsonl")))


def test_a_second_sweep_in_the_folder_is_refused(swept, tiny, reviews):
    with (
        SweepFolder(swept).locked(),
        pytest.raises(OutputExists, match=rf"another sweep works here \(process {os.getpid()}\)"),
    ):
        run_sweep(plan_of(tiny, reviews), swept, workers=1)


@pytest.mark.slow
def test_ctrl_c_saves_and_the_next_call_completes(tiny, reviews, tmp_path):
    out = tmp_path / "out"
    arguments = command(tiny, reviews, out, "--json", sizes="[4]", epochs=12)
    with started(arguments) as process:
        wait_for_work(out)
        workers = workers_of(process.pid)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "the same command goes on from there" in said
    assert "Traceback" not in said + (out / "workers.log").read_text()
    assert workers
    assert all(not Path(f"/proc/{worker}").exists() for worker in workers)
    assert list(out.rglob("state.safetensors"))
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["done"] == 2


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_the_next_call_completes(tiny, reviews, tmp_path):
    out = tmp_path / "out"

    def small_files_only() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    arguments = command(tiny, reviews, out, epochs=2)
    full = subprocess.run(arguments, capture_output=True, text=True, preexec_fn=small_files_only)
    assert full.returncode == 1
    errors = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "no space left on the device" in errors[0]
    assert "0 of 4 cells are done and whole; make room and give the same command again" in errors[0]
    done = subprocess.run([*arguments, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["done"] == 4
    assert not list(out.rglob("*.tmp*"))


@pytest.mark.slow
def test_kill_9_of_the_sweep_and_of_workers_at_random_moments(tiny, reviews, tmp_path):
    """Whatever is killed and when, the resumed sweep ends with the scores and the table of the uninterrupted one."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(tiny, reviews, whole, "--json"), capture_output=True, check=True)
    moments = random.Random(int(os.environ.get("KILL_SEED", "17")))
    hits = 0
    for number in range(int(os.environ.get("KILLS", "3"))):
        with started(command(tiny, reviews, killed)) as process:
            until(lambda p=process: p.poll() is not None or len(workers_of(p.pid)) == 2)
            time.sleep(moments.uniform(0.0, 5.0))
            workers = workers_of(process.pid)
            victim = process.pid if number % 2 or not workers else moments.choice(workers)
            if process.poll() is None:
                hits += 1
                with suppress(ProcessLookupError):
                    os.kill(victim, signal.SIGKILL)
            if victim != process.pid:
                time.sleep(moments.uniform(0.0, 3.0))  # the sweep itself goes on, until it is killed too
        if len(results(killed)) == 4:
            assert results(killed) == results(whole)
            shutil.rmtree(killed)
    done = subprocess.run(command(tiny, reviews, killed, "--json"), capture_output=True, text=True, check=True)
    assert hits
    assert results(killed) == results(whole)
    assert json.loads(done.stdout)["failed"] == {}
    tables = [
        subprocess.run(command(tiny, reviews, out), capture_output=True, text=True, check=True).stdout
        for out in (whole, killed)
    ]
    assert tables[0].replace(str(whole), str(killed)) == tables[1]
    assert [path.parent.parent.name for path in whole.rglob("model.safetensors")] == [
        path.parent.parent.name for path in killed.rglob("model.safetensors")]  # fmt: skip
    assert not list(killed.rglob("*.tmp*"))


@pytest.mark.slow
def test_glue_sweeps_all_tasks_and_writes_table_and_submission(tiny, glue, tmp_path):
    """All nine tasks of the real GLUE folder, a few rows of each; some test files are missing there."""
    grid = "[grid]\nbatch_size = [16]\nlearning_rate = [1e-3]\nepochs = [1]\n[data]\ntrain_rows = 31\ndev_rows = 31\nmax_length = 32\n"
    (tmp_path / "grid.toml").write_text(grid)
    out = tmp_path / "out"
    arguments = ["--model", str(tiny), "--glue", str(glue), "--out", str(out), "--grid", str(tmp_path / "grid.toml")]
    done = subprocess.run([sys.executable, "-m", "bert_miniatures", "glue", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "|Model|Score|CoLA|" in done.stdout
    assert "glue-tiny.zip: 8 files, ok; missing: QQP.tsv, MNLI-m.tsv, MNLI-mm.tsv" in done.stdout
    warnings = [line for line in done.stderr.splitlines() if line.startswith("warning: ")]
    assert any("answers" in line or "predictions" in line for line in warnings)  # so small a model learns nothing
    assert len(set(warnings)) == len(warnings)
    assert len(results(out)) == 9
    assert len(list(out.rglob("model.safetensors"))) == 9
