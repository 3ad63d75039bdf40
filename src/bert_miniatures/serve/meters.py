"""What the service counts, for Prometheus. Labels and numbers, never texts."""

from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from bert_miniatures.engine import Counts, Floats
from bert_miniatures.outputs import Labels
from bert_miniatures.serve.scores import label_names, scores

__all__ = ["Meters", "ModelMeters"]

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_SHARES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1)
_OF_MODEL = ("model",)


class Meters:
    """The counters of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)

        def made(kind: Any, name: str, what: str, labels: tuple[str, ...], **more: Any) -> Any:
            return kind(f"miniatures_{name}", what, labels, registry=self.registry, **more)

        self._requests = made(Counter, "requests", "Requests answered", ("path", "status"))
        self._latency = made(Histogram, "request_seconds", "From head to answer", ("path",), buckets=_SECONDS)
        self.queue = made(Gauge, "queue_texts", "Texts that wait", _OF_MODEL)
        self.batch_texts = made(Histogram, "batch_texts", "Texts computed together", _OF_MODEL, buckets=_TEXTS)
        self.batch_seconds = made(Histogram, "batch_seconds", "Time of a batch", _OF_MODEL, buckets=_SECONDS)
        self.texts = made(Counter, "texts", "Texts or pairs answered", _OF_MODEL)
        self.pieces = made(Counter, "pieces", "Word pieces that the model saw", _OF_MODEL)
        self.unknown = made(Counter, "unknown_pieces", "Those of them that are [UNK]", _OF_MODEL)
        self.truncated = made(Counter, "truncated_texts", "Texts that were cut at max_length", _OF_MODEL)
        self.confidence = made(Histogram, "confidence", "Score of the first label", _OF_MODEL, buckets=_SHARES)
        self.answers = made(Counter, "answers", "Answers by their first label", ("model", "label"))
        self._known: dict[tuple[str, int], tuple[Any, Any]] = {}

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request; `path` is a route and never what a client wrote."""
        found = self._known.get((path, status))
        if found is None:
            found = self._requests.labels(path, str(status)), self._latency.labels(path)
            self._known[path, status] = found
        found[0].inc()
        found[1].observe(seconds)

    def text(self) -> bytes:
        """Return all of them in Prometheus' text format."""
        return generate_latest(self.registry)


class ModelMeters:
    """The counters of one model."""

    def __init__(self, meters: Meters, name: str, labels: Labels) -> None:
        self._labels = labels
        self.queue = meters.queue.labels(name)
        self._batch = meters.batch_texts.labels(name), meters.batch_seconds.labels(name)
        self._counts = [
            (getattr(meters, meter).labels(name), attribute)
            for meter, attribute in (
                ("texts", "rows"),
                ("pieces", "pieces"),
                ("unknown", "unknown"),
                ("truncated", "truncated"),
            )
        ]
        self._confidence = meters.confidence.labels(name)
        self._answers = [meters.answers.labels(name, label) for label in label_names(labels)]

    def batch(self, texts: int, seconds: float, counts: Counts, logits: Floats | None) -> None:
        """Count a batch and what it answered."""
        self._batch[0].observe(texts)
        self._batch[1].observe(seconds)
        for counter, attribute in self._counts:
            counter.inc(getattr(counts, attribute))
        if logits is None or not len(logits):
            return
        if self._labels.kind == "regression":  # a number has no confidence
            self._answers[0].inc(len(logits))
            return
        found = scores(self._labels, logits)
        for share in found.max(1).tolist():
            self._confidence.observe(share)
        for answer, count in zip(self._answers, np.bincount(found.argmax(1), minlength=found.shape[1]), strict=True):
            answer.inc(int(count))
