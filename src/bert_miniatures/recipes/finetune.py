"""Fine-tuning: a pre-trained encoder, a new classifier on the pooled first position, a few epochs.

Source: Devlin et al. 2019, section 4; the grid and the four epochs are those of the model card of the miniatures.
"""

import math
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bert_miniatures import metrics, predictions
from bert_miniatures.card import model_card, versions
from bert_miniatures.checkpoint import Labels, ModelFolder, write_folder
from bert_miniatures.config import FinetuneConfig, TrainConfig, write_toml
from bert_miniatures.data.batches import Batches
from bert_miniatures.distributed import Team
from bert_miniatures.errors import ConfigError, DataError, Diverged, ProcessLost
from bert_miniatures.evaluation import finding, logits_of, loss_of, predictions_of, prior_loss
from bert_miniatures.files import RunFolder
from bert_miniatures.model import Bert
from bert_miniatures.names import Weights
from bert_miniatures.optim import decay_so_far
from bert_miniatures.recipes.loading import Inputs, load_inputs, starting_point
from bert_miniatures.recipes.method import (
    Aim,
    fold,
    labels_of,
    model_of,
    narrow,
    nulls,
    objective_of,
    set_threads,
    standard,
    unfold,
)
from bert_miniatures.recipes.running import Window, begun
from bert_miniatures.state import Stop, load_state, save_state, stop_requests
from bert_miniatures.train import Progress, TrainState, train
from bert_miniatures.traps import order_warning
from bert_miniatures.watch import Watch

__all__ = ["finetune", "run_finetune"]

Ending = Callable[[RunFolder, Mapping[str, Any]], Mapping[str, Any]]


