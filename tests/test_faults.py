"""What breaks: full disks, Ctrl-C, kill, damaged files, folders that cannot be written. Nothing half-written looks whole."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bert_miniatures.checkpoint import ModelFolder, read_folder, write_folder
from bert_miniatures.cli import _told
from bert_miniatures.errors import OutputExists, UserError
from bert_miniatures.files import RunFolder, atomic_folder, atomic_write
from bert_miniatures.model import build
from bert_miniatures.predict import Predictor
from bert_miniatures.tokenizer import Tokenizer
from commands import Done, finish, shell, start, until

FULL = "no space left on the device; nothing half-written was kept"
SETTINGS = [
    "--max-length",
    32,
    "--epochs",
    2,
    "--learning-rate",
    "3e-3",
    "--batch-size",
    16,
    "--set",
    "train.threads=1",
]


def tune(model: Path, reviews: tuple[Path, Path], out: Path, *more: object, **limits: int) -> Done:
    files = ["--model", model, "--train", reviews[0], "--dev", reviews[1], "--out", out]
    return shell()("finetune", *files, *SETTINGS, *more, **limits)


def weights(run: Path) -> bytes:
    return (run / "model" / "model.safetensors").read_bytes()


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def scores(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())["scores"]


@pytest.fixture(scope="module")
def wide(tiny, tmp_path_factory) -> Path:
    """A model of 5,003 long pieces, which no text has: larger than a run's state are its weights, and its vocabulary."""
    found = read_folder(tiny)
    pieces = [*found.tokenizer.vocabulary, *(f"word{i}".ljust(120, "x") for i in range(5003 - 73))]
    config = found.config.model_copy(update={"vocab_size": len(pieces)})
    folder = tmp_path_factory.mktemp("models") / "wide"
    made = build(config, groups={"pooler"}, seed=5).weights()
    write_folder(folder, ModelFolder(config, made, Tokenizer.from_vocabulary(pieces)), card="# wide\n")
    return folder


@pytest.fixture(scope="module")
def long_dev(reviews, tmp_path_factory) -> tuple[Path, Path]:
    """A dev set of 8,009 rows: their predictions are larger than the state of a run."""
    drawn = random.Random(3)
    rows = ["".join(drawn.choices("abcdefghij", k=9)) for _ in range(8009)]
    path = tmp_path_factory.mktemp("long") / "dev.csv"
    path.write_text(
        "text,label\n" + "".join(f"{row},{'positive' if i % 2 else 'negative'}\n" for i, row in enumerate(rows))
    )
    return reviews[0], path


@pytest.fixture(scope="module")
def whole(tiny, reviews, tmp_path_factory) -> Path:
    os.environ["MINIATURES_HOME"] = str(tmp_path_factory.mktemp("cache"))
    out = tmp_path_factory.mktemp("runs") / "run"
    assert tune(tiny, reviews, out).code == 0
    return out


# ------------------------------------------------------------------------------------------------- full disks


@pytest.mark.parametrize(
    ("limit", "at", "left"),
    [
        (300, "run.toml", set()),
        (2_000, "state/state.safetensors", {"run.toml", "metrics.jsonl"}),
        (60_000, "state/state.safetensors", {"run.toml", "metrics.jsonl"}),
    ],
)
def test_a_full_disk_while_training(limit, at, left, whole, tiny, reviews, tmp_path):
    run = tmp_path / "run"
    done = tune(tiny, reviews, run, RLIMIT_FSIZE=limit)
    assert done.code == 1
    if limit >= 2_000:  # the limit holds for the file behind stderr too
        assert done.error == f"{run / at}: {FULL}"
    assert names(run) == left
    assert tune(tiny, reviews, run, "--resume").code == 0
    assert weights(run) == weights(whole)
    assert scores(run) == scores(whole)


def test_a_full_disk_at_the_best_epoch(tiny, reviews, tmp_path):
    run = tmp_path / "run"
    done = tune(tiny, reviews, run, "--keep", "best", RLIMIT_FSIZE=20_000)
    assert done.error == f"{run}/state/best.safetensors: {FULL}"
    assert names(run) == {"run.toml", "metrics.jsonl"}
    assert tune(tiny, reviews, run, "--keep", "best", "--resume").code == 0


