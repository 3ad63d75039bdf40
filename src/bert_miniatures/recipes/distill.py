"""Distillation: a small student learns what a larger teacher says about texts, labelled or not.

The recipe is that of fine-tuning with another aim. Source: Turc et al. 2019, "Well-Read Students Learn Better", section
2: pre-trained distillation, and fine-tuning after it ("PD-F").
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bert_miniatures.config import FinetuneConfig, TrainConfig
from bert_miniatures.distill_config import DistillConfig
from bert_miniatures.distributed import Team
from bert_miniatures.errors import ConfigError, DataError
from bert_miniatures.evaluation import prior_loss
from bert_miniatures.files import RunFolder
from bert_miniatures.predict import Predictor
from bert_miniatures.recipes.comparison import alone, facts_of, row_of, speed
from bert_miniatures.recipes.finetune import run_finetune
from bert_miniatures.recipes.guide import read_guide, with_guide
from bert_miniatures.recipes.loading import Inputs
from bert_miniatures.recipes.method import Aim
from bert_miniatures.recipes.soft_loading import SoftInputs, load_soft_inputs
from bert_miniatures.recipes.teachers import open_teachers
from bert_miniatures.soft_objectives import soft_classification, soft_multilabel, soft_prior, soft_regression
from bert_miniatures.watch import Watch

__all__ = ["distill", "run_distill"]


def distill(
    model: str | Path,
    out: str | Path,
    *,
    teacher: str | Path | Sequence[str | Path],
    data: Mapping[str, Any],
    transfer: Sequence[str | Path] = (),
    train: Mapping[str, Any] | None = None,
    keep: str = "last",
    resume: bool = False,
    overwrite: bool = False,
    watch: Watch | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Train a student on a teacher's answers and return what result.json holds.

    Args:
        model: the student, any MODEL of the command line.
        out: the run folder.
        teacher: a model folder, a run, or a file of answers; or several, which are averaged.
        data: settings of `DataConfig`: the labelled data, whose dev set is scored on.
        transfer: files of unlabelled texts to learn from.
        train: settings of `TrainConfig`.
        settings: others of `DistillConfig`, as temperature, label_weight, then_finetune.

    Raises:
        UserError: the input is wrong; the sentence says what and where.
        Diverged: the loss became NaN; result.json records it.

    Example:
        >>> distill("tiny", "runs/student", teacher="runs/teacher", transfer=["reviews.txt"],
        ...         data={"task": "sst2", "glue": "glue"})["comparison"]  # doctest: +SKIP
    """
    names = [teacher] if isinstance(teacher, str | Path) else teacher
    document = {"model": str(model), "teacher": [str(name) for name in names], "data": dict(data), "keep": keep}
    document |= {"transfer": [str(path) for path in transfer], "train": dict(train or {}), **settings}
    config = DistillConfig.of(document)
    return run_distill(config, Path(out), resume=resume, overwrite=overwrite, watch=watch)


def run_distill(
    config: DistillConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    watch: Watch | None = None,
    until: int | None = None,
    load: Callable[[DistillConfig, Watch], SoftInputs] = load_soft_inputs,
    measure: bool = True,
) -> dict[str, Any]:
    """Distill as `config` says and return what result.json holds; see `distill` and `run_finetune`.

    Args:
        load: reads the inputs; several runs in one process may share them.
        measure: the texts per second of teacher and student, for the table at the end.
    """
    if config.then_finetune and Team().world > 1:
        raise ConfigError("then_finetune is for one process; fine-tune the distilled model with a second command")
    run = _Distillation(config, out, watch or Watch(), load, measure=measure)
    return run_finetune(
        config, out, resume=resume, overwrite=overwrite, watch=run.watch, until=until, load=run.load, aim=run.aim,
        ending=run.ending,
    )  # fmt: skip


