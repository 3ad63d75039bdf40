"""The 24 BERT miniatures: fetch, fine-tune, evaluate, predict.

    >>> from bert_miniatures import Predictor, finetune
    >>> finetune("tiny", "runs/mine", data={"train": "train.csv", "dev": "dev.csv"})  # doctest: +SKIP
    >>> Predictor("runs/mine")(["where is my parcel?"])  # doctest: +SKIP
    [{'label': 'order_status', 'score': 0.97}]

Names are imported when they are first used, so that `import bert_miniatures` loads neither torch nor anything else.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bert_miniatures.checkpoint import Labels, ModelFolder, convert
    from bert_miniatures.data.tasks import TASKS, Task
    from bert_miniatures.errors import MiniaturesError
    from bert_miniatures.estimators import MiniatureClassifier, MiniatureRegressor
    from bert_miniatures.exporting import export
    from bert_miniatures.loading import load
    from bert_miniatures.predict import Predictor
    from bert_miniatures.recipes.distill import distill
    from bert_miniatures.recipes.filling import fill
    from bert_miniatures.recipes.finetune import finetune
    from bert_miniatures.recipes.label import label
    from bert_miniatures.recipes.pretrain import pretrain
    from bert_miniatures.recipes.scoring import evaluate
    from bert_miniatures.tokenizer import Tokenizer
    from bert_miniatures.zoo import ZOO, Miniature

__all__ = [
    "TASKS",
    "ZOO",
    "Labels",
    "Miniature",
    "MiniatureClassifier",
    "MiniatureRegressor",
    "MiniaturesError",
    "ModelFolder",
    "Predictor",
    "Task",
    "Tokenizer",
    "convert",
    "distill",
    "evaluate",
    "export",
    "fill",
    "finetune",
    "label",
    "load",
    "pretrain",
]

_HOME = {
    "TASKS": "data.tasks",
    "ZOO": "zoo",
    "Labels": "checkpoint",
    "Miniature": "zoo",
    "MiniatureClassifier": "estimators",
    "MiniatureRegressor": "estimators",
    "MiniaturesError": "errors",
    "ModelFolder": "checkpoint",
    "Predictor": "predict",
    "Task": "data.tasks",
    "Tokenizer": "tokenizer",
    "convert": "checkpoint",
    "distill": "recipes.distill",
    "evaluate": "recipes.scoring",
    "export": "exporting",
    "fill": "recipes.filling",
    "finetune": "recipes.finetune",
    "label": "recipes.label",
    "load": "loading",
    "pretrain": "recipes.pretrain",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'bert_miniatures' has no attribute '{name}'")
    found = getattr(import_module(f"bert_miniatures.{_HOME[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
