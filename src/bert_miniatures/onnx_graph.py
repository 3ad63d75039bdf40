"""A classifier as an ONNX graph, written node by node from numpy weights; ONNX's own operators only, so every runtime
opens it.

What the classifier never reads is not there, and what can be multiplied beforehand is:

    position + segment   one table with a row for each (segment, position)
    query scale          part of the query's weight and bias
    key bias             none: it adds the same to every score of a query, and softmax does not see that
    value bias           part of the bias of the product after it, because shares sum to one
    last layer           of the first position alone, without keys and values: see `_attend_first` in model.py

B, T, D, N, H as in model.py. Weights of products stand as [in, out].

Source: https://onnx.ai/onnx/operators, opset 17.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import ModelProto, TensorProto, checker, helper, numpy_helper

from bert_miniatures.config import ModelConfig
from bert_miniatures.errors import CheckpointError
from bert_miniatures.names import Weights

__all__ = ["FP32", "INPUTS", "Precision", "build_graph", "mapped", "products"]

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_OPSET, _IR = 17, 8  # the first with LayerNormalization; old enough for the runtimes of browsers and phones
_LIMIT = 2_000_000_000  # bytes; one protobuf message ends at 2 GiB
_FOLDED_HEADS = 4  # up to here one product of D x N D costs no more time than two of D x D, and no transposes
_WORDS = "words"  # the table of word vectors
_TANH = {"gelu": False, "gelu_new": True, "gelu_pytorch_tanh": True}

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Precision:
    """Which parts are 8-bit integers; the default is none.

    Attributes:
        products: names of matrix products (`products` lists them).
        words: the table of word vectors, with a scale for each row.
        per_channel: a scale for each output of a product, not one for all of them.
        bits: of a product's weight; 7 where the processor adds two 8-bit products into 16 bits and would overflow.
        ranges: name of a product -> the least and greatest value of what it multiplies. Where it is given the scale is
            fixed, and a row's answer does not depend on the rows beside it; otherwise the scale is that of the batch.
    """

    products: frozenset[str] = frozenset()
    words: bool = False
    per_channel: bool = False
    bits: int = 8
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)


FP32 = Precision()


def products(config: ModelConfig) -> list[str]:
    """Return the names of the matrix products that can be 8-bit integers, from the first layer to the last."""
    last = config.num_hidden_layers - 1
    middle = [f"layers.{i}.{part}" for i in range(last) for part in ("query", "key", "value", "attended", "up", "down")]
    folded = ("asked", "mixed") if config.num_attention_heads <= _FOLDED_HEADS else ("query", "attended")
    return [*middle, *(f"layers.{last}.{part}" for part in (*folded, "up", "down")), "pooler"]


def build_graph(
    config: ModelConfig,
    weights: Weights,
    *,
    metadata: Mapping[str, str],
    precision: Precision = FP32,
    shown: bool = False,
) -> ModelProto:
    """Write the graph of a classifier.

    Args:
        config: sizes and constants.
        weights: our name -> array, with pooler and head.
        metadata: what the file says about itself.
        precision: which parts are 8-bit integers.
        shown: make what each product multiplies an output too, named as the product: to measure ranges.

    Returns:
        The model: inputs `input_ids, attention_mask, token_type_ids` int64 [batch, sequence], output `logits` float32
        [batch, classes].

    Raises:
        CheckpointError: the weights are larger than an ONNX file can be.
    """
    size = sum(array.nbytes for array in weights.values())
    if size > _LIMIT:
        raise CheckpointError(f"the weights have {size:,} bytes, an ONNX file holds {_LIMIT:,}")
    graph = _Graph(precision, shown)
    x, mask = _embed(graph, config, weights)
    for i in range(config.num_hidden_layers):
        x = _layer(graph, x, mask, i, config, weights)
    x = graph.op("Tanh", graph.product(x, "pooler", weights["pooler.weight"].T, weights["pooler.bias"]))
    head = graph.constant("head.weight", weights["head.weight"].T)
    graph.op("Gemm", x, head, graph.constant("head.bias", weights["head.bias"]), output="logits")
    return _model(graph, len(weights["head.bias"]), metadata)


def mapped(graph: bytes, file: str) -> bytes:
    """Return a graph that finds the table of word vectors in the file of another one, instead of having it.

    A runtime maps that part of the file: pages of words that nobody asks for take no memory.

    Args:
        graph: a whole graph, as the bytes of its file.
        file: the name of that file, in the folder where the returned graph will be.
    """
    model = ModelProto.FromString(graph)
    table = next(tensor for tensor in model.graph.initializer if tensor.name == _WORDS)
    raw = table.raw_data
    table.ClearField("raw_data")
    table.data_location = TensorProto.EXTERNAL
    for key, value in {"location": file, "offset": graph.index(raw), "length": len(raw)}.items():
        entry = table.external_data.add()
        entry.key, entry.value = key, str(value)
    return bytes(model.SerializeToString())


def _model(graph: "_Graph", classes: int, metadata: Mapping[str, str]) -> ModelProto:
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"]) for name in INPUTS]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])]
    outputs += [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in graph.shown]
    body = helper.make_graph(graph.nodes, "bert", inputs, outputs, graph.constants)
    opsets = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(body, producer_name="bert-miniatures", opset_imports=opsets, ir_version=_IR)
    helper.set_model_props(model, dict(metadata))
    if not graph.shown:  # what is shown has no shape written down, and the checker wants one
        checker.check_model(model)
    return model


class _Graph:
    """Nodes and constants so far."""

    def __init__(self, precision: Precision, show: bool) -> None:
        self.precision = precision
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.show = show
        self.shown: list[str] = []
        self._names: set[str] = set()
        self._rounded: dict[Any, tuple[str, str, str]] = {}

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        """Add an array under its name; the same name is added once."""
        if name not in self._names:
            self._names.add(name)
            self.constants.append(numpy_helper.from_array(np.array(value, dtype=dtype, order="C"), name))
        return name

    def op(self, kind: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node with one output and return the output's name."""
        output = output or f"{kind}_{len(self.nodes)}"
        self.nodes.append(
            helper.make_node(kind, list(inputs), [output], name=f"{kind}_{len(self.nodes)}", **attributes)
        )
        return output

    def product(self, x: str, name: str, weight: Array, bias: Array | None = None) -> str:
        """Multiply x [..., in] with a weight [in, out] and add a bias [out]."""
        if self.show:
            self.shown.append(self.op("Identity", x, output=name))
        if name in self.precision.products:
            x = self._integer_product(x, name, weight)
        else:
            x = self.op("MatMul", x, self.constant(f"{name}.weight", weight))
        return x if bias is None else self.op("Add", x, self.constant(f"{name}.bias", bias))

    def _integer_product(self, x: str, name: str, weight: Array) -> str:
        highest = 2 ** (self.precision.bits - 1) - 1
        whole, scale = _rounded(weight, highest, axis=0 if self.precision.per_channel else None)
        zero = np.zeros(scale.shape, np.int8)
        x, x_scale, x_zero = self._integer_input(x, name)
        zero_name = self.constant(f"{name}.zero", zero, np.int8)
        y = self.op("MatMulInteger", x, self.constant(f"{name}.weight", whole, np.int8), x_zero, zero_name)
        both = self.op("Mul", x_scale, self.constant(f"{name}.scale", scale))
        return self.op("Mul", self.op("Cast", y, to=TensorProto.FLOAT), both)

    def _integer_input(self, x: str, name: str) -> tuple[str, str, str]:
        """Return x as 8-bit integers with its scale and zero; products of the same x share them."""
        fixed = self.precision.ranges.get(name)
        if (x, fixed) not in self._rounded:
            if fixed is None:
                found = tuple(f"{x}_{part}" for part in ("whole", "scale", "zero"))
                self.nodes.append(helper.make_node("DynamicQuantizeLinear", [x], list(found), name=f"round_{x}"))
            else:
                scale, zero = _scale_and_zero(*fixed)
                names = (f"{name}.in_scale", f"{name}.in_zero")
                found = (self.constant(names[0], scale), self.constant(names[1], zero, np.uint8))
                found = (self.op("QuantizeLinear", x, *found), *found)
            self._rounded[x, fixed] = (found[0], found[1], found[2])
        return self._rounded[x, fixed]

    def norm(self, x: str, name: str, weights: Weights, epsilon: float) -> str:
        """Normalise the last axis of x."""
        both = [self.constant(f"{name}.{part}", weights[f"{name}.{part}"]) for part in ("weight", "bias")]
        return self.op("LayerNormalization", x, *both, axis=-1, epsilon=epsilon)

    def reshape(self, x: str, *shape: int) -> str:
        """Give x another shape; 0 keeps an axis."""
        return self.op("Reshape", x, self.constant("shape_" + "_".join(map(str, shape)), shape, np.int64))


