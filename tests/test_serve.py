"""What the service answers: each form of a question, each kind of model, errors, counters, documents."""

import json
import math

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bert_miniatures.errors import ConfigError, UserError
from bert_miniatures.exporting import export
from bert_miniatures.predict import Predictor
from bert_miniatures.serve.explain import words_of
from bert_miniatures.serve.failures import CODES
from bert_miniatures.serve.limits import Limits
from bert_miniatures.serve.running import is_loopback, listen
from bert_miniatures.serve.served import named
from deploy import LABELS, PAIRS, TEXTS, classifier, written
from serving import running

OWN = LABELS | {"either": LABELS["single"].__class__("classification", ("no", "yes"), max_length=31)}


@pytest.fixture(scope="module")
def folders(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    found = {}
    for kind, labels in OWN.items():
        export(written(classifier(tiny, labels), folder / f"{kind}-model"), folder / kind)
        found[kind] = folder / kind
    return found


@pytest.fixture(scope="module")
def server(folders):
    with running(folders, texts=97, characters=5000, body=200_000, words=11) as found:
        yield found


@pytest.fixture(scope="module")
def predictors(folders):
    return {kind: Predictor(folder, threads=1) for kind, folder in folders.items()}


# ------------------------------------------------------------------------------------------------- answers


def best(rows):
    return [row[0] for row in rows]


def close(found, expected):
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    np.testing.assert_allclose([one["score"] for one in found], [one["score"] for one in expected], atol=1e-6)


def test_the_answers_are_those_of_predictor(server, predictors):
    answer = server.post("/predict", {"inputs": TEXTS})
    assert answer.status == 200
    close(best(answer.json), predictors["single"](TEXTS))
    for row in answer.json:
        assert sum(one["score"] for one in row) == pytest.approx(1)
        assert [one["score"] for one in row] == sorted((one["score"] for one in row), reverse=True)
        assert {one["label"] for one in row} == set(LABELS["single"].names)


def test_pairs_scores_and_several_labels(server, predictors):
    rows = [list(row) for row in zip(TEXTS, PAIRS, strict=True)]
    close(best(server.post("/models/paired/predict", {"inputs": rows}).json), predictors["paired"](TEXTS, PAIRS))
    found = server.post("/models/regression/predict", {"inputs": TEXTS}).json
    expected = [one["score"] for one in predictors["regression"](TEXTS)]
    np.testing.assert_allclose([row[0]["score"] for row in found], expected, atol=1e-6)
    assert {one["label"] for row in found for one in row} == {"score"}
    found = server.post("/models/multilabel/predict", {"inputs": TEXTS}).json
    for row, one in zip(found, predictors["multilabel"](TEXTS), strict=True):
        assert {entry["label"]: entry["score"] for entry in row} == pytest.approx(one["scores"], abs=1e-6)


@pytest.mark.parametrize("inputs", ["a film", ["a film"], {"text": "a film"}, [{"text": "a film"}], [["a film"]]])
def test_forms_of_one_text(inputs, server):
    assert server.post("/predict", {"inputs": inputs}).json == server.post("/predict", {"inputs": "a film"}).json


@pytest.mark.parametrize("inputs", [{"text": "a", "text_pair": "b"}, [{"text": "a", "text_pair": "b"}], [["a", "b"]]])
def test_forms_of_a_pair(inputs, server, predictors):
    for name in ("paired", "either"):
        found = server.post(f"/models/{name}/predict", {"inputs": inputs}).json
        close(best(found), predictors[name](["a"], ["b"]))


def test_a_list_of_none_is_answered_with_none(server):
    for name in OWN:
        assert server.post(f"/models/{name}/predict", {"inputs": []}).json == []


def test_top_k_and_the_function(server, predictors):
    asked = {"inputs": TEXTS[:7], "parameters": {"top_k": 1}}
    assert [len(row) for row in server.post("/predict", asked).json] == [1] * 7
    logits = predictors["single"].logits(TEXTS[:1])[0]
    for function, expected in (("none", logits), ("sigmoid", 1 / (1 + np.exp(-logits))), ("softmax", None)):
        asked = {"inputs": TEXTS[0], "parameters": {"function_to_apply": function, "top_k": None}}
        (row,) = server.post("/predict", asked).json
        if expected is not None:
            assert sorted(one["score"] for one in row) == pytest.approx(sorted(map(float, expected)), abs=1e-5)
        else:
            assert sum(one["score"] for one in row) == pytest.approx(1)


def test_hugging_faces_own_client(server, predictors, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)  # it reaches this machine alone
    client = huggingface_hub.InferenceClient(model=f"{server.url}/predict")
    found = client.text_classification(TEXTS[0], top_k=2)
    assert (found[0].label, len(found)) == (predictors["single"](TEXTS[:1])[0]["label"], 2)


# ------------------------------------------------------------------------------------------------- the protocol


def test_the_open_inference_protocol(server, predictors):
    assert server.get("/v2/health/live").json == {"live": True}
    assert server.get("/v2/health/ready").json == {"ready": True}
    assert server.get("/v2").json["name"] == "bert-miniatures"
    assert server.get("/v2/models/single/ready").json == {"name": "single", "ready": True}
    about = server.get("/v2/models/paired").json
    assert [entry["name"] for entry in about["inputs"]] == ["text", "text_pair"]
    answer = server.infer("paired", text=TEXTS, text_pair=PAIRS).json
    assert answer["model_name"] == "paired"
    outputs = {output["name"]: output for output in answer["outputs"]}
    expected = predictors["paired"](TEXTS, PAIRS)
    assert outputs["label"]["data"] == [one["label"] for one in expected]
    assert outputs["score"]["data"] == pytest.approx([one["score"] for one in expected], abs=1e-6)
    assert outputs["logits"]["shape"] == [97, 2]
    logits = predictors["paired"].logits(TEXTS, PAIRS)
    np.testing.assert_allclose(outputs["logits"]["data"], logits.ravel(), atol=1e-5)
    for entry in about["outputs"]:
        assert outputs[entry["name"]]["datatype"] == entry["datatype"]
        assert len(outputs[entry["name"]]["shape"]) == len(entry["shape"])


def test_outputs_that_are_wanted_nested_data_and_the_id(server):
    tensor = {"name": "text", "shape": [2, 1], "datatype": "BYTES", "data": [["a"], ["b"]]}
    asked = {"id": "7", "inputs": [tensor], "outputs": [{"name": "score"}]}
    answer = server.post("/v2/models/regression/infer", asked).json
    assert (answer["id"], [output["name"] for output in answer["outputs"]]) == ("7", ["score"])
    assert server.infer("multilabel", text=[]).json["outputs"][0]["shape"] == [0, 5]


TENSOR = {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}


@pytest.mark.parametrize(
    "change",
    [
        {"inputs": []},
        {"inputs": [TENSOR | {"name": "words"}]},
        {"inputs": [TENSOR | {"datatype": "FP32"}]},
        {"inputs": [TENSOR | {"shape": [2]}]},
        {"inputs": [TENSOR | {"shape": [True]}]},
        {"inputs": [TENSOR | {"data": [1]}]},
        {"inputs": [TENSOR | {"data": "a"}]},
        {"inputs": [TENSOR, TENSOR]},
        {"inputs": [TENSOR, TENSOR | {"name": "text_pair"}]},
        {"outputs": [{"name": "nothing"}]},
        {"outputs": [{"name": "label"}, {"name": "label"}]},
        {"id": 7},
        {"more": 1},
    ],
)
def test_wrong_tensors(change, server):
    answer = server.post("/v2/models/single/infer", {"inputs": [TENSOR]} | change)
    assert (answer.status, answer.code) == (422, "input")


# ------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("path", "body", "code"),
    [
        ("/predict", b"", "not-json"),
        ("/predict", b'{"inputs": "a"', "not-json"),
        ("/predict", b'{"inputs": NaN}', "not-json"),
        ("/predict", b"[" * 100_000, "not-json"),
        ("/predict", b'{"inputs": ' + b"9" * 9000 + b"}", "not-json"),
        ("/predict", b'{"inputs": "\xff\xfe"}', "not-utf8"),
        ("/predict", b'"a"', "input"),
        ("/predict", {}, "input"),
        ("/predict", {"inputs": 3}, "input"),
        ("/predict", {"inputs": None}, "input"),
        ("/predict", {"inputs": [["a", "b", "c"]]}, "input"),
        ("/predict", {"inputs": {"text": 3}}, "input"),
        ("/predict", {"inputs": "a", "more": 1}, "input"),
        ("/predict", {"inputs": "a", "parameters": []}, "input"),
        ("/predict", {"inputs": "a", "parameters": {"top_k": 0}}, "input"),
        ("/predict", {"inputs": "a", "parameters": {"top_k": True}}, "input"),
        ("/predict", {"inputs": "a", "parameters": {"function_to_apply": "relu"}}, "input"),
        ("/predict", {"inputs": "a", "parameters": {"truncation": True}}, "input"),
        ("/predict", {"inputs": {"text": "a", "text_pair": "b"}}, "input"),
        ("/models/paired/predict", {"inputs": "a"}, "input"),
        ("/models/either/predict", {"inputs": ["a", ["b", "c"]]}, "input"),
        ("/explain", {"inputs": ["a"]}, "input"),
        ("/predict", {"inputs": ["a"] * 98}, "too-many-texts"),
        ("/predict", {"inputs": "a" * 5001}, "text-too-long"),
        ("/predict", b'{"inputs": "' + b"a" * 200_000 + b'"}', "body-too-large"),
        ("/models/nothing/predict", {"inputs": "a"}, "unknown-model"),
        ("/nothing", {"inputs": "a"}, "not-found"),
        ("/health", {"inputs": "a"}, "method"),
    ],
)  # fmt: skip
def test_errors_have_a_status_a_code_and_a_sentence(path, body, code, server):
    answer = server.post(path, body)
    assert (answer.status, answer.code) == (CODES[code][0], code)


