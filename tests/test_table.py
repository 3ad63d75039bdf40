"""Tables of runs: the published layout and Score, choosing cells, noise, what is said when a number is doubtful."""

import csv
import doctest
import io
import json
import math
import random
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_miniatures import choice, cli, results, table, traps
from bert_miniatures.choice import Cell, choose, noise, standard_error
from bert_miniatures.data.tasks import TASKS
from bert_miniatures.errors import DataError, UnknownName
from bert_miniatures.predictions import Predictions, write
from bert_miniatures.results import RunResult, collect
from bert_miniatures.table import glue_score, glue_table, own_table, render
from bert_miniatures.traps import order_warning
from bert_miniatures.watch import Watch
from bert_miniatures.zoo import PUBLISHED

HEADINGS = [
    "Model",
    "Score",
    "CoLA",
    "SST-2",
    "MRPC",
    "STS-B",
    "QQP",
    "MNLI-m",
    "MNLI-mm",
    "QNLI(v2)",
    "RTE",
    "WNLI",
    "AX",
]
SEEDS = (0.71, 0.73, 0.78)


def document(task: str, *values: float | None, **more: Any) -> dict[str, Any]:
    """What result.json of a run on the whole official data holds; the values are those of the task's metrics on dev."""
    found = TASKS[task]
    splits = {name: found.splits[found.split_named(name)].rows for name in ("train", "dev")}
    scores = {"dev": dict(zip(found.metrics, values, strict=False))}
    if task == "mnli":
        scores["dev_mismatched"] = {"accuracy": values[1]}
        splits["dev_mismatched"] = 9_832
    return {
        "scores": scores, "finding": None, "task": task, "metric": found.metrics[0], "labels": list(found.labels),
        "model": "tiny", "layers": 2, "width": 128, "parent_sha256": "ab", "keep": "last", "epoch": 4.0, "steps": 100,
        "seed": 1, "batch_size": 32, "learning_rate": 1e-4, "epochs": 4, "rows": splits,
        "data_sha256": {name: f"{task}-{name}" for name in splits}, "warnings": [], "device": "cpu", "threads": 1,
        "versions": {}, "seconds": 1.0, "finished": "2026-01-01T00:00:00+00:00",
    } | more  # fmt: skip


def put(folder: Path, found: dict[str, Any], settings_: str | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(found))
    if settings_ is not None:
        (folder / "run.toml").write_text(settings_)
    return folder


def run(*values: float | None, task: str = "rte", **more: Any) -> RunResult:
    return RunResult(path=Path(f"runs/{random.random()}"), **document(task, *values, **more))


# ------------------------------------------------------------------------------------------------------ Score


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_formula_gives_the_published_scores(name):
    assert glue_score(PUBLISHED[name]) == pytest.approx(PUBLISHED[name]["score"][0], abs=0.1)


def test_the_score_of_tiny_to_two_places():
    assert round(glue_score(PUBLISHED["tiny"]), 2) == 64.14


@pytest.mark.parametrize("task", [task for task in TASKS if task != "ax"])
def test_there_is_no_score_of_fewer_tasks(task):
    row = dict(PUBLISHED["mini"])
    numbers = row.pop(task)
    assert glue_score(row) is None
    assert glue_score(row | {task: (None, *numbers[1:])}) is None
    assert glue_score({name: value for name, value in PUBLISHED["mini"].items() if name != "ax"}) is not None


# ---------------------------------------------------------------------------------------------------- finding


