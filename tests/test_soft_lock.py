"""Processes that want the same answers of a teacher at once: one works, the others wait, all end right."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bert_miniatures import soft_labels
from bert_miniatures.checkpoint import Labels, read_folder, write_folder
from bert_miniatures.model import build
from bert_miniatures.predict import Predictor
from commands import environment, until

# Reads the inputs of a distillation once the files named exist: the other processes are there, the holder has the lock.
SCRIPT = """
import json, sys, time
from pathlib import Path
from bert_miniatures.distill_config import DistillConfig
from bert_miniatures.recipes import label as labelling
from bert_miniatures.recipes.soft_loading import load_soft_inputs
from bert_miniatures.recipes.teachers import FolderTeacher
from bert_miniatures.watch import Watch

settings, name, others, hangs = json.loads(sys.argv[1])
labelling.PART, real = 17, FolderTeacher.answer

def slowly(self, texts, pairs):
    found = real(self, texts, pairs)
    if hangs and Path(hangs).exists():
        time.sleep(1000)
    if hangs:
        Path(hangs).touch()
    time.sleep(0.05)
    return found

FolderTeacher.answer = slowly

class Tells(Watch):
    def note(self, text):
        if "answers" in text:
            print("worked", flush=True)

Path(name).touch()
while not all(Path(other).exists() for other in others):
    time.sleep(0.005)
inputs = load_soft_inputs(DistillConfig.of(settings), Tells())
print(json.dumps(inputs.data["train"].teacher.tolist()))
"""


@pytest.fixture
def teacher(tiny, tmp_path) -> Path:
    found = read_folder(tiny)
    weights = build(found.config, found.weights, groups={"pooler", "head"}, classes=2, seed=3).weights()
    labels = Labels("classification", ("negative", "positive"), task="own", max_length=31)
    write_folder(tmp_path / "teacher", replace(found, weights=weights, labels=labels), card="# teacher\n")
    return tmp_path / "teacher"


def begin(home: Path, settings: dict, name: str, others: list[str], hangs: str = "") -> subprocess.Popen[str]:
    given = json.dumps(
        [settings, str(home / name), [str(home / other) for other in others], hangs and str(home / hangs)]
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, given], env=environment(home), cwd=home, **pipes)


def settings_of(tiny: Path, teacher: Path, reviews: tuple[Path, Path]) -> dict:
    data = {"train": str(reviews[0]), "dev": str(reviews[1]), "max_length": 32}
    return {"model": str(tiny), "teacher": [str(teacher)], "data": data}


def answers(teacher: Path, reviews: tuple[Path, Path]) -> np.ndarray:
    return Predictor(teacher).logits([line.rsplit(",", 1)[0] for line in reviews[0].read_text().splitlines()[1:]])


def test_the_work_is_done_once_and_goes_on_when_its_holder_is_killed(tiny, teacher, reviews, tmp_path):
    settings, parts = settings_of(tiny, teacher, reviews), tmp_path / "cache" / "teachers"
    holder = begin(tmp_path, settings, "holder", [], hangs="begun")
    others = [begin(tmp_path, settings, name, ["begun", "a", "b"]) for name in ("a", "b")]
    until(lambda: list(parts.glob("*.parts/000000.parquet")) or holder.poll() is not None)
    first = next(parts.glob("*.parts/000000.parquet"))
    inode, hashes = first.stat().st_ino, soft_labels.read(first).hashes
    for process in others:
        assert process.stderr is not None
        assert "waiting for it" in process.stderr.readline()
        assert process.poll() is None
    assert (first.stat().st_ino, len(hashes)) == (inode, 17)  # nobody wrote over it
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    said = [process.communicate(timeout=120) for process in others]
    assert [process.returncode for process in others] == [0, 0], said
    assert sum(out.count("worked") for out, _ in said) == 2  # the texts to learn from, and dev
    for out, _ in said:
        np.testing.assert_allclose(json.loads(out.splitlines()[-1]), answers(teacher, reviews), atol=1e-5)
    assert len(list(parts.glob("*.parquet"))) == 2
    assert not list(parts.glob("*.parts"))
