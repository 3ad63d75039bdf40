"""Every check finds the fault that was planted for it, and nothing else; a healthy set-up has no findings."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bert_miniatures.config import DataConfig, TrainConfig
from bert_miniatures.doctor.checks import CHECKS, Report, examine, repair
from bert_miniatures.doctor.subject import Subject
from commands import shell
from deploy import LABELS, classifier, written

MEMORY = "MemTotal: 16000000 kB\nMemAvailable: {} kB\n"
CORES = len(os.sched_getaffinity(0))


@dataclass
class Bench:
    """A healthy set-up, which a test breaks in one place."""

    folder: Path
    train: Path
    dev: Path
    root: Path
    site: Path
    env: pytest.MonkeyPatch
    data: dict[str, Any] = field(default_factory=dict)
    run: dict[str, Any] | None = None
    model: str | None = None

    def examine(self) -> Report:
        data = DataConfig(**({"train": self.train, "dev": self.dev, "max_length": 37} | self.data))
        paths = (str(self.site), *sys.path)
        train = TrainConfig(**(self.run or {}))
        model = self.model or str(self.folder)
        return examine(Subject(model, data, train, self.run is not None, self.root, paths))

    # what tests break

    def proc(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def installs(self, name: str, version: str, *needs: str) -> None:
        """Install a package's metadata, before all others."""
        folder = self.site / f"{name}-{version}.dist-info"
        folder.mkdir()
        lines = [f"Name: {name}", f"Version: {version}", *(f"Requires-Dist: {one}" for one in needs)]
        (folder / "METADATA").write_text("Metadata-Version: 2.1\n" + "\n".join(lines) + "\n")

    def edit(self, name: str, **new: Any) -> None:
        """Change keys of a JSON file of the model folder; None removes one."""
        path = self.folder / name
        document = json.loads(path.read_text()) | new
        path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))

    def rows(self, *lines: str, to: str = "train") -> None:
        with getattr(self, to).open("a", encoding="utf-8") as file:
            file.write("".join(line + "\n" for line in lines))

    def column(self, number: int, cells: list[str]) -> None:
        """Replace the cells of a column of the training file."""
        lines = [line.split(",") for line in self.train.read_text().splitlines()]
        for i, line in enumerate(lines[1:]):
            line[number] = cells[i % len(cells)]
        self.train.write_text("".join(",".join(line) + "\n" for line in lines))


@pytest.fixture
def bench(tiny, reviews, tmp_path, monkeypatch) -> Bench:
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY",
                 "KMP_AFFINITY", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "GLUE_DIR", "LOCAL_WORLD_SIZE"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    folder = written(classifier(tiny, LABELS["single"]), tmp_path / "model")
    train, dev = (Path(shutil.copy(file, tmp_path)) for file in reviews)
    bench = Bench(folder, train, dev, tmp_path / "root", tmp_path / "site", monkeypatch)
    bench.site.mkdir()
    bench.edit("tokenizer_config.json", model_max_length=37)
    bench.proc("proc/meminfo", MEMORY.format(8_000_000))
    bench.proc("proc/cpuinfo", "flags\t\t: sse2 avx avx2 avx512f avx512_vnni\n")
    _distinct(bench)
    return bench


def _distinct(bench: Bench) -> None:
    """Make every text of the reviews another one."""
    for number, path in enumerate((bench.train, bench.dev)):
        lines = path.read_text().splitlines()
        made = [f"{'xy'[number]}{''.join(chr(97 + int(d)) for d in str(i))} {line}" for i, line in enumerate(lines[1:])]
        path.write_text("\n".join([lines[0], *made]) + "\n")


def names(report: Report) -> list[str]:
    return [check.name for check, _ in report.findings]


def test_a_healthy_set_up_has_no_findings(bench):
    bench.run = {"batch_size": 8, "learning_rate": 1e-4}
    report = bench.examine()
    assert not report.findings, [one.what for _, one in report.findings]
    assert not report.skipped
    assert any("updates of" in text for text in report.facts["run"])


