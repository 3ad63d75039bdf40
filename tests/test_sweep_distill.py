"""Sweeps of distillations: the plan, what the teacher is asked, budget and search, faults."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from bert_miniatures.budget import fit
from bert_miniatures.checkpoint import Labels, read_folder, write_folder
from bert_miniatures.config import read_toml
from bert_miniatures.distill_config import DistillConfig
from bert_miniatures.errors import ConfigError, DataError, UnknownName, UserError
from bert_miniatures.forecast import cost_key
from bert_miniatures.model import build
from bert_miniatures.plan import SweepConfig, expand, places
from bert_miniatures.recipes.distill import run_distill
from bert_miniatures.recipes.label import label
from bert_miniatures.recipes.sweep import run_sweep
from bert_miniatures.watch import Watch
from commands import shell

GRID = {"temperature": [1, 2.5], "learning_rate": [3e-3, 1e-9], "epochs": [2]}


class Heard(Watch):
    """Remembers what was said."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def progress(self, done: int, total: int, text: str = "", left: float | None = None) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def teacher(tiny, tmp_path_factory) -> Path:
    """Write a random classifier that is sure of what it says."""
    folder, found = tmp_path_factory.mktemp("teachers") / "of-own", read_folder(tiny)
    weights = build(found.config, found.weights, groups={"pooler", "head"}, classes=2, seed=3).weights()
    weights["head.weight"] *= 20
    labels = Labels("classification", ("negative", "positive"), task="own", max_length=31)
    write_folder(folder, replace(found, weights=weights, labels=labels), card="# teacher\n")
    return folder


@pytest.fixture(scope="module")
def texts(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "more.txt"
    path.write_text("".join(f"good {letter} film\nbad {letter}\n" for letter in "abcdefghijklmnopqrstuvw"))
    return path


def plan_of(tiny, reviews, teacher, **changes) -> SweepConfig:
    document = {
        "models": [str(tiny)],
        "data": {"train": str(reviews[0]), "dev": str(reviews[1]), "max_length": 31},
        "grid": GRID,
        "train": {"save_every": 0, "batch_size": 16},
        "distill": {"teacher": [str(teacher)]},
    }
    return SweepConfig.of(document | changes)


# ------------------------------------------------------------------------------------------- the plan


def test_cells_are_distillations_and_their_names_say_what_is_not_usual():
    distill = {"teacher": ["runs/{task}/teacher", "p.jsonl"], "transfer": ["{task}.txt"], "label_weight": 0.5}
    grid = {
        "learning_rate": [1e-4],
        "temperature": [1.0, 2],
        "augment": [0, 3000],
        "labelled": [True, False],
        "warmup": [0.0],
    }
    document = {
        "models": ["tiny"],
        "tasks": ["mrpc", "rte"],
        "data": {"glue": "g"},
        "grid": grid,
        "distill": distill,
        "seeds": 2,
    }
    cells = expand(SweepConfig.of(document | {"distill": distill | {"label_weight": 0.0}}))
    assert len(cells) == 2 * 8 * 2
    assert next(iter(cells)) == "tiny/mrpc/distilled-bs32-lr1e-4-warmup0-seed1"
    config = cells["tiny/rte/distilled-bs32-lr1e-4-augment3000-labelled-False-temperature2-warmup0-seed2"]
    assert isinstance(config, DistillConfig)
    assert config.teacher == ("runs/rte/teacher", "p.jsonl")
    assert config.transfer == (Path("rte.txt"),)
    assert (config.augment, config.labelled, config.temperature, config.train.seed) == (3000, False, 2.0, 2)
    assert config.finetune == config.train
    assert len({cost_key(one) for one in cells.values()}) == 2 * 4  # other rows cost otherwise, temperatures do not
    assert {len(place) for place in places(cells).values()} == {3}
    with pytest.raises(ConfigError, match="label_weight needs the labelled texts"):
        expand(SweepConfig.of(document))


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"grid": {"temprature": [1]}}, UnknownName, "did you mean 'grid.temperature'"),
        ({"distill": None}, ConfigError, "grid.temperature is of a distillation; name its teacher"),
        ({"distill": {"temperature": 2}}, ConfigError, "'distill.teacher' is missing"),
        ({"distill": {"teacher": ["x"], "tempreature": 2}}, UnknownName, "did you mean 'distill.temperature'"),
        (
            {"distill": {"teacher": ["x"], "then_finetune": True}},
            UnknownName,
            "unknown setting 'distill.then_finetune'",
        ),
        ({"grid": {"class_weights": ["balanced"]}}, ConfigError, "class_weights weigh labels"),
    ],
)
def test_plans_that_cannot_work(changes, error, said, tiny, reviews, teacher):
    with pytest.raises(error, match=said):
        expand(plan_of(tiny, reviews, teacher, **changes))