@pytest.mark.parametrize("limit", [200_000, 500_000])  # too small for the weights, for the vocabulary
def test_a_full_disk_at_the_model_folder(limit, wide, reviews, tmp_path):
    run = tmp_path / "run"
    done = tune(wide, reviews, run, RLIMIT_FSIZE=limit)
    assert (done.code, done.error) == (1, f"{run}/model: {FULL}")
    assert names(run) == {"run.toml", "metrics.jsonl", "state/state.safetensors"}
    assert "a run that has kept no model yet" in shell()("predict", run, stdin=b"good\n").error
    assert "no finished run" in shell()("evaluate", run).error
    resumed = tune(wide, reviews, run, "--resume")
    assert resumed.code == 0
    assert "resumed at step 18 of 18" in resumed.err
    assert tune(wide, reviews, tmp_path / "whole").code == 0
    assert weights(run) == weights(tmp_path / "whole")


def test_a_full_disk_at_the_predictions(tiny, long_dev, tmp_path):
    run = tmp_path / "run"
    done = tune(tiny, long_dev, run, "--epochs", 1, RLIMIT_FSIZE=130_000)
    assert (done.code, done.error) == (1, f"{run}/predictions/dev.parquet: {FULL}")
    assert not (run / "result.json").exists()
    assert not any(path.suffix == ".parquet" or path.name.startswith(".") for path in run.rglob("*"))
    cached = list((Path(os.environ["MINIATURES_HOME"]) / "encoded").iterdir())
    assert len(cached) < 2  # that the cache of encoded texts did not fit is no error
    assert not any(path.name.startswith(".") for path in cached)
    assert shell()("predict", run, stdin=b"good\n").code == 0  # the model was whole before
    assert tune(tiny, long_dev, run, "--epochs", 1, "--resume").code == 0
    assert (run / "result.json").is_file()


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Callable[[int], Path]]:
    """Mount a file system of so many KiB, or make the one that is mounted larger."""
    place = tmp_path / "disk"
    place.mkdir()

    def mount(size: int) -> Path:
        option = f"size={size}k" if not os.path.ismount(place) else f"remount,size={size}k"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", place], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        return place

    yield mount
    if os.path.ismount(place):
        subprocess.run(["umount", place], check=True)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount command")
def test_a_disk_that_is_really_full(small_disk, whole, tiny, reviews):
    """Whatever does not fit, the run ends in one sentence and is resumed where there is room."""
    seen = set()
    for size in (4, 40, 120, 160, 200, 240):
        disk = small_disk(size)
        done = tune(tiny, reviews, disk / "run")
        if done.code:
            assert (done.code, FULL in done.error) == (1, True)
            seen.add(done.error.partition(":")[0].rpartition("/")[2])
            assert "run/result.json" not in names(disk)
            small_disk(2_000)
            assert tune(tiny, reviews, disk / "run", "--resume").code == 0
        assert weights(disk / "run") == weights(whole)
        assert not any(name.startswith(".") or "/." in name for name in names(disk))
        subprocess.run(["umount", disk], check=True)
    assert len(seen) > 1, seen


def test_a_full_disk_at_the_answers(whole, tmp_path):
    (tmp_path / "texts.txt").write_text("good film\n" * 3001)
    out = tmp_path / "answers.jsonl"
    out.write_text("mine\n")
    done = shell()("predict", whole, tmp_path / "texts.txt", "--out", out, RLIMIT_FSIZE=80_000)
    said = f"{out}: no space left on the device; 1,024 rows are in answers.jsonl.partial, --resume goes on from them"
    assert (done.code, done.error) == (1, said)
    assert out.read_text() == "mine\n"
    done = shell()("predict", whole, tmp_path / "texts.txt", "--out", out, "--resume")
    assert (done.code, len(out.read_text().splitlines())) == (0, 3001), done.err
    assert sorted(os.listdir(tmp_path)) == ["answers.jsonl", "texts.txt"]


def test_a_full_disk_at_a_conversion(tiny, wide, tmp_path):
    done = shell()("convert", wide, tmp_path / "model", RLIMIT_FSIZE=200_000)
    assert (done.code, done.error) == (1, f"{tmp_path}/model: {FULL}")
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------------------- signals


