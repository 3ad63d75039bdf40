"""Which weights may go: never those that can still be chosen."""

import json
import random

from hypothesis import given
from hypothesis import strategies as st

from bert_miniatures.choice import choose
from bert_miniatures.keeping import drop_weights, superfluous
from bert_miniatures.results import RunResult, collect

SCORES = st.lists(
    st.lists(st.sampled_from([None, 0.5, 0.6, 0.61, 0.7]), min_size=3, max_size=3), min_size=1, max_size=5
)


def run(cell: int, seed: int, score: float | None) -> RunResult:
    path = f"tiny/rte/bs{2**cell}-lr1e-4-seed{seed}"
    scores = {"dev": {"accuracy": score}} if score is not None else {}
    return RunResult(path=path, task="rte", metric="accuracy", model="tiny", scores=scores, seed=seed,
                     batch_size=2**cell, learning_rate=1e-4, epochs=4, rows={"dev": 277})  # fmt: skip


@given(SCORES, st.randoms())
def test_whatever_the_order_the_chosen_run_keeps_its_weights(scores: list[list[float | None]], order: random.Random):
    """Runs end in any order; what goes on the way is never what is chosen at the end, and only that stays."""
    runs = [run(cell, seed, score) for cell, row in enumerate(scores) for seed, score in enumerate(row, 1)]
    planned = {f"tiny/rte/bs{2**cell}-lr1e-4": 3 for cell in range(len(scores))}
    order.shuffle(runs)
    done: dict[str, RunResult] = {}
    gone: set[str] = set()
    for found in runs:
        done[str(found.path)] = found
        gone |= set(superfluous(done, planned))
    chosen = choose(sorted(runs, key=lambda found: found.path))[0]
    if chosen.best.is_whole:
        assert set(done) - gone == {str(chosen.run.path)}
    else:  # no cell has a score for each of its seeds
        assert len(set(done) - gone) == 1


def test_seeds_that_are_still_missing_protect_a_cell():
    done = {str(r.path): r for r in (run(3, 1, 0.9), run(4, 1, 0.7), run(4, 2, 0.8))}
    planned = {"tiny/rte/bs8-lr1e-4": 2, "tiny/rte/bs16-lr1e-4": 2}
    assert superfluous(done, planned) == ["tiny/rte/bs16-lr1e-4-seed1"]
    assert sorted(superfluous(done, {"tiny/rte/bs8-lr1e-4": 1, "tiny/rte/bs16-lr1e-4": 2})) == [
        "tiny/rte/bs16-lr1e-4-seed1", "tiny/rte/bs16-lr1e-4-seed2"]  # fmt: skip


def write(folder, cell: int, score: float, *, finished: bool = True) -> None:
    found = run(cell, 1, score)
    place = folder / found.path
    (place / "model").mkdir(parents=True)
    (place / "model" / "model.safetensors").write_text("weights")
    (place / "run.toml").write_text('model = "tiny"\n')
    if finished:
        (place / "result.json").write_text(json.dumps(found.model_dump(mode="json", exclude={"path"})))


def test_on_the_disk_only_the_weights_go(tmp_path):
    for cell, score in ((3, 0.7), (4, 0.8), (5, 0.6)):
        write(tmp_path, cell, score)
    write(tmp_path, 6, 0.99, finished=False)
    planned = {f"tiny/rte/bs{2**cell}-lr1e-4": 1 for cell in (3, 4, 5, 6)}
    (tmp_path / "tiny/rte/bs8-lr1e-4-seed1/.model.dropped").mkdir()  # a sweep was killed in the middle of removing
    assert sorted(drop_weights(tmp_path, "tiny/rte", planned)) == [
        "tiny/rte/bs32-lr1e-4-seed1",
        "tiny/rte/bs8-lr1e-4-seed1",
    ]
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*model*"))
    assert left == [
        "tiny/rte/bs16-lr1e-4-seed1/model", "tiny/rte/bs16-lr1e-4-seed1/model/model.safetensors",
        "tiny/rte/bs64-lr1e-4-seed1/model", "tiny/rte/bs64-lr1e-4-seed1/model/model.safetensors"]  # fmt: skip
    assert len(collect([tmp_path])) == 3
    assert drop_weights(tmp_path, "tiny/rte", planned) == []
    assert drop_weights(tmp_path, "tiny/none", {}) == []