# ------------------------------------------------------------------------------------------------ planted faults


def _truncate(bench: Bench) -> None:
    weights = bench.folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1001])


def _flip(bench: Bench) -> None:
    weights = bench.folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-7] ^= 1
    weights.write_bytes(content)


def _nan(bench: Bench) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(bench.folder / "model.safetensors")
    weights["classifier.bias"] = np.full_like(weights["classifier.bias"], np.nan)
    save_file(weights, bench.folder / "model.safetensors")
    bench.edit("miniature.json", weights_sha256=None)


def _pickle(bench: Bench) -> None:
    import torch
    from safetensors.torch import load_file

    torch.save(load_file(bench.folder / "model.safetensors"), bench.folder / "pytorch_model.bin")
    (bench.folder / "model.safetensors").unlink()
    bench.edit("miniature.json", weights_sha256=None)


def _shorter_vocabulary(bench: Bench) -> None:
    (bench.folder / "tokenizer.json").unlink()
    pieces = (bench.folder / "vocab.txt").read_text().splitlines()
    (bench.folder / "vocab.txt").write_text("\n".join(pieces[:-3]) + "\n")


def _cache_is_a_file(bench: Bench) -> None:
    bench.proc("a-file", "")
    bench.env.setenv("MINIATURES_HOME", str(bench.root / "a-file" / "cache"))


def _damaged_graph(bench: Bench) -> None:
    from bert_miniatures.exporting import export

    export(bench.folder, bench.root / "deploy")
    bench.folder = bench.root / "deploy"
    graph = bench.folder / "onnx/model.onnx"
    graph.write_bytes(graph.read_bytes()[:-10])


def _env(name: str, value: str):
    return lambda bench: bench.env.setenv(name, value)


def _planned(**settings: Any):
    def plant(bench: Bench) -> None:
        bench.run = {"batch_size": 8, "learning_rate": 1e-4} | settings

    return plant


def _both(*plants):
    return lambda bench: [plant(bench) for plant in plants] and None


def _twice(bench: Bench) -> None:
    bench.rows(*bench.train.read_text().splitlines()[1:5])


def _torn(bench: Bench) -> None:
    bench.rows("the same film,negative", "The  same film,positive")


def _leak(bench: Bench) -> None:
    bench.rows(bench.dev.read_text().splitlines()[1])


def _few_dev(bench: Bench) -> None:
    bench.dev.write_text("\n".join(bench.dev.read_text().splitlines()[:31]) + "\n")


def _one_class_in_dev(bench: Bench) -> None:
    bench.dev.write_text(bench.dev.read_text().replace("positive", "negative"))


def _model_that_is_not_here(bench: Bench) -> None:
    bench.model, bench.run = "4/512", None


def _no_space(bench: Bench) -> None:
    bench.env.setenv("MINIATURES_HOME", "/proc/cache")  # a file system without room