def test_collect_takes_finished_runs_and_says_what_it_leaves_out(tmp_path):
    put(tmp_path / "a" / "one", document("rte", 0.6))
    put(tmp_path / "a" / "two" / "deep", document("cola", 0.1, seed=7))
    put(tmp_path / "a" / "one" / "model" / "inner", document("rte", 0.9))
    put(tmp_path / "a" / ".one.tmp", document("rte", 0.9))
    (tmp_path / "a" / "begun").mkdir()
    (tmp_path / "a" / "begun" / "run.toml").write_text("model = 'tiny'")
    put(tmp_path / "a" / "cut", document("rte", 0.6)).joinpath("result.json").write_text('{"task": "rte", ')
    put(tmp_path / "a" / "other", {"scores": {}})
    put(tmp_path / "a" / "list", [])  # type: ignore[arg-type]
    put(tmp_path / "a" / "word", document("rte", 0.6, seed="first"))
    put(tmp_path / "a" / "nan", document("rte", math.nan))
    put(tmp_path / "a" / "toml", document("rte", 0.6), settings_="model = ")
    (tmp_path / "a" / "failed").mkdir()
    (tmp_path / "a" / "failed" / "run.toml").write_text("model = 'tiny'")
    (tmp_path / "a" / "failed" / "failed.json").write_text('{"reason": "killed by signal 9", "exit": 1}')
    watch = Watch()
    found = collect([tmp_path / "a", tmp_path / "a" / "one"], watch)
    assert [one.path.relative_to(tmp_path).as_posix() for one in found] == ["a/one", "a/two/deep"]
    assert found[1].seed == 7
    said = sorted(text.replace(f"{tmp_path}/a/", "") for text in watch.warnings)
    assert said == [
        "begun: not finished; left out",
        "cut/result.json:1: not JSON (Expecting property name enclosed in double quotes); left out",
        "failed: failed (killed by signal 9); left out",
        "list/result.json: expected an object with the run's scores; left out",
        "nan/result.json: 'scores.dev.accuracy': input should be a finite number; left out",
        "other/result.json: 'task': field required; left out",
        "toml/run.toml: Invalid value (at end of document); left out",
        "word/result.json: 'seed': input should be a valid integer, unable to parse string as an integer; left out",
    ]
    with pytest.raises(DataError, match="no such folder"):
        collect([tmp_path / "b"])


def test_a_model_has_one_name_whatever_the_run_calls_it():
    names = ("tiny", "2/128", "uncased_L-2_H-128_A-2", "google/bert_uncased_L-2_H-128_A-2")
    assert {run(0.5, model=name).name for name in names} == {"2/128"}
    assert run(0.5, model="models/mine").name == "models/mine"


# --------------------------------------------------------------------------------------------------- choosing


def test_the_best_mean_wins_and_not_the_best_seed():
    lucky = [run(value, seed=seed, batch_size=8) for seed, value in enumerate((0.80, 0.60, 0.61))]
    steady = [run(value, seed=seed, batch_size=16) for seed, value in enumerate(SEEDS)]
    (found,) = choose([*lucky, *steady, run(0.7, batch_size=64)])
    assert (found.cells, found.seeds, found.label) == (3, 3, "16, 1e-4, 4")
    assert found.mean == pytest.approx(statistics.fmean(SEEDS))
    assert found.deviation == pytest.approx(np.std(SEEDS, ddof=1))
    assert found.run is steady[2]
    assert found.scores["dev"]["accuracy"] == pytest.approx(found.mean)


def test_other_settings_are_another_cell(tmp_path):
    put(tmp_path / "a", document("rte", 0.6), 'model = "tiny"\n[train]\nseed = 1\noptimizer = "adamw"\nthreads = 1')
    put(tmp_path / "b", document("rte", 0.7, seed=2), 'model = "2/128"\n[train]\nseed = 2\noptimizer = "adamw"')
    put(tmp_path / "c", document("rte", 0.4, seed=3), 'model = "tiny"\n[train]\nseed = 3\noptimizer = "bertadam"')
    (found,) = choose(collect([tmp_path]))
    assert (found.cells, found.seeds) == (2, 2)
    assert found.mean == pytest.approx(0.65)


def test_the_same_seed_twice_counts_once():
    first, second = run(0.6), run(0.6)
    (found,) = choose([first, second])
    assert (found.cells, found.seeds) == (1, 1)
    assert found.warnings == (f"{second.path}: same settings and seed as {first.path}; counted once",)


def test_failed_runs_count_as_tried_and_never_win():
    failed = run(batch_size=8, scores={}, finding="the loss became nan at step 3 of 9")
    half = [run(0.9, batch_size=16), run(None, batch_size=16, seed=2)]
    good = run(0.5, batch_size=32)
    (found,) = choose([failed, *half, good])
    assert (found.run, found.cells) == (good, 3)
    assert found.warnings[0].startswith("BERT-Tiny on RTE: 2 of 4 runs have no score on dev: runs/")
    assert found.warnings[0].endswith("(the loss became nan at step 3 of 9)")
    (nothing,) = choose([failed])
    assert (nothing.mean, nothing.deviation, nothing.cells) == (None, None, 1)


