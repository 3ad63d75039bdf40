"""load(): from a name to a model in memory."""

from pathlib import Path

from bert_miniatures.checkpoint import read_folder
from bert_miniatures.model import Bert, build
from bert_miniatures.models import resolve
from bert_miniatures.tokenizer import Tokenizer

__all__ = ["load"]


def load(model: str | Path) -> tuple[Bert, Tokenizer]:
    """Load a model with all its heads, and its tokenizer.

    Args:
        model: nickname, size, official name, model folder or run folder; fetched if it is not on this machine.

    Returns:
        The model, in evaluation mode on the CPU, and the tokenizer.

    Raises:
        UnknownName: no such model.
        CheckpointError: the folder is damaged or its parts do not fit each other.
        Offline: it would have to be fetched and the network is forbidden.

    Example:
        >>> model, tokenizer = load("tiny")  # doctest: +SKIP
        >>> ids = torch.tensor([[tokenizer.cls_id, *tokenizer.ids("a film"), tokenizer.sep_id]])  # doctest: +SKIP
        >>> model(ids).shape  # [B, T, D]  # doctest: +SKIP
        torch.Size([1, 4, 128])
    """
    found = read_folder(resolve(str(model)))
    classes = found.weights["head.weight"].shape[0] if "head" in found.groups else 0
    built = build(found.config, found.weights, groups=found.groups - {"encoder"}, classes=classes)
    return built.eval(), found.tokenizer
