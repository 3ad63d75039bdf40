"""Plans: names of cells, laws of expand, what is refused."""

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_miniatures.config import FinetuneConfig, TrainConfig, write_toml
from bert_miniatures.errors import ConfigError, UnknownName
from bert_miniatures.plan import SweepConfig, expand, group_of, places, short, without_seed

GRIDS = st.fixed_dictionaries(
    {},
    optional={
        "batch_size": st.lists(st.integers(1, 512), min_size=1, max_size=4, unique=True),
        "learning_rate": st.lists(st.floats(1e-7, 1.0), min_size=1, max_size=4, unique=True),
        "epochs": st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True),
        "warmup": st.lists(st.floats(0, 1), min_size=1, max_size=3, unique=True),
        "optimizer": st.lists(st.sampled_from(["adamw", "bertadam"]), min_size=1, unique=True),
    },
)
PLANS = st.builds(
    lambda models, tasks, grid, seeds: SweepConfig.of({"models": models, "tasks": tasks, "grid": grid, "seeds": seeds}),
    st.lists(st.sampled_from(["tiny", "mini", "2/256", "models/mine"]), min_size=1, unique=True),
    st.lists(st.sampled_from(["cola", "sst2", "mrpc", "STS-B", "WNLI"]), min_size=1, unique=True),
    GRIDS,
    st.integers(1, 3),
)


