"""The settings of a distillation: those of fine-tuning, the teachers, and the texts to learn from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import pydantic
from pydantic import Field

from bert_miniatures.config import FinetuneConfig, Settings, TrainConfig, read_toml

__all__ = ["GRID", "DistillConfig", "DistillSettings", "inputs_key", "recipe_settings", "run_settings"]

# what a sweep may vary, beside the settings of `train`
GRID = ("temperature", "label_weight", "labelled", "augment", "augment_share", "augment_top", "hidden_weight",
        "relation_weight", "relation_heads")  # fmt: skip

# what decides which texts are learnt from, and with which answers
_OF_INPUTS = {"teacher", "transfer", "transfer_text", "transfer_pair", "labelled", "missing"}
_OF_INPUTS |= {"augment", "augment_with", "augment_share", "augment_top", "augment_seed"}


class DistillSettings(Settings):
    """What a distillation has besides the settings of a fine-tuning.

    Attributes:
        teacher: model folders, runs, or files of their answers; several are averaged.
        transfer: files of texts, labelled or not, that the student learns from.
        transfer_text, transfer_pair: their columns; guessed by name where None.
        labelled: the student learns from the texts of the labelled training set too.
        temperature: divides the logits of teacher and student.
        label_weight: share of the labels' own loss, in rows that have a label.
        augment: how many texts to make from those there are, by replacing words.
        augment_with: a model with a masked-LM head that finds the words; the student itself where None.
        augment_share, augment_top: share of a text's words that are replaced; how many likely words are drawn from.
        augment_seed: decides the words; not that of the run, so that several runs share the texts.
        hidden_weight, relation_weight: of the teacher's hidden states and attention relations; 0 leaves them alone.
        relation_heads: divides the widths of teacher and student; None takes what `soft_objectives` does.
        states_of: whose states and relations, a model folder; the teacher where None.
        missing: share of the texts that a file of answers may lack.
    """

    teacher: tuple[str, ...] = Field(min_length=1)
    transfer: tuple[Path, ...] = ()
    transfer_text: str | None = None
    transfer_pair: str | None = None
    labelled: bool = True
    temperature: float = Field(default=1.0, gt=0)
    label_weight: float = Field(default=0.0, ge=0, le=1)
    augment: int = Field(default=0, ge=0)
    augment_with: str | None = None
    augment_share: float = Field(default=0.2, gt=0, le=1)
    augment_top: int = Field(default=15, gt=0)
    augment_seed: int = Field(default=1, ge=0)
    hidden_weight: float = Field(default=0.0, ge=0)
    relation_weight: float = Field(default=0.0, ge=0)
    relation_heads: int | None = Field(default=None, gt=0)
    states_of: str | None = None
    missing: float = Field(default=0.01, ge=0, lt=1)

    @property
    def is_guided(self) -> bool:
        """Whether the student learns what goes on inside a teacher, too."""
        return bool(self.hidden_weight or self.relation_weight)


class DistillConfig(FinetuneConfig, DistillSettings):
    """A distillation: `miniatures distill`.

    Attributes:
        then_finetune: fine-tune on the labelled set afterwards, into `finetuned` of the run folder.
        finetune: settings of that, those of `train` where not given.
        compare: a finished run of the same student, fine-tuned alone; looked for beside the run where None.
    """

    then_finetune: bool = False
    finetune: TrainConfig = TrainConfig()
    compare: Path | None = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _finetune_as_train(cls, document: Any) -> Any:
        if isinstance(document, Mapping) and isinstance(document.get("train", {}), Mapping):
            train, own = document.get("train", {}), document.get("finetune", {})
            return {**document, "finetune": {**train, **own}} if isinstance(own, Mapping) else document
        return document

    @pydantic.model_validator(mode="after")
    def _fit_each_other(self) -> Self:
        if self.train.class_weights != "none":
            raise ValueError("class_weights weigh labels; a student learns from the teacher's probabilities")
        if not self.labelled and not self.transfer:
            raise ValueError("nothing to learn from: give transfer files, or keep the labelled texts")
        if not self.labelled and self.label_weight:
            raise ValueError("label_weight needs the labelled texts, and labelled = false leaves them out")
        if self.augment_with is not None and not self.augment:
            raise ValueError("augment_with says who makes texts; say how many with augment (--augment N)")
        if self.states_of is not None and not self.is_guided:
            raise ValueError(
                "states_of says whose states are learnt; say how much with hidden_weight or relation_weight"
            )
        return self


def recipe_settings(document: Mapping[str, Any], where: str = "") -> FinetuneConfig:
    """Return the settings of a fine-tuning, or of a distillation where there is a teacher.

    Raises:
        ConfigError: settings of something else.
    """
    return (DistillConfig if "teacher" in document else FinetuneConfig).of(document, where=where)


def run_settings(path: Path) -> FinetuneConfig:
    """Read the run.toml of a fine-tuning or a distillation.

    Raises:
        ConfigError: missing, damaged, or of other settings.
    """
    return recipe_settings(read_toml(path), str(path))


def inputs_key(config: FinetuneConfig) -> str:
    """Return what decides the inputs of a run: with the same key they are the same rows, answers and model.

    Example:
        >>> one = FinetuneConfig(model="tiny", train={"seed": 1})
        >>> inputs_key(one) == inputs_key(FinetuneConfig(model="tiny", train={"seed": 2}))
        True
    """
    return json.dumps(config.model_dump(mode="json", include={"model", "data", *_OF_INPUTS}), sort_keys=True)
