"""The Open Inference Protocol, version 2, over JSON: tensors of texts in, tensors of labels and scores out.

Source: Open Inference Protocol 2.0, `inference_rest.md`: https://github.com/kserve/open-inference-protocol
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from bert_miniatures.engine import Floats
from bert_miniatures.outputs import Labels
from bert_miniatures.serve.asked import checked_rows, is_whole, read_document
from bert_miniatures.serve.failures import Refused
from bert_miniatures.serve.limits import Limits
from bert_miniatures.serve.scores import label_names, scores
from bert_miniatures.serve.served import Model

__all__ = ["INPUTS", "Infer", "answer_infer", "metadata", "output_names", "read_infer"]

INPUTS = ("text", "text_pair")
_KEYS = {"inputs": True, "outputs": False, "id": False, "parameters": False}
_TENSOR = {"name", "shape", "datatype", "data", "parameters"}
_LONGEST_ID = 256


@dataclass(frozen=True)
class Infer:
    """A request: N texts, their second texts or None, the outputs that are wanted, the client's own id."""

    texts: list[str]
    pairs: list[str] | None
    outputs: tuple[str, ...]
    id: str | None


def output_names(labels: Labels) -> tuple[str, ...]:
    """Return the outputs that a model has; a model with several labels a text has no best one."""
    best = {"classification": ("label", "score", "scores"), "multilabel": ("scores",), "regression": ("score",)}
    return (*best[labels.kind], "logits")


def metadata(model: Model) -> dict[str, Any]:
    """Return a model's metadata."""
    labels, names = model.labels, label_names(model.labels)
    wide = {"scores": [-1, len(names)], "logits": [-1, len(names)]}
    inputs = INPUTS if labels.pair or labels.task is None else INPUTS[:1]
    return {
        "name": model.name,
        "versions": ["1"],
        "platform": model.platform,
        "inputs": [{"name": name, "datatype": "BYTES", "shape": [-1]} for name in inputs],
        "outputs": [
            {
                "name": name,
                "datatype": "BYTES" if name == "label" else "FP32",
                "shape": wide.get(name, [-1]),
                **({"parameters": {"labels": list(names)}} if name in wide else {}),
            }
            for name in output_names(labels)
        ],
    }


def read_infer(body: bytes, labels: Labels, limits: Limits) -> Infer:
    """Read the body of /v2/models/NAME/infer.

    Raises:
        Refused: it is something else, or too much.
    """
    document = read_document(body, _KEYS)
    if not isinstance(document["inputs"], list) or not document["inputs"]:
        _wrong("'inputs' must be a list of tensors: 'text', and 'text_pair' for pairs")
    tensors: dict[str, list[str]] = {}
    for tensor in document["inputs"]:
        name, texts = _tensor(tensor, limits)
        if name in tensors:
            _wrong(f"the input '{name}' is there twice")
        tensors[name] = texts
    if "text" not in tensors:
        _wrong("the input 'text' is missing")
    seconds = tensors.get("text_pair")
    if seconds is not None and len(seconds) != len(tensors["text"]):
        _wrong(f"'text' has {len(tensors['text'])} elements and 'text_pair' {len(seconds)}")
    rows = [(text, None if seconds is None else seconds[i]) for i, text in enumerate(tensors["text"])]
    texts, pairs = checked_rows(rows, labels, limits)
    return Infer(texts, pairs, _outputs(document.get("outputs"), labels), _id(document.get("id")))


def answer_infer(model: Model, asked: Infer, logits: Floats) -> dict[str, Any]:
    """Return the response for logits [N, C]."""
    found, names = scores(model.labels, logits), label_names(model.labels)
    rows, columns = logits.shape
    best = found.argmax(1).tolist()
    made: dict[str, Callable[[], tuple[str, list[int], list[Any]]]] = {
        "label": lambda: ("BYTES", [rows], [names[i] for i in best]),
        "score": lambda: ("FP32", [rows], found.max(1).tolist()),
        "scores": lambda: ("FP32", [rows, columns], found.ravel().tolist()),
        "logits": lambda: ("FP32", [rows, columns], logits.ravel().tolist()),
    }
    outputs = []
    for name in asked.outputs:
        datatype, shape, data = made[name]()
        outputs.append({"name": name, "datatype": datatype, "shape": shape, "data": data})
    document = {"model_name": model.name, "model_version": "1", "outputs": outputs}
    return document if asked.id is None else document | {"id": asked.id}


def _tensor(tensor: Any, limits: Limits) -> tuple[str, list[str]]:
    if not isinstance(tensor, dict) or tensor.get("name") not in INPUTS:
        _wrong("an input is an object with the name 'text' or 'text_pair'")
    if not tensor.keys() <= _TENSOR:
        _wrong(f"an input has {', '.join(sorted(_TENSOR))}, and nothing else")
    name = tensor["name"]
    if tensor.get("datatype") != "BYTES":
        _wrong(f"the datatype of '{name}' is BYTES")
    if not isinstance(tensor.get("parameters", {}), dict):
        _wrong(f"the parameters of '{name}' must be an object")
    shape, data = tensor.get("shape"), tensor.get("data")
    if not isinstance(shape, list) or not shape or not all(is_whole(size) and size >= 0 for size in shape):
        _wrong(f"the shape of '{name}' must be a list of whole numbers, as [2]")
    if not isinstance(data, list):
        _wrong(f"the data of '{name}' must be a list of texts")
    flat = [text for row in data for text in row] if data and all(isinstance(row, list) for row in data) else data
    if len(flat) > limits.texts:
        raise Refused("too-many-texts", f"{len(flat)} texts; a request may have {limits.texts}")
    if not all(isinstance(text, str) for text in flat):
        _wrong(f"the data of '{name}' must be a list of texts")
    if len(shape) > 2 or (len(shape) == 2 and shape[1] != 1) or shape[0] != len(flat):
        _wrong(f"the shape of '{name}' is not that of its {len(flat)} texts: [{len(flat)}] or [{len(flat)}, 1]")
    return name, flat


def _outputs(given: Any, labels: Labels) -> tuple[str, ...]:
    names = output_names(labels)
    if given is None:
        return names
    if not isinstance(given, list):
        _wrong("'outputs' must be a list of objects with a name")
    if not given:
        return names
    wanted = []
    for output in given:
        if not isinstance(output, dict) or output.get("name") not in names:
            _wrong(f"an output is an object with a name: {', '.join(names)}")
        if not output.keys() <= {"name", "parameters"} or not isinstance(output.get("parameters", {}), dict):
            _wrong("an output has a name and parameters, and nothing else")
        wanted.append(output["name"])
    if len(set(wanted)) < len(wanted):
        _wrong("an output is there twice")
    return tuple(wanted)


def _id(given: Any) -> str | None:
    if given is not None and (not isinstance(given, str) or len(given) > _LONGEST_ID):
        _wrong(f"'id' must be a text of at most {_LONGEST_ID} characters")
    return None if given is None else str(given).encode("utf-8", "replace").decode("utf-8")


def _wrong(message: str) -> NoReturn:
    raise Refused("input", message)
