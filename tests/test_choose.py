"""choose: the model of time against a known law, what is picked, real processes, TF-IDF, the drawing, the command."""

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls as scipy_nnls

from bert_miniatures.choose import measuring, picking, profile, timing
from bert_miniatures.choose.baseline import baseline
from bert_miniatures.choose.measuring import Measured, graph_of, plan_of, quieter
from bert_miniatures.choose.picking import Budget, Row, pareto, pick, sentence
from bert_miniatures.choose.plot import svg
from bert_miniatures.choose.profile import Profile
from bert_miniatures.choose.survey import MEASURED, Survey, _fill, survey
from bert_miniatures.choose.timing import Fit, Shape, disk
from bert_miniatures.choose.worker import _text, _vocabulary
from bert_miniatures.errors import ConfigError, DataError
from bert_miniatures.models import converted
from bert_miniatures.tokenizer import Tokenizer
from bert_miniatures.zoo import VOCABULARY, ZOO
from commands import shell

# seconds a call, a layer, a byte read, a multiply-add, a number that passes, a unit of attention
LAW = Fit((9e-5, 4e-5, 3e-11, 2e-11, 6e-10, 5e-11))
MIXED = Profile(tuple(range(7, 110, 3)), "lengths from 7 to 109")


# ------------------------------------------------------------------------------------------------ the model of time


@pytest.mark.parametrize("seed", range(12))
def test_nnls_is_that_of_scipy(seed):
    drawn = np.random.default_rng(seed)
    matrix, target = drawn.uniform(0, 1, (17, 5)) * 10.0 ** drawn.integers(-9, 9, 5), drawn.normal(1, 1, 17)
    ours, theirs = timing.nnls(matrix, target), scipy_nnls(matrix, target)[0]
    assert (ours >= 0).all()
    np.testing.assert_allclose(matrix @ ours, matrix @ theirs, rtol=1e-6, atol=1e-9)


def _as_the_law_says(size: str, precision: str, plan: measuring.Plan, tail: float = 1.0) -> Measured:
    """Make what a process would say on a machine that follows the law exactly."""
    model, own = ZOO[size], plan
    times = {n: {shape: LAW.seconds(model, precision, shape) / n for shape in own.shapes} for n in own.threads}
    share = {q: LAW.seconds(model, precision, Shape(1, MIXED.quantile(q))) for q in (0.5, 0.95)}
    p50, p95 = ({n: share[q] / n * (tail if q > 0.5 else 1) for n in own.threads} for q in (0.5, 0.95))
    return Measured(times, p50, p95, int(4e7 + 2.3 * disk(model, precision)), 0)


def _surveyed(budget: Budget | None = None, sizes=MEASURED) -> Survey:
    found, plan = Survey(MIXED, budget or Budget()), plan_of(MIXED, [1, 2])
    for size in sizes:
        for precision in ("fp32", "int8"):
            found.known[precision][ZOO[size]] = _as_the_law_says(size, precision, plan, tail=1.7)
    _fill(found, plan)
    found.best, found.said = pick(found.rows, found.budget), sentence(found.rows, found.budget)
    return found


def test_a_machine_that_follows_the_law_is_modelled_exactly():
    found = _surveyed()
    assert len(found.rows) == 24 * 2 * 2
    assert sum(row.is_measured for row in found.rows) == len(MEASURED) * 2 * 2
    plan = plan_of(MIXED, [1, 2])
    for row in found.rows:
        truth = _as_the_law_says(row.model.size, row.precision, plan, tail=1.7)
        assert row.p50 == pytest.approx(truth.p50[row.threads], rel=1e-6)
        assert row.p95 == pytest.approx(truth.p95[row.threads], rel=1e-6)
        assert row.memory == pytest.approx(truth.memory, rel=1e-6)
        times = truth.times[row.threads]
        seconds = sum(times[measuring.shape_of(batch)] for batch in plan.batches)
        assert row.rate == pytest.approx(sum(map(len, plan.batches)) / seconds, rel=1e-6)
    for quantities in found.errors.values():
        assert set(quantities) == {"p50", "p95", "rate", "memory"}
        assert max(abs(error) for errors in quantities.values() for error in errors) < 1e-6