def test_a_finding_of_the_chosen_run_is_said():
    (found,) = choose([run(0.5, finding="all 277 predictions are 'entailment'")])
    assert found.warnings == (f"{found.run.path}: all 277 predictions are 'entailment'",)


def test_scores_on_other_dev_data_do_not_compare():
    small = run(0.99, rows={"dev": 10}, data_sha256={"dev": "other"})
    (found,) = choose([small, run(0.6)])
    assert found.mean == 0.6
    assert "1 of 2 runs were scored on other dev data than the 277 rows" in found.warnings[0]
    (found,) = choose([run(0.6), run(0.61, seed=2, parent_sha256="cd")])
    assert "began from 2 different sets of weights" in found.warnings[0]


def test_too_close_cells_are_said():
    near = [run(0.60), run(0.59, batch_size=8)]
    (found,) = choose(near)
    expected = 100 * math.sqrt(0.6 * 0.4 / 277 + 0.59 * 0.41 / 277)
    assert found.warnings == (
        f"BERT-Tiny on RTE: the best two of 2 cells differ by 1.0 points of accuracy, no more than the noise of "
        f"{expected:.1f} (one seed, 277 dev rows): batch 32, 1e-4, 4 epochs and batch 8, 1e-4, 4 epochs; another seed may "
        "turn them round",
    )
    assert choose([run(0.60), run(0.50, batch_size=8)])[0].warnings == ()
    seeds = [run(value, seed=i) for i, value in enumerate((0.600, 0.601))]
    seeds += [run(value, seed=i, batch_size=8) for i, value in enumerate((0.590, 0.591))]
    assert choose(seeds)[0].warnings == ()  # one point is much where seeds hardly differ
    assert choose([run(0.6), run(0.6, batch_size=8)])[0].warnings


def test_settings_of_the_grid_are_named_once(tmp_path):
    for name, changes in (("a", {}), ("b", {"batch_size": 8, "learning_rate": 3e-4})):
        settings = {"batch_size": 32, "learning_rate": 1e-4, "epochs": 4} | changes
        lines = [f"{key} = {value}" for key, value in settings.items()]
        warmup = "warmup = 0.2" if name == "b" else ""
        put(tmp_path / name, document("rte", 0.6, **settings), "\n".join(['model = "tiny"', "[train]", *lines, warmup]))
    (found,) = choose(collect([tmp_path]))
    assert found.warnings[0].endswith(
        ": batch 32, 1e-4, 4 epochs and batch 8, 3e-4, 4 epochs, train.warmup = 0.2; another seed may turn them round"
    )


def test_the_best_cell_has_a_standard_error():
    (alone,) = choose([run(0.6)])
    assert alone.error == pytest.approx(math.sqrt(0.6 * 0.4 / 277)) == standard_error("accuracy", 0.6, 277)
    (several,) = choose([run(score, seed=i) for i, score in enumerate((0.6, 0.62, 0.67))])
    assert several.error == pytest.approx(np.std((0.6, 0.62, 0.67), ddof=1) / math.sqrt(3))
    assert choose([run(None)])[0].error is None


def cell(*scores: float) -> Cell:
    return Cell(tuple(run(score, seed=i) for i, score in enumerate(scores)), scores)


def test_noise_of_several_seeds_is_the_pooled_deviation():
    from scipy import stats

    first, second = (0.71, 0.75, 0.76), (0.70, 0.74)
    found, words = noise("accuracy", cell(*first), cell(*second), [cell(*first), cell(*second)], 277)
    t = stats.ttest_ind(first, second).statistic  # Student's t is the gap over the same standard error
    assert found == pytest.approx((np.mean(first) - np.mean(second)) / t)
    assert words.startswith("seeds deviate by 2.7")