def test_a_forgotten_content_type_is_told_how(server):
    answer = server.post("/predict", {"inputs": "a"}, Content_Type="application/x-www-form-urlencoded")
    assert (answer.status, answer.code) == (415, "not-json-type")
    assert "-H 'Content-Type: application/json'" in answer.json["error"]
    assert server.post("/predict", {"inputs": "a"}, Content_Encoding="gzip").code == "not-json-type"
    assert server.post("/predict", {"inputs": "a"}, Content_Type="application/json; charset=utf-8").status == 200


@pytest.mark.parametrize("inputs", ["", " ", "\0", "a\0b", "\ud800 a", "中文", "a " * 2500, "🙂" * 900])
def test_texts_of_every_sort(inputs, server, predictors):
    (row,) = server.post("/predict", {"inputs": inputs}).json
    close([row[0]], predictors["single"]([inputs]))


def test_the_key(folders):
    with running({"single": folders["single"]}, key="swordfish") as server:
        for right in ({"Authorization": "Bearer swordfish"}, {"Authorization": "bearer swordfish"}):
            assert server.post("/predict", {"inputs": "a"}, **right).status == 200
        for wrong in ({}, *({"Authorization": one} for one in ("Bearer sword", "swordfish", "Basic swordfish", ""))):
            answer = server.post("/predict", {"inputs": "a"}, **wrong)
            assert (answer.status, answer.code) == (401, "key")
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/metrics", "/models", "/v2", "/v2/models/single", "/nothing"):
            assert server.get(path).status == 401
        for path in ("/", "/page.js", "/page.css", "/health", "/v2/health/ready", "/v2/health/live", "/docs"):
            assert server.get(path).status == 200