def test_the_error_on_a_model_is_that_of_a_fit_without_it():
    """One model takes three times what the law says: what the others say of it is a third, and knows nothing of it."""
    found, plan = Survey(MIXED, Budget()), plan_of(MIXED, [1])
    for size in MEASURED:
        one = _as_the_law_says(size, "fp32", plan)
        if size == "12/256":
            times = {1: {shape: 3 * seconds for shape, seconds in one.times[1].items()}}
            one = replace(one, times=times, p50={1: 3 * one.p50[1]}, p95={1: 3 * one.p95[1]}, memory=3 * one.memory)
        found.known["fp32"][ZOO[size]] = one
    _fill(found, plan)
    odd = {name: errors[MEASURED.index("12/256")] for name, errors in found.errors["fp32"].items()}
    assert odd == pytest.approx({"p50": -2 / 3, "p95": -2 / 3, "rate": 2.0, "memory": -2 / 3}, rel=1e-6)


def test_of_two_visits_the_shorter_times_count():
    plan = plan_of(MIXED, [1, 2])
    truth = _as_the_law_says("4/256", "fp32", plan)
    drawn = np.random.default_rng(3)

    def disturbed(odd: int) -> Measured:
        """Make a visit in which every second time is longer."""
        more = iter(1 + drawn.uniform(0, 3) * (number % 2 == odd) for number in range(10**6))
        times = {n: {shape: seconds * next(more) for shape, seconds in its.items()} for n, its in truth.times.items()}
        p50, p95 = ({n: seconds * next(more) for n, seconds in its.items()} for its in (truth.p50, truth.p95))
        return replace(truth, times=times, p50=p50, p95=p95, memory=truth.memory - odd)

    one, other = disturbed(0), disturbed(1)
    assert one.times != truth.times != other.times
    assert quieter(one, other) == quieter(other, one) == truth


def test_three_models_are_too_few_to_model_the_others():
    found = _surveyed(sizes=MEASURED[:3])
    assert len(found.rows) == 3 * 2 * 2
    assert not found.errors


@pytest.mark.parametrize(
    ("size", "precision"), [("2/128", "fp32"), ("4/128", "int8"), ("2/256", "int8"), ("2/512", "int8")]
)
def test_the_size_of_a_graph_is_that_of_the_formula(size, precision):
    graph = len(graph_of(ZOO[size], precision))
    assert disk(ZOO[size], precision) - timing.TOKENIZER_FILES == pytest.approx(graph, rel=0.005)


def _multiply_adds(size: str, rows: int, width: int) -> tuple[int, int]:
    """Count them in the graph: of products with weights, and of products of activations."""
    import onnx

    model = onnx.load_from_string(graph_of(ZOO[size], "fp32"))
    for entry in model.graph.input:
        for dim, value in zip(entry.type.tensor_type.shape.dim, (rows, width), strict=True):
            dim.dim_value = value
    graph = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    weights = {one.name: tuple(one.dims) for one in graph.initializer}
    known = weights | {
        one.name: tuple(d.dim_value for d in one.type.tensor_type.shape.dim)
        for one in (*graph.value_info, *graph.output)
    }
    counted = [0, 0]
    for node in graph.node:
        if node.op_type in {"MatMul", "Gemm"}:
            count = int(np.prod(known[node.output[0]])) * known[node.input[0]][-1]
            counted[node.input[1] not in weights] += count
    return counted[0], counted[1]


