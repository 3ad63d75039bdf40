"""Free memory as Linux and its control groups tell it, and what a run needs."""

import os
import subprocess
import sys

import pytest

from bert_miniatures.config import FinetuneConfig, ModelConfig
from bert_miniatures.memory import available, run_bytes

MEMINFO = "MemTotal:       16000000 kB\nMemFree:          300000 kB\nMemAvailable:    9000000 kB\n"
TINY = ModelConfig(vocab_size=30522, hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512)


def write(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_the_machine_alone(tmp_path):
    write(tmp_path, {"proc/meminfo": MEMINFO})
    assert available(tmp_path) == 9_000_000 * 1024


@pytest.mark.parametrize(
    ("limit", "used", "stat", "free"),
    [("4000", "3000", "anon 5\ninactive_file 700\n", 1700), ("max", "3000", "", 9_000_000 * 1024), ("4000", "5000", "anon 1\n", 0)],
)  # fmt: skip
def test_cgroup_v2(tmp_path, limit, used, stat, free):
    group = "sys/fs/cgroup/memory"
    write(tmp_path, {"proc/meminfo": MEMINFO, f"{group}.max": limit, f"{group}.current": used, f"{group}.stat": stat})
    assert available(tmp_path) == free


def test_cgroup_v1(tmp_path):
    group = "sys/fs/cgroup/memory/memory"
    files = {
        f"{group}.limit_in_bytes": "10000",
        f"{group}.usage_in_bytes": "9000",
        f"{group}.stat": "total_inactive_file 50\n",
    }
    write(tmp_path, {"proc/meminfo": MEMINFO, **files})
    assert available(tmp_path) == 1050


def test_nothing_is_known(tmp_path):
    assert available(tmp_path) is None


def test_here_it_is_between_nothing_and_all_of_it():
    if not os.path.exists("/proc/meminfo"):
        pytest.skip("no /proc here")
    assert 0 < available() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def config(**train) -> FinetuneConfig:
    return FinetuneConfig.of({"model": "tiny", "data": {"task": "sst2", "max_length": 128}, "train": train})


def test_a_run_needs_more_for_larger_batches_models_and_data_and_less_for_micro_batches():
    small, large = run_bytes(config(batch_size=8), TINY, 0), run_bytes(config(batch_size=128), TINY, 0)
    base = TINY.model_copy(update={"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12})
    assert (
        small < large < run_bytes(config(batch_size=128), TINY, 10**8) < run_bytes(config(batch_size=128), base, 10**8)
    )
    assert run_bytes(config(batch_size=128, micro_batch_size=8), TINY, 0) == small


@pytest.mark.slow
def test_the_estimate_covers_a_real_run_and_is_not_ten_times_too_high(tiny, reviews, tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from bert_miniatures.recipes.finetune import finetune\n"
        "finetune(sys.argv[1], sys.argv[2], data={'train': sys.argv[3], 'max_length': 32}, train={'epochs': 1, 'threads': 1})\n"
        # not ru_maxrss, which a child process inherits from the one that started it
        "print(1024 * int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny), str(tmp_path / "run"), str(reviews[0])],
        capture_output=True,
        text=True,
        check=True,
    )
    used = int(done.stdout.strip().splitlines()[-1])
    from bert_miniatures.files import read_json

    sizes = ModelConfig.of(read_json(tiny / "config.json"), "config.json")
    estimate = run_bytes(FinetuneConfig.of({"model": "x", "data": {"max_length": 32}}), sizes, 10_000)
    assert 0.7 * used < estimate < 10 * used
