"""scikit-learn estimators over fine-tuning: texts in, labels or scores out; for cross_val_score, grids and pipelines.

    >>> from bert_miniatures import MiniatureClassifier
    >>> model = MiniatureClassifier("tiny", learning_rate=3e-4, random_state=1)  # doctest: +SKIP
    >>> model.fit(["fine", "broken"], ["good", "bad"]).predict(["works well"])  # doctest: +SKIP
    array(['good'], dtype='<U4')

`fit` is `recipes.finetune` with rows in memory and a run folder that is temporary; there is no second training loop.
"""

import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from bert_miniatures.card import model_card
from bert_miniatures.checkpoint import Labels, ModelFolder, read_folder, write_folder
from bert_miniatures.config import FinetuneConfig
from bert_miniatures.data.examples import Examples
from bert_miniatures.data.tasks import OWN_METRICS, Task
from bert_miniatures.errors import CheckpointError
from bert_miniatures.estimator_input import BadInput, Texts, target_of, texts_of
from bert_miniatures.files import RunFolder, read_json, training_extra
from bert_miniatures.models import resolve
from bert_miniatures.outputs import softmax
from bert_miniatures.watch import Watch, clock

with training_extra("the scikit-learn estimators"):
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils import check_consistent_length, check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted

if TYPE_CHECKING:
    from bert_miniatures.model import Bert
    from bert_miniatures.recipes.loading import Inputs

__all__ = ["MiniatureClassifier", "MiniatureRegressor"]

Floats = npt.NDArray[np.float64]


# ------------------------------------------------------------------------------------------------- the model


class _Fitted:
    """A model in memory: what is kept of a fit. torch sees it when it first answers, here and in every copy."""

    def __init__(self, folder: ModelFolder, result: Mapping[str, Any]) -> None:
        self.folder, self.result = folder, dict(result)
        self.bert: Bert | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"bert": None}

    @property
    def labels(self) -> Labels:
        assert self.folder.labels is not None
        return self.folder.labels

    def logits(self, texts: list[str], pairs: list[str] | None) -> Floats:
        """Return the outputs [N, C]."""
        with training_extra("predicting"):
            from bert_miniatures.data.batches import Dataset
            from bert_miniatures.evaluation import logits_of
            from bert_miniatures.model import build
        if (pairs is not None) != self.labels.pair:
            raise BadInput(f"the model was fitted on {'pairs of texts' if self.labels.pair else 'single texts'}; "
                           f"X has {'single texts' if pairs is None else 'pairs'}")  # fmt: skip
        tokenizer, config = self.folder.tokenizer, self.folder.config
        if self.bert is None:
            outputs = len(self.labels.names) or 1
            self.bert = build(config, self.folder.weights, groups={"pooler", "head"}, classes=outputs)
        length = min(self.labels.max_length, config.max_position_embeddings)
        data = Dataset(tokenizer.encode(texts, pairs, max_length=length), None, tokenizer.pad_id)
        return logits_of(self.bert, data).astype(np.float64)


class _Heard(Watch):
    """Warnings become Python's; notes and progress are shown where that was asked for."""

    def __init__(self, verbose: bool) -> None:
        super().__init__()
        self.verbose, self.shown = verbose, time.monotonic()

    def note(self, text: str) -> None:
        if self.verbose:
            print(text, file=sys.stderr)

    def warn(self, text: str) -> None:
        super().warn(text)
        warnings.warn(text, UserWarning, stacklevel=2)

    def progress(self, done: int, total: int, text: str = "", left: float | None = None) -> None:
        if self.verbose and (done == total or time.monotonic() - self.shown > 10):
            self.shown = time.monotonic()
            print(f"{done} of {total} updates, {text}{f', {clock(left)} left' if left else ''}", file=sys.stderr)


# -------------------------------------------------------------------------------------------- the estimators