# check -> (what breaks the healthy set-up, words of the finding, other checks that may find it too)
FAULTS: list[tuple[str, Any, str, set[str]]] = [
    ("cgroup-cores", lambda b: b.proc("sys/fs/cgroup/cpu.max", "50000 100000\n"), "0.5 of a core", set()),
    ("cgroup-cores", lambda b: (b.proc("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "25000\n"),
                                b.proc("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n")), "0.25 of a core", set()),
    ("memory", lambda b: b.proc("proc/meminfo", MEMORY.format(500_000)), "488 MiB", set()),
    ("memory", lambda b: (b.proc("sys/fs/cgroup/memory.max", "300000000"), b.proc("sys/fs/cgroup/memory.stat", ""),
                          b.proc("sys/fs/cgroup/memory.current", "100000000")), "191 MiB", set()),
    ("instructions", lambda b: b.proc("proc/cpuinfo", "flags\t\t: fpu sse sse2 avx\n"), "AVX2", set()),
    ("gpu", lambda b: (b.proc("proc/driver/nvidia/gpus/0000:01/information", ""),
                       b.installs("torch", "2.7.1+cpu")), "without CUDA", set()),
    ("threads-value", _env("OMP_NUM_THREADS", "all"), "'all'", set()),
    ("threads", _env("OMP_NUM_THREADS", str(CORES + 5)), f"is {CORES + 5}", set()),
    ("threads", _planned(threads=CORES + 1), "train.threads", set()),
    ("threads", _both(_env("OMP_NUM_THREADS", str(CORES)), _env("LOCAL_WORLD_SIZE", "3")), "3 processes", set()),
    ("pinned", _env("OMP_PROC_BIND", "close"), "OMP_PROC_BIND", set()),
    ("requirements", lambda b: b.installs("numpy", "1.19.5"), "numpy is 1.19.5", set()),
    ("requirements", lambda b: b.installs("torch", "9.9"), "torch is 9.9, bert-miniatures needs", set()),
    ("requirements", lambda b: b.installs("pyarrow", "99.0", "no-such-package>=3"), "no-such-package is not", set()),
    ("requirements", lambda b: b.installs("tokenizers", "0.21.0", "numpy<1.5"), "tokenizers needs numpy<1.5", set()),
    ("clashes", lambda b: b.installs("onnxruntime-gpu", "1.20.0"), "both installed", set()),
    ("cache", _cache_is_a_file, "is a file", set()),
    ("disk", _no_space, "0.0 GB free", {"cache"}),
    ("offline-value", _env("HF_HUB_OFFLINE", "ja"), "'ja'", set()),
    ("address", _env("HF_ENDPOINT", "mirror.example.org"), "no address", set()),
    ("glue-dir", _env("GLUE_DIR", "/no/such/folder"), "no such folder", set()),
    ("offline", _model_that_is_not_here, "uncased_L-4_H-512_A-8 is not on this machine", set()),
    ("folder", lambda b: (b.folder / "config.json").unlink(), "no config.json", set()),
    ("model-type", lambda b: b.edit("config.json", model_type=None), "no model_type", set()),
    ("label-names", lambda b: b.edit("config.json", id2label={"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"}),
     "LABEL_0", set()),
    ("label-names", lambda b: (b.edit("config.json", id2label=None), (b.folder / "miniature.json").unlink()),
     "no id2label", set()),
    ("label-order", lambda b: b.edit("config.json", id2label={"0": "good", "1": "bad", "2": "žluť"}), "good, bad", set()),
    ("max-length", lambda b: b.edit("tokenizer_config.json", model_max_length=1e30), "1e+30", set()),
    ("max-length", lambda b: b.edit("tokenizer_config.json", model_max_length=None), "missing", set()),
    ("max-length", lambda b: (b.folder / "tokenizer_config.json").unlink(), "no tokenizer_config.json", set()),
    ("lfs-pointer", lambda b: (b.folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
     "Git LFS", set()),
    ("truncated", _truncate, "its table says", set()),
    ("vocabulary", _shorter_vocabulary, "70 pieces, config.json says 73", set()),
    ("vocabulary", lambda b: (b.folder / "vocab.txt").write_text("[PAD]\n"), "no [UNK]", set()),
    ("case", lambda b: b.edit("tokenizer_config.json", do_lower_case=False), "do_lower_case", set()),
    ("pickle", _pickle, "pytorch_model.bin", set()),
    ("readable", _flip, "checksum", set()),
    ("readable", lambda b: b.edit("config.json", num_hidden_layers=3), "config.json says 3", set()),
    ("readable", lambda b: b.edit("config.json", model_type="roberta"), "roberta", set()),
    ("not-finite", _nan, "NaN", set()),
    ("deployed", _damaged_graph, "checksum", set()),
    ("data", lambda b: b.data.update(label="stars"), "stars", set()),
    ("data", lambda b: b.rows("two,columns,more"), "train.csv:133", set()),
    ("data", lambda b: b.rows("fine,neutral", to="dev"), "neutral", set()),
    ("balance", lambda b: b.rows("what a film,odd", "very odd,odd"), "'odd' has 2 rows", {"unseen"}),
    ("balance", lambda b: (b.column(1, ["negative"] * 11 + ["positive"])), "'positive' has 10 rows", set()),
    ("duplicates", _twice, "4 rows of 135", set()),
    ("conflicts", _torn, "more than one label", set()),
    ("leakage", _leak, "1 row of 53", {"conflicts"}),
    ("unseen", _one_class_in_dev, "'positive'", set()),
    ("dev-size", _few_dev, "30 rows", set()),
    ("empty", lambda b: b.rows('" ",positive'), "empty text", set()),
    ("encoding", lambda b: b.rows("cafÃ© good,positive", "trÃ¨s bad,negative"), "encoding", {"unknown-pieces"}),
    ("column", lambda b: b.column(0, [str(i) for i in range(131)]), "are numbers", {"unknown-pieces"}),
    ("lengths", lambda b: b.data.update(max_length=11), "are cut at 11", set()),
    ("unknown-pieces", lambda b: b.column(0, [f"добрый фильм {'a' * (1 + i % 20)} {'b' * (1 + i // 20)}" for i in range(131)]),
     "[UNK]", set()),
    ("batch-size", _planned(batch_size=7), "--batch-size 8", set()),
    ("learning-rate", _planned(learning_rate=2e-4), "published", set()),
    ("epochs", _planned(epochs=1), "1 epoch", {"updates"}),
    ("precision", _planned(precision="bf16"), "bf16", set()),
    ("positions", lambda b: b.data.update(max_length=64) or _planned()(b), "37 positions", set()),
    ("run-memory", lambda b: (b.proc("proc/meminfo", MEMORY.format(1_100_000)),
                              _planned(batch_size=16384)(b)), "micro_batch_size=", {"batch-size", "updates"}),
    ("updates", _planned(batch_size=128), "8 updates", set()),
    ("probe", _planned(learning_rate=3.0), "diverges", {"learning-rate"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "plant", "words", "also"), FAULTS, ids=[f"{i}-{row[0]}" for i, row in enumerate(FAULTS)]
)
def test_a_planted_fault_is_found_and_no_other(bench, name, plant, words, also):
    plant(bench)
    report = bench.examine()
    found = [one for check, one in report.findings if check.name == name]
    assert found, (names(report), report.skipped)
    assert any(words in f"{one.what} {one.why} {one.type}" for one in found), found
    assert set(names(report)) <= {name, *also}, [one.what for _, one in report.findings]
    assert all(one.what and one.why and one.type for _, one in report.findings)


def test_every_check_has_a_planted_fault():
    missing = {check.name for check in CHECKS} - {row[0] for row in FAULTS}
    assert missing <= {"extras"}  # below: an extra cannot be taken away from the environment of the tests
    assert len({check.name for check in CHECKS}) == len(CHECKS)


def test_an_extra_that_is_there_in_part(bench):
    """The packages are those of a folder of our own: this one, and a torch without its companions."""
    own = "bert-miniatures"
    bench.installs(own, "0.1.0", "torch>=2.6; extra == 'train'", "scipy>=1.13; extra == 'train'")
    bench.installs("torch", "2.7.1")
    subject = Subject(paths=(str(bench.site),), root=bench.root)
    ((check, one),) = examine(subject).findings
    assert (check.name, one.type) == ("extras", "pip install 'bert-miniatures[train]'")
    assert "lacks scipy" in one.what
    shutil.rmtree(bench.site / "torch-2.7.1.dist-info")
    assert not examine(Subject(paths=(str(bench.site),), root=bench.root)).findings
    planned = Subject(
        str(bench.folder), DataConfig(max_length=37), planned=True, paths=(str(bench.site),), root=bench.root
    )
    assert [one.what for _, one in examine(planned).findings] == ["the extra 'train' is not installed"]


# ------------------------------------------------------------------------------------------------------- repairs


def _old_folder(bench: Bench) -> None:
    """Make the folder look as old ones do, in all ways that can be repaired."""
    bench.edit("config.json", model_type=None, id2label={"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"})
    (bench.folder / "tokenizer_config.json").unlink()


def test_repairs_put_right_what_they_say_and_touch_nothing_else(bench):
    from transformers import AutoConfig, AutoTokenizer

    kept = {path.name: path.read_bytes() for path in bench.folder.iterdir()}
    _old_folder(bench)
    report = bench.examine()
    assert names(report) == ["model-type", "label-names", "max-length"]
    assert sorted(repair(report)) == [0, 1, 2]
    assert not bench.examine().findings
    changed = {path.name for path in bench.folder.iterdir() if kept[path.name] != path.read_bytes()}
    assert changed <= {"config.json", "tokenizer_config.json"}
    assert set(kept) == {path.name for path in bench.folder.iterdir()}  # nothing half-written either
    assert AutoConfig.from_pretrained(bench.folder).id2label == dict(enumerate(LABELS["single"].names))
    assert AutoTokenizer.from_pretrained(bench.folder).model_max_length == 37


def test_names_that_nobody_knows_are_not_made_up(bench):
    bench.edit("config.json", id2label=None, label2id=None)
    (bench.folder / "miniature.json").unlink()
    report = bench.examine()
    assert names(report) == ["label-names"]
    assert repair(report) == {}


# --------------------------------------------------------------------------------------------------- the command


def test_the_command_says_what_why_and_what_to_type(bench):
    bench.edit("config.json", model_type=None)
    command = ("doctor", "--model", bench.folder, "--train", bench.train, "--dev", bench.dev, "--max-length", 37)
    done = shell()(*command)
    assert done.code == 1, done.err
    assert "has no model_type" in done.out
    assert "   why   " in done.out
    assert "   type  add" in done.out
    document = json.loads(shell()(*command, "--json").out)
    ((check, fixable),) = [(one["check"], one["fixable"]) for one in document["findings"] if one["area"] == "model"]
    assert (check, fixable) == ("model-type", True)
    shell()(*command, "--fix")
    assert not [one for one in json.loads(shell()(*command, "--json").out)["findings"] if one["area"] == "model"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model", "smal"], "did you mean 'small'"),
        (["--task", "mlni"], "did you mean 'mnli'"),
        (["--set", "train.warmpu=0.2"], "train.warmup"),
        (["--learning-rate", "-1"], "learning_rate"),
        (["--task", "cola", "--train", "a.csv"], "not both"),
        (["--dev", "a.csv"], "--train"),
        (["--config", "no.toml"], "no such file"),
    ],
)
def test_wrong_use_is_exit_2(arguments, words):
    done = shell()("doctor", *arguments)
    assert done.code == 2
    assert words in done.err
    assert not done.out


def test_settings_of_a_file_are_a_plan(bench):
    bench.root.joinpath("plan.toml").write_text(
        f'model = "{bench.folder}"\n[data]\ntrain = "{bench.train}"\nmax_length = 37\n[train]\nbatch_size = 128\n'
    )
    done = shell()("doctor", "--config", bench.root / "plan.toml", "--json")
    found = {one["check"] for one in json.loads(done.out)["findings"] if one["area"] == "run"}
    assert (done.code, found) == (1, {"updates"})


def test_torch_is_not_imported_without_a_plan(bench):
    code = (
        "import sys; sys.argv = ['miniatures', 'doctor', *sys.argv[1:]]\n"
        "from bert_miniatures.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.exit(bool({'torch', 'transformers', 'sklearn', 'onnxruntime'} & set(sys.modules)))"
    )
    given = ("--model", bench.folder, "--train", bench.train, "--dev", bench.dev, "--max-length", 37)
    done = subprocess.run([sys.executable, "-c", code, *map(str, given)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "data      train.csv" in done.stdout or "131 rows" in done.stdout
