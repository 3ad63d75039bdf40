"""The scikit-learn estimators against scikit-learn itself: its own checks, model selection, pipelines, cloning."""

import json
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import estimator_checks_generator
from sklearn.utils.validation import validate_data

from bert_miniatures import MiniatureClassifier, MiniatureRegressor, Predictor, finetune
from bert_miniatures.errors import CheckpointError, OutputExists, UnknownName
from bert_miniatures.estimator_input import texts_of

FAST = {"batch_size": 16, "learning_rate": 5e-3, "epochs": 1, "max_length": 37, "settings": {"threads": 1}}
LEARNS = FAST | {"batch_size": 8, "learning_rate": 3e-3, "epochs": 6}


@pytest.fixture(scope="module")
def rows(reviews) -> tuple[list[str], list[str]]:
    lines = [line.rsplit(",", 1) for line in reviews[0].read_text(encoding="utf-8").splitlines()[1:]]
    return [text for text, _ in lines], [label for _, label in lines]


@pytest.fixture(scope="module")
def fitted(tiny, rows) -> MiniatureClassifier:
    return MiniatureClassifier(tiny, **LEARNS).fit(*rows)


# ------------------------------------------------------------------------------------ scikit-learn's own checks


def as_words(numbers) -> list[str]:
    """Write a row of numbers as a text, so that checks that know only numbers can be asked of a reader of texts."""
    return [" ".join("".join(chr(97 + int(digit)) for digit in str(int(50 * abs(x)) % 10_000)) for x in row[:4])
            for row in numbers]  # fmt: skip