def test_noise_of_one_seed_is_what_drawing_other_rows_does():
    """The formulas against a simulation: many dev sets of N rows, two models that are equally good."""
    drawn, n = np.random.default_rng(17), 499
    gold = drawn.integers(0, 2, (4_000, n))
    answers = np.where(drawn.random(gold.shape) < 0.8, gold, 1 - gold)
    accuracy = (answers == gold).mean(1)
    both, one, other = (gold * answers).mean(1), gold.mean(1), answers.mean(1)
    matthews = (both - one * other) / np.sqrt(one * (1 - one) * other * (1 - other))
    x = drawn.standard_normal(gold.shape)
    y = 0.6 * x + 0.8 * drawn.standard_normal(gold.shape)
    pearson = np.array([np.corrcoef(a, b)[0, 1] for a, b in zip(x, y, strict=True)])
    for metric, scores in (("accuracy", accuracy), ("matthews", matthews), ("pearson", pearson)):
        mean = float(scores.mean())
        found, words = noise(metric, cell(mean), cell(mean), [cell(mean)] * 2, n)
        assert found == pytest.approx(math.sqrt(2) * scores.std(), rel=0.06), metric
        assert words == "one seed, 499 dev rows"


@settings(max_examples=50, deadline=None)
@given(scores=st.lists(st.tuples(st.sampled_from([8, 16, 32]), st.integers(0, 3), st.floats(0, 1)), min_size=1, max_size=12, unique_by=lambda t: t[:2]), seed=st.integers(0, 99))  # fmt: skip
def test_the_choice_does_not_depend_on_the_order(scores, seed):
    runs = [run(score, batch_size=batch, seed=number) for batch, number, score in scores]
    mixed = list(runs)
    random.Random(seed).shuffle(mixed)
    (first,), (second,) = choose(runs), choose(mixed)
    assert first.mean == pytest.approx(second.mean)
    assert first.cells == second.cells == len({batch for batch, _, _ in scores})
    means = [statistics.fmean(s for b, _, s in scores if b == batch) for batch in {b for b, _, _ in scores}]
    assert first.mean == pytest.approx(max(means))


# ------------------------------------------------------------------------------------------------------ tables

NUMBERS = {
    "cola": (0.05,), "sst2": (0.832,), "mrpc": (0.82, 0.72), "stsb": (0.75, 0.74), "qqp": (0.80, 0.84),
    "mnli": (0.70, 0.71), "qnli": (0.81,), "rte": (0.58,), "wnli": (0.56,),
}  # fmt: skip


def all_tasks(**more: Any) -> list[RunResult]:
    return [run(*numbers, task=task, **more) for task, numbers in NUMBERS.items()]


def test_the_published_layout():
    found = glue_table(
        [*all_tasks(), *all_tasks(seed=2), *(run(0.01, task="rte", batch_size=8, seed=s) for s in (1, 2))]
    )
    lines = list(csv.reader(io.StringIO(found.csv())))
    assert lines[0] == HEADINGS
    score = statistics.fmean((5, 83.2, 77, 74.5, 82, 70.5, 81, 58, 56))
    rows = {line[0]: line[1:] for line in lines[1:]}
    ours = ["5.0", "83.2", "82.0/72.0", "75.0/74.0", "80.0/84.0", "70.0", "71.0", "81.0", "58.0", "56.0"]
    assert rows["BERT-Tiny (ours, dev)"] == [f"{score:.1f}", *ours, ""]
    theirs = [
        "64.2",
        "0.0",
        "83.2",
        "81.1/71.1",
        "74.3/73.6",
        "62.2/83.4",
        "70.2",
        "70.3",
        "81.5",
        "57.2",
        "62.3",
        "21.0",
    ]
    assert rows["BERT-Tiny (published, test)"] == theirs
    difference = ["+5.0", "+0.0", "+0.9/+0.9", "+0.7/+0.4", "+17.8/+0.6", "-0.2", "+0.7", "-0.5", "+0.8", "-6.3"]
    assert rows["BERT-Tiny (difference)"] == [f"{score - 64.2:+.1f}", *difference, ""]
    assert rows["BERT-Tiny (cells)"] == ["", *("1" if name != "RTE" else "2" for name in HEADINGS[2:-1]), ""]
    assert rows["BERT-Tiny (seeds)"] == ["", *["2"] * 10, ""]
    assert rows["BERT-Tiny (best cell)"][1] == "32, 1e-4, 4"
    assert rows["BERT-Tiny (standard deviation of seeds)"] == ["", *["0.0"] * 6, "", *["0.0"] * 3, ""]
    assert rows["BERT-Tiny (standard error)"][1] == "0.0"  # pooled over seeds, which agree
    assert len(rows) == 8


