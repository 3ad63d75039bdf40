"""Predictor: texts in, labels and scores out, in input order, whatever computes the logits."""

import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from bert_miniatures.engine import Counts, Engine, Floats
from bert_miniatures.errors import CheckpointError, DataError, MissingExtra, WorkFailed
from bert_miniatures.outputs import Labels, shares

if TYPE_CHECKING:
    from concurrent.futures import Future

__all__ = ["Counts", "Engine", "Predictor", "Rows", "answers", "engine_of", "predict_stream", "weights_of"]

Rows = tuple[list[str], list[str] | None]
# what computes the logits -> (module, the package that it needs, what that is called in an error, extra)
_ENGINES = {
    "torch": ("bert_miniatures.predict_torch", "torch", "predicting", "train"),
    "onnx": ("bert_miniatures.predict_onnx", "onnxruntime", "predicting with a deploy folder", "deploy"),
}


class Predictor:
    """Answers texts with a fine-tuned model.

    Args:
        model: a deploy folder, which needs no torch; a model folder; or a run folder.
        threads: of the engine; None for all cores that this process may use.
        precision: "int8" where a deploy folder has it; "fp32" gives the answers of torch.

    Raises:
        CheckpointError: the folder has no classifier, or is damaged.
        MissingExtra: torch, for a deploy folder onnxruntime, is not installed.

    Example:
        >>> predictor = Predictor("runs/sst2")  # doctest: +SKIP
        >>> predictor(["a gripping film"])  # doctest: +SKIP
        [{'label': 'positive', 'score': 0.98}]
    """

    def __init__(self, model: str | Path, *, threads: int | None = None, precision: str = "fp32") -> None:
        self.folder = _folder_of(model)
        self.engine = _open(self.folder, threads, precision)
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
        if self.labels.pair and pairs is None and len(texts):
            raise DataError("this model compares two texts; give the second ones too (--pair COLUMN)")
        if pairs is not None and not self.labels.pair and self.labels.task is not None:
            raise DataError("this model reads one text, got pairs; leave --pair out")
        if pairs is not None and len(pairs) != len(texts):
            raise DataError(f"{len(texts)} texts and {len(pairs)} second texts")
        if not len(texts):
            return np.empty((0, max(1, len(self.labels.names))), np.float32)
        found = self.engine.logits(texts, pairs)
        if not np.isfinite(found).all():
            raise CheckpointError(f"{self.folder}: the model answers NaN or infinity; its weights are damaged")
        return found


def _is_deployed(folder: Path) -> bool:
    """Tell a deploy folder from a model folder, whole or not: only the latter has weights of its own."""
    return (folder / "onnx").is_dir() and not (folder / "model.safetensors").is_file()


def _folder_of(model: str | Path) -> Path:
    if _is_deployed(Path(model)):
        return Path(model)
    from bert_miniatures.models import resolve  # reads settings and knows the Hub: nothing that a deploy folder needs

    return resolve(str(model))


def engine_of(model: str | Path) -> str:
    """Return the name of the engine that answers for a model, before anything heavy is imported.

    Raises:
        MissingExtra: its package is not installed.
    """
    name = "onnx" if _is_deployed(Path(model)) else "torch"
    _, package, what, extra = _ENGINES[name]
    with suppress(ModuleNotFoundError):
        if find_spec(package) is not None:
            return name
    raise MissingExtra(what, extra)


def weights_of(model: str | Path, precision: str = "fp32") -> Path:
    """Return the file with the weights that answer for a model.

    Raises:
        CheckpointError: there is none.
    """
    folder = _folder_of(model)
    name = "model.safetensors"
    if _is_deployed(folder):
        from bert_miniatures.predict_onnx import FILES

        name = FILES[precision]
    if not (folder / name).is_file():
        raise CheckpointError(f"{folder}: no {name}")
    return folder / name


def _open(folder: Path, threads: int | None, precision: str) -> Engine:
    name = engine_of(folder)
    if precision != "fp32" and name != "onnx":
        raise CheckpointError(f"{folder}: {precision} is for deploy folders; 'miniatures export --int8' makes one")
    module, _, what, extra = _ENGINES[name]
    more = (precision,) if name == "onnx" else ()
    try:
        return cast(Engine, import_module(module).open_engine(folder, threads, *more))
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("bert_miniatures"):
            raise
        raise MissingExtra(what, extra) from None


def answers(labels: Labels, logits: Floats) -> list[dict[str, Any]]:
    """Turn logits [N, C] into answers: softmax for one label, the number itself for a score, sigmoid for several."""
    if labels.kind == "regression":
        return [{"score": float(value)} for value in logits[:, 0]]
    found = shares(labels.kind, logits)
    if labels.kind == "multilabel":
        return [
            {
                "labels": [name for name, p in zip(labels.names, row, strict=True) if p >= 0.5],
                "scores": dict(zip(labels.names, map(float, row), strict=True)),
            }
            for row in found
        ]
    best = logits.argmax(1)
    return [{"label": labels.names[i], "score": float(row[i])} for i, row in zip(best, found, strict=True)]


def predict_stream(
    model: str | Path,
    chunks: Iterable[Rows],
    *,
    workers: int = 1,
    threads: int | None = None,
    precision: str = "fp32",
    counts: Counts | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """Answer chunks of rows, in order and in bounded memory.

    Args:
        model: as for `Predictor`.
        chunks: (texts, second texts or None) each.
        workers: processes of one thread each; 1 means this process with all its cores. A script that asks for more
            needs `if __name__ == "__main__":` around its own work, as always when Python starts processes.
        threads: of this process, where it is the only one; None for all cores that it may use.
        precision: as for `Predictor`.
        counts: where rows and pieces are counted.

    Raises:
        WorkFailed: a worker died.
    """
    counts = Counts() if counts is None else counts
    if workers > 1:
        yield from _in_processes((str(_folder_of(model)), precision), chunks, workers, counts)
        return
    predictor = Predictor(model, threads=threads, precision=precision)
    predictor.engine.counts = counts
    for texts, pairs in chunks:
        yield predictor(texts, pairs)


def _in_processes(
    model: tuple[str, str], chunks: Iterable[Rows], workers: int, counts: Counts
) -> Iterator[list[dict[str, Any]]]:
    from concurrent.futures import ProcessPoolExecutor  # not at the top: a service in one process never needs it
    from concurrent.futures.process import BrokenProcessPool
    from multiprocessing import get_context

    waiting: deque[Future[tuple[list[dict[str, Any]], Counts]]] = deque()

    def first() -> list[dict[str, Any]]:
        found, more = waiting.popleft().result()
        counts.take(more)
        return found

    pool = ProcessPoolExecutor(workers, get_context("spawn"), _start_worker)
    try:
        for texts, pairs in chunks:
            with _ctrl_c_waits():
                waiting.append(pool.submit(_answer, model, texts, pairs))
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
    from multiprocessing import parent_process

    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _answer(model: tuple[str, str], texts: list[str], pairs: list[str] | None) -> tuple[list[dict[str, Any]], Counts]:
    """Open the model at the first task, not at the start: an error of a task is told, one of the start is not."""
    global _worker  # a pool hands state to its tasks in no other way
    if _worker is None:
        _worker = Predictor(model[0], threads=1, precision=model[1])
    _worker.engine.counts = Counts()
    return _worker(texts, pairs), _worker.engine.counts
