"""How much memory is free here, and how much a fine-tuning run needs: how many runs fit side by side."""

from pathlib import Path

from bert_miniatures.config import FinetuneConfig, ModelConfig

__all__ = ["available", "run_bytes"]

PROCESS = 440 * 2**20  # Python with torch, numba, numpy, scipy and scikit-learn, measured with torch 2.13 on Linux
_COPIES = 8  # of all weights, float32: the parent's, the model, gradients, two moments, and what saving copies


def available(root: Path = Path("/")) -> int | None:
    """Return the bytes that may still be used: what the machine has free, cut to the cgroup's limit.

    Args:
        root: where `proc` and `sys` are.

    Returns:
        None where neither is known.
    """
    found = [value for value in (_machine(root), _cgroup(root)) if value is not None]
    return min(found) if found else None


def run_bytes(config: FinetuneConfig, sizes: ModelConfig, data_bytes: int) -> int:
    """Estimate the memory of one run in a process of its own, in bytes.

    440 MiB for the process
    + 8 copies of the weights: 8 x 4 bytes x (V + P + S) D + L (12 D^2 + 13 D)
    + what the backward pass needs: 4 bytes x B T L (34 D + 5 N T)
    + 4 times the data files: texts as Python strings, and word pieces.

    B is the micro-batch where one is set, else the batch; T is max_length, so this is the longest batch there can be.

    Source: the activation term is that of Korthikanti et al. 2022, arXiv 2205.05198, table 2, with 4 bytes a number
    where they count 2 (their 34 and 5 are bytes; here they are doubled).
    """
    d, layers, heads = sizes.hidden_size, sizes.num_hidden_layers, sizes.num_attention_heads
    width = sizes.intermediate_size
    rows = sizes.vocab_size + sizes.max_position_embeddings + sizes.type_vocab_size
    weights = rows * d + layers * (4 * d * d + 2 * d * width + 13 * d)
    batch, length = config.train.micro_batch_size or config.train.batch_size, config.data.max_length
    activations = 2 * batch * length * layers * (34 * d + 5 * heads * length)
    return PROCESS + _COPIES * 4 * weights + activations + 4 * data_bytes


def _machine(root: Path) -> int | None:
    try:
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _cgroup(root: Path) -> int | None:
    """Return what the cgroup leaves (v2, then v1); file pages that can be dropped count as free."""
    for limit, used, cached in (
        ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory.current", "inactive_file"),
        ("sys/fs/cgroup/memory/memory.limit_in_bytes", "sys/fs/cgroup/memory/memory.usage_in_bytes",
         "total_inactive_file"),
    ):  # fmt: skip
        try:
            most, now = int((root / limit).read_text()), int((root / used).read_text())
            stat = (root / limit).with_name("memory.stat").read_text()
            dropped = [int(line.split()[1]) for line in stat.splitlines() if line.split()[0] == cached]
        except (OSError, ValueError, IndexError):
            continue
        return max(0, most - now + sum(dropped))
    return None