def test_no_other_site_may_read(server):
    answer = server("OPTIONS", "/predict", Origin="http://elsewhere", Access_Control_Request_Method="POST")
    assert answer.status == 405
    assert not [name for name in server.post("/predict", {"inputs": "a"}, Origin="http://x").headers if "allow" in name]


# ------------------------------------------------------------------------------------------------- counters


def test_counters(folders):
    with running({"single": folders["single"]}) as server:
        server.post("/predict", {"inputs": ["good film", "a b c " * 20, "中"]})
        server.post("/predict", {"inputs": 3})
        server.get("/of/my/own")
        of_model = {"model": "single"}
        assert server.meter("texts_total", **of_model) == 3
        assert server.meter("truncated_texts_total", **of_model) == 1
        assert server.meter("pieces_total", **of_model) == 2 + 29 + 1
        assert server.meter("unknown_pieces_total", **of_model) == 1
        assert server.meter("batch_texts_count", **of_model) == 1
        assert server.meter("confidence_count", **of_model) == 3
        labels = [server.meter("answers_total", label=name, **of_model) for name in LABELS["single"].names]
        assert sum(labels) == 3
        assert server.meter("requests_total", path="/predict", status="200") == 1
        assert server.meter("requests_total", path="/predict", status="422") == 1
        assert server.meter("requests_total", path="other", status="404") == 1
        assert server.meter("request_seconds_count", path="/predict") == 2
        assert server.meter("queue_texts", **of_model) == 0
        text = server.get("/metrics").body.decode()
    families = {family.name for family in text_string_to_metric_families(text)}
    assert {"miniatures_requests", "miniatures_batch_seconds", "process_resident_memory_bytes"} <= families
    assert "of/my" not in text


