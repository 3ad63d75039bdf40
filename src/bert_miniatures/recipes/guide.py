"""The model whose hidden states and attention relations a student learns, beside a teacher's answers."""

from dataclasses import replace
from pathlib import Path

from bert_miniatures.checkpoint import ModelFolder, read_folder
from bert_miniatures.config import TrainConfig
from bert_miniatures.distill_config import DistillConfig
from bert_miniatures.errors import ConfigError
from bert_miniatures.model import Bert, build
from bert_miniatures.models import resolve
from bert_miniatures.recipes.loading import Inputs
from bert_miniatures.recipes.method import Aim, narrow
from bert_miniatures.soft_objectives import guided, relation_heads

__all__ = ["read_guide", "with_guide"]


def read_guide(config: DistillConfig) -> ModelFolder | None:
    """Read the model to look into, if the settings ask for one, and check that student and data fit it.

    Raises:
        ConfigError: teacher and student do not read the same word pieces, or the sizes do not fit.
        CheckpointError: no model folder, or no BERT.
    """
    if not config.is_guided:
        return None
    name = config.states_of or _only_folder(config.teacher)
    guide, student = read_folder(resolve(name)), read_folder(resolve(config.model))
    if guide.tokenizer.fingerprint != student.tokenizer.fingerprint:
        raise ConfigError(
            f"{name} and {config.model} read other word pieces; hidden states and relations need one vocabulary (leave "
            "hidden_weight and relation_weight out: answers need none)"
        )
    if config.data.max_length > guide.config.max_position_embeddings:
        limit = guide.config.max_position_embeddings
        raise ConfigError(f"max_length {config.data.max_length} is more than the {limit} positions of {name}")
    widths = student.config.hidden_size, guide.config.hidden_size
    if config.relation_heads and any(width % config.relation_heads for width in widths):
        raise ConfigError(
            f"relation_heads {config.relation_heads} does not divide both widths, {widths[0]} and {widths[1]}"
        )
    return guide


def _only_folder(teachers: tuple[str, ...]) -> str:
    if len(teachers) > 1 or Path(teachers[0]).is_file():
        raise ConfigError(
            "hidden_weight and relation_weight look into one model, and the teachers are "
            f"{', '.join(teachers)}; name it with states_of = FOLDER"
        )
    return teachers[0]


def with_guide(aim: Aim, config: DistillConfig, guide: ModelFolder, inputs: Inputs, train: TrainConfig) -> Aim:
    """Return the aim with what goes on inside the guide added; its losses have no known prior."""
    own, theirs = inputs.parent.config.hidden_size, guide.config.hidden_size
    heads = config.relation_heads or relation_heads(own, theirs)
    weights = {"hidden": config.hidden_weight, "relations": config.relation_weight}
    objective = guided(aim.objective, _model_of(guide, inputs, train), heads=heads, **weights)
    facts = {"name": config.states_of or config.teacher[0], "sha256": guide.fingerprint, **weights}
    if config.relation_weight:
        facts["relation_heads"] = heads
    helpers = {"hidden": theirs} if config.hidden_weight else {}
    return replace(aim, objective=objective, prior=float("inf"), facts={**aim.facts, "guide": facts}, helpers=helpers)


def _model_of(guide: ModelFolder, inputs: Inputs, train: TrainConfig) -> Bert:
    """Build the guide with the rows of the word table that the student has."""
    used, _ = narrow(inputs.data, train)
    sizes, weights = guide.config, guide.weights
    if used is not None:
        sizes = sizes.model_copy(update={"vocab_size": len(used)})
        weights = weights | {"embed.word.weight": weights["embed.word.weight"][used]}
    return build(sizes, weights).eval().requires_grad_(False)
