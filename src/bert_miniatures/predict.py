"""Predictor: texts in, labels and scores out, in input order, whatever computes the logits."""

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from bert_miniatures.engine import Counts, Engine, Floats
from bert_miniatures.errors import CheckpointError, ConfigError, DataError, MissingExtra
from bert_miniatures.outputs import Labels, shares

if TYPE_CHECKING:
    from bert_miniatures.pool import Pool
    from bert_miniatures.ray_cluster import RayPool, Sent

__all__ = ["ENGINES", "Counts", "Engine", "Predictor", "Rows", "answers", "engine_of", "predict_stream", "weights_of"]

Rows = tuple[list[str], list[str] | None]
Note = Callable[[str], None]
# what computes the logits -> (module, the package that it needs, what that is called in an error, extra)
_ENGINES = {
    "torch": ("bert_miniatures.predict_torch", "torch", "predicting", "train"),
    "onnx": ("bert_miniatures.predict_onnx", "onnxruntime", "predicting with a deploy folder", "deploy"),
}
_WORKER = (sys.executable, "-P", "-m", "bert_miniatures.predict")
_ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


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
    workers: int | None = None,
    threads: int | None = None,
    precision: str = "fp32",
    engine: str = "local",
    counts: Counts | None = None,
    note: Note | None = None,
) -> Iterator[list[dict[str, Any]]]:
    """Answer chunks of rows, in order and in bounded memory.

    Args:
        model: as for `Predictor`.
        chunks: (texts, second texts or None) each.
        workers: processes of one thread each; None means this process with all its cores, or all cores of the
            cluster. The texts of one that dies are given to another.
        threads: of this process, where it is the only one; None for all cores that it may use.
        precision: as for `Predictor`.
        engine: "local", or "ray" for the Ray cluster in `RAY_ADDRESS` or on this machine. Its nodes need this package
            and what it needs for this model; the model is sent to them once.
        counts: where rows and pieces are counted.
        note: hears that a worker died.

    Raises:
        ConfigError: another engine, or no cluster.
        WorkFailed: a worker died twice of the same texts.
    """
    counts = Counts() if counts is None else counts
    if engine not in ENGINES:
        raise ConfigError(f"unknown engine '{engine}'; it is one of {', '.join(ENGINES)}")
    if engine == "ray" or (workers or 1) > 1:
        folder = _folder_of(model)
        with ENGINES[engine](folder, workers) as (pool, count):
            yield from _shared(pool, count, chunks, (str(folder), precision), counts, note)
        return
    predictor = Predictor(model, threads=threads, precision=precision)
    predictor.engine.counts = counts
    for texts, pairs in chunks:
        yield predictor(texts, pairs)


# ---- many processes. What they need is not imported at the top: a service in one process never needs it.


@contextmanager
def _processes(folder: Path, workers: int | None) -> Iterator[tuple["Pool | RayPool", int]]:
    from tempfile import TemporaryDirectory

    from bert_miniatures.pool import Pool

    count = workers or 1
    with TemporaryDirectory(prefix="miniatures-") as log, Pool(_WORKER, count, Path(log, "log"), _ONE_THREAD) as pool:
        yield pool, count


@contextmanager
def _nodes(folder: Path, workers: int | None) -> Iterator[tuple["Pool | RayPool", int]]:
    from bert_miniatures.ray_cluster import RETRIES, RayPool, cluster, connect, sent

    count = workers or connect()
    connect()
    model = sent(folder)
    task = cluster().remote(_on_node).options(num_cpus=1, max_retries=RETRIES)
    with RayPool(lambda job: task.remote(dict(job.request), model), lambda job, answer: answer, count) as pool:
        yield pool, count


def _shared(
    pool: "Pool | RayPool",
    count: int,
    chunks: Iterable[Rows],
    model: tuple[str, str],
    counts: Counts,
    note: Note | None,
) -> Iterator[list[dict[str, Any]]]:
    """Hand out chunks, and yield their answers in order."""
    from bert_miniatures.pool import Job
    from bert_miniatures.pool_worker import raise_for

    left, ready = enumerate(chunks), dict[int, Mapping[str, Any]]()
    first = rows = 0

    def give(more: int) -> None:
        nonlocal rows
        for number, (texts, pairs) in islice(left, more):
            request = {"number": number, "texts": texts, "pairs": pairs, "model": model}
            pool.submit(Job(f"texts {rows + 1:,} to {rows + len(texts):,}", request))
            rows += len(texts)

    give(2 * count)  # no more, so that a fast reader does not fill the memory
    for event in pool.events():
        if event.note and note:
            note(event.note)
        if event.answer is not None:
            raise_for(event.job.name, event.answer, "answered")
            ready[event.job.request["number"]] = event.answer
        while first in ready:
            found = ready.pop(first)
            first += 1
            counts.take(Counts(**found["counts"]))
            yield found["answers"]
            give(1)


# ---- a worker


def main() -> None:
    """Answer the texts that are asked for until the input ends."""
    from bert_miniatures.pool_worker import serve

    serve(_answer)


def _on_node(request: dict[str, Any], model: "Sent") -> dict[str, Any]:
    from bert_miniatures.pool_worker import attempted
    from bert_miniatures.ray_cluster import on_this_node

    _, precision = request["model"]
    return attempted(_answer, request | {"model": (str(on_this_node(model)), precision)})


def _answer(request: dict[str, Any], say: Callable[[int, int], None]) -> dict[str, Any]:
    predictor = _opened(*request["model"])
    predictor.engine.counts = Counts()
    found = predictor(request["texts"], request["pairs"])
    return {"answers": found, "counts": asdict(predictor.engine.counts)}


@lru_cache(maxsize=1)
def _opened(folder: str, precision: str) -> Predictor:
    return Predictor(folder, threads=1, precision=precision)


ENGINES: dict[str, Callable[[Path, int | None], AbstractContextManager[tuple["Pool | RayPool", int]]]] = {
    "local": _processes,
    "ray": _nodes,
}

if __name__ == "__main__":
    main()