# ------------------------------------------------------------------------------------------- the work


@pytest.fixture(scope="module")
def swept(tiny, reviews, teacher, texts, tmp_path_factory) -> tuple[Path, Path, list[str]]:
    """A finished sweep of four cells, its cache, and what was said."""
    cache = tmp_path_factory.mktemp("cache")
    os.environ["MINIATURES_HOME"] = str(cache)
    out, heard = tmp_path_factory.mktemp("sweeps") / "out", Heard()
    plan = plan_of(tiny, reviews, teacher, distill={"teacher": [str(teacher)], "transfer": [str(texts)], "augment": 23})
    summary = run_sweep(plan, out, workers=1, watch=heard)
    assert (summary.done, summary.failed) == (4, {})
    assert summary.choices[0].cells == 4
    return out, cache, heard.notes


def runs(out: Path) -> dict[str, Path]:
    return {str(path.parent.relative_to(out)): path for path in sorted(out.rglob("result.json"))}


def test_the_teacher_is_asked_before_the_first_cell_and_never_again(swept, tiny, reviews, teacher, texts, monkeypatch):
    out, cache, notes = swept
    answers = {path: path.stat().st_mtime_ns for path in (cache / "teachers").glob("*.parquet")}
    assert len(answers) == 3  # the texts there are, those that were made, and dev
    first = min(path.with_name("run.toml").stat().st_mtime_ns for path in runs(out).values())
    assert max(answers.values()) < first
    asked = notes.index("texts answered by the teacher")
    assert asked < next(i for i, text in enumerate(notes) if "4 cells, 1 at once" in text)
    monkeypatch.setenv("MINIATURES_HOME", str(cache))
    distill = {"teacher": [str(teacher)], "transfer": [str(texts)], "augment": 23}
    larger = plan_of(tiny, reviews, teacher, distill=distill, grid=GRID | {"temperature": [1, 2.5, 4]})
    assert run_sweep(larger, out, workers=1).done == 6
    assert {path: path.stat().st_mtime_ns for path in (cache / "teachers").glob("*.parquet")} == answers


def test_cells_are_run_folders_with_a_teacher_and_only_the_best_has_weights(swept):
    out, _, _ = swept
    assert len(list(out.rglob("model.safetensors"))) == 1
    for name, path in runs(out).items():
        result = json.loads(path.read_text())
        assert name.startswith("tiny/train/distilled-bs16-lr")
        assert result["texts"] == result["texts"] | {"labelled": 131, "augmented": 23}
        assert result["teachers"][0]["name"].endswith("of-own")
        assert ("temperature2.5" in name) == (result["temperature"] == 2.5)
        assert [row["texts_per_second"] for row in result["comparison"]] == [None] * 3


def test_a_cell_is_the_same_run_as_distill_makes(swept, tmp_path, monkeypatch):
    out, cache, _ = swept
    monkeypatch.setenv("MINIATURES_HOME", str(cache))
    name = "tiny/train/distilled-bs16-lr3e-3-epochs2-temperature2.5-seed1"
    config = DistillConfig.of(read_toml(out / name / "run.toml"))
    alone = run_distill(config, tmp_path / "run", measure=False)
    there = json.loads((out / name / "result.json").read_text())
    assert (alone["scores"], alone["data_sha256"]) == (there["scores"], there["data_sha256"])


