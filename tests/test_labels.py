"""Labels of a model against labels of the data: matched by name, or refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bert_miniatures.data.labels import label_map
from bert_miniatures.errors import LabelError

NLI = ("entailment", "neutral", "contradiction")


@given(st.lists(st.text("abcdefgh", min_size=1), min_size=1, max_size=7, unique=True), st.randoms())
def test_logits_come_out_in_the_order_of_the_data(names: list[str], random) -> None:
    model = random.sample(names, len(names))
    order = label_map(model, names, "model")
    assert (order is None) == (model == names)
    if order is not None:
        assert [model[i] for i in order] == names
        logits = np.array([[float(names.index(name)) for name in model]])
        assert logits[:, order].tolist() == [[float(i) for i in range(len(names))]]


@pytest.mark.parametrize(
    "names", [("ENTAILMENT", "NEUTRAL", "CONTRADICTION"), (" Entailment", "neutral", "contradiction ")]
)
def test_case_and_spaces_do_not_matter(names: tuple[str, ...]) -> None:
    assert label_map(names, NLI, "model") is None
    assert label_map(names[::-1], NLI, "model").tolist() == [2, 1, 0]
    assert label_map(["not entailment", "ENTAILMENT"], ["entailment", "not_entailment"], "model").tolist() == [1, 0]


def test_names_that_differ_in_case_only_are_kept_apart() -> None:
    assert label_map(["us", "US"], ["US", "us"], "model").tolist() == [1, 0]
    with pytest.raises(LabelError):
        label_map(["us", "Us"], ["US", "us"], "model")


@pytest.mark.parametrize(
    ("model", "data", "says"),
    [
        (
            ("LABEL_0", "LABEL_1", "LABEL_2"), NLI,
            "runs/x: the model's labels are LABEL_0, LABEL_1, LABEL_2, the data's are entailment, neutral, "
            "contradiction; the order of LABEL_0 … is not known and is not guessed: write the names into id2label of "
            "the model's config.json, in the order of its outputs",
        ),
        (
            ("entailed", "neutral", "contradicts"), NLI,
            "runs/x: the model's labels are entailed, neutral, contradicts, the data's are entailment, neutral, "
            "contradiction; 'entailed' may be 'entailment', 'contradicts' may be 'contradiction'; rename the labels in "
            "id2label of config.json",
        ),
        (
            ("entailment", "not_entailment"), NLI,
            "runs/x: the model's labels are entailment, not_entailment, the data's are entailment, neutral, "
            "contradiction; 2 labels cannot answer 3",
        ),
    ],
)  # fmt: skip
def test_other_names_are_refused(model: tuple[str, ...], data: tuple[str, ...], says: str) -> None:
    with pytest.raises(LabelError) as caught:
        label_map(model, data, "runs/x")
    assert str(caught.value) == says
