"""Predictor: texts in, labels and scores out, in input order, whatever computes the logits."""

import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from bert_miniatures.checkpoint import Labels
from bert_miniatures.errors import CheckpointError, DataError, MissingExtra, WorkFailed
from bert_miniatures.models import resolve
from bert_miniatures.tokenizer import Encoded, Tokenizer

__all__ = ["Counts", "Engine", "Predictor", "answers", "predict_stream"]

Floats = npt.NDArray[np.float32]
Rows = tuple[list[str], list[str] | None]
# what computes the logits -> (module, what its packages are called in an error, extra)
_ENGINES = {"torch": ("bert_miniatures.predict_torch", "predicting with torch", "train")}


@dataclass
class Counts:
    """What the texts were to the vocabulary so far, special tokens not counted.

    Attributes:
        rows: texts, or pairs of them.
        pieces: word pieces that the model saw.
        unknown: how many of them are [UNK].
        truncated: rows that were cut.
        max_length: in word pieces, where they were cut.
    """

    rows: int = 0
    pieces: int = 0
    unknown: int = 0
    truncated: int = 0
    max_length: int = 0

    def add(self, encoded: Encoded, max_length: int) -> None:
        """Count encoded rows."""
        self.take(Counts(len(encoded.lengths), encoded.pieces, encoded.unknown, encoded.truncated, max_length))

    def take(self, more: "Counts") -> None:
        """Add other counts."""
        self.rows += more.rows
        self.pieces += more.pieces
        self.unknown += more.unknown
        self.truncated += more.truncated
        self.max_length = more.max_length


class Engine(Protocol):
    """What computes logits: torch here, ONNX Runtime for a deploy folder. It counts what it reads."""

    labels: Labels
    tokenizer: Tokenizer
    counts: Counts

    def logits(self, texts: Sequence[str], pairs: Sequence[str] | None) -> Floats:
        """Return [N, C] in the order of the texts."""
        ...


class Predictor:
    """Answers texts with a fine-tuned model.

    Args:
        model: a model folder or a run folder.
        threads: of the engine; None for all cores that this process may use.

    Raises:
        CheckpointError: the folder has no classifier, or is damaged.
        MissingExtra: torch is not installed.

    Example:
        >>> predictor = Predictor("runs/sst2")  # doctest: +SKIP
        >>> predictor(["a gripping film"])  # doctest: +SKIP
        [{'label': 'positive', 'score': 0.98}]
    """

    def __init__(self, model: str | Path, *, threads: int | None = None) -> None:
        self.folder = resolve(str(model))
        self.engine = _open(self.folder, threads)
        self.labels = self.engine.labels

    def __call__(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> list[dict[str, Any]]:
        """Return one answer per text, in order: `{"label", "score"}`, `{"score"}` or `{"labels", "scores"}`.

        Raises:
            DataError: the model compares two texts and got one, or the other way round.
        """
        return answers(self.labels, self.logits(texts, pairs))

    def logits(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> Floats:
        """Return the classifier's outputs [N, C], in order.

        Raises:
            DataError: the model compares two texts and got one, or the other way round.
            CheckpointError: an output is not a finite number.
        """
        if isinstance(texts, str):
            raise DataError("expected a list of texts, got one text; write [text]")
        if self.labels.pair and pairs is None:
            raise DataError("this model compares two texts; give the second ones too (--pair COLUMN)")
        if pairs is not None and not self.labels.pair and self.labels.task is not None:
            raise DataError("this model reads one text, got pairs; leave --pair out")
        if pairs is not None and len(pairs) != len(texts):
            raise DataError(f"{len(texts)} texts and {len(pairs)} second texts")
        if not texts:
            return np.empty((0, max(1, len(self.labels.names))), np.float32)
        found = self.engine.logits(texts, pairs)
        if not np.isfinite(found).all():
            raise CheckpointError(f"{self.folder}: the model answers NaN or infinity; its weights are damaged")
        return found


def _open(folder: Path, threads: int | None) -> Engine:
    module, what, extra = _ENGINES["torch"]
    try:
        return cast(Engine, import_module(module).open_engine(folder, threads))
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("bert_miniatures"):
            raise
        raise MissingExtra(what, extra) from None


def answers(labels: Labels, logits: Floats) -> list[dict[str, Any]]:
    """Turn logits [N, C] into answers: softmax for one label, the number itself for a score, sigmoid for several."""
    if labels.kind == "regression":
        return [{"score": float(value)} for value in logits[:, 0]]
    wide = logits.astype(np.float64)
    if labels.kind == "multilabel":
        shares = np.exp(-np.logaddexp(0, -wide))
        return [
            {
                "labels": [name for name, p in zip(labels.names, row, strict=True) if p >= 0.5],
                "scores": dict(zip(labels.names, map(float, row), strict=True)),
            }
            for row in shares
        ]
    shares = np.exp(wide - wide.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    best = wide.argmax(1)
    return [{"label": labels.names[i], "score": float(row[i])} for i, row in zip(best, shares, strict=True)]


def predict_stream(
    model: str | Path, chunks: Iterable[Rows], *, workers: int = 1, counts: Counts | None = None
) -> Iterator[list[dict[str, Any]]]:
    """Answer chunks of rows, in order and in bounded memory.

    Args:
        model: as for `Predictor`.
        chunks: (texts, second texts or None) each.
        workers: processes of one thread each; 1 means this process with all its cores. A script that asks for more
            needs `if __name__ == "__main__":` around its own work, as always when Python starts processes.
        counts: where rows and pieces are counted.

    Raises:
        WorkFailed: a worker died.
    """
    counts = Counts() if counts is None else counts
    if workers > 1:
        yield from _in_processes(str(resolve(str(model))), chunks, workers, counts)
        return
    predictor = Predictor(model)
    predictor.engine.counts = counts
    for texts, pairs in chunks:
        yield predictor(texts, pairs)


def _in_processes(folder: str, chunks: Iterable[Rows], workers: int, counts: Counts) -> Iterator[list[dict[str, Any]]]:
    waiting: deque[Future[tuple[list[dict[str, Any]], Counts]]] = deque()

    def first() -> list[dict[str, Any]]:
        found, more = waiting.popleft().result()
        counts.take(more)
        return found

    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
    try:
        for texts, pairs in chunks:
            with _ctrl_c_waits():
                waiting.append(pool.submit(_answer, folder, texts, pairs))
            if len(waiting) > 2 * workers:  # so that a fast reader does not fill the memory
                yield first()
        while waiting:
            yield first()
    except BrokenProcessPool:
        raise WorkFailed("a worker process died, most likely for want of memory; fewer --workers need less") from None
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def _ctrl_c_waits() -> Iterator[None]:
    """Hold Ctrl-C back while a process is started: a child inherits that it does not hear it, from its first moment."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker: Predictor | None = None


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it, however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _answer(folder: str, texts: list[str], pairs: list[str] | None) -> tuple[list[dict[str, Any]], Counts]:
    """Open the model at the first task, not at the start: an error of a task is told, one of the start is not."""
    global _worker  # a pool hands state to its tasks in no other way
    if _worker is None:
        _worker = Predictor(folder, threads=1)
    _worker.engine.counts = Counts()
    return _worker(texts, pairs), _worker.engine.counts
