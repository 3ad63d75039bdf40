"""README.md of a model folder, in the format of the Hugging Face Hub, and the versions that made it."""

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from bert_miniatures.checkpoint import Labels
from bert_miniatures.config import ModelConfig

__all__ = ["deploy_card", "model_card", "pretraining_card", "versions"]

_PACKAGES = ("bert-miniatures", "torch", "numpy", "tokenizers")
_PIPELINE = "text-classification"


def versions(*more: str) -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a run's numbers, and of these."""
    found = {"python": platform.python_version()}
    for package in (*_PACKAGES, *more):
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
    teachers = ", ".join(f"`{teacher['name']}`" for teacher in result.get("teachers", ()))
    made = f"Distilled from {teachers} into" if teachers else "Fine-tuned from"
    lines += [
        f"{made} `{result['model']}` (weights SHA-256 `{result['parent_sha256'][:16]}`): batch "
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


def pretraining_card(result: Mapping[str, Any]) -> str:
    """Return the card of a pre-trained model: how well it guesses words and how it was made.

    Args:
        result: what result.json holds.
    """
    lines = ["---", "library_name: bert-miniatures", "pipeline_tag: fill-mask", "tags: [bert, miniature]", "---", ""]
    lines += [f"# BERT, {result['layers']} layers, {result['width']} wide, pre-trained", ""]
    parent = result["parent_sha256"]
    start = f"From `{result['model']}` (weights SHA-256 `{parent[:16]}`)" if parent else "From random weights"
    data, corpus = result["settings"], result["corpus"]
    lengths = f"{data['max_length']} word pieces"
    if data["long_share"]:
        lengths += f", then {data['long_length']} in the last {data['long_share']:.0%} of the updates"
    aims = f"masked words ({data['masking']} by {data['masking']}, {data['mask_share']:.0%})"
    aims += " and next sentences" if data["next_sentence"] else ""
    aims += ", and what a teacher says of sentences" if "lessons" in result else ""
    lines += [
        f"{start}, {result['steps']} updates of {result['batch_size']} rows, {result['tokens']:,} tokens, "
        f"{result['passes']:.2f} passes over {corpus['pieces']:,} pieces in {corpus['documents']:,} documents. "
        f"Texts of {lengths}. Learnt: {aims}. Vocabulary of {result['pieces']:,} pieces, learning rate "
        f"{result['learning_rate']:g}, seed {result['seed']}.",
        "",
    ]
    held_out = {name: value for name, value in result["scores"].get("held_out", {}).items() if value is not None}
    if held_out:
        lines += [f"On {corpus['held_out']:,} held-out documents:", "", "| metric | value |", "|---|---:|"]
        lines += [f"| {name.replace('_', ' ')} | {value:.4f} |" for name, value in held_out.items()] + [""]
    lines += [
        "```python",
        "from bert_miniatures import fill",
        "",
        'fill("path/of/this/folder", "Paris is the [MASK] of France.")',
        "```",
    ]
    return "\n".join(lines) + "\n"


def deploy_card(labels: Labels, config: ModelConfig, meta: Mapping[str, Any]) -> str:
    """Return the card of a deploy folder: what it answers, its graphs and how they were checked.

    Args:
        labels: what the outputs mean.
        config: sizes.
        meta: what miniature.json of the folder holds.
    """
    lines = ["---", "library_name: onnx", f"pipeline_tag: {_PIPELINE}", "tags: [bert, miniature, onnx]", "---", ""]
    size = f"{config.num_hidden_layers} layers, {config.hidden_size} wide"
    inputs = "a pair of texts" if labels.pair else "a text"
    outputs = ", ".join(labels.names) or "one score"
    lines += [f"# {labels.task or labels.kind}: BERT, {size}, for ONNX Runtime", ""]
    lines += [f"Reads {inputs} of up to {meta['max_length']} word pieces. Answers: {outputs}.", ""]
    lines += ["| file | bytes |", "|---|---:|"]
    lines += [f"| `{name}` | {entry['bytes']:,} |" for name, entry in meta["onnx"].items()]
    checked = meta["onnx"]["onnx/model.onnx"]["parity"]
    lines += [
        "",
        f"`onnx/model.onnx` differs from torch by {checked['largest_difference']:.1e} at most, over "
        f"{checked['batches']} batches of random rows (allowed: {checked['tolerance']:g}). Inputs `input_ids`, "
        "`attention_mask` and `token_type_ids`, int64 [batch, sequence]; output `logits`.",
        "",
    ]
    if "int8" in meta:
        lines += [meta["int8"]["said"][:1].upper() + meta["int8"]["said"][1:] + ".", ""]
    lines += ["```python", "from bert_miniatures import Predictor", "", 'predictor = Predictor("path/of/this/folder")']
    lines += ['predictor(["a text"], ["another"])' if labels.pair else 'predictor(["a text"])', "```"]
    return "\n".join(lines) + "\n"