def _rounded(weight: Array, highest: int, axis: int | None, keepdims: bool = False) -> tuple[Array, Array]:
    """Return whole numbers from -highest to highest, and what one of them is worth."""
    largest = np.abs(weight).max(axis=axis, keepdims=keepdims)
    scale = np.where(largest > 0, largest / highest, 1.0).astype(np.float32)
    return np.clip(np.rint(weight / scale), -highest, highest), scale


def _scale_and_zero(least: float, greatest: float) -> tuple[float, int]:
    """Return what one of 256 steps is worth, and which of them is 0."""
    least, greatest = min(least, 0.0), max(greatest, 0.0)
    scale = (greatest - least) / 255 or 1.0
    return scale, int(np.clip(np.rint(-least / scale), 0, 255))


def _embed(graph: _Graph, c: ModelConfig, weights: Weights) -> tuple[str, str]:
    """Return the vectors [B, T, D] and what is added to attention scores, [B, 1, T]."""
    ids, mask, segments = INPUTS
    table = weights["embed.word.weight"]
    if graph.precision.words:
        whole, scale = _rounded(table, 127, axis=1, keepdims=True)
        words = graph.op("Gather", graph.constant(_WORDS, whole, np.int8), ids)
        words = graph.op("Cast", words, to=TensorProto.FLOAT)
        words = graph.op("Mul", words, graph.op("Gather", graph.constant("words.scale", scale), ids))
    else:
        words = graph.op("Gather", graph.constant(_WORDS, table), ids)
    positions = c.max_position_embeddings
    places = weights["embed.segment.weight"][:, None] + weights["embed.position.weight"][None]  # S P D
    # A slice of all places, not a range: a text with more positions than the model has is an error, not another row.
    count = graph.op("Slice", graph.op("Shape", ids), *(graph.constant(f"i{i}", [i], np.int64) for i in (1, 2)))
    every = graph.constant("places", np.arange(positions)[None], np.int64)
    zero, one = graph.constant("i0", [0], np.int64), graph.constant("i1", [1], np.int64)
    here = graph.op("Slice", every, zero, count, one)  # 1 T
    row = graph.op("Add", graph.op("Mul", segments, graph.constant("positions", positions, np.int64)), here)
    fixed = graph.op("Gather", graph.constant("fixed", places.reshape(-1, c.hidden_size)), row)
    x = graph.norm(graph.op("Add", words, fixed), "embed.norm", weights, c.layer_norm_eps)
    barred = graph.op("Sub", graph.constant("one", 1.0), graph.op("Cast", mask, to=TensorProto.FLOAT))
    barred = graph.op("Mul", barred, graph.constant("least", np.finfo(np.float32).min))
    return x, graph.op("Unsqueeze", barred, one)


