"""Successive halving: ties, the limit of cost, what it finds on known curves, and going on after an interruption."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_miniatures.errors import ConfigError, WorkFailed
from bert_miniatures.forecast import Cost, cost_key, updates_of
from bert_miniatures.plan import SweepConfig, expand
from bert_miniatures.sweep_folder import SweepFolder

pytest.importorskip("optuna", reason="the 'sweep' extra is not installed")
from bert_miniatures.recipes.adaptive import RUNGS, Search, Searches, Seen, affordable, ranked

CELLS = expand(SweepConfig(models=("tiny",), tasks=("mrpc",)))
COSTS = {cost_key(c): Cost(0.01 * (1 + c.train.batch_size / 16), 0.1, 1.0, 20, 3668, 408) for c in CELLS.values()}


def seen(score: float, loss: float = 1.0, place: tuple[int, ...] = (0,), cost: float = 1.0) -> Seen:
    return Seen(score, loss, place, cost)


def test_a_clear_difference_decides_and_a_tie_is_broken_by_the_loss_around_a_cell_then_by_the_score():
    assert ranked({"a": seen(0.5), "b": seen(0.7), "c": seen(0.6)}, "accuracy", 408) == ["b", "c", "a"]
    row = {
        name: seen(score, place=(i,))
        for i, (name, score) in enumerate(zip("abcde", (0.70, 0.60, 0.69, 0.70, 0.69), strict=True))
    }
    assert ranked(row, "accuracy", 408) == ["e", "d", "c", "a", "b"]
    flat = {name: seen(0.7, loss, (2 * i,)) for i, (name, loss) in enumerate({"a": 0.9, "b": 0.8, "c": 0.8}.items())}
    assert ranked(flat, "accuracy", 408) == ["b", "c", "a"]
    losses = (0.60, 0.69, 0.66, 0.63, 0.61, 0.70)  # a low one beside a high one may be chance
    blind = {name: seen(0.0, loss, (i,)) for i, (name, loss) in enumerate(zip("abcdef", losses, strict=True))}
    assert ranked(blind, "matthews", 1043) == ["d", "a", "e", "b", "f", "c"]
    assert ranked({"a": seen(-math.inf), "b": seen(-math.inf, 0.5, (2,))}, "f1", 408) == ["b", "a"]


@given(
    st.dictionaries(
        st.text("abcdef", min_size=1, max_size=3),
        st.tuples(st.floats(0, 1), st.floats(0, 5), st.integers(0, 4)),
        min_size=1,
        max_size=12,
    )
)
def test_no_cell_is_ranked_before_one_that_is_better_by_more_than_the_error(rows):
    cells = {name: seen(score, loss, (place,)) for name, (score, loss, place) in rows.items()}
    order = ranked(cells, "accuracy", 408)
    assert sorted(order) == sorted(cells)
    for i, name in enumerate(order):
        for later in order[i + 1 :]:
            assert cells[later].score - cells[name].score < 0.5 / math.sqrt(408) + 1e-9


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=20), st.floats(0, 50), st.sampled_from([0, 1]))
def test_at_least_one_goes_on_at_most_a_third_and_no_more_than_there_is_money_for(costs, money, rung):
    cells = {f"{i}": seen(0.5, cost=cost) for i, cost in enumerate(costs)}
    order = sorted(cells)
    chosen = affordable(order, cells, rung, money)
    assert chosen == order[: len(chosen)]
    assert 1 <= len(chosen) <= max(1, round(len(order) / 3))
    if len(chosen) > 1:
        step, end = RUNGS[rung + 1] - RUNGS[rung], 1 - RUNGS[rung + 1]
        assert step * sum(cells[name].cost for name in chosen) + end * cells[order[0]].cost <= money + 1e-9


def curve(name: str, share: float, quality: dict[str, float], noise: np.random.Generator) -> float:
    """A cell's score on the way: it nears its quality, with the noise of 408 dev rows."""
    return quality[name] - 0.15 * math.exp(-3 * share) + 0.02 * float(noise.standard_normal())