@given(PLANS)
def test_expand_gives_each_combination_once(plan):
    cells = expand(plan)
    count = len(plan.models) * len(plan.tasks) * plan.seeds
    for values in plan.grid.values():
        count *= len(values)
    assert len(cells) == count
    assert len({config.model_dump_json() for config in cells.values()}) == count
    for name, config in cells.items():
        assert name.endswith(f"-seed{config.train.seed}")
        assert group_of(name).count("/") == 1
        assert not set(name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-/")
        assert not any(part.startswith(".") for part in name.split("/"))


@given(plan=PLANS)
def test_expand_is_pure_and_a_plan_survives_its_file(plan, tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "sweep.toml"
    write_toml(path, plan)
    again = SweepConfig.of(tomllib.loads(path.read_text()))
    assert expand(again) == expand(plan) == expand(plan)


@given(PLANS, st.integers(1, 3), st.lists(st.integers(600, 700), max_size=2, unique=True))
def test_a_larger_plan_finds_the_cells_of_a_smaller_one(plan, seeds, sizes):
    grid = {key: list(values) for key, values in plan.grid.items()}
    grid["batch_size"] = [*grid.get("batch_size", [TrainConfig().batch_size]), *sizes]
    larger = plan.model_copy(update={"grid": {k: tuple(v) for k, v in grid.items()}, "seeds": plan.seeds + seeds})
    small, large = expand(plan), expand(larger)
    assert all(large[name] == config for name, config in small.items())


@given(st.lists(st.floats(1e-9, 1e9), min_size=2, max_size=2, unique=True))
def test_different_numbers_are_written_differently_and_exactly(pair):
    assert short(pair[0]) != short(pair[1])
    assert [float(short(value)) for value in pair] == pair


def test_the_published_grid():
    cells = expand(SweepConfig(models=("google/bert_uncased_L-2_H-128_A-2",), tasks=("MRPC",)))
    assert len(cells) == 20
    assert "tiny/mrpc/bs16-lr3e-5-seed1" in cells
    config = cells["tiny/mrpc/bs128-lr3e-4-seed1"]
    assert (config.train.batch_size, config.train.learning_rate, config.train.epochs) == (128, 3e-4, 4)
    assert config.train.threads == 1
    assert config.data.task == "mrpc"


def test_names_say_what_is_not_usual():
    plan = {"models": ["runs/first/model"], "data": {"train": "data/my tweets.csv"}, "train": {"seed": 7}}
    cells = expand(SweepConfig.of(plan | {"grid": {"epochs": [4, 8], "optimizer": ["adamw", "bertadam"]}}))
    assert list(cells) == [
        "first/my-tweets/bs32-lr1e-4-seed7",
        "first/my-tweets/bs32-lr1e-4-optimizer-bertadam-seed7",
        "first/my-tweets/bs32-lr1e-4-epochs8-seed7",
        "first/my-tweets/bs32-lr1e-4-epochs8-optimizer-bertadam-seed7",
    ]
    assert without_seed("a/b/bs32-lr1e-4-seed7") == "a/b/bs32-lr1e-4"


TINY = {"models": ["tiny"], "tasks": ["mrpc"]}


@pytest.mark.parametrize(
    ("document", "error", "said"),
    [
        ({"modles": ["tiny"]}, UnknownName, r"unknown setting 'modles'; did you mean 'models'\?"),
        (TINY | {"grid": {"batch_sise": [8]}}, UnknownName, r"'grid\.batch_sise'; did you mean 'grid\.batch_size'\?"),
        (TINY | {"train": {"warm": 1}}, UnknownName, r"'train\.warm'; did you mean 'train\.warmup'\?"),
        (TINY | {"grid": {"batch_size": [8, 0]}}, ConfigError, "grid: batch_size = 0: input should be greater than 0"),
        (TINY | {"grid": {"batch_size": [1.5]}}, ConfigError, r"grid: batch_size = 1\.5"),
        (TINY | {"grid": {"learning_rate": ["x"]}}, ConfigError, "grid: learning_rate = 'x'"),
        (TINY | {"grid": {"epochs": []}}, ConfigError, r"grid\.epochs is empty"),
        (TINY | {"grid": {"seed": [1, 2]}}, ConfigError, "--seeds 3"),
        (TINY | {"grid": {"batch_size": [8, 8]}}, ConfigError, "two cells are named 'tiny/mrpc/bs8-lr1e-4-seed1': .* twice"),
        (TINY | {"models": ["tiny", "2/128"]}, ConfigError, "models 'tiny' and '2/128' have one name"),
        (TINY | {"models": ["a/x", "b/x"]}, ConfigError, "models 'a/x' and 'b/x' have one name"),
        (TINY | {"tasks": ["mrpc", "MRPC"]}, ConfigError, "listed twice"),
        (TINY | {"tasks": ["mprc"]}, UnknownName, r"did you mean 'mrpc'\?"),
        (TINY | {"tasks": ["ax"]}, ConfigError, "no training data; fine-tune on 'mnli'"),
        (TINY | {"data": {"train": "x.csv"}}, ConfigError, "either --task with a GLUE folder, or own files"),
        (TINY | {"data": {"task": "rte"}}, ConfigError, "named in tasks"),
        ({"models": ["tiny"]}, ConfigError, "no data"),
        (TINY | {"seeds": 0}, ConfigError, "seeds = 0"),
        (TINY | {"models": []}, ConfigError, "models"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_sentence(document, error, said):
    with pytest.raises(error, match=said) as caught:
        expand(SweepConfig.of(document))
    assert "\n" not in str(caught.value)


def test_places_order_numbers_as_numbers_and_take_any_setting():
    train = {"class_weights": [{"a": 2.0}, "none", "balanced"], "batch_size": [128, 8, 16]}
    cells = expand(SweepConfig.of(TINY | {"grid": train}))
    found = places(cells)
    by_size = {cells[name].train.batch_size: place[0] for name, place in found.items()}
    assert by_size == {8: (0, 3), 16: (1, 3), 128: (2, 3)}
    assert {place[1][1] for place in found.values()} == {3}
    assert len(set(found.values())) == 9
    assert isinstance(cells[next(iter(cells))], FinetuneConfig)


PAGE = (Path(__file__).parents[1] / "docs" / "sweep.md").read_text(encoding="utf-8")


def test_the_plan_of_the_page_is_one():
    blocks = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.DOTALL)
    plan, taught = map(tomllib.loads, blocks)
    cells = expand(SweepConfig.of(plan))
    assert len(cells) == 2 * 2 * 3 * 2 * 2 * 2 * 2
    assert "tiny/mrpc/bs16-lr3e-4-warmup0-seed1" in cells
    cells = expand(SweepConfig.of({"models": ["tiny"], "tasks": ["rte"], **taught}))
    assert "tiny/rte/distilled-bs32-lr3e-4-augment20000-temperature2-seed1" in cells
    assert len(cells) == 2 * 2 * 2


def test_the_page_names_only_options_that_exist_and_all_of_them():
    from typing import get_type_hints

    from bert_miniatures.cli import sweep

    names = set(get_type_hints(sweep.sweep)) - {"return"}
    options = {f"--{name.replace('_', '-')}" for name in names} - {"--as-json", "--settings"} | {"--json", "--set"}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) - {"--head"}  # of ray
    assert named <= options
    assert options - named <= {"--text", "--pair", "--label", "--kind", "--offline"}  # as in finetune