@pytest.mark.parametrize(("size", "rows", "width"), [("4/128", 3, 17), ("2/256", 2, 101), ("2/512", 5, 29)])
def test_the_work_is_that_of_the_graph(size, rows, width):
    dense, attention = _multiply_adds(size, rows, width)
    found = timing.features(ZOO[size], "fp32", Shape(rows, width))
    assert found[3] == pytest.approx(dense - rows * ZOO[size].width * 2, abs=0.5)  # the head is left out
    assert 2 * found[5] == pytest.approx(attention, abs=0.5)
    layers = [m.layers for m in ZOO.values()]
    assert [timing.features(m, "fp32", Shape(1, 9))[1] for m in ZOO.values()] == layers
    for precision in ("fp32", "int8"):
        read = timing.features(ZOO[size], precision, Shape(1, 9))[2]
        assert read == pytest.approx(_bytes_of_weights(size, precision), rel=0.01)


def _bytes_of_weights(size: str, precision: str) -> int:
    """Count them in the graph, without those of words and positions."""
    import onnx

    kept = onnx.load_from_string(graph_of(ZOO[size], precision)).graph.initializer
    return sum(len(one.raw_data) for one in kept if one.name != "fixed" and VOCABULARY not in one.dims)


# ----------------------------------------------------------------------------------------------------- what is picked

rows = st.lists(
    st.builds(
        Row,
        model=st.sampled_from(list(ZOO.values())),
        precision=st.sampled_from(["fp32", "int8"]),
        threads=st.sampled_from([1, 2]),
        p50=st.just(0.001),
        p95=st.sampled_from([0.001, 0.002, 0.003, 0.01, 0.05]),
        rate=st.sampled_from([100.0, 1000.0]),
        memory=st.sampled_from([5e7, 1e8, 3e8]),
        disk=st.sampled_from([10**7, 10**8]),
        is_measured=st.booleans(),
    ),
    min_size=1,
    max_size=12,
)


@given(rows, st.sampled_from([0.0015, 0.004, 0.02]))
def test_more_room_never_recommends_less(rows, latency):
    tight, wide = (pick(rows, Budget(latency=limit, memory=2e8)) for limit in (latency, 3 * latency))
    if tight is not None:
        assert wide is not None
        assert wide.worth >= tight.worth
        assert tight.p95 <= latency
        assert not [r for r in rows if r.worth > tight.worth and r.p95 <= latency and r.memory <= 2e8]


@given(rows)
def test_the_frontier_is_what_nothing_beats(rows):
    def beats(a: Row, b: Row) -> bool:
        good = a.worth >= b.worth and a.p95 <= b.p95 and a.memory <= b.memory
        return good and (a.worth > b.worth or a.p95 < b.p95 or a.memory < b.memory)

    front = pareto(rows)
    assert front
    assert all((row in front) != any(beats(other, row) for other in rows) for row in rows)


def test_the_recommendation_follows_the_budget():
    def best(**limits: float) -> str:
        row = _surveyed(Budget(**limits)).best
        return "nothing" if row is None else f"{row.model.size} {row.precision} {row.threads}"

    assert best() == "12/768 fp32 1"
    assert best(latency=1e-6) == "nothing"
    sizes = [best(latency=limit).split()[0] for limit in (0.0006, 0.002, 0.01, 0.1, 1.0)]
    worth = [timing.layer_parameters(ZOO[size]) for size in sizes]
    assert worth == sorted(worth)
    assert worth[0] < worth[-1]
    assert best(memory=9e7).split()[1] == "int8"
    assert best(latency=1.0, rate=1e9) == "nothing"


def test_the_sentence_says_why():
    said = _surveyed(Budget(latency=0.004, memory=1.2e8)).said
    assert "(limit 4 ms)" in said
    assert "(limit 120 MB)" in said
    assert "The next larger one, " in said
    assert _surveyed(Budget(latency=1e-6)).said.startswith("Nothing fits; nearest is 2/128 (tiny) int8")