def finetune(
    model: str | Path,
    out: str | Path,
    *,
    data: Mapping[str, Any],
    train: Mapping[str, Any] | None = None,
    keep: str = "last",
    resume: bool = False,
    overwrite: bool = False,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Fine-tune a model and return what result.json holds.

    Args:
        model: any MODEL of the command line: nickname, size, official name or folder.
        out: the run folder.
        data: settings of `DataConfig`, as in {"task": "sst2", "glue": "glue"} or {"train": "mine.csv"}.
        train: settings of `TrainConfig`, as in {"learning_rate": 3e-4, "epochs": 4}.
        keep: "last", or "best" for the epoch with the best dev score on the task's first metric.
        resume: continue the run in `out`.
        overwrite: replace the run in `out`.

    Raises:
        UserError: the input is wrong; the sentence says what and where.
        Diverged: the loss became NaN; result.json records it.

    Example:
        >>> result = finetune("tiny", "runs/sst2", data={"task": "sst2", "glue": "glue"})  # doctest: +SKIP
        >>> result["scores"]["dev"]  # doctest: +SKIP
        {'accuracy': 0.8326}
    """
    document = {"model": str(model), "data": dict(data), "train": dict(train or {}), "keep": keep}
    config = FinetuneConfig.of(document)
    return run_finetune(config, Path(out), resume=resume, overwrite=overwrite, watch=watch)


def run_finetune(
    config: FinetuneConfig,
    out: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    watch: Watch | None = None,
    until: int | None = None,
    load: Callable[[FinetuneConfig, Watch], Inputs] = load_inputs,
    aim: Callable[[Inputs, TrainConfig], Aim] | None = None,
    ending: Ending | None = None,
) -> dict[str, Any]:
    """Fine-tune as `config` says and return what result.json holds; see `finetune`.

    Args:
        until: pause after this many updates where the run has more: the state is saved, the dev set is scored, and
            `{"paused": update, "steps": all of them, "scores": {"dev": …}, "loss": …}` is returned. Resumed later, the
            run ends as if it had never paused.
        load: reads the inputs; several runs in one process may share them.
        aim: says what is learnt; the labels where None.
        ending: called when model and predictions are written, just before result.json; gives what else goes into it.

    Where torch's process group is up, its processes share every batch, the first one alone writes, evaluates and
    speaks, and all return the same.
    """
    team, run = Team(), RunFolder(out)
    watch = (watch or Watch()) if team.first else Watch()
    finished = begun(config, run, watch, resume=resume, overwrite=overwrite) if team.first else None
    finished = team.share(finished)
    if finished is not None:
        return dict(finished)
    if config.train.batch_size < team.world:
        raise ConfigError(f"batch size {config.train.batch_size} for {team.world} processes; each needs an example")
    inputs = team.first_then_others(lambda: load(config, watch))
    if config.keep == "best" and "dev" not in inputs.splits:
        raise ConfigError("keep = best needs a dev set to choose by; give --dev, or --keep last")
    data = {f"{name} data": examples.checksum for name, examples in inputs.splits.items()}
    team.check_same(data | {"model": inputs.parent.fingerprint, "settings": config.train.model_dump(mode="json")})
    if team.first:
        write_toml(run.config, config)
    learnt = (aim or _labels_of_the_data)(inputs, config.train)
    return _Finetuning(config, run, inputs, watch, team, learnt, ending).result(until)


def _labels_of_the_data(inputs: Inputs, config: TrainConfig) -> Aim:
    """Learn the labels, as they are or at mean 0 and deviation 1."""
    task, data = inputs.task, inputs.data["train"]
    mean, deviation = standard(task, data, config)
    objective = objective_of(task, data, config, mean, deviation)
    return Aim(objective, mean, deviation, prior_loss(task.kind, labels_of(data)))


class _Finetuning:
    """One run: what the steps below share."""

    def __init__(
        self,
        config: FinetuneConfig,
        run: RunFolder,
        inputs: Inputs,
        watch: Watch,
        team: Team,
        aim: Aim,
        ending: Ending | None,
    ) -> None:
        self.config, self.run, self.inputs, self.watch, self.team = config, run, inputs, watch, team
        self.aim, self.ending = aim, ending
        self.task, self.started = inputs.task, time.monotonic()
        self.best: dict[str, Any] | None = None
        self.seconds_before = 0.0
        self.checksums = {name: examples.checksum for name, examples in inputs.splits.items()}
        set_threads(config.train)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        start, classes = starting_point(inputs.parent, self.task, watch)
        self.full = unfold(start, aim.mean, aim.deviation)
        self.used, self.data = narrow(inputs.data, config.train)
        self.model = model_of(inputs.parent, self.full, self.used, classes, config.train, aim.helpers).to(device)
        self.state = TrainState(self.model, config.train)
        self.batches = Batches(self.data["train"], config.train.batch_size, config.train.seed)
        self.steps = self.batches.per_epoch * config.train.epochs

    # ------------------------------------------------------------------------------------------- the run

    def result(self, until: int | None = None) -> dict[str, Any]:
        self._restore()
        if self.team.world > 1:
            self.watch.note(f"{self.team.world} processes share each batch of {self.config.train.batch_size}")
        if until is None or self.state.step < until:
            with stop_requests() as stop:
                self._train_and_save(stop, until)
        document = None
        if self.team.first:
            document = self._paused() if self.state.step < self.steps else self._finish(*self._kept_weights())
        return dict(self.team.share(document))

    def _train_and_save(self, stop: Stop, until: int | None) -> None:
        """Train; where another process is lost, save what all had."""
        try:
            with self.team.losses():
                self._train(stop, until)
        except ProcessLost:
            if self.team.first and self.team.world > 1:  # no update is half done: its gradients did not come together
                self._save()
            raise

    def _train(self, stop: Stop, until: int | None) -> None:
        window, self.saved = Window(), time.monotonic()
        for progress in train(self.state, self.aim.objective, self.batches, self.config.train):
            window.add(progress)
            pause = until is not None and progress.step >= until
            if progress.step % self.config.train.log_every == 0 or progress.epoch_ended or pause:
                window = self._mark(progress, window, save=progress.epoch_ended or pause)
            if self.team.any(stop.asked):
                self._mark(progress, window, save=True)
                self.watch.note(f"stopped at step {progress.step} of {progress.steps}; --resume continues from here")
                self.team.any(False)  # the others wait until it is saved
                raise KeyboardInterrupt
            if pause:
                return

    def _mark(self, progress: Progress, window: Window, *, save: bool) -> Window:
        """Record, evaluate and save in the first process; the others wait for it at the next meeting."""
        if self.team.first:
            if window.count:
                self._record(progress, window)
                if progress.epoch_ended:
                    self._epoch_ended(progress)
            if save or time.monotonic() - self.saved >= self.config.train.save_every:
                self._save()
                self.saved = time.monotonic()
        return Window()

    def _paused(self) -> dict[str, Any]:
        """Return what is known of a run that was asked to pause here; score and loss are those of the dev set."""
        known: dict[str, Any] = {"paused": self.state.step, "steps": self.steps, "loss": None, "scores": {}}
        if "dev" not in self.data:
            return known
        logits, gold = self._logits(self.model, "dev"), self.inputs.splits["dev"].labels
        assert gold is not None
        known["scores"] = {"dev": nulls(self._scores("dev", logits))}
        return known | nulls({"loss": loss_of(self.task.kind, logits, gold)})

    def _record(self, progress: Progress, window: Window) -> None:
        loss, norm = window.read()
        record = {"step": progress.step, "epoch": progress.epoch, "loss": loss, "gradient_norm": norm}
        self.run.log(**record, learning_rate=progress.learning_rate, seconds=round(self._seconds(), 3))
        self.watch.progress(progress.step, progress.steps, f"loss {loss:.3f}")
        if not math.isfinite(loss) or not math.isfinite(norm):
            said = f"the loss became {loss} at step {progress.step} of {progress.steps}"
            self.run.finish(self._document({}, progress.step, f"{said}; a smaller learning rate helps"))
            raise Diverged(f"{said}; a smaller --learning-rate helps (this run: {self.config.train.learning_rate:g})")

    def _epoch_ended(self, progress: Progress) -> None:
        if "dev" not in self.data:
            return
        scores = self._scores("dev", self._logits(self.model, "dev"))
        self.run.log(step=progress.step, epoch=progress.epoch, split="dev", scores=nulls(scores))
        shown = ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
        self.watch.note(f"epoch {progress.epoch}: dev {shown}")
        first = scores[self.task.metrics[0]]
        first = -math.inf if math.isnan(first) else first
        if self.config.keep == "best" and (self.best is None or first > self.best["score"]):
            self.best = {"epoch": progress.epoch, "step": progress.step, "score": first}
            save_state(self.run.state / "best.safetensors", dict(self.model.state_dict()), self.best)

    # ------------------------------------------------------------------------------------------- state

    def _save(self) -> None:
        facts = {"step": self.state.step, "best": self.best, "seconds": self._seconds(), "data": self.checksums}
        save_state(self.run.state / "state.safetensors", self.state.tensors(), facts)

    def _restore(self) -> None:
        """Take the saved state, if there is one; the other processes take it from the first."""
        if self.team.first:
            self._read_state()
        step = self.team.share(self.state.step)
        tensors = self.state.tensors()
        self.team.spread(tensors.values())
        if not self.team.first:
            self.state.load(tensors, step)

    def _read_state(self) -> None:
        found = load_state(self.run.state / "state.safetensors")
        if found is None:
            self.run.rewind(-1)
            return
        tensors, facts = found
        for name, checksum in self.checksums.items():
            if facts["data"].get(name) != checksum:
                raise DataError(f"the {name} data changed since {self.run.path} was begun; --overwrite starts it anew")
        self.state.load(tensors, facts["step"])
        self.best, self.seconds_before = facts["best"], facts["seconds"]
        self.run.rewind(self.state.step)
        self.watch.note(f"resumed at step {self.state.step} of {self.steps}")

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    # ------------------------------------------------------------------------------------------- the end

    def _kept_weights(self) -> tuple[Weights, int]:
        """Return the weights to keep, every word's row included and the target's scale folded in, and their step."""
        step = self.steps
        if self.best is not None:
            found = load_state(self.run.state / "best.safetensors")
            assert found is not None
            self.model.load_state_dict(found[0])
            step = self.best["step"]
        weights = self.model.weights()
        if self.used is not None:
            rows = weights["embed.word.weight"]
            weights["embed.word.weight"] = self.full["embed.word.weight"] * np.float32(
                decay_so_far(self.config.train, step, self.steps)
            )
            weights["embed.word.weight"][self.used] = rows
        return fold(weights, self.aim.mean, self.aim.deviation), step

    def _finish(self, weights: Weights, step: int) -> dict[str, Any]:
        names = self.task.labels if self.task.kind != "regression" else ()
        labels = Labels(self.task.kind, names, self.task.name, self.task.pair, self.config.data.max_length)
        folder = ModelFolder(self.inputs.parent.config, weights, self.inputs.parent.tokenizer, labels)
        logits = {name: self._logits(self.model, name) for name in self.data if name != "train"}
        scores = {name: self._scores(name, found) for name, found in logits.items()}
        said = None
        if "dev" in logits:
            gold = self.inputs.splits["dev"].labels
            assert gold is not None
            said = finding(self.task, logits["dev"], gold, self._last_loss(), self.aim.prior)
            swapped = order_warning(self.task, logits["dev"], gold)
            if swapped:
                self.watch.warn(swapped)
        if said:
            self.watch.warn(said)
        document = self._document({name: nulls(found) for name, found in scores.items()}, step, said)
        card = model_card(labels, document)
        extra = {"parent_sha256": self.inputs.parent.fingerprint, "scores": document["scores"]}
        write_folder(self.run.model, folder, card=card, extra=extra, overwrite=True)
        for name, found in logits.items():
            file = self.run.predictions / f"{name}.parquet"
            predictions.write(file, predictions_of(self.task, self.inputs.splits[name], found))
        if self.ending is not None:
            document |= self.ending(self.run, document)
        self.run.finish(document)
        return document

    def _document(self, scores: dict[str, Any], step: int, said: str | None) -> dict[str, Any]:
        config, parent = self.config, self.inputs.parent
        return {
            "scores": scores,
            "finding": said,
            "task": self.task.name,
            "metric": self.task.metrics[0],
            "labels": list(self.task.labels),
            "model": config.model,
            "layers": parent.config.num_hidden_layers,
            "width": parent.config.hidden_size,
            "parent_sha256": parent.fingerprint,
            "keep": config.keep,
            "epoch": step / self.batches.per_epoch,
            "steps": self.state.step,
            "seed": config.train.seed,
            "batch_size": config.train.batch_size,
            "learning_rate": config.train.learning_rate,
            "epochs": config.train.epochs,
            "rows": {name: len(examples.texts) for name, examples in self.inputs.splits.items()},
            "data_sha256": self.checksums,
            **self.aim.facts,
            "warnings": self.watch.warnings,
            "device": str(next(self.model.parameters()).device),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "seconds": round(self._seconds(), 3),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _last_loss(self) -> float:
        last = self.config.train.epochs
        found = [r["loss"] for r in self.run.records() if r.get("epoch") == last and "loss" in r]
        return sum(found) / len(found) if found else math.inf

    def _logits(self, model: Bert, split: str) -> np.ndarray:
        return logits_of(model, self.data[split]) * np.float32(self.aim.deviation) + np.float32(self.aim.mean)

    def _scores(self, split: str, logits: np.ndarray) -> dict[str, float]:
        gold = self.inputs.splits[split].labels
        assert gold is not None
        return metrics.score(self.task.metrics, self.task.kind, logits, gold)