LONG = ["--epochs", 40]


@pytest.fixture(scope="module")
def interrupted(tiny, reviews, tmp_path_factory) -> dict[str, tuple[Done, Path]]:
    """Runs that were stopped in the middle, each by other signals; they train at the same time."""
    home = tmp_path_factory.mktemp("stopped")
    kinds = {"SIGINT": [signal.SIGINT], "SIGTERM": [signal.SIGTERM], "twice": [signal.SIGINT, signal.SIGINT]}
    started = {}
    for kind in kinds:
        arguments = ["finetune", "--model", tiny, "--train", reviews[0], "--dev", reviews[1], "--out", home / kind]
        started[kind] = start(home, *arguments, *SETTINGS, *LONG, "--set", "train.log_every=1")
    out = {}
    for kind, process in started.items():
        metrics = home / kind / "metrics.jsonl"
        until(lambda metrics=metrics: metrics.exists() and metrics.read_bytes().count(b"\n") > 20)
        for number in kinds[kind]:
            process.send_signal(number)
        out[kind] = finish(process), home / kind
    return out


@pytest.mark.parametrize("kind", ["SIGINT", "SIGTERM"])
def test_an_interrupted_run_is_saved_and_exits_130(kind, interrupted):
    done, run = interrupted[kind]
    assert (done.code, done.out, done.error) == (130, "", "interrupted")
    assert "--resume continues from here" in done.err
    assert names(run) == {"run.toml", "metrics.jsonl", "state/state.safetensors"}


def test_a_second_ctrl_c_breaks_off(interrupted):
    done, run = interrupted["twice"]
    assert done.code == 130
    assert "Traceback" not in done.err
    assert "result.json" not in names(run)
    assert not any(path.name.startswith(".") for path in run.rglob("*"))


@pytest.mark.slow
def test_an_interrupted_run_goes_on_where_it_was(interrupted, tiny, reviews, tmp_path):
    assert tune(tiny, reviews, tmp_path / "whole", *LONG).code == 0
    for kind, (_, run) in interrupted.items():
        done = tune(tiny, reviews, run, *LONG, "--resume")
        assert done.code == 0, done.err
        assert ("resumed at step" in done.err) or kind == "twice"
        assert weights(run) == weights(tmp_path / "whole"), kind


def test_what_ctrl_c_breaks_is_an_interruption():
    """Heard while a lock is taken back, Ctrl-C ends as the lock's own error."""

    def broken() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            threading.RLock().release()

    with pytest.raises(RuntimeError) as caught:
        broken()
    assert _told(caught.value, []) == ("interrupted", 130)
    assert _told(RuntimeError("cannot release un-acquired lock"), [])[1] == 1


def test_an_interrupted_prediction_leaves_what_can_be_resumed(whole, tmp_path):
    (tmp_path / "texts.txt").write_text("good film\n" * 1_000_000)
    numbers = (signal.SIGINT, signal.SIGTERM)
    started = [start(tmp_path, "predict", whole, "texts.txt", "--out", f"{number}.jsonl") for number in numbers]
    for process, number in zip(started, numbers, strict=True):
        until(
            lambda number=number: any(path.stat().st_size > 9999 for path in tmp_path.glob(f"{number}.jsonl.partial"))
        )
        process.send_signal(number)
        done = finish(process)
        assert (done.code, done.error) == (130, "interrupted")
    assert sorted(os.listdir(tmp_path)) == ["15.jsonl.partial", "2.jsonl.partial", "texts.txt"]