@pytest.mark.parametrize(("text", "value"), [("5ms", 0.005), ("0.1 s", 0.1), ("200us", 2e-4)])
def test_times(text, value):
    assert picking.seconds_of(text) == pytest.approx(value)


@pytest.mark.parametrize(("text", "value"), [("100MB", 1e8), ("1.5 GiB", 1.5 * 2**30), ("4096", 4096), ("7kb", 7000)])
def test_sizes(text, value):
    assert picking.bytes_of(text) == pytest.approx(value)


# ---------------------------------------------------------------------------------------------------------- lengths


def test_lengths_are_counted_where_a_vocabulary_is_here_and_estimated_elsewhere(tiny, reviews):
    guessed = profile.of_file(reviews[0], 128)
    assert "estimated" in guessed.said
    shutil.copytree(tiny, converted(ZOO["4/256"]))
    counted = profile.of_file(reviews[0], 128)
    assert "counted" in counted.said
    texts = [line.split(",")[0] for line in reviews[0].read_text().splitlines()[1:]]
    lengths = Tokenizer.from_folder(tiny).encode(texts).lengths
    assert counted.lengths == tuple(sorted(lengths))
    assert counted.quantile(0.5) == sorted(lengths)[len(lengths) // 2]
    assert max(profile.of_file(reviews[0], 9).lengths) == 9


def test_a_profile_keeps_its_quantiles_when_it_is_thinned():
    texts = ["word " * n for n in range(1, 101) for _ in range(11)]
    found = profile.of_texts(texts, None, 512, "texts")
    assert len(found.lengths) == profile.KEPT
    assert found.quantile(0.5) == pytest.approx(2 + 1.2 * 50, abs=2)
    assert found.quantile(0.95) == pytest.approx(2 + 1.2 * 95, abs=2)


@pytest.mark.parametrize("length", [2, 513])
def test_impossible_lengths(length):
    with pytest.raises(ConfigError, match="3 to 512"):
        profile.of_number(length)


# --------------------------------------------------------------------------------------------------- real processes


@given(st.integers(3, 512))
def test_texts_of_the_worker_have_the_length_that_is_asked_for(length):
    assert TOKENIZER.encode([_text(length)], None, max_length=512).lengths.tolist() == [length]


TOKENIZER = Tokenizer(_vocabulary())


def test_the_worker_has_a_vocabulary_as_large_as_the_published_one():
    assert len(TOKENIZER.vocabulary) == VOCABULARY


def test_a_model_is_measured_in_a_process_of_its_own():
    plan = plan_of(profile.of_number(12), [1], seconds=0.01)
    found = measuring.measured(ZOO["2/128"], "int8", plan)
    assert set(found.times) == {1}
    assert set(found.times[1]) == {Shape(1, 6), Shape(1, 9), Shape(1, 12), Shape(32, 12)}
    assert 0 < found.p50[1] <= found.p95[1]
    assert 3e7 < found.resident <= found.memory < 3e8


def test_a_graph_that_does_not_open_is_one_sentence():
    with pytest.raises(measuring.WorkFailed, match="2/128 fp32 could not be measured"):
        measuring.measured(ZOO["2/128"], "fp32", plan_of(MIXED, [1]), lambda model, precision: b"no graph")


def test_the_worker_imports_what_a_service_does_and_no_more():
    code = (
        "import sys, bert_miniatures.choose.worker; print({'torch', 'onnx', 'sklearn', 'pyarrow'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"


def test_a_survey_of_one_model_is_all_measured():
    found = survey(profile.of_number(7), Budget(latency=60.0), threads=[1], models=("2/128",))
    assert [row.is_measured for row in found.rows] == [True, True]
    assert found.best is not None
    assert (found.best.precision, found.best.threads) == ("fp32", 1)
    assert "measured here" in found.said


# ----------------------------------------------------------------------------------------------------------- TF-IDF


def test_tf_idf_is_that_of_scikit_learn(reviews):
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    found = baseline(reviews[0], reviews[1])
    (x, y), (held, gold) = (
        [*zip(*(line.split(",") for line in f.read_text().splitlines()[1:]), strict=True)] for f in reviews
    )
    vectors = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True).fit(x)
    model = LogisticRegression(C=10.0, max_iter=1000).fit(vectors.transform(x), y)
    assert found.score == pytest.approx(model.score(vectors.transform(held), gold))
    assert (found.metric, found.train_rows, found.dev_rows) == ("accuracy", 131, 53)
    assert 0 < found.p50 <= found.p95


def test_tf_idf_holds_rows_out_where_there_is_no_dev_file(reviews):
    found = baseline(reviews[0])
    assert (found.train_rows, found.dev_rows) == (105, 26)


@pytest.mark.parametrize(
    ("lines", "metric"),
    [
        (["text,text2,label", *(f"a{i % 7} b{i},c{i % 5},{i % 7 + 0.5}" for i in range(61))], "pearson"),
        (["text,labels", *(f"a{i % 3} b{i % 2} c{i},{('x', 'y', 'x|y')[i % 3]}" for i in range(61))], "micro_f1"),
    ],
)
def test_tf_idf_of_scores_pairs_and_several_labels(tmp_path, lines, metric):
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    found = baseline(tmp_path / "train.csv", kind=None if metric == "pearson" else "multilabel")
    assert found.metric == metric
    assert found.score > 0.9


def test_texts_without_words_are_one_sentence(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "!,a\n?,b\n" * 9)
    with pytest.raises(DataError, match="TF-IDF"):
        baseline(tmp_path / "train.csv")


# -------------------------------------------------------------------------------------------- what the user gets to see


def test_the_drawing_has_every_row():
    found = _surveyed(Budget(latency=0.004))
    tree = ElementTree.fromstring(svg(found.rows, found.frontier, found.budget, found.best))
    marks = [node for node in tree.iter() if node.find("{http://www.w3.org/2000/svg}title") is not None][1:]
    assert len(marks) == len(found.rows)
    inside = [(float(m.get("cx", m.get("x"))), float(m.get("cy", m.get("y")))) for m in marks]
    assert all(0 < x < 760 and 0 < y < 470 for x, y in inside)
    right = [x for (x, _), row in zip(inside, found.rows, strict=True) if row.precision == "fp32"]
    times = [row.p95 for row in found.rows if row.precision == "fp32"]
    assert np.argsort(right).tolist() == np.argsort(times).tolist()
    assert len([node for node in tree.iter() if node.get("class") == "limit"]) == 1


def test_what_is_printed_and_the_document_agree(capsys, reviews):
    from bert_miniatures.cli.choose import _document, _print

    found, linear = _surveyed(Budget(latency=0.004)), baseline(*reviews)
    _print(found, linear, every=False)
    printed = capsys.readouterr().out
    document = json.loads(json.dumps(_document(found, linear)))
    assert document["sentence"] in printed
    assert printed.count("\n>") == 1
    shown = [line for line in printed.splitlines() if line.endswith(("measured", "modelled"))]
    assert len(shown) == sum(row["pareto"] for row in document["rows"]) + 1
    assert document["recommendation"] in [{k: v for k, v in row.items() if k != "pareto"} for row in document["rows"]]
    assert document["tf_idf"]["metric"] == "accuracy"
    assert "Error of the model" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--latency", "5"], "'5' is no time"),
        (["--memory", "much"], "'much' is no size"),
        (["--throughput", "0"], "more than 0"),
        (["--lengths", "1000"], "3 to 512"),
        (["--lengths", "no.csv"], "no.csv"),
        (["--data", "no.csv"], "no.csv"),
    ],
)
def test_wrong_use_is_exit_2_before_anything_is_measured(arguments, words):
    done = shell()("choose", *arguments)
    assert done.code == 2
    assert words in done.err
    assert not done.out