def test_markdown_has_a_line_per_row_and_the_notes():
    found = glue_table([*all_tasks(model="a|b", layers=3, width=7), run(0.6)])
    lines = found.markdown().splitlines()
    assert lines[0] == f"|{'|'.join(HEADINGS)}|"
    assert lines[1] == "|" + "---|" * 13
    assert lines[2].startswith("|a\\|b (ours, dev)|65.")
    assert not any("published" in line for line in lines[3:6])
    notes = [line for line in lines if line.startswith("- ")]
    assert any("dev scores" in note and "test scores" in note for note in notes)
    assert (
        "- BERT-Tiny: no Score, for CoLA, SST-2, MRPC, STS-B, QQP, MNLI-m, MNLI-mm, QNLI(v2), WNLI are missing" in notes
    )
    for task in NUMBERS:
        assert f"- {TASKS[task].notes[0]}" in notes
    only = glue_table([run(0.6)])
    assert TASKS["rte"].notes[0] in only.notes
    assert TASKS["wnli"].notes[0] not in only.notes


def test_a_folder_is_compared_with_the_published_model_of_its_size():
    found = glue_table([run(0.6, model="models/mine")])
    assert [row.what for row in found.rows[:3]] == [
        "ours, dev",
        "published BERT-Tiny, the same size, test",
        "difference",
    ]
    medium = glue_table([run(0.6, model="6/512")])
    assert [row.model for row in medium.rows] == ["BERT 6/512"] * 5
    assert [row.what for row in medium.rows] == ["ours, dev", "standard error", "cells", "seeds", "best cell"]


def test_half_of_mnli_and_partial_data_are_said():
    half = document("mnli", 0.7, 0.6, rows={"train": 32_717, "dev": 9_815})
    del half["scores"]["dev_mismatched"]
    rest = [one for one in all_tasks() if one.task != "mnli"]
    found = glue_table([*rest, RunResult(path=Path("runs/mnli"), **half)])
    assert found.rows[0].values[0] is None
    assert (found.rows[0].values[6], found.rows[0].values[7]) == ((70.0,), None)
    assert "BERT-Tiny: no Score, for MNLI-mm is missing" in found.notes
    assert "BERT-Tiny: MNLI is partial data: 32,717 of 392,702 train rows" in found.notes


def test_half_of_a_pair_is_shown_as_such():
    found = glue_table([run(None, 0.7, task="mrpc"), *(one for one in all_tasks() if one.task != "mrpc")])
    assert found.csv().splitlines()[1].split(",")[5] == "-/70.0"
    assert found.csv().splitlines()[3].split(",")[4] == "-/-1.1"
    assert "BERT-Tiny: no Score, for MRPC is missing" in found.notes


def test_json_keeps_numbers_as_they_are():
    found = json.loads(render({"glue": glue_table(all_tasks()), "own": own_table([])}, "json"))
    assert list(found) == ["glue"]
    assert found["glue"]["columns"] == HEADINGS
    ours = found["glue"]["rows"][0]
    assert (ours["model"], ours["row"], ours["AX"]) == ("BERT-Tiny", "ours, dev", None)
    assert ours["QQP"] == [80.0, 84.0]
    assert ours["MNLI-mm"] == pytest.approx(71.0)
    assert found["glue"]["unit"] == "per cent"
    with pytest.raises(UnknownName, match="unknown format 'markdown'"):
        render({}, "markdown")