def children(process: subprocess.Popen[bytes]) -> list[int]:
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    found = map(int, listed.read_text().split()) if listed.exists() else []
    return [pid for pid in found if b"bert_miniatures.predict\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("what", ["Ctrl-C at the start", "Ctrl-C", "the parent is killed"])
def test_worker_processes_end_with_the_command(what, whole, tmp_path):
    (tmp_path / "texts.txt").write_text("good film\n" * 1_000_000)
    arguments = ["predict", whole, "texts.txt", "--out", "answers.jsonl", "--workers", 2]
    process = start(tmp_path, *arguments, start_new_session=True)
    until(lambda: len(children(process)) == 2)
    workers = children(process)
    if what != "Ctrl-C at the start":
        until(lambda: any(path.stat().st_size > 9999 for path in tmp_path.glob("answers.jsonl.partial")))
    if what == "the parent is killed":
        with process:
            process.kill()
    else:  # the terminal sends it to all of them
        os.killpg(process.pid, signal.SIGINT)
        done = finish(process)
        assert (done.code, done.err) == (130, "error: interrupted\n")
    try:
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), 20)
    finally:
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert not (tmp_path / "answers.jsonl").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_the_texts_of_a_worker_that_dies_are_given_to_another(whole, tmp_path):
    texts = [f"good {'film ' * (n % 7)}" for n in range(40_000)]
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    process = start(tmp_path, "predict", whole, "texts.txt", "--out", "answers.jsonl", "--workers", 2)
    until(lambda: any(path.stat().st_size > 9999 for path in tmp_path.glob("answers.jsonl.partial")))
    os.kill(children(process)[0], signal.SIGKILL)
    done = finish(process)
    assert done.code == 0
    assert "the worker was killed by signal 9; most likely out of memory; it is tried again" in done.err
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    expected = [one["score"] for one in Predictor(whole)(texts[:7])] * len(texts)
    np.testing.assert_allclose([one["score"] for one in answers], expected[: len(texts)], atol=1e-5)


def test_what_a_killed_process_left_is_cleared_away(whole, tiny, reviews, tmp_path):
    run = tmp_path / "run"
    assert tune(tiny, reviews, run, RLIMIT_FSIZE=60_000).code == 1
    for name in (".model.0123.tmp", ".model.0123.tmp.old", "predictions"):
        (run / name).mkdir()
        (run / name / ".dev.parquet.0123.tmp").write_text("half")
    (run / ".result.json.0123.tmp").write_text('{"scores": {')
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    assert tune(tiny, reviews, run, "--resume").code == 0
    assert names(run) == names(whole)
    assert all(json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines())


# ------------------------------------------------------------------------------------------------- damaged files


def damaged_json(name: str, **changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        document = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({key: value for key, value in document.items() if value is not None}))

    return damage