class _Miniature(BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """What both estimators are made of; `MiniatureClassifier` has the arguments and attributes."""

    _kind = ""

    def __init__(
        self,
        model: str | Path = "tiny",
        *,
        batch_size: int = 32,
        learning_rate: float = 1e-4,
        epochs: int = 4,
        max_length: int = 128,
        settings: Mapping[str, Any] | None = None,
        random_state: Any = 1,
        verbose: bool = False,
    ) -> None:
        self.model = model
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.max_length = max_length
        self.settings = settings
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = True, False
        tags.target_tags.required = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_fitted")

    def _config(self, weights: Any = None) -> FinetuneConfig:
        drawn = self.random_state
        seed = int(drawn if isinstance(drawn, int | np.integer) else check_random_state(drawn).randint(2**31 - 1))
        named = {"batch_size": self.batch_size, "learning_rate": self.learning_rate, "epochs": self.epochs}
        train = dict(self.settings or {}) | named | {"seed": seed} | ({"class_weights": weights} if weights else {})
        data = {"max_length": self.max_length, "hold_out": 0.0}
        return FinetuneConfig.of({"model": str(self.model), "data": data, "train": train})

    def _learn(self, texts: Texts, labels: npt.NDArray[Any], names: tuple[str, ...], weights: Any = None) -> None:
        """Fine-tune on rows in memory and keep the model."""
        with training_extra("fitting"):
            from bert_miniatures.recipes.finetune import run_finetune
        task = Task("own", self._kind, names, OWN_METRICS[self._kind], pair=texts[1] is not None)
        numbered = [str(i) for i in range(len(texts[0]))]
        rows = Examples(*texts, labels, numbered, "X", "").take(range(len(numbered)))  # take makes the checksum
        with tempfile.TemporaryDirectory(prefix="miniatures-") as scratch:
            run = RunFolder(Path(scratch) / "run")
            result = run_finetune(
                self._config(weights), run.path, load=lambda config, watch: _inputs(task, rows, config, watch),
                watch=_Heard(bool(self.verbose)),
            )  # fmt: skip
            self.result_, self.history_ = result, run.records()
            self._fitted = _Fitted(read_folder(run.model, labels_needed=True), result)

    def _logits(self, rows: Any) -> Floats:
        check_is_fitted(self)
        return self._fitted.logits(*texts_of(rows))

    # ------------------------------------------------------------------------------------------------ on disk

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the fitted model as a model folder, which `load`, `Predictor` and transformers open; no pickle.

        Raises:
            OutputExists: the folder is not empty and `overwrite` is false.
        """
        check_is_fitted(self)
        fitted = self._fitted
        params = self.get_params() | {"model": str(self.model), "random_state": fitted.result.get("seed", 1)}
        extra = {"parent_sha256": fitted.result.get("parent_sha256", ""), "scores": {}}
        extra["estimator"] = {"params": params, **self._more()}
        extra["result"] = fitted.result
        card = model_card(fitted.labels, fitted.result) if fitted.result else "# A fine-tuned model\n"
        write_folder(Path(path), fitted.folder, card=card, extra=extra, overwrite=overwrite)
        return Path(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Open a model folder that `save` or any fine-tuning has written.

        Raises:
            CheckpointError: no whole model folder, or one of another kind.
        """
        place = resolve(str(path))
        folder = read_folder(place, labels_needed=True)
        assert folder.labels is not None
        if folder.labels.kind != cls._kind:
            raise CheckpointError(f"{path}: a model for {folder.labels.kind}; {cls.__name__} is for {cls._kind}")
        meta = read_json(place / "miniature.json") if (place / "miniature.json").is_file() else {}
        kept = meta.get("estimator") or {"params": {"model": str(path), "max_length": folder.labels.max_length}}
        found = cls(**kept["params"])
        found.result_ = meta.get("result", {})
        found._fitted = _Fitted(replace(folder, notes=()), found.result_)
        found._take(kept)
        return found

    def _more(self) -> dict[str, Any]:
        """Return what else must be written to know this estimator again."""
        return {}

    def _take(self, kept: Mapping[str, Any]) -> None:
        """Take what `_more` wrote."""


def _inputs(task: Task, rows: Examples, config: FinetuneConfig, watch: Watch) -> "Inputs":
    """Return the rows as a run's inputs; there is no dev set, for cross-validation is the caller's."""
    from bert_miniatures.recipes.loading import Inputs, encoded, read_parent

    parent = read_parent(config, watch)
    data = encoded("train", rows, parent, config.data.max_length, watch)
    return Inputs(task, parent, {"train": rows}, {"train": data})


class MiniatureClassifier(ClassifierMixin, _Miniature):  # type: ignore[misc]
    """Fine-tune one of the miniatures to tell classes apart.

    Args:
        model: any MODEL of the command line: nickname, size, official name or folder.
        batch_size, learning_rate, epochs: as in `TrainConfig`; the published values are 8 to 128, 3e-5 to 3e-4, and 4.
        max_length: in word pieces, special tokens included.
        class_weight: None, "balanced", or class -> weight; a class that is not named weighs 1.
        settings: further settings of `TrainConfig`, as in {"warmup": 0.2}.
        random_state: decides the new classifier, the order and dropout: an int gives the same model each time, on the
            same machine with the same number of threads. None draws one.
        verbose: show notes and progress on stderr.

    Attributes:
        classes_: the classes [C], sorted, as they are in y.
        result_: what result.json of the run would hold.
        history_: the records of the run: loss, gradient norm and learning rate.

    Example:
        >>> from sklearn.model_selection import cross_val_score
        >>> cross_val_score(MiniatureClassifier("tiny"), texts, labels, cv=5)  # doctest: +SKIP
        array([0.81, 0.84, 0.79, 0.83, 0.82])
    """

    _kind = "classification"

    def __init__(
        self,
        model: str | Path = "tiny",
        *,
        batch_size: int = 32,
        learning_rate: float = 1e-4,
        epochs: int = 4,
        max_length: int = 128,
        class_weight: Any = None,
        settings: Mapping[str, Any] | None = None,
        random_state: Any = 1,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            model, batch_size=batch_size, learning_rate=learning_rate, epochs=epochs, max_length=max_length,
            settings=settings, random_state=random_state, verbose=verbose,
        )  # fmt: skip
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803 - scikit-learn's names
        """Fine-tune the model.

        Args:
            X: texts or pairs of texts, see `texts_of`.
            y: a class per row: str, int or bool.

        Raises:
            ValueError: X or y cannot be used.
            UserError: the settings or the model cannot.
            Diverged: the loss became NaN.
        """
        texts, target = texts_of(X), target_of(y, type(self).__name__)
        check_consistent_length(texts[0], target)
        check_classification_targets(target)
        classes, numbers = np.unique(target, return_inverse=True)
        names = tuple(str(value) for value in classes.tolist())
        if len(classes) < 2:
            rows = f"{len(target)} sample{'s' if len(target) > 1 else ''}"
            raise BadInput(f"y has one class, '{names[0]}', in {rows}; at least two classes are needed")
        self._learn(texts, numbers.astype(np.int64), names, self._weights(classes.tolist()))
        self.classes_ = classes
        return self

    def _weights(self, classes: list[Any]) -> Any:
        if not isinstance(self.class_weight, Mapping):
            return self.class_weight
        unknown = [key for key in self.class_weight if key not in classes]
        if unknown:
            raise BadInput(f"class_weight: {unknown[0]!r} is not one of the classes {', '.join(map(repr, classes))}")
        return {str(key): float(weight) for key, weight in self.class_weight.items()}

    def predict_proba(self, X: Any) -> Floats:  # noqa: N803
        """Return the probability of each class [N, C], columns as in `classes_`."""
        return softmax(self._logits(X))

    def predict(self, X: Any) -> npt.NDArray[Any]:  # noqa: N803
        """Return the most probable class of each row [N]."""
        chosen = self._logits(X).argmax(1)
        found: npt.NDArray[Any] = self.classes_[chosen]
        return found

    def _more(self) -> dict[str, Any]:
        return {"classes": self.classes_.tolist(), "dtype": self.classes_.dtype.str}

    def _take(self, kept: Mapping[str, Any]) -> None:
        names = list(self._fitted.labels.names)
        dtype = kept.get("dtype", "")
        self.classes_ = np.array(kept.get("classes", names), dtype=object if dtype == "|O" else dtype or None)


class MiniatureRegressor(RegressorMixin, _Miniature):  # type: ignore[misc]
    """Fine-tune one of the miniatures to score texts or pairs of texts.

    Targets are trained at mean 0 and deviation 1 and answered in their own units.

    Args:
        model: any MODEL of the command line: nickname, size, official name or folder.
        batch_size, learning_rate, epochs: as in `TrainConfig`; the published values are 8 to 128, 3e-5 to 3e-4, and 4.
        max_length: in word pieces, special tokens included.
        settings: further settings of `TrainConfig`, as in {"warmup": 0.2}.
        random_state: decides the new classifier, the order and dropout: an int gives the same model each time, on the
            same machine with the same number of threads. None draws one.
        verbose: show notes and progress on stderr.

    Attributes:
        result_: what result.json of the run would hold.
        history_: the records of the run: loss, gradient norm and learning rate.

    Example:
        >>> MiniatureRegressor("tiny").fit(pairs, scores).predict([("a man eats", "he is eating")])  # doctest: +SKIP
        array([4.31])
    """

    _kind = "regression"

    def fit(self, X: Any, y: Any) -> Self:  # noqa: N803
        """Fine-tune the model.

        Args:
            X: texts or pairs of texts, see `texts_of`.
            y: a finite number per row.

        Raises:
            ValueError: X or y cannot be used.
            UserError: the settings or the model cannot.
            Diverged: the loss became NaN.
        """
        texts, target = texts_of(X), target_of(y, type(self).__name__)
        check_consistent_length(texts[0], target)
        try:
            scores = target.astype(np.float64)
        except (TypeError, ValueError):
            raise BadInput(f"y holds {target.dtype}; expected a number per row") from None
        if np.ptp(scores) == 0:
            rows = f"{len(scores)} sample{'s' if len(scores) > 1 else ''}"
            raise BadInput(f"every score is {scores[0]:g}, in {rows}; there is nothing to learn")
        self._learn(texts, scores, ())
        return self

    def predict(self, X: Any) -> Floats:  # noqa: N803
        """Return the score of each row [N]."""
        return self._logits(X)[:, 0]
