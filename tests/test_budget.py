"""Budgets: durations, the wall time of jobs on workers, which cells are left out."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_miniatures.budget import fit, makespan, parse_duration
from bert_miniatures.errors import ConfigError
from bert_miniatures.plan import SweepConfig, expand, group_of
from bert_miniatures.watch import clock

CELLS = expand(SweepConfig(models=("tiny",), tasks=("mnli", "rte"), seeds=2))


def costs(scale: float = 1.0) -> dict[str, float]:
    return {n: scale * (1000 if "mnli" in n else 7) * (1 + 8 / c.train.batch_size) for n, c in CELLS.items()}


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("3600s", 3600), ("1.5H", 5400), ("1d", 86400)]
)
def test_durations(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "2", "h", "2x", "-2h", "0s", "2h 30", "two hours"])
def test_no_durations(text):
    with pytest.raises(ConfigError, match="write 2h, 90m"):
        parse_duration(text)


@given(st.integers(0, 400_000))
def test_clock_is_read_back(seconds):
    parts = [int(part) for part in clock(seconds).split(":")]
    assert sum(part * 60**i for i, part in enumerate(reversed(parts))) == seconds


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(1, 4))
def test_makespan_lies_between_the_bounds_and_is_no_worse_than_graham_says(jobs, workers):
    best = min(
        max(sum(job for job, w in zip(jobs, chosen, strict=True) if w == i) for i in range(workers))
        for chosen in itertools.product(range(workers), repeat=len(jobs))
    )
    assert best <= makespan(jobs, workers) <= (2 - 1 / workers) * best + 1e-9


@given(st.floats(5, 100_000), st.integers(1, 8))
def test_what_is_kept_fits_and_the_rest_is_said(budget, workers):
    seconds = costs()
    kept, said = fit(CELLS, seconds, budget, workers)
    assert makespan((seconds[name] for name in kept), workers) <= budget
    assert kept == [name for name in CELLS if name in set(kept)]
    assert bool(said) == (len(kept) < len(CELLS))
    for group in {group_of(name) for name in CELLS}:
        first, second = ([n for n in kept if group_of(n) == group and CELLS[n].train.seed == seed] for seed in (1, 2))
        assert len(second) in (0, 20)
        assert len(first) == 20 or not second, "a second seed before the grid is whole"


def test_everything_fits():
    assert fit(CELLS, costs(), 1e9, 1) == (list(CELLS), [])


def test_further_seeds_alone_stay_whole_groups():
    """The first seed was done by an earlier call."""
    seconds, rest = costs(), {name: config for name, config in CELLS.items() if config.train.seed == 2}
    rte = sum(seconds[name] for name in rest if "rte" in name)
    kept, said = fit(rest, seconds, rte + 1500, 1)
    assert kept == [name for name in rest if "rte" in name]
    assert said == ["tiny/mnli: left out, all 20 cells"]


def test_seeds_go_first_then_edges_then_large_tasks():
    seconds = costs()
    rte = sum(cost for name, cost in seconds.items() if "rte" in name)
    one_seed = sum(cost for name, cost in seconds.items() if name.endswith("seed1"))
    kept, said = fit(CELLS, seconds, one_seed + rte / 2 + 1, 1)
    assert said == ["tiny/mnli: 1 of 2 seeds"]
    kept, said = fit(CELLS, seconds, rte / 2 + 3 * 1300, 1)
    assert {n for n in kept if "rte" in n and n.endswith("seed1")} == {
        n for n in CELLS if "rte" in n and n.endswith("seed1")
    }
    assert said[0].startswith("tiny/mnli: 3 of 20 cells of the grid, only ")
    assert {"bs32-lr1e-4", "bs32-lr5e-5"} <= set(said[0].rsplit("only ", 1)[1].split(", "))
    kept, said = fit(CELLS, seconds, 30, 1)
    assert "tiny/mnli: left out, all 40 cells" in said
    assert all("bs32" in name or "bs64" in name for name in kept)
    assert fit(CELLS, seconds, 1, 1)[0] == []