def _layer(graph: _Graph, x: str, mask: str, i: int, c: ModelConfig, weights: Weights) -> str:
    own = {name.removeprefix(f"layers.{i}."): w for name, w in weights.items() if name.startswith(f"layers.{i}.")}
    parts = _Attention.of(own, c)
    if i == c.num_hidden_layers - 1:
        a, x = _attend_first(graph, x, mask, f"layers.{i}", parts)
    else:
        a = _attend(graph, x, mask, f"layers.{i}", parts)
    x = graph.norm(graph.op("Add", a, x), f"layers.{i}.attended_norm", weights, c.layer_norm_eps)
    f = graph.product(x, f"layers.{i}.up", own["up.weight"].T, own["up.bias"])
    f = graph.product(
        _gelu(graph, f, tanh=_TANH[c.hidden_act]), f"layers.{i}.down", own["down.weight"].T, own["down.bias"]
    )
    return graph.norm(graph.op("Add", f, x), f"layers.{i}.norm", weights, c.layer_norm_eps)


@dataclass(frozen=True)
class _Attention:
    """The weights of one attention, scaled and folded, float64; [in, out], and by head [N, ...]."""

    query: Array  # D D
    query_bias: Array  # D
    key: Array  # D D
    value: Array  # D D
    attended: Array  # D D
    bias: Array  # D
    heads: int

    @classmethod
    def of(cls, own: Mapping[str, Array], c: ModelConfig) -> "_Attention":
        wide = {name: own[name].astype(np.float64) for name in ("qkv.weight", "qkv.bias", "attended.weight")}
        query, key, value = np.split(wide["qkv.weight"], 3)
        query_bias, _, value_bias = np.split(wide["qkv.bias"], 3)
        scale = (c.hidden_size // c.num_attention_heads) ** -0.5
        bias = own["attended.bias"] + wide["attended.weight"] @ value_bias
        through = wide["attended.weight"].T
        return cls(query.T * scale, query_bias * scale, key.T, value.T, through, bias, c.num_attention_heads)


def _attend(graph: _Graph, x: str, mask: str, name: str, w: _Attention) -> str:
    """Attend from every position, [B, T, D]."""
    width = len(w.query) // w.heads
    made = (
        graph.product(x, f"{name}.query", w.query, w.query_bias),
        graph.product(x, f"{name}.key", w.key),
        graph.product(x, f"{name}.value", w.value),
    )
    split = [graph.reshape(one, 0, 0, w.heads, width) for one in made]
    q, v = (graph.op("Transpose", split[i], perm=[0, 2, 1, 3]) for i in (0, 2))  # B N T H
    k = graph.op("Transpose", split[1], perm=[0, 2, 3, 1])  # B N H T
    scores = graph.op("Add", graph.op("MatMul", q, k), graph.op("Unsqueeze", mask, graph.constant("i1", [1], np.int64)))
    a = graph.op("MatMul", graph.op("Softmax", scores, axis=-1), v)
    joined = graph.reshape(graph.op("Transpose", a, perm=[0, 2, 1, 3]), 0, 0, w.heads * width)
    return graph.product(joined, f"{name}.attended", w.attended, w.bias)


def _attend_first(graph: _Graph, x: str, mask: str, name: str, w: _Attention) -> tuple[str, str]:
    """Attend from the first position alone; return [B, D], and the first position of x, [B, D]."""
    d = len(w.query)
    first = graph.op("Gather", x, graph.constant("first", 0, np.int64), axis=1)  # B D
    query, key = w.query.reshape(d, w.heads, -1), w.key.reshape(d, w.heads, -1)  # D N H
    value, out = w.value.reshape(d, w.heads, -1), w.attended.reshape(w.heads, -1, d)  # D N H, N H D
    if w.heads <= _FOLDED_HEADS:
        asked = np.einsum("dnh,enh->dne", query, key).reshape(d, -1)  # D ND
        asked_bias = np.einsum("nh,enh->ne", w.query_bias.reshape(w.heads, -1), key).ravel()
        asking = graph.reshape(graph.product(first, f"{name}.asked", asked, asked_bias), 0, w.heads, d)
    else:
        q = graph.reshape(graph.product(first, f"{name}.query", w.query, w.query_bias), 0, w.heads, 1, d // w.heads)
        keys = graph.constant(f"{name}.keys", key.transpose(1, 2, 0))  # N H D
        asking = graph.reshape(graph.op("MatMul", q, keys), 0, w.heads, d)
    scores = graph.op("MatMul", asking, graph.op("Transpose", x, perm=[0, 2, 1]))  # B N T
    mixed = graph.op("MatMul", graph.op("Softmax", graph.op("Add", scores, mask), axis=-1), x)  # B N D
    if w.heads <= _FOLDED_HEADS:
        through = np.einsum("dnh,nhe->nde", value, out).reshape(-1, d)  # ND D
        return graph.product(graph.reshape(mixed, 0, w.heads * d), f"{name}.mixed", through, w.bias), first
    values = graph.constant(f"{name}.values", value.transpose(1, 0, 2))  # N D H
    a = graph.op("MatMul", graph.reshape(mixed, 0, w.heads, 1, d), values)  # B N 1 H
    return graph.product(graph.reshape(a, 0, d), f"{name}.attended", w.attended, w.bias), first


def _gelu(graph: _Graph, x: str, *, tanh: bool) -> str:
    half, one = graph.constant("half", 0.5), graph.constant("one", 1.0)
    if tanh:
        cube = graph.op("Mul", graph.op("Mul", graph.op("Mul", x, x), x), graph.constant("cubic", 0.044715))
        inner = graph.op("Mul", graph.op("Add", x, cube), graph.constant("root", np.sqrt(2 / np.pi)))
        bent = graph.op("Tanh", inner)
    else:
        bent = graph.op("Erf", graph.op("Div", x, graph.constant("root", np.sqrt(2))))
    return graph.op("Mul", graph.op("Mul", x, graph.op("Add", bent, one)), half)
