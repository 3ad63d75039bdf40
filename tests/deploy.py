"""Tiny classifiers, and deploy folders made of them."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from bert_miniatures.checkpoint import Labels, ModelFolder, read_folder, write_folder
from bert_miniatures.config import ModelConfig
from bert_miniatures.model import build

DRAWN = np.random.default_rng(23)
WORDS = ["good", "bad", "film", "very", "not", "the", "was", "is", "a1", "x", "yz", "!"]
TEXTS = [" ".join(DRAWN.choice(WORDS, size=DRAWN.integers(1, 40))) for _ in range(97)]
PAIRS = [" ".join(DRAWN.choice(WORDS, size=DRAWN.integers(1, 40))) for _ in range(97)]
LABELS = {
    "single": Labels("classification", ("bad", "good", "žluť"), task="own", max_length=31),
    "paired": Labels("classification", ("same", "other"), task="own", pair=True, max_length=31),
    "regression": Labels("regression", (), task="own"),
    "multilabel": Labels("multilabel", ("a", "b", "c", "d", "e"), task="own"),
}


def classifier(tiny: Path, labels: Labels, **sizes: object) -> ModelFolder:
    """Make a model with a random classifier for these labels; `sizes` replaces the tiny model's."""
    found = read_folder(tiny)
    config = ModelConfig(**(found.config.model_dump() | sizes))
    made = build(config, groups={"pooler", "head"}, classes=len(labels.names) or 1, seed=3)
    drawn = np.random.default_rng(11)  # biases and norms are not 0 and 1, so that a lost one shows
    weights = {
        name: (w + 0.1 * drawn.standard_normal(w.shape) if w.ndim == 1 else w).astype(np.float32)
        for name, w in made.weights().items()
    }
    weights["head.weight"] = weights["head.weight"] * 8  # so that the answers differ
    return replace(found, config=config, weights=weights, labels=labels)


def written(model: ModelFolder, folder: Path) -> Path:
    """Write the model folder and return it."""
    write_folder(folder, model, card="# a classifier\n")
    return folder
