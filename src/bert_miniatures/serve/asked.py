"""What a request asks: from the bytes of its body to texts, checked against the limits and the model.

A sentence about a wrong body never quotes a text of it: errors end in logs.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from bert_miniatures.outputs import Labels
from bert_miniatures.serve.failures import Refused
from bert_miniatures.serve.limits import Limits
from bert_miniatures.serve.scores import FUNCTIONS

__all__ = ["Asked", "checked_rows", "is_whole", "read_document", "read_explain", "read_predict"]

_FORMS = 'a text, {"text": …, "text_pair": …}, ["text"] or ["text", "second text"]'
Row = tuple[str, str | None]


@dataclass(frozen=True)
class Asked:
    """A request.

    Attributes:
        texts, pairs: N texts, and N second texts or None.
        top_k: how many labels of each answer; None for all.
        function: what turns logits into scores; None for the one of the model's kind.
    """

    texts: list[str]
    pairs: list[str] | None
    top_k: int | None = None
    function: str | None = None


def read_document(body: bytes, keys: Mapping[str, bool]) -> dict[str, Any]:
    """Read a JSON object. A lone surrogate is let through; the tokenizer reads it as U+FFFD.

    Args:
        keys: key -> whether it must be there.

    Raises:
        Refused: not UTF-8, not JSON, or other keys.
    """
    try:
        found = json.loads(body.decode("utf-8"), parse_constant=_no_number)
    except UnicodeDecodeError as error:
        raise Refused("not-utf8", f"the body is not UTF-8 ({error.reason} at byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise Refused("not-json", f"the body is not JSON ({error.msg} at character {error.pos})") from None
    except (RecursionError, ValueError):  # nested too deeply; a number of thousands of digits
        raise Refused("not-json", "the body is not JSON that can be read: nested too deeply, or no number") from None
    if not isinstance(found, dict):
        _wrong(f"expected a JSON object with {_listed(keys)}, got {_kind(found)}")
    for key in found:
        if key not in keys:
            _wrong(f"unknown key {key[:40]!a}; expected {_listed(keys)}")
    for key, needed in keys.items():
        if needed and key not in found:
            _wrong(f"'{key}' is missing")
    return found


def read_predict(body: bytes, labels: Labels, limits: Limits) -> Asked:
    """Read the body of /predict: `{"inputs": …, "parameters": {"top_k", "function_to_apply"}}`.

    "inputs" is a text, `{"text", "text_pair"}`, or a list; an item of a list may also be `[text]` or `[text, second]`.

    Raises:
        Refused: it is something else, or too much.

    Example:
        >>> read_predict(b'{"inputs": ["a", "b"]}', Labels(), Limits()).texts
        ['a', 'b']
    """
    document = read_document(body, {"inputs": True, "parameters": False})
    inputs = document["inputs"]
    items = inputs if isinstance(inputs, list) else [inputs]
    if len(items) > limits.texts:
        raise Refused("too-many-texts", f"{len(items)} texts; a request may have {limits.texts}")
    rows = [_row(item, i if items is inputs else None) for i, item in enumerate(items)]
    texts, pairs = checked_rows(rows, labels, limits)
    return Asked(texts, pairs, *_parameters(document.get("parameters")))


def read_explain(body: bytes, labels: Labels, limits: Limits) -> Asked:
    """Read the body of /explain: `{"inputs": …}` with one text or pair.

    Raises:
        Refused: it is something else, or too much.
    """
    document = read_document(body, {"inputs": True})
    if isinstance(document["inputs"], list):
        _wrong('\'inputs\' is a list; one text is explained at a time: "text" or {"text": …, "text_pair": …}')
    texts, pairs = checked_rows([_row(document["inputs"], None)], labels, limits)
    return Asked(texts, pairs)


def checked_rows(rows: list[Row], labels: Labels, limits: Limits) -> tuple[list[str], list[str] | None]:
    """Return texts and second texts as the model wants them.

    Raises:
        Refused: a text is too long, or the model reads pairs and there are none, or the other way round.
    """
    for i, row in enumerate(rows):
        for text in row:
            if text is not None and len(text) > limits.characters:
                raise Refused(
                    "text-too-long", f"text {i} has {len(text):,} characters; it may have {limits.characters:,}"
                )
    paired = sum(second is not None for _, second in rows)
    if labels.pair and paired < len(rows):
        _wrong('this model compares two texts; write {"text": …, "text_pair": …} or, in a list, ["text", "second"]')
    if paired and not labels.pair and labels.task is not None:
        _wrong("this model reads one text and got a pair")
    if 0 < paired < len(rows):
        _wrong("some inputs are pairs and some are single texts; send them in two requests")
    return [text for text, _ in rows], [second or "" for _, second in rows] if paired else None


def _row(item: Any, number: int | None) -> Row:
    """Read one item; its number is None where it is not in a list."""
    if isinstance(item, str):
        return item, None
    if isinstance(item, dict) and item.keys() <= {"text", "text_pair"}:
        text, second = item.get("text"), item.get("text_pair")
        if isinstance(text, str) and (second is None or isinstance(second, str)):
            return text, second
    listed = number is not None and isinstance(item, list) and 1 <= len(item) <= 2
    if listed and all(isinstance(text, str) for text in item):
        return item[0], item[1] if len(item) == 2 else None
    where = "'inputs'" if number is None else f"'inputs'[{number}]"
    _wrong(f"{where} is {_kind(item)}; expected {_FORMS if number is not None else _FORMS.split(', [')[0]}")


def _parameters(given: Any) -> tuple[int | None, str | None]:
    if given is None:
        return None, None
    if not isinstance(given, dict):
        _wrong(f"'parameters' is {_kind(given)}; expected an object")
    for key in given:
        if key not in {"top_k", "function_to_apply"}:
            _wrong(f"unknown parameter {key[:40]!a}; expected top_k, function_to_apply")
    top_k, function = given.get("top_k"), given.get("function_to_apply")
    if top_k is not None and (not is_whole(top_k) or top_k < 1):
        _wrong("'top_k' must be a whole number of at least 1")
    if function is not None and (not isinstance(function, str) or function not in FUNCTIONS):
        _wrong(f"'function_to_apply' must be one of {', '.join(FUNCTIONS)}")
    return None if top_k is None else int(top_k), function


def is_whole(value: Any) -> bool:
    """Tell whether a value of JSON is a whole number; 2.0 is one, true is none."""
    return type(value) is int or (type(value) is float and value.is_integer())


def _wrong(message: str) -> NoReturn:
    raise Refused("input", message)


def _no_number(name: str) -> NoReturn:
    raise ValueError(name)


def _listed(keys: Mapping[str, bool]) -> str:
    return ", ".join(f"'{key}'" for key in keys)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "a boolean", type(None): "null"}
    if isinstance(value, list) and len(value) > 2:
        return f"a list of {len(value)}"
    if isinstance(value, dict) and not value:
        return "an empty object"
    return names.get(type(value), "a number")