def test_own_data_has_a_plain_table(tmp_path):
    scores = {"scores": {"dev": {"accuracy": 0.9, "macro_f1": 0.85}}, "task": "own", "metric": "accuracy"}
    for name, more in (("a", {}), ("b", {"seed": 2}), ("c", {"batch_size": 8, "scores": {"dev": {"accuracy": 0.5}}})):
        put(tmp_path / name, document("rte", 0.9) | scores | more, 'model = "tiny"\n[data]\ntrain = "mine.csv"')
    put(tmp_path / "d", document("rte", 0.9) | scores, 'model = "tiny"\n[data]\ntrain = "yours.csv"')
    runs = collect([tmp_path])
    lines = list(csv.reader(io.StringIO(own_table(runs).csv())))
    assert lines == [
        [
            "Model",
            "Task",
            "accuracy",
            "macro_f1",
            "standard deviation of seeds",
            "standard error",
            "Cells",
            "Seeds",
            "Best cell",
        ],
        ["BERT-Tiny", "own: mine.csv", "90.0", "85.0", "0.0", "0.0", "2", "2", "32, 1e-4, 4"],
        [
            "BERT-Tiny",
            "own: yours.csv",
            "90.0",
            "85.0",
            "",
            f"{100 * math.sqrt(0.9 * 0.1 / 277):.1f}",
            "1",
            "1",
            "32, 1e-4, 4",
        ],
    ]
    assert glue_table(runs).rows == ()


def test_examples_of_docstrings():
    for module in (choice, results, table, traps):
        assert doctest.testmod(module, extraglobs={"np": np}).failed == 0


# ------------------------------------------------------------------------------------------------------- traps