def other_weights(change: Callable[[dict[str, np.ndarray]], None]) -> Callable[[Path], None]:
    """Write other weights, and no checksum that would give them away."""

    def damage(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        (folder / "miniature.json").unlink()

    return damage


def shorter_vocabulary(folder: Path) -> None:
    tokenizer = read_folder(folder).tokenizer
    Tokenizer(tokenizer.vocabulary[:-1]).save(folder)


def without(*files: str) -> Callable[[Path], None]:
    return lambda folder: [(folder / name).unlink() for name in files] and None


WORDS, HEAD = "bert.embeddings.word_embeddings.weight", "classifier.weight"
# what is wrong with a model folder -> (how to make it so, what the sentence says)
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "layers": (damaged_json("config.json", num_hidden_layers=3), "is missing (the file has 2 layers, config.json says 3)"),
    "width": (damaged_json("config.json", hidden_size=24), f"'{WORDS}' has shape [73, 21], expected [73, 24]"),
    "heads": (damaged_json("config.json", num_attention_heads=4), "hidden_size 21 is not a multiple of num_attention_heads 4"),
    "no width": (damaged_json("config.json", hidden_size=None), "config.json: 'hidden_size' is missing"),
    "architecture": (damaged_json("config.json", model_type="gpt2"), "model_type is 'gpt2', expected 'bert'"),
    "vocabulary size": (damaged_json("config.json", vocab_size=74), f"'{WORDS}' has shape [73, 21], expected [74, 21]"),
    "other vocabulary": (shorter_vocabulary, "the vocabulary has 72 pieces, config.json says 73"),
    "no vocabulary": (without("vocab.txt", "tokenizer.json"), "has neither vocab.txt nor tokenizer.json"),
    "two vocabularies": (lambda f: (f / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nx\n"), "vocab.txt and tokenizer.json disagree"),
    "no config": (without("config.json"), "no model folder: no config.json"),
    "no weights": (without("model.safetensors"), "no weights; looked for model.safetensors"),
    "other format": (damaged_json("miniature.json", format=9), "format 9, this version reads format 1"),
    "labels": (damaged_json("miniature.json", labels=["a"]), "the classifier has 2 outputs, the folder names 1 labels"),
    "shape": (other_weights(lambda t: t.update({HEAD: t[HEAD][:, :7].copy()})), f"'{HEAD}' has shape [2, 7], expected [2, 21]"),
    "a tensor less": (other_weights(lambda t: t.pop("bert.pooler.dense.bias")), "'bert.pooler.dense.bias' is missing"),
    "a tensor more": (other_weights(lambda t: t.update(odd=t[HEAD])), "'odd' has no place in this model"),
    "integers": (other_weights(lambda t: t.update({HEAD: t[HEAD].astype(np.int32)})), "has type int32, expected floating point"),
    "NaN": (other_weights(lambda t: t[HEAD].fill(np.nan)), "the model answers NaN or infinity; its weights are damaged"),
    "no head": (other_weights(lambda t: [t.pop(name) for name in (HEAD, "classifier.bias")]), "this model has no classifier"),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
def test_a_model_folder_whose_parts_do_not_fit(what, whole, tmp_path):
    damage, said = DAMAGE[what]
    folder = shutil.copytree(whole / "model", tmp_path / "model")
    damage(folder)
    done = shell()("predict", folder, stdin=b"good\n")
    assert done.code == 2, done.out
    assert said in done.error


def test_every_truncation_of_a_model_file_is_told(whole, tmp_path):
    drawn = random.Random(7)
    for name in (
        "model.safetensors",
        "config.json",
        "miniature.json",
        "tokenizer.json",
        "vocab.txt",
        "tokenizer_config.json",
    ):
        raw = (whole / "model" / name).read_bytes()
        for size in {0, drawn.randrange(1, len(raw) - 2)}:
            folder = shutil.copytree(whole / "model", tmp_path / "model", dirs_exist_ok=True)
            (folder / name).write_bytes(raw[:size])
            done = shell()("predict", folder, stdin=b"good\n")
            assert done.code == 2, (name, size, done.out, done.err)
            assert name in done.error


def test_every_flipped_bit_of_the_weights_is_told(whole, tmp_path):
    """The command for a few, the reader it uses for many; the first bytes say where the tensors are."""
    folder = shutil.copytree(whole / "model", tmp_path / "model")
    raw = (folder / "model.safetensors").read_bytes()
    drawn = random.Random(11)
    places = [0, 7, *(drawn.randrange(len(raw)) for _ in range(60))]
    for count, place in enumerate(places):
        changed = bytearray(raw)
        changed[place] ^= 1 << drawn.randrange(8)
        (folder / "model.safetensors").write_bytes(changed)
        with pytest.raises(UserError, match=r"model\.safetensors"):
            read_folder(folder)
        if count < 3:
            assert shell()("predict", folder, stdin=b"good\n").code == 2


def test_a_run_whose_files_are_damaged(whole, tiny, reviews, tmp_path):
    run = tmp_path / "run"
    assert tune(tiny, reviews, run, "--keep", "best", RLIMIT_FSIZE=60_000).code == 1
    assert names(run) == {"run.toml", "metrics.jsonl", "state/best.safetensors"}
    (run / "state" / "state.safetensors").write_bytes((run / "state" / "best.safetensors").read_bytes()[:-1])
    done = tune(tiny, reviews, run, "--keep", "best", "--resume")
    assert done.code == 2
    assert "the saved state is damaged" in done.error
    text = (run / "run.toml").read_text()
    for content, said in (
        (text[: len(text) // 2], "run.toml: "),
        (text.replace("epochs", "epoch"), "did you mean 'train.epochs'?"),
    ):
        (run / "run.toml").write_text(content)
        assert said in tune(tiny, reviews, run, "--keep", "best", "--resume").error
    finished = shutil.copytree(whole, tmp_path / "finished")
    (finished / "result.json").write_text('{"scores": ')
    assert "result.json:1: not JSON" in shell()("finetune", "--out", finished, "--resume").error


# ------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("command", ["finetune", "predict", "convert"])
def test_a_folder_that_cannot_be_written(command, whole, tiny, reviews, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    arguments = {
        "finetune": ["--model", tiny, "--train", reviews[0], "--out", locked / "run"],
        "predict": [whole, reviews[1], "--out", locked / "answers.jsonl"],
        "convert": [tiny, locked / "model"],
    }
    done = shell()(command, *arguments[command], powerless=True)
    assert done.code == 2
    assert f"{locked}" in done.error
    assert "cannot be written" in done.error
    assert "rows" not in done.err  # it is said before the work
    assert os.listdir(locked) == []


def test_what_cannot_be_written_can_be_read(whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    for path in (*run.rglob("*"), run):
        path.chmod(0o555 if path.is_dir() else 0o444)
    for arguments in (["predict", run], ["evaluate", run], ["finetune", "--out", run, "--resume"]):
        assert shell()(*arguments, stdin=b"good\n", powerless=True).code == 0
    (run / "model" / "config.json").chmod(0)
    done = shell()("predict", run, stdin=b"good\n", powerless=True)
    assert done.code == 1
    assert done.error == f"{run}/model/config.json: Permission denied"
    for path in (run, *run.rglob("*")):
        path.chmod(0o755)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_the_umask_decides_who_may_read(umask, mode, tiny, whole, tmp_path):
    assert shell()("convert", tiny, tmp_path / "model", umask=umask).code == 0
    assert shell()("predict", whole, "--out", tmp_path / "answers.jsonl", stdin=b"good\n", umask=umask).code == 0
    found = {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {mode}
    assert (tmp_path / "model").stat().st_mode & 0o777 == mode | (0o100 | (mode & 0o444) >> 2)


def test_overwrite_replaces_the_run_and_only_runs(whole, tiny, reviews, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    (run / "predictions" / "stale.parquet").write_text("of the run before")
    assert tune(tiny, reviews, run, "--overwrite").code == 0
    assert names(run) == names(whole)
    (tmp_path / "link").symlink_to(run)
    assert tune(tiny, reviews, tmp_path / "link", "--overwrite").code == 0
    assert (tmp_path / "link").is_symlink()
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("mine")
    assert "only replaces runs" in tune(tiny, reviews, tmp_path / "thesis", "--overwrite").error
    assert (tmp_path / "thesis" / "chapter.tex").read_text() == "mine"


def test_a_run_that_is_half_removed_is_not_finished_and_still_a_run(whole, tmp_path):
    run = shutil.copytree(whole, tmp_path / "run")
    for i in range(29):  # wherever removing begins, it cannot go on
        (run / f"locked{i}").mkdir()
        (run / f"locked{i}" / "file").touch()
        (run / f"locked{i}").chmod(0o555)
    script = f"from bert_miniatures.files import RunFolder; RunFolder.create({str(run)!r}, overwrite=True)"
    code = "import ctypes, struct; ctypes.CDLL(None).capset(struct.pack('2I', 0x20080522, 0), bytes(24))\n" + script
    process = start(tmp_path, code=code)
    assert finish(process).code != 0
    assert not RunFolder(run).is_finished()
    assert RunFolder(run).is_run()
    for path in run.glob("locked*"):
        path.chmod(0o755)
    RunFolder.create(run, overwrite=True)
    assert os.listdir(run) == []


def half_written(path: Path) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text("half of the n")
        raise ValueError("stop")


def test_atomic_writes_leave_the_old_or_the_new(tmp_path):
    path, folder = tmp_path / "file", tmp_path / "folder"
    path.write_text("old")
    with pytest.raises(ValueError, match="stop"):
        half_written(path)
    assert path.read_text() == "old"
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    for content in ("old", "new"):
        with atomic_folder(folder, overwrite=content == "new") as temporary:
            (temporary / content).write_text(content)
            assert content == "old" or (folder / "old").is_file()
        assert os.listdir(folder) == [content]
    with pytest.raises(OutputExists), atomic_folder(folder):
        pass
    with pytest.raises(ValueError, match="stop"), atomic_folder(folder, overwrite=True) as temporary:
        raise ValueError("stop")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert os.listdir(folder) == ["new"]


def test_the_current_folder_can_be_the_target(tiny, tmp_path):
    here = tmp_path / "here"
    here.mkdir()
    assert shell()("convert", tiny, ".", cwd=here).code == 0
    assert (tmp_path / "here" / "model.safetensors").is_file()
    assert os.listdir(tmp_path) == ["here"]
