"""Forecasts: what decides a cost, seconds of a cell, the table, and how the ETA corrects them."""

import pytest

from bert_miniatures.config import FinetuneConfig
from bert_miniatures.eta import Eta
from bert_miniatures.forecast import Cost, cost_key, known_costs, read_costs, seconds_of, table, total, write_costs
from bert_miniatures.plan import SweepConfig, expand

COST = Cost(step=0.01, start=0.5, load=3.0, steps=20, train_rows=1001, dev_rows=101)


def test_cells_that_cost_the_same_are_timed_once():
    cells = expand(SweepConfig(models=("tiny", "mini"), tasks=("rte", "wnli"), seeds=3))
    assert len(cells) == 240
    assert len({cost_key(config) for config in cells.values()}) == 2 * 2 * 5
    first = next(iter(cells.values()))
    for change in ({"micro_batch_size": 4}, {"exact_speedups": False}, {"threads": 2}):
        assert cost_key(first.model_copy(update={"train": first.train.model_copy(update=change)})) != cost_key(first)
    longer = first.model_copy(update={"data": first.data.model_copy(update={"max_length": 64})})
    assert cost_key(longer) != cost_key(first)


def test_seconds_of_a_cell():
    config = FinetuneConfig.of({"model": "tiny", "train": {"batch_size": 10, "epochs": 3}})
    assert seconds_of(config, COST) == pytest.approx(0.01 * (101 * 3 + 0.4 * 4 * 101 / 10) + 2 * 0.5)


def test_costs_are_kept_for_the_same_number_of_workers(tmp_path):
    write_costs(tmp_path / "forecast.json", 2, {"a": COST})
    assert read_costs(tmp_path / "forecast.json", 2) == {"a": COST}
    assert read_costs(tmp_path / "forecast.json", 3) == {}
    for damaged in ("", "[]", '{"workers": 2}', '{"workers": 2, "costs": {"a": {"step": 1}}}'):
        (tmp_path / "forecast.json").write_text(damaged)
        assert read_costs(tmp_path / "forecast.json", 2) == {}


def test_the_table_has_a_line_for_each_cost_and_the_total():
    cells = expand(SweepConfig(models=("tiny",), tasks=("rte",), grid={"batch_size": (8, 32), "epochs": (2, 4)}))
    costs = {cost_key(config): COST for config in cells.values() if config.train.batch_size == 8}
    lines = table(cells, costs, 2).splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [["tiny/rte", "8", "2"], ["tiny/rte", "32", "2"]]
    assert "252-504" in lines[1]
    assert "unknown" in lines[2]
    seconds = known_costs(cells, costs)
    assert seconds["tiny/rte/bs32-lr1e-4-seed1"] == pytest.approx(
        (seconds["tiny/rte/bs8-lr1e-4-seed1"] + seconds["tiny/rte/bs8-lr1e-4-epochs2-seed1"]) / 2
    )
    assert total(cells, costs, 4) == pytest.approx(max(seconds.values()) + 3.0)
    assert total(cells, costs, 1) == pytest.approx(sum(seconds.values()) + 3.0)


class _Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_eta_learns_how_true_the_forecast_is():
    clock = _Clock()
    eta = Eta(2, clock)
    for job in "abcd":
        eta.expect(job, 100.0)
    assert eta.left() == 200.0
    clock.now += 100
    eta.heard("a", 25, 100)
    eta.heard("b", 25, 100)  # half as fast as forecast
    assert eta.left() == pytest.approx(4 * (400 - 50) / 2)
    eta.ended("a")
    eta.ended("b")
    clock.now += 100  # 2 x 200 seconds for 200 forecast
    assert eta.left() == pytest.approx(2 * 200 / 2)
    assert eta.rate() == pytest.approx((25 + 25) / 200)


def test_what_an_earlier_call_did_is_no_work_of_this_one():
    clock = _Clock()
    eta = Eta(1, clock)
    eta.expect("a", 100.0, begun=True)
    eta.heard("a", 60, 100)
    clock.now += 20
    eta.heard("a", 80, 100)
    assert eta.left() == pytest.approx(20)
    eta.expect("b", 100.0, 0.5)  # a search asks for half of it, later for all
    assert eta.left() == pytest.approx(20 + 50)
    eta.ended("b")
    eta.expect("b", 100.0, 1.0)
    eta.later = 30.0
    clock.now += 70
    eta.ended("a")
    assert eta.left() == pytest.approx(90 / (40 + 50) * (50 + 30))