class _OfNumbers:
    """Adds to an estimator of texts what scikit-learn asks of an estimator of numbers: the rows as text."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        if tags.classifier_tags is not None:
            tags.classifier_tags.poor_score = True
        if tags.regressor_tags is not None:
            tags.regressor_tags.poor_score = True
        return tags

    def fit(self, X, y):  # noqa: N803
        return super().fit(as_words(validate_data(self, X, dtype=float)), y)

    def _logits(self, X):  # noqa: N803
        from sklearn.utils.validation import check_is_fitted

        check_is_fitted(self)
        return super()._logits(as_words(validate_data(self, X, dtype=float, reset=False)))


class Classifier(_OfNumbers, MiniatureClassifier):
    pass


class Regressor(_OfNumbers, MiniatureRegressor):
    pass


# Which checks do not hold, and why; docs/estimators.md has the same table.
ROUNDING = "float32: the last bit of an answer depends on which rows share its batch; the check allows less"
EXCEPTIONS = {
    "check_methods_sample_order_invariance": ROUNDING,
    "check_methods_subset_invariance": ROUNDING,
}


def checks():
    for kind in (Classifier, Regressor):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = list(
                estimator_checks_generator(
                    kind(epochs=1), expected_failed_checks=EXCEPTIONS, mark="xfail", xfail_strict=False
                )
            )
        for case in found:
            _, check = case.values if hasattr(case, "values") else case
            marks = getattr(case, "marks", ())
            yield pytest.param(
                kind,
                check,
                marks=marks,
                id=f"{kind.__name__}-{check.func.__name__ if hasattr(check, 'func') else check}",
            )


@pytest.mark.parametrize(("kind", "check"), list(checks()))
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_checks(kind, check, tiny):
    check(kind(str(tiny), batch_size=64, epochs=1, max_length=17, learning_rate=5e-3, settings={"threads": 1}))


def test_the_exceptions_are_in_the_docs():
    page = (Path(__file__).parents[1] / "docs" / "estimators.md").read_text(encoding="utf-8")
    for name in EXCEPTIONS:
        assert f"`{name}`" in page


# ------------------------------------------------------------------------------------------- with scikit-learn


def test_it_learns_scores_and_repeats_itself(fitted, rows, reviews, tiny):
    dev = [line.rsplit(",", 1) for line in reviews[1].read_text(encoding="utf-8").splitlines()[1:]]
    texts, labels = [text for text, _ in dev], [label for _, label in dev]
    assert fitted.classes_.tolist() == ["negative", "positive"]
    assert fitted.score(texts, labels) > 0.8
    shares = fitted.predict_proba(texts)
    assert shares.shape == (53, 2)
    np.testing.assert_allclose(shares.sum(1), 1)
    assert (fitted.classes_[shares.argmax(1)] == fitted.predict(texts)).all()
    again = clone(fitted)
    assert not hasattr(again, "classes_")
    np.testing.assert_array_equal(again.fit(*rows).predict_proba(texts), shares)
    other = clone(fitted).set_params(random_state=2).fit(*rows)
    assert not np.array_equal(other.predict_proba(texts), shares)


def test_it_is_the_recipe_of_finetune(fitted, reviews, tiny, tmp_path):
    """The same rows, settings and seed as `miniatures finetune` give the same weights."""
    data = {"train": reviews[0], "max_length": 37, "hold_out": 0}
    train = {"batch_size": 8, "learning_rate": 3e-3, "epochs": 6, "threads": 1, "seed": 1}
    finetune(tiny, tmp_path / "run", data=data, train=train)
    fitted.save(tmp_path / "saved")
    ours, theirs = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("saved", "run/model"))
    assert ours == theirs


def test_model_selection_pipeline_and_grid(tiny, rows):
    texts, labels = rows
    model = MiniatureClassifier(tiny, **FAST)
    assert cross_val_score(model, texts, labels, cv=2).shape == (2,)
    assert len(cross_val_predict(model, texts, labels, cv=2, method="predict_proba")) == 131
    spoken = Pipeline(
        [("clean", FunctionTransformer(lambda found: [text.strip() for text in found])), ("model", model)]
    )
    grid = GridSearchCV(spoken, {"model__learning_rate": [1e-3, 1e-9]}, cv=2).fit(texts, labels)
    assert len(grid.cv_results_["params"]) == 2
    assert set(grid.predict(texts[:7])) <= {"negative", "positive"}


def test_every_kind_of_column_gives_the_same_answers(fitted, rows):
    texts = rows[0][:11]
    said = fitted.predict_proba(texts)
    kinds = [np.array(texts), np.array(texts, dtype=object), np.array(texts)[:, None], tuple(texts)]
    kinds += [
        pa.array(texts),
        pa.chunked_array([texts[:5], texts[5:]]),
        pa.table({"text": texts}),
        [[t] for t in texts],
    ]
    for name, make in (("pandas", "Series"), ("polars", "Series")):
        try:
            library = __import__(name)
        except ImportError:
            continue
        kinds += [getattr(library, make)(texts), library.DataFrame({"text": texts})]
    for kind in kinds:
        np.testing.assert_array_equal(fitted.predict_proba(kind), said, err_msg=str(type(kind)))


def test_pairs_are_pairs_however_they_come():
    pairs = [("a", "b"), ("c", "d"), ("e", "")]
    expected = (["a", "c", "e"], ["b", "d", ""])
    table = pa.table({"first": expected[0], "second": expected[1]})
    for kind in (pairs, [list(pair) for pair in pairs], np.array(pairs), np.array(pairs, dtype=object), table):
        assert texts_of(kind) == expected


def test_an_arrow_table_in_cross_validation(tiny, rows):
    found = cross_val_score(MiniatureClassifier(tiny, **FAST), pa.array(rows[0]), pa.array(rows[1]), cv=2)
    assert np.isfinite(found).all()


def test_classes_keep_their_type(tiny, rows, tmp_path):
    for values in ([7, -3], [True, False], [0.5, 2.0]):
        labels = [values[label == "positive"] for label in rows[1]]
        if values == [0.5, 2.0]:
            with pytest.raises(ValueError, match=r"[Uu]nknown label type"):
                MiniatureClassifier(tiny, **FAST).fit(rows[0], labels)
            continue
        model = MiniatureClassifier(tiny, **FAST, class_weight={values[0]: 2}).fit(rows[0], labels)
        opened = MiniatureClassifier.load(model.save(tmp_path / str(values[0])))
        assert opened.classes_.tolist() == sorted(values)
        assert opened.classes_.dtype == model.classes_.dtype
        assert set(opened.predict(rows[0]).tolist()) <= set(values)


def test_class_weights_are_learnt_with(tiny, rows):
    """A class that weighs more is answered more."""
    plain, heavy = (MiniatureClassifier(tiny, **FAST, class_weight=w).fit(*rows) for w in (None, {"positive": 20}))
    assert heavy.predict_proba(rows[0])[:, 1].mean() > plain.predict_proba(rows[0])[:, 1].mean() + 0.05


def test_settings_are_those_of_training_and_talk_is_asked_for(tiny, rows, capsys):
    with pytest.raises(UnknownName, match="warmup"):
        MiniatureClassifier(tiny, settings={"warmpu": 0.2}).fit(*rows)
    MiniatureClassifier(tiny, **FAST).fit(*rows)
    assert capsys.readouterr().err == ""
    model = MiniatureClassifier(tiny, **FAST, verbose=True).fit(*rows)
    assert "131 rows" in capsys.readouterr().err
    assert [record["step"] for record in model.history_ if "loss" in record][-1] == 9


def test_texts_are_cut_when_it_answers_as_when_it_learnt(tiny, rows):
    with pytest.warns(UserWarning, match=r"9\d% of the texts are cut"):
        model = MiniatureClassifier(tiny, **(FAST | {"max_length": 5})).fit(*rows)
    one, other, third = model.predict_proba(["a b c good", "a b c very bad film", "a b good c"])
    np.testing.assert_allclose(one, other, atol=1e-6)
    assert abs(one - third).max() > 1e-4


def test_regression_on_pairs(tiny):
    drawn = np.random.default_rng(3)
    pairs = [("good" if i % 2 else "bad", "film" * int(drawn.integers(1, 3))) for i in range(101)]
    scores = [100.0 + 7 * (i % 2) for i in range(101)]
    model = MiniatureRegressor(tiny, **(FAST | {"epochs": 6})).fit(pairs, scores)
    assert model.score(pairs, scores) > 0.5
    assert model.predict(pairs).shape == (101,)
    with pytest.raises(ValueError, match="fitted on pairs"):
        model.predict(["one text"])


# --------------------------------------------------------------------------------------------------- on disk


def test_save_and_load_without_pickle(fitted, rows, tmp_path):
    folder = fitted.save(tmp_path / "kept")
    opened = MiniatureClassifier.load(folder)
    np.testing.assert_array_equal(opened.predict_proba(rows[0]), fitted.predict_proba(rows[0]))
    assert clone(opened).get_params()["epochs"] == 6
    assert opened.result_ == fitted.result_
    assert [answer["label"] for answer in Predictor(folder)(rows[0])] == fitted.predict(rows[0]).tolist()
    assert not [file.name for file in folder.iterdir() if file.suffix in {".pkl", ".joblib", ".bin", ".pt"}]
    assert json.loads((folder / "miniature.json").read_text(encoding="utf-8"))["estimator"]["classes"] == [
        "negative",
        "positive",
    ]
    with pytest.raises(OutputExists):
        fitted.save(folder)
    with pytest.raises(CheckpointError, match="MiniatureRegressor is for regression"):
        MiniatureRegressor.load(folder)


def test_a_seed_that_was_drawn_is_written_down(tiny, rows, tmp_path):
    model = MiniatureClassifier(tiny, **FAST, random_state=None).fit(*rows)
    opened = MiniatureClassifier.load(model.save(tmp_path / "kept"))
    assert opened.random_state == model.result_["seed"] != 1
    np.testing.assert_array_equal(clone(opened).fit(*rows).predict_proba(rows[0]), model.predict_proba(rows[0]))


def test_a_run_of_finetune_is_an_estimator(reviews, tiny, tmp_path):
    data, train = {"train": reviews[0], "max_length": 37}, {"epochs": 1, "threads": 1}
    finetune(tiny, tmp_path / "run", data=data, train=train)
    opened = MiniatureClassifier.load(tmp_path / "run")
    assert opened.max_length == 37
    assert opened.classes_.tolist() == ["negative", "positive"]
    assert len(opened.predict(["a good film"])) == 1


def test_a_copy_answers_alike(fitted, rows):
    fitted.predict(rows[0][:3])
    copy = pickle.loads(pickle.dumps(fitted))  # what joblib does between processes
    np.testing.assert_array_equal(copy.predict_proba(rows[0]), fitted.predict_proba(rows[0]))


# ---------------------------------------------------------------------------------------------------- errors

BAD = [
    ("a text", "expected a list of texts"),
    ({"a": 1}, "expected a list of texts"),
    ((text for text in "ab"), "expected a list of texts"),
    ([], "0 sample"),
    (["fine", None], r"X\[1\]: expected a text, got NoneType"),
    (["fine", 3.5], r"X\[1\]: expected a text, got float 3.5"),
    ([("a", "b"), ("a",)], r"X\[1\] is \('a',\)"),
    ([("a", "b", "c")], "a pair of texts in every row"),
    (np.zeros((3, 2)), r"X\[0\]: expected a text, got float 0.0"),
    (pa.table({"a": ["x"], "b": ["y"], "c": ["z"]}), "columns a, b, c; choose"),
]


@pytest.mark.parametrize(("given", "said"), BAD, ids=[said[:20] for _, said in BAD])
def test_what_is_no_text_is_said(given, said):
    with pytest.raises(ValueError, match=said):
        texts_of(given)


def test_targets_that_cannot_be_learnt(tiny):
    model = MiniatureClassifier(tiny, **FAST)
    for labels, said in ((None, "y to be passed"), (["a", "a"], "one class"), (["a"], "inconsistent"), (["a", None], "None"),):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=said):
            model.fit(["x", "y"], np.array(labels, dtype=object) if labels and None in labels else labels)
    with pytest.raises(ValueError, match="not one of the classes"):
        clone(model).set_params(class_weight={"c": 2}).fit(["x", "y"], ["a", "b"])
    with pytest.raises(ValueError, match="nothing to learn"):
        MiniatureRegressor(tiny, **FAST).fit(["x", "y"], [3, 3])
    with pytest.raises(NotFittedError):
        model.predict(["x"])


@pytest.mark.parametrize("package", ["sklearn", "torch"])
def test_a_missing_package_is_one_sentence(package):
    code = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] == '{package}': raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from bert_miniatures.errors import MissingExtra\n"
        "try:\n"
        "    from bert_miniatures import MiniatureClassifier\n"
        "    MiniatureClassifier('tiny').fit(['a', 'b'], ['x', 'y'])\n"
        "except MissingExtra as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.stdout.strip().endswith("needs the 'train' extra: pip install 'bert-miniatures[train]'"), done.stderr