def play(search: Search, score, stop_after: int | None = None, loss=lambda name, share: None) -> int:
    """Run a search on made-up scores; return how many cells were run at all rungs together."""
    count, jobs = 0, search.jobs()
    while jobs:
        for name, until in jobs:
            if count == stop_after:
                return count
            steps = updates_of(search.cells[name], COSTS[cost_key(search.cells[name])])
            share = 1.0 if until is None else until / steps
            assert until is None or until == math.ceil(RUNGS[search.rung] * steps)
            search.heard(name, {"dev": {"f1": score(name, share)}}, loss(name, share))
            count += 1
        jobs = search.jobs()
    return count


def qualities(seed: int) -> dict[str, float]:
    """Scores over the grid: a smooth hill with its top somewhere."""
    drawn = np.random.default_rng(seed)
    top = drawn.uniform(0, 4), drawn.uniform(0, 3)
    rates = sorted({c.train.learning_rate for c in CELLS.values()})
    sizes = sorted({c.train.batch_size for c in CELLS.values()})
    return {n: 0.8 - 0.02 * (sizes.index(c.train.batch_size) - top[0]) ** 2 - 0.02 * (rates.index(c.train.learning_rate) - top[1]) ** 2
            for n, c in CELLS.items()}  # fmt: skip


def test_it_finds_a_cell_within_noise_of_the_best_for_a_third(tmp_path):
    regret, shares = [], []
    for seed in range(12):
        quality, drawn = qualities(seed), np.random.default_rng(seed + 100)
        search = Search(CELLS, COSTS, SweepFolder(tmp_path / str(seed)))
        assert play(search, lambda name, share, q=quality, d=drawn: curve(name, share, q, d)) < 2 * len(CELLS)
        finished = [name for name in search.alive if search.has_ended]
        assert 1 <= len(finished) <= 3
        regret.append(max(quality.values()) - max(quality[name] for name in finished))
        shares.append(search.spent(len(RUNGS) - 1) / sum(search.seconds.values()))
        assert len(finished) + len(search.left_behind) == len(CELLS)
    assert max(shares) <= 1 / 3 + 0.01
    assert np.mean(regret) < 0.02  # the standard error of 408 rows
    assert max(regret) < 0.05


def test_where_all_cells_give_one_answer_the_loss_tells_them_apart(tmp_path):
    """As on CoLA, where a small model's Matthews correlation is 0 until late."""
    quality, drawn = qualities(5), np.random.default_rng(5)
    search = Search(CELLS, COSTS, SweepFolder(tmp_path))
    play(search, lambda name, share: quality[name] if share == 1.0 else 0.0,
         loss=lambda name, share: 1.0 - curve(name, share, quality, drawn))  # fmt: skip
    assert max(quality.values()) - max(quality[name] for name in search.alive) < 0.05


def test_an_interrupted_search_goes_on_and_ends_the_same(tmp_path):
    def score(name: str, share: float) -> float:
        return qualities(3)[name] - 0.1 * (1 - share)

    whole = Search(CELLS, COSTS, SweepFolder(tmp_path / "whole"))
    count = play(whole, score)
    done = 0
    for _ in range(9):
        search = Search(CELLS, COSTS, SweepFolder(tmp_path / "parts"))
        done += play(search, score, stop_after=4)
    assert done == count
    assert (search.alive, search.left_behind) == (whole.alive, whole.left_behind)
    assert (tmp_path / "parts/tiny/mrpc/adaptive.json").read_text() == (
        tmp_path / "whole/tiny/mrpc/adaptive.json"
    ).read_text()


def test_runs_that_diverge_or_fail_are_left_behind(tmp_path):
    search = Search(CELLS, COSTS, SweepFolder(tmp_path))
    names = list(CELLS)
    for name, _ in search.jobs():
        if name == names[0]:
            search.lost(name)
        else:
            search.heard(name, {} if name == names[1] else {"dev": {"f1": 0.7}}, None)
    search.jobs()
    assert names[0] not in search.alive
    assert names[1] in search.left_behind


def test_what_cannot_be_searched_is_one_sentence(tmp_path):
    with pytest.raises(WorkFailed, match="needs the forecast"):
        Searches(CELLS, list(CELLS), {}, SweepFolder(tmp_path))
    blind = {key: Cost(0.1, 0.1, 0.1, 20, 3668, 0) for key in COSTS}
    with pytest.raises(ConfigError, match="give --dev"):
        Searches(CELLS, list(CELLS), blind, SweepFolder(tmp_path))