# ------------------------------------------------------------------------------------------------- explaining


def test_pieces_and_the_effect_of_each_word(server, predictors):
    text = "a very good film , not bad"
    answer = server.post("/explain", {"inputs": text}).json
    assert answer["pieces"] == [["a", "very", "good", "film", ",", "not", "bad"]]
    assert (answer["cut"], answer["words_left_out"]) == (False, 0)
    predictor = predictors["single"]
    words = text.split()
    without = [" ".join(words[:i] + words[i + 1 :]) for i in range(len(words))]
    (whole,) = predictor([text])
    close(answer["answers"][:1], [whole])
    index = predictor.labels.names.index(whole["label"])
    logits = predictor.logits(without).astype(np.float64)
    shares = np.exp(logits)[:, index] / np.exp(logits).sum(1)
    found = [word["effect"] for word in answer["words"]]
    assert found == pytest.approx((whole["score"] - shares).tolist(), abs=1e-5)
    assert max(map(abs, found)) > 1e-3
    assert [text[word["start"] : word["end"]] for word in answer["words"]] == words


def test_what_is_explained_of_long_texts_and_pairs(server):
    answer = server.post("/explain", {"inputs": "good film " * 20}).json
    assert (answer["cut"], len(answer["pieces"][0])) == (True, 29)
    assert (len(answer["words"]), answer["words_left_out"]) == (11, 29)
    answer = server.post("/models/paired/explain", {"inputs": {"text": "a film", "text_pair": "\ud800bad"}}).json
    assert answer["pieces"] == [["a", "film"], ["[UNK]"]] or len(answer["pieces"][1]) >= 1
    assert [word["of"] for word in answer["words"]] == ["text", "text", "text_pair"]
    assert answer["words"][2]["text"] == "\ufffdbad"
    assert server.post("/explain", {"inputs": ""}).json["words"] == []
    answer = server.post("/models/regression/explain", {"inputs": "good film"}).json
    assert all(math.isfinite(word["effect"]) for word in answer["words"])


def test_words_are_what_spaces_separate():
    words = words_of(["a  bc\n", "\t", "d"])
    assert [(word.of, word.start, word.end) for word in words] == [(0, 0, 1), (0, 3, 5), (2, 0, 1)]


# ------------------------------------------------------------------------------------------------- documents, settings


def test_page_and_documents_need_nothing_from_elsewhere(server):
    for path in ("/", "/page.css", "/page.js", "/docs"):
        answer = server.get(path)
        assert answer.status == 200
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert b"//" not in answer.body.replace(b"http://HOST:PORT", b"")
        if b"<html" in answer.body:
            assert "default-src 'self'" in answer.headers["content-security-policy"]
            assert b"style=" not in answer.body
    document = server.get("/openapi.json").json
    assert {"/predict", "/v2/models/{name}/infer", "/metrics", "/health", "/explain"} <= document["paths"].keys()
    assert all(f"{path}</code>" in server.get("/docs").body.decode() for path in document["paths"])


def test_every_example_of_the_documents_works(server):
    for path, methods in server.get("/openapi.json").json["paths"].items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            answer = server(method.upper(), path.replace("{name}", "single"), *body.get("examples", [])[:1])
            assert answer.status == 200, (path, answer.body)


def test_names_of_models(folders):
    single = folders["single"]
    assert dict(named([str(single), f"b={single}"])) == {"single": str(single), "b": str(single)}
    assert dict(named(["a/b=c"])) == {"a-b-c": "a/b=c"}
    for wrong in ([str(single), str(single)], ["sp ace=x"], ["-=x"]):
        with pytest.raises(UserError):
            named(wrong)


def test_limits_must_be_possible():
    for wrong in ({"queue": 3}, {"texts": 0}, {"window": -1}, {"timeout": 0}, {"words": 2000}):
        with pytest.raises(ConfigError):
            Limits(**wrong)
    assert Limits(window=0).window == 0


def test_addresses():
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.9.9.9")] == [True] * 4
    assert [is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org")] == [False] * 4
    with listen("127.0.0.1", 0) as taken, pytest.raises(UserError, match="cannot listen"):
        listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="cannot listen"):
        listen("192.0.2.1", 0)


def test_errors_are_json_of_one_shape(server):
    assert json.loads(server.get("/nothing").body).keys() == {"error", "code"}
