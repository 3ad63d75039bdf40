"""Graphs with random weights, and the processes that time them. Speed does not depend on what the weights are."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bert_miniatures.choose.profile import Profile
from bert_miniatures.choose.timing import Shape
from bert_miniatures.config import ModelConfig
from bert_miniatures.errors import WorkFailed
from bert_miniatures.machine import adds_in_32_bits
from bert_miniatures.names import Weights, shapes
from bert_miniatures.onnx_graph import FP32, Precision, build_graph, products
from bert_miniatures.predict_onnx import BUDGET
from bert_miniatures.zoo import VOCABULARY, Miniature

__all__ = ["MakesGraphs", "Measured", "Plan", "graph_of", "measured", "plan_of", "quieter", "shape_of"]

PRECISIONS = ("fp32", "int8")
_TEXTS = 96  # of a profile, that throughput is measured on
_LATENCY_AT = (0.05, 0.5, 0.8, 0.95)
_CALLS = 60


@dataclass(frozen=True)
class Plan:
    """What each process times.

    Attributes:
        alone: lengths of single texts.
        batches: lengths of the texts of each batch.
        calls: lengths of the texts that p50 and p95 are taken over.
        threads: numbers of threads.
        seconds: for the calls, where they are that quick.
    """

    alone: tuple[int, ...]
    batches: tuple[tuple[int, ...], ...]
    calls: tuple[int, ...]
    threads: tuple[int, ...]
    seconds: float = 0.6

    @property
    def shapes(self) -> list[Shape]:
        """The shapes of the calls that are timed: those of one text, and those of the batches."""
        return list(self._groups())

    def lengths(self) -> list[tuple[int, ...]]:
        """Return the lengths of the texts of each of these calls."""
        return list(self._groups().values())

    def _groups(self) -> dict[Shape, tuple[int, ...]]:
        found = {Shape(1, n): (n,) for n in self.alone}
        return found | {shape_of(batch): batch for batch in self.batches}


@dataclass(frozen=True)
class Measured:
    """What a process said of one graph.

    Attributes:
        times: threads -> shape of a call -> seconds.
        p50, p95: threads -> seconds of a call with one text, over the profile.
        memory: most resident bytes of the process; `resident`: at the end.
    """

    times: dict[int, dict[Shape, float]]
    p50: dict[int, float]
    p95: dict[int, float]
    memory: int
    resident: int


def quieter(one: Measured, other: Measured) -> Measured:
    """Return the shorter one of two times of everything, and the larger memory.

    What else a machine does makes times longer and never shorter: of two visits that are apart in time, the shorter
    one is nearer to what the graph takes.
    """
    return Measured(
        {
            n: {shape: min(seconds, other.times[n][shape]) for shape, seconds in its.items()}
            for n, its in one.times.items()
        },
        {n: min(seconds, other.p50[n]) for n, seconds in one.p50.items()},
        {n: min(seconds, other.p95[n]) for n, seconds in one.p95.items()},
        max(one.memory, other.memory),
        max(one.resident, other.resident),
    )


def shape_of(batch: Sequence[int]) -> Shape:
    """Return the shape of a batch of texts with these lengths."""
    return Shape(len(batch), max(batch))


def plan_of(profile: Profile, threads: Sequence[int], seconds: float = 0.6) -> Plan:
    """Choose which calls stand for a profile."""
    alone = sorted({profile.quantile(share) for share in _LATENCY_AT})
    if len(alone) < 3:  # a single length says little about what depends on it
        alone = sorted({*alone, max(3, alone[0] // 2), max(3, 3 * alone[0] // 4)})
    drawn = np.random.default_rng(0)
    texts = [int(n) for n in drawn.choice(profile.lengths, _TEXTS)] if len(profile.lengths) > 1 else []
    calls = tuple(int(n) for n in drawn.choice(profile.lengths, _CALLS))
    batches = _batches(texts or list(profile.lengths) * _TEXTS)
    return Plan(tuple(alone), batches, calls, tuple(threads), seconds)


def _batches(lengths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Divide texts into batches of 32 at most, sorted by length, as `predict` does with its budget of positions."""
    ordered, found = sorted(lengths, reverse=True), []
    while ordered:
        count = max(1, min(32, BUDGET // ordered[0]))
        found.append(tuple(ordered[:count]))
        ordered = ordered[count:]
    return tuple(found)


def _config(model: Miniature) -> ModelConfig:
    return ModelConfig(
        vocab_size=VOCABULARY,
        hidden_size=model.width,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        intermediate_size=4 * model.width,
    )


def _random(config: ModelConfig) -> Weights:
    """Return weights of the right shapes: one block of random numbers, repeated."""
    block = (0.02 * np.random.default_rng(0).standard_normal(65_521)).astype(np.float32)
    found = {name: np.resize(block, shape) for name, shape in shapes(config, ("encoder", "pooler", "head"), 2).items()}
    return {n: np.ones_like(w) if n.endswith("norm.weight") else w for n, w in found.items()}


def graph_of(model: Miniature, precision: str) -> bytes:
    """Write the graph of an untrained classifier of two classes, as `miniatures export` would.

    Args:
        precision: fp32, or int8 with everything in 8 bits.
    """
    config = _config(model)
    chosen = FP32
    if precision == "int8":
        bits = 8 if adds_in_32_bits() else 7
        chosen = Precision(products=frozenset(products(config)), words=True, bits=bits)
    built = build_graph(config, _random(config), metadata={"precision": precision}, precision=chosen)
    return bytes(built.SerializeToString())


MakesGraphs = Callable[[Miniature, str], bytes]


def measured(model: Miniature, precision: str, plan: Plan, make: MakesGraphs = graph_of) -> Measured:
    """Time one graph in a process of its own.

    Raises:
        WorkFailed: the process ended without an answer.
    """
    with tempfile.TemporaryDirectory(prefix="choose-") as folder:
        graph = Path(folder) / "model.onnx"
        graph.write_bytes(make(model, precision))
        request: dict[str, Any] = {"graph": str(graph), "threads": plan.threads, "lengths": plan.lengths()}
        request |= {"calls": plan.calls, "seconds": plan.seconds}
        done = subprocess.run(
            [sys.executable, "-m", "bert_miniatures.choose.worker"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
        )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise WorkFailed(f"{model.size} {precision} could not be measured: {reason}")
    answer = json.loads(done.stdout)
    found = {int(threads): entry for threads, entry in answer["threads"].items()}
    return Measured(
        {n: dict(zip(plan.shapes, entry["groups"], strict=True)) for n, entry in found.items()},
        {n: entry["p50"] for n, entry in found.items()},
        {n: entry["p95"] for n, entry in found.items()},
        answer["peak"],
        answer["resident"],
    )
