"""Write losses.json anew and print what changed: python tests/golden/regenerate.py

A change of the golden losses is a change of the mathematics or of the order of the random numbers. Say why in the commit.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SETTINGS = {"epochs": 2, "batch_size": 16, "learning_rate": 3e-3, "threads": 1, "log_every": 1}
WORDS = ["good", "bad", "film", "very", "not", "the", "was", "is"]


def losses() -> dict[str, list[float]]:
    """Fine-tune a random 2-layer model on made-up rows with each optimizer; return the loss of every update."""
    from bert_miniatures.checkpoint import ModelFolder, write_folder
    from bert_miniatures.config import ModelConfig
    from bert_miniatures.model import build
    from bert_miniatures.recipes.finetune import finetune
    from bert_miniatures.tokenizer import Tokenizer

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    config = ModelConfig(vocab_size=len(pieces), hidden_size=15, num_hidden_layers=2, num_attention_heads=3,
                         intermediate_size=23, max_position_embeddings=31, initializer_range=0.15)  # fmt: skip
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        weights = build(config, groups={"pooler"}, seed=3).weights()
        write_folder(folder / "model", ModelFolder(config, weights, Tokenizer.from_vocabulary(pieces)), card="")
        drawn = np.random.default_rng(1)
        rows = [drawn.choice(WORDS, size=drawn.integers(1, 9)).tolist() for _ in range(97)]
        lines = ["text,label", *(f"{' '.join(row)},{'a' if 'good' in row else 'b'}" for row in rows)]
        (folder / "train.csv").write_text("\n".join(lines) + "\n")
        data = {"train": str(folder / "train.csv"), "max_length": 16, "hold_out": 0.2}
        for optimizer in ("adamw", "bertadam"):
            out = folder / optimizer
            finetune(folder / "model", out, data=data, train=SETTINGS | {"optimizer": optimizer})
            records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            found[optimizer] = [record["loss"] for record in records if "loss" in record]
    return found


if __name__ == "__main__":
    path = HERE / "losses.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    after = losses()
    for name, values in after.items():
        old = before.get(name, [])
        gap = max((abs(a - b) for a, b in zip(old, values, strict=False)), default=float("nan"))
        print(f"{name}: {len(old)} -> {len(values)} losses, largest difference {gap:.2e}", file=sys.stderr)
    path.write_text(json.dumps(after, indent=1) + "\n")
