"""What the paths take and give, as JSON Schema for the OpenAPI document; that document as a page without scripts."""

import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from bert_miniatures.serve.failures import CODES
from bert_miniatures.serve.limits import Limits
from bert_miniatures.serve.scores import FUNCTIONS
from bert_miniatures.serve.served import Models
from bert_miniatures.serve.v2 import INPUTS

__all__ = ["docs_page", "explain_body", "explained", "infer_body", "inferred", "predict_body", "predicted", "responses"]

Schema = dict[str, Any]
_STRING: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "number"}
_ANY_OBJECT: Schema = {"type": "object"}


def _object(properties: Schema, needed: Iterable[str] | None = None, **more: Any) -> Schema:
    """Return the schema of an object; all its properties must be there unless `needed` says which."""
    listed = list(properties if needed is None else needed)
    found: Schema = {"type": "object", "properties": properties, "additionalProperties": False, **more}
    return found | ({"required": listed} if listed else {})


def _array(items: Schema, **more: Any) -> Schema:
    return {"type": "array", "items": items, **more}


def _inputs(models: Models, limits: Limits) -> list[tuple[Schema, Schema | None]]:
    """Return (one input alone, the same in a list of such) for single texts and for pairs, as the models want them."""
    text = _STRING | {"maxLength": limits.characters}
    pair = _object({"text": text, "text_pair": text})
    listed = {"type": "array", "items": text}
    single_rows = {"anyOf": [text, _object({"text": text}), listed | {"minItems": 1, "maxItems": 1}]}
    pair_rows = {"anyOf": [pair, listed | {"minItems": 2, "maxItems": 2}]}
    labels = [model.labels for model in models.by_name.values()]
    found: list[tuple[Schema, Schema | None]] = []
    if not all(one.pair for one in labels):
        found.append(({"anyOf": [text, _object({"text": text})]}, single_rows))
    if any(one.pair or one.task is None for one in labels):
        found.append((pair, pair_rows))
    return found


def predict_body(models: Models, limits: Limits) -> Schema:
    """Return the schema of a request to /predict."""
    forms = [
        form
        for one, row in _inputs(models, limits)
        for form in (one, _array(row or one, maxItems=limits.texts, title="Batch"))
    ]
    parameters = {
        "top_k": {"type": ["integer", "null"], "minimum": 1, "description": "labels of each answer [all]"},
        "function_to_apply": {"enum": [*FUNCTIONS, None], "description": "[the one of the model's kind]"},
    }
    return _object(
        {"inputs": {"anyOf": forms}, "parameters": _object(parameters, ()) | {"type": ["object", "null"]}},
        ["inputs"],
        examples=[{"inputs": _example(models)}],
    )


def explain_body(models: Models, limits: Limits) -> Schema:
    """Return the schema of a request to /explain."""
    forms = [one for one, _ in _inputs(models, limits)]
    return _object({"inputs": {"anyOf": forms}}, examples=[{"inputs": _example(models)}])


def _example(models: Models) -> Any:
    return {"text": "a film", "text_pair": "a movie"} if models.first.labels.pair else "a gripping film"


def predicted() -> Schema:
    """Return the schema of an answer of /predict."""
    return _array(_array(_object({"label": _STRING, "score": _NUMBER})))


def explained() -> Schema:
    """Return the schema of an answer of /explain."""
    word = {"of": {"enum": list(INPUTS)}, "text": _STRING, "start": {"type": "integer"}, "end": {"type": "integer"}}
    return _object(
        {
            "model": _STRING,
            "answers": predicted()["items"],
            "pieces": _array(_array(_STRING)),
            "cut": {"type": "boolean"},
            "max_length": {"type": "integer"},
            "words": _array(_object(word | {"effect": _NUMBER})),
            "words_left_out": {"type": "integer"},
            "method": _STRING,
            "milliseconds": _object({"answer": _NUMBER, "words": _NUMBER}),
        }
    )