def answers(task: str, seed: int, right: float, rows: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right for a share of the rows, and the gold labels."""
    drawn, classes = np.random.default_rng(seed), len(TASKS[task].labels)
    gold = drawn.integers(0, classes, rows)
    predicted = np.where(drawn.random(rows) < right, gold, drawn.integers(0, classes, rows))
    return np.eye(classes, dtype=np.float32)[predicted] + 0.1 * drawn.random((rows, classes), np.float32), gold


@pytest.mark.parametrize("order", [(1, 2, 0), (2, 0, 1), (0, 2, 1), (2, 1, 0)])
def test_labels_in_another_order_are_said(order):
    logits, gold = answers("mnli", 3, 0.8)
    assert order_warning(TASKS["mnli"], logits, gold) is None
    said = order_warning(TASKS["mnli"], logits[:, list(order)], gold)
    assert said is not None
    now, best = (logits[:, list(order)].argmax(1) == gold).mean(), (logits.argmax(1) == gold).mean()
    assert said.startswith(
        f"MNLI: accuracy is {100 * now:.1f} %, and would be {100 * best:.1f} % with the outputs named"
    )
    names = TASKS["mnli"].labels
    for column, meant in enumerate(order):
        assert (f"'{names[column]}' for '{names[meant]}'" in said) == (column != meant)
    assert "\n" not in said


def test_twenty_points_are_the_limit():
    gold = np.array([0] * 60 + [1] * 40)
    for wrong, said in ((60, False), (61, True)):  # accuracy 40 and 39: turning round gains 20 and 22 points
        predicted = gold.copy()
        predicted[np.r_[:30, 100 - (wrong - 30) : 100]] ^= 1
        assert (order_warning(TASKS["rte"], np.eye(2, dtype=np.float32)[predicted], gold) is not None) == said


def test_one_answer_for_all_is_not_the_label_trap():
    gold = np.array([0] * 20 + [1] * 80)
    assert order_warning(TASKS["rte"], np.tile(np.float32([1, 0]), (100, 1)), gold) is None
    assert order_warning(TASKS["stsb"], np.zeros((3, 1), np.float32), np.zeros(3)) is None
    assert order_warning(TASKS["rte"], np.full((2, 2), np.nan, np.float32), np.array([0, 1])) is None


def test_wnli_below_chance_is_explained_by_its_own_trap():
    logits, gold = answers("wnli", 5, 1.0)
    said = order_warning(TASKS["wnli"], logits[:, ::-1], gold)
    assert said is not None
    assert "WNLI dev repeats sentences of train with the opposite label" in said


def test_the_table_looks_at_the_stored_predictions(tmp_path, monkeypatch):
    logits, gold = answers("mnli", 3, 0.8)
    folder = put(tmp_path / "mnli", document("mnli", 0.1, 0.1))
    labels = TASKS["mnli"].labels
    path = folder / "predictions" / "dev.parquet"
    write(path, Predictions([str(i) for i in range(300)], logits[:, [1, 2, 0]], labels, gold))
    (said,) = glue_table(collect([tmp_path])).warnings
    assert said.startswith(f"{folder}: MNLI: accuracy is ")
    write(path, Predictions([str(i) for i in range(300)], logits, labels, gold))
    assert glue_table(collect([tmp_path])).warnings == ()
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    (said,) = glue_table(collect([tmp_path])).warnings
    assert said.startswith("the order of labels was not checked: scoring needs the 'train' extra")
    path.write_bytes(b"PAR1")
    assert "not a file of predictions" in glue_table(collect([tmp_path])).warnings[0]


# ---------------------------------------------------------------------------------------------------- real runs


@pytest.fixture(scope="module")
def real(tiny, reviews, tmp_path_factory) -> Path:
    """Two finished runs of one cell, and one that was only begun."""
    from bert_miniatures.recipes.finetune import finetune

    folder = tmp_path_factory.mktemp("table")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINIATURES_HOME", str(folder / "cache"))
        for seed in (1, 2):
            data = {"train": reviews[0], "dev": reviews[1], "max_length": 32}
            train = {"epochs": 2, "learning_rate": 3e-3, "batch_size": 16, "threads": 1, "seed": seed}
            finetune(tiny, folder / "runs" / str(seed), data=data, train=train)
    (folder / "runs" / "begun").mkdir()
    (folder / "runs" / "begun" / "run.toml").write_text("")
    return folder / "runs"


def miniatures(*arguments: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(cli.COMMANDS, "table", "table")
        patch.setattr(sys, "argv", ["miniatures", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as stopped:
            return int(stopped.code or 0)
    return 0


def test_the_command_on_real_runs(real, reviews, tiny, capsys):
    assert miniatures("table", real) == 0
    out, heard = capsys.readouterr()
    scores = [
        json.loads((real / str(seed) / "result.json").read_text())["scores"]["dev"]["accuracy"] for seed in (1, 2)
    ]
    cells = out.splitlines()[2].strip("|").split("|")
    assert cells[:2] == [str(tiny), f"own: {reviews[0]}"]
    assert cells[2] == f"{100 * statistics.fmean(scores):.1f}"
    spread = statistics.stdev(scores)
    assert cells[4:] == [f"{100 * spread:.1f}", f"{100 * spread / math.sqrt(2):.1f}", "1", "2", "16, 3e-3, 2"]
    assert heard.splitlines() == [f"warning: {real / 'begun'}: not finished; left out"]
    assert miniatures("table", real, "--format", "json") == 0
    assert json.loads(capsys.readouterr().out)["own"]["rows"][0]["Seeds"] == 2


def test_doubtful_numbers_are_said_on_stderr(tmp_path, capsys):
    put(tmp_path / "one", document("rte", 0.5, finding="all 277 predictions are 'entailment'"))
    assert miniatures("table", tmp_path, "--format", "csv") == 0
    out, heard = capsys.readouterr()
    assert heard == f"warning: {tmp_path / 'one'}: all 277 predictions are 'entailment'\n"
    assert len(list(csv.reader(io.StringIO(out)))) == 8


def test_wrong_use_of_the_command(real, capsys, tmp_path):
    assert miniatures("table", tmp_path) == 2
    assert "error: no finished run in or below" in capsys.readouterr().err
    assert miniatures("table", tmp_path / "no") == 2
    assert "no such folder" in capsys.readouterr().err
    assert miniatures("table", real, "--format", "xml") == 2
    assert "unknown format 'xml'; known: md, csv, json" in capsys.readouterr().err


def test_tables_and_checks_need_no_torch(tmp_path):
    import subprocess

    code = (
        "import sys, pathlib\n"
        "from bert_miniatures.table import collect, glue_table, own_table\n"
        "from bert_miniatures.submission import check_submission\n"
        "runs = collect([pathlib.Path(sys.argv[1])])\n"
        "assert glue_table(runs).rows and not own_table(runs).rows and check_submission(pathlib.Path('x'))\n"
        "sys.exit('torch' in sys.modules)"
    )
    put(tmp_path / "run", document("rte", 0.6))
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