def test_a_search_and_a_budget_over_a_file_of_answers(tiny, reviews, tmp_path):
    pytest.importorskip("optuna", reason="the 'sweep' extra is not installed")
    # a teacher that is right: what is chosen is judged by the labels of dev, which a random one leads away from
    rows = [line.rsplit(",", 1) for path in reviews for line in path.read_text().splitlines()[1:]]
    sure = {"positive": {"positive": 0.97, "negative": 0.03}, "negative": {"positive": 0.03, "negative": 0.97}}
    said = {text: {"text": text, "probabilities": sure[name]} for text, name in rows}
    (tmp_path / "said.jsonl").write_text("".join(json.dumps(row) + "\n" for row in said.values()))
    label(tmp_path / "said.jsonl", tmp_path / "l.parquet", files=reviews)
    grid = {"temperature": [1, 2, 3], "learning_rate": [3e-3, 1e-9], "epochs": [8]}
    plan = plan_of(tiny, reviews, tmp_path / "l.parquet", grid=grid)
    summary = run_sweep(plan, tmp_path / "out", workers=1, adaptive=True, budget=3600.0)
    assert 1 <= summary.done < 6
    assert "lr1e-9" not in str(summary.choices[0].run.path)
    assert f"{6 - summary.done} cells left behind early" in summary.left_out[0]
    assert not (Path(os.environ["MINIATURES_HOME"]) / "teachers").exists()
    cells = expand(plan)
    kept, left_out = fit(cells, dict.fromkeys(cells, 10.0), 25.0, 1, first_seed=1)
    assert [cells[name].temperature for name in kept] == [2.0, 2.0]  # the middle of the grid
    assert "2 of 6 cells of the grid" in left_out[0]
    with pytest.raises(ConfigError, match=r"is here with other settings: .* has label_weight = 0.0, now it is 0.5"):
        run_sweep(plan_of(tiny, reviews, tmp_path / "l.parquet", grid=grid, distill={
            "teacher": [str(tmp_path / "l.parquet")], "label_weight": 0.5}), tmp_path / "out", workers=1)  # fmt: skip


def test_what_cannot_be_taught_ends_the_sweep_before_it_begins(tiny, reviews, teacher, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"none.txt: no such file"):
        run_sweep(plan_of(tiny, reviews, teacher, distill={"teacher": [str(teacher)], "transfer": ["none.txt"]}), out)
    with pytest.raises(UnknownName, match="unknown model 'nobody'"):
        run_sweep(plan_of(tiny, reviews, "nobody"), out)
    assert not out.exists()
    (tmp_path / "yes.csv").write_text("text,label\n" + "good,yes\nbad,no\n" * 9)
    data = {"train": str(tmp_path / "yes.csv"), "max_length": 31}
    with pytest.raises(UserError, match=r"tiny/yes: .*negative, positive"):
        run_sweep(plan_of(tiny, reviews, teacher, data=data), out, workers=1)
    assert not runs(out)


def test_the_command(tiny, reviews, teacher, tmp_path):
    (tmp_path / "grid.toml").write_text("[grid]\ntemperature = [2]\nepochs = [1]\n")
    given = (
        "sweep",
        "--model",
        tiny,
        "--train",
        reviews[0],
        "--grid",
        tmp_path / "grid.toml",
        "--out",
        tmp_path / "out",
    )
    assert "grid.temperature is of a distillation" in shell()(*given).error
    assert "unknown model 'nobody'" in shell()(*given, "--teacher", "nobody").error
    taught = (*given, "--teacher", teacher)
    assert shell()(*taught, "--transfer", "none.txt").error == "none.txt: no such file"
    assert "label_weight = 2" in shell()(*taught, "--set", "distill.label_weight=2").error
    assert not (tmp_path / "out").exists()