def infer_body(models: Models, limits: Limits) -> Schema:
    """Return the schema of a request to /v2/models/NAME/infer."""
    text = _STRING | {"maxLength": limits.characters}
    tensor = {
        "name": {"enum": list(INPUTS)},
        "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1, "maxItems": 2},
        "datatype": {"const": "BYTES"},
        "data": _array({"anyOf": [text, _array(text)]}, maxItems=limits.texts),
        "parameters": _ANY_OBJECT,
    }
    output = {"name": {"enum": ["label", "score", "scores", "logits"]}, "parameters": _ANY_OBJECT}
    two = models.first.labels.pair
    rows = [{"name": name, "shape": [1], "datatype": "BYTES", "data": ["a film"]} for name in INPUTS[: 1 + two]]
    return _object(
        {
            "id": {"type": ["string", "null"], "maxLength": 256},
            "parameters": {},
            "inputs": _array(_object(tensor, ["name", "shape", "datatype", "data"]), minItems=1, maxItems=2),
            "outputs": {"type": ["array", "null"], "items": _object(output, ["name"])},
        },
        ["inputs"],
        examples=[{"inputs": rows}],
    )


def inferred() -> Schema:
    """Return the schema of an answer of /v2/models/NAME/infer."""
    output = {"name": _STRING, "datatype": _STRING, "shape": _array({"type": "integer"}), "data": _array({})}
    names = {"model_name": _STRING, "model_version": _STRING, "id": _STRING}
    return _object(names | {"outputs": _array(_object(output))}, ["model_name", "model_version", "outputs"])


def responses(answer: Schema | str, *codes: str) -> dict[int | str, dict[str, Any]]:
    """Return the responses of a path.

    Args:
        answer: the schema of a 200, or its media type where it is not JSON.
        codes: of `CODES`, which may come instead.
    """
    content = {answer: {"schema": _STRING}} if isinstance(answer, str) else {"application/json": {"schema": answer}}
    found: dict[int | str, dict[str, Any]] = {200: {"description": "the answer", "content": content}}
    for code in codes:
        status, what = CODES[code]
        entry = found.setdefault(status, {"description": "", "content": {"application/json": {"schema": _error()}}})
        entry["description"] += f"{'; ' if entry['description'] else ''}{code}: {what}"
        if status in {429, 503}:
            entry["headers"] = {"Retry-After": {"schema": {"type": "string"}, "description": "seconds"}}
    return found


def _error() -> Schema:
    return _object({"error": _STRING, "code": {"enum": list(CODES)}})


def docs_page(document: Mapping[str, Any]) -> str:
    """Write an OpenAPI document as HTML: no script and nothing from elsewhere."""
    info = document["info"]
    parts = [f"<h1>{escape(info['title'])}</h1>", f"<p>{escape(info['description'])}</p>"]
    parts.append('<p><a href="./">Try it</a> · <a href="openapi.json">The OpenAPI document</a></p>')
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts += _operation(path, method, operation)
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<title>{escape(info["title"])}: paths</title><link rel="stylesheet" href="page.css"></head>\n'
        f"<body><main>\n{body}\n</main></body>\n</html>\n"
    )


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> list[str]:
    parts = [f"<h2><code>{method.upper()} {escape(path)}</code></h2>", f"<p>{escape(operation['summary'])}</p>"]
    if "requestBody" in operation:
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        example = json.dumps(schema["examples"][0], ensure_ascii=False)
        call = f"curl -H 'Content-Type: application/json' -d '{example}' http://HOST:PORT{path}"
        parts += [f"<pre>{escape(call)}</pre>", _folded("What the body may be", schema)]
    for status, response in operation["responses"].items():
        content = next(iter(response.get("content", {}).items()), None)
        told = f"<p><strong>{status}</strong> {escape(response['description'])}</p>"
        if status == "200" and content and content[0] == "application/json":
            told += _folded("What the answer is", content[1]["schema"])
        parts.append(told)
    return parts


def _folded(title: str, schema: Mapping[str, Any]) -> str:
    text = escape(json.dumps(schema, indent=2, ensure_ascii=False))
    return f"<details><summary>{title}</summary><pre>{text}</pre></details>"