class _Distillation:
    """What makes a fine-tuning a distillation: its inputs, its aim and what is done at its end."""

    inputs: SoftInputs

    def __init__(
        self,
        config: DistillConfig,
        out: Path,
        watch: Watch,
        read: Callable[[DistillConfig, Watch], SoftInputs],
        *,
        measure: bool,
    ) -> None:
        self.config, self.out, self.watch, self.read, self.measure = config, out, watch, read, measure

    def load(self, config: FinetuneConfig, watch: Watch) -> Inputs:
        """Read the inputs, and say at once where there is little to be gained."""
        self.watch, self.guide = watch, read_guide(self.config)
        self.inputs = self.read(self.config, watch)
        self.alone = self._find_alone()
        if self.alone is not None:
            self._check_teacher(
                self.alone[1]["scores"].get("dev", {}), f"the student fine-tuned alone ({self.alone[0]})"
            )
        return self.inputs

    def aim(self, inputs: Inputs, train: TrainConfig) -> Aim:
        """Learn what the teacher says, and a share of the labels if wanted."""
        config, kind, data = self.config, inputs.task.kind, inputs.data["train"]
        assert data.teacher is not None
        mean, deviation = _scale(kind, data.teacher, train)
        heat, weight = config.temperature, config.label_weight
        if kind == "regression":
            objective = soft_regression(mean, deviation, weight)
        else:
            make = soft_multilabel if kind == "multilabel" else soft_classification
            objective = make(heat, weight)
        prior = soft_prior(kind, data.teacher, heat)
        if weight and kind != "regression":
            own = self.inputs.texts["labelled"]
            share = weight * own / len(data)
            assert data.labels is not None
            prior = (1 - share) * prior + share * prior_loss(kind, data.labels[:own])
        who = [dict(teacher) for teacher in self.inputs.teachers]
        facts = {"teachers": who, "texts": dict(self.inputs.texts), "temperature": heat, "label_weight": weight}
        if self.inputs.augmentation:
            facts["augmentation"] = dict(self.inputs.augmentation)
        aim = Aim(objective, mean, deviation, prior, facts)
        return aim if self.guide is None else with_guide(aim, config, self.guide, inputs, train)

    def ending(self, run: RunFolder, document: Mapping[str, Any]) -> Mapping[str, Any]:
        """Fine-tune where that is wanted, and compare."""
        self._check_teacher(document["scores"].get("dev", {}), "the student")
        after = self._then_finetune(run) if self.config.then_finetune else None
        rows = self._comparison(run, document, after)
        found: dict[str, Any] = {"comparison": rows}
        if after is not None:
            found["then_finetune"] = {"run": str(run.path / "finetuned"), "scores": after["scores"]}
        return found

    def _then_finetune(self, run: RunFolder) -> dict[str, Any]:
        self.watch.note("fine-tuning the distilled student on the labelled set")
        config = FinetuneConfig(
            model=str(run.model), data=self.config.data, train=self.config.finetune, keep=self.config.keep
        )
        return run_finetune(config, run.path / "finetuned", resume=True, watch=self.watch)

    def _find_alone(self) -> tuple[Path, Mapping[str, Any]] | None:
        inputs = self.inputs
        dev = inputs.splits.get("dev")
        task, metric = inputs.task.name, inputs.task.metrics[0]
        known = {"task": task, "metric": metric, "parent": inputs.parent.fingerprint}
        return alone(self.out, self.config.compare, dev=dev.checksum if dev else None, **known)

    def _check_teacher(self, scores: Mapping[str, float | None], who: str) -> None:
        metric = self.inputs.task.metrics[0]
        own, other = self.inputs.teacher_scores.get(metric, math.nan), scores.get(metric)
        if other is not None and own < other:
            self.watch.warn(f"teacher: dev {metric} {own:.4f}, less than {who} has, {other:.4f}")

    # --------------------------------------------------------------------------------------- the table

    def _comparison(
        self, run: RunFolder, document: Mapping[str, Any], after: Mapping[str, Any] | None
    ) -> list[dict[str, Any]]:
        splits = self.inputs.splits
        texts = splits.get("dev", splits["train"])
        facts, pace = facts_of(run.model), speed(Predictor(run.model).logits, texts) if self.measure else None
        rows = [self._teacher_row(texts)]
        if self.alone is None:
            self.watch.note("no run of this student fine-tuned alone is beside this one; --compare RUN names one")
            rows.append(row_of("fine-tuned alone", "", {}, facts, pace))
        else:
            rows.append(row_of("fine-tuned alone", str(self.alone[0]), _dev(self.alone[1]), facts, pace))
        rows.append(row_of("distilled", str(run.path), _dev(document), facts, pace))
        if after is not None:
            rows.append(row_of("distilled, fine-tuned", str(run.path / "finetuned"), _dev(after), facts, pace))
        return rows

    def _teacher_row(self, texts: Any) -> dict[str, Any]:
        teachers = self.inputs.teachers
        names = ", ".join(str(teacher["name"]) for teacher in teachers)
        sizes = {
            key: sum(teacher[key] for teacher in teachers) if all(key in teacher for teacher in teachers) else None
            for key in ("parameters", "bytes")
        }
        return row_of("teacher", names, self.inputs.teacher_scores, sizes, self._teacher_speed(texts))

    def _teacher_speed(self, texts: Any) -> float | None:
        """Measure the teachers where their folders are here; several answer one after the other."""
        if not self.measure:
            return None
        paces = []
        for teacher in self.inputs.teachers:
            if not Path(teacher["name"]).is_dir():
                return None
            paces.append(speed(open_teachers([teacher["name"]], Watch())[0].answer, texts))
        return round(1 / sum(1 / pace for pace in paces), 1)


def _dev(document: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = document["scores"].get("dev", {})
    return found


def _scale(kind: str, teacher: np.ndarray, config: TrainConfig) -> tuple[float, float]:
    """Return mean and deviation that scores are trained at."""
    if kind != "regression" or not config.standardise:
        return 0.0, 1.0
    scores = torch.from_numpy(teacher).double()
    deviation = float(scores.std(correction=0))
    if deviation == 0:
        raise DataError(f"the teacher gives all {len(teacher)} texts the score {teacher[0, 0]:g}; nothing to learn")
    return float(scores.mean()), deviation
