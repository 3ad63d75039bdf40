"""Clients that are made from the OpenAPI document: what it allows is answered, what it forbids is refused."""

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import load_all_checks
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from bert_miniatures.exporting import export
from deploy import LABELS, classifier, written
from serving import running

SETTINGS = hypothesis.settings(max_examples=4, database=None, suppress_health_check=list(hypothesis.HealthCheck))


@pytest.fixture(scope="module", params=["single", "paired"])
def server(request, tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("contract")
    export(written(classifier(tiny, LABELS[request.param]), folder / "model"), folder / "out")
    with running({"m": folder / "out"}, texts=7, characters=50, words=5) as found:
        yield found


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_path_keeps_its_promise(server, mode):
    """Status, headers and body of each answer are those of the document; wrong input is refused, right input is not."""
    load_all_checks()
    schema = schemathesis.openapi.from_dict(server.get("/openapi.json").json)
    schema.config.checks.negative_data_rejection.expected_statuses = ["400", "404", "405", "413", "415", "422"]
    statuses = []
    for found in schema.get_all_operations():
        operation = found.ok()
        if mode is GenerationMode.POSITIVE or operation.body or operation.path_parameters:
            statuses += asked(server, operation, mode)
    assert max(statuses) < 500
    assert statuses.count(200) > 15 if mode is GenerationMode.POSITIVE else statuses.count(422) > 5


def asked(server, operation, mode):
    statuses = []
    # that a shape is the one of its data cannot be said in JSON Schema
    left_out = [positive_data_acceptance] if operation.path.endswith("/infer") else []

    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    @SETTINGS
    def ask(case):
        answer = case.call(base_url=server.url)
        case.validate_response(answer, excluded_checks=left_out)
        statuses.append(answer.status_code)

    ask()
    return statuses
