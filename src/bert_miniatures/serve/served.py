"""The models of a service, each with a name, a queue and counters of its own."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bert_miniatures.errors import UnknownName, UserError
from bert_miniatures.machine import cores
from bert_miniatures.outputs import Labels
from bert_miniatures.predict import Predictor, engine_of
from bert_miniatures.serve.batching import Batcher
from bert_miniatures.serve.failures import Refused
from bert_miniatures.serve.limits import Limits
from bert_miniatures.serve.meters import Meters, ModelMeters
from bert_miniatures.serve.scores import label_names

__all__ = ["Model", "Models", "named"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NO_NAME = re.compile(r"[^A-Za-z0-9._-]+")


class Model:
    """One model of the service.

    Args:
        name: what clients call it.
        source: as for `Predictor`.
        threads: of the engine; None leaves one core to HTTP.
        precision: as for `Predictor`.

    Attributes:
        max_length: of a row, in word pieces.
        platform: what computes, as the Open Inference Protocol names it.
    """

    def __init__(
        self,
        name: str,
        source: str,
        limits: Limits,
        meters: Meters,
        *,
        threads: int | None = None,
        precision: str = "fp32",
    ) -> None:
        self.name, self.precision = name, precision
        self.platform = {"onnx": "onnxruntime_onnx", "torch": "pytorch"}[engine_of(source)]
        self.predictor = Predictor(source, threads=threads or max(1, cores() - 1), precision=precision)
        self.predictor.logits(["warm"], ["up"] if self.labels.pair else None)
        self.max_length = self.predictor.engine.counts.max_length
        self.batcher = Batcher(self.predictor, self.max_length, limits, ModelMeters(meters, name, self.labels))

    @property
    def labels(self) -> Labels:
        """Return what the outputs mean."""
        return self.predictor.labels

    def about(self) -> dict[str, Any]:
        """Return what a client needs to know."""
        labels = self.labels
        return {
            "name": self.name,
            "kind": labels.kind,
            "labels": list(label_names(labels)),
            "pair": labels.pair,
            "pair_possible": labels.pair or labels.task is None,
            "task": labels.task,
            "max_length": self.max_length,
            "precision": self.precision,
        }


class Models:
    """All models of a service; the first one answers where no name is given."""

    def __init__(self, models: Sequence[Model]) -> None:
        self.by_name = {model.name: model for model in models}
        self.first = models[0]

    def find(self, name: str | None) -> Model:
        """Return a model by its name.

        Raises:
            Refused: there is none.
        """
        if name is None:
            return self.first
        found = self.by_name.get(name)
        if found is None:
            raise Refused("unknown-model", f"no model of this name; there is {', '.join(self.by_name)}")
        return found


def named(sources: Sequence[str]) -> Mapping[str, str]:
    """Return name -> model for `NAME=MODEL` or `MODEL`, which is named like its folder.

    Raises:
        UserError: a name cannot stand in a path, or two models have the same one.

    Example:
        >>> named(["deploy/sst2", "old=deploy/first"])
        {'sst2': 'deploy/sst2', 'old': 'deploy/first'}
    """
    found: dict[str, str] = {}
    for source in sources:
        name, given, model = source.partition("=")
        if not given or "/" in name or not model:  # a path may have an equals sign too
            model, name = source, _from_path(source)
        elif not _NAME.fullmatch(name):
            raise UserError(f"'{name}' cannot name a model; use letters, digits, '.', '_' and '-', at most 64")
        if name in found:
            raise UserError(f"two models are called '{name}'; name them: NAME={model}")
        found[name] = model
    if not found:
        raise UnknownName("model", "", [])
    return found


def _from_path(source: str) -> str:
    parts = [part for part in Path(source).resolve().parts if part != "model"]
    name = parts[-1] if Path(source).exists() else source.replace("/", "-")
    return _NO_NAME.sub("-", name).strip("-._")[:64] or "model"
