"""README.md of a model folder, in the format of the Hugging Face Hub, and the versions that made it."""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from bert_miniatures.checkpoint import Labels

__all__ = ["model_card", "versions"]

_PACKAGES = ("bert-miniatures", "torch", "numpy", "tokenizers")
_PIPELINE = "text-classification"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a run's numbers."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def model_card(labels: Labels, result: Mapping[str, Any]) -> str:
    """Return the card of a fine-tuned model: what it does, its scores and how it was made.

    Args:
        labels: what the outputs mean.
        result: what result.json holds.
    """
    lines = ["---", "library_name: bert-miniatures", f"pipeline_tag: {_PIPELINE}", "tags: [bert, miniature]"]
    dev = {name: value for name, value in result["scores"].get("dev", {}).items() if value is not None}
    if dev:
        lines += ["model-index:", f"- name: {labels.task}", "  results:", "  - task: {type: text-classification}"]
        lines += [f"    dataset: {{name: {labels.task}, type: {labels.task}, split: dev}}", "    metrics:"]
        lines += [f"    - {{type: {name}, value: {value:.4f}}}" for name, value in dev.items()]
    size = f"{result['layers']} layers, {result['width']} wide"
    lines += ["---", "", f"# {labels.task}: BERT, {size}", ""]
    outputs = ", ".join(labels.names) or "one score"
    inputs = "a pair of texts" if labels.pair else "a text"
    lines += [f"Reads {inputs} of up to {labels.max_length} word pieces. Answers: {outputs}.", ""]
    if dev:
        lines += ["| dev metric | value |", "|---|---:|"]
        lines += [f"| {name} | {value:.4f} |" for name, value in dev.items()] + [""]
    lines += [
        f"Fine-tuned from `{result['model']}` (weights SHA-256 `{result['parent_sha256'][:16]}`): batch "
        f"{result['batch_size']}, learning rate {result['learning_rate']:g}, {result['epochs']} epochs, seed "
        f"{result['seed']}, {result['rows']['train']} training rows.",
        "",
        "```python",
        "from bert_miniatures import Predictor",
        "",
        'predictor = Predictor("path/of/this/folder")',
        'predictor(["a text"])',
        "```",
    ]
    if result.get("finding"):
        lines += ["", f"Note: {result['finding']}."]
    return "\n".join(lines) + "\n"
