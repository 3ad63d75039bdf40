"""Pre-training: text files to a model folder with masked-LM and next-sentence heads.

Source: Devlin et al. 2019, section 3.1 and appendix A.2; google-research/bert `run_pretraining.py`.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from bert_miniatures.budget import parse_duration
from bert_miniatures.card import pretraining_card, versions
from bert_miniatures.checkpoint import ModelFolder, write_folder
from bert_miniatures.config import PretrainConfig, write_toml
from bert_miniatures.distributed import Team
from bert_miniatures.errors import ConfigError, Diverged, ProcessLost
from bert_miniatures.evaluation import evaluate_masked
from bert_miniatures.files import RunFolder
from bert_miniatures.horizon import Horizon, Pace
from bert_miniatures.model import build
from bert_miniatures.recipes.course import course_of, held_out_of
from bert_miniatures.recipes.lessons import Lessons, lessons_of
from bert_miniatures.recipes.method import nulls, set_threads, trained_sizes
from bert_miniatures.recipes.pace import Speed, gemm_peak, seconds_of_updates
from bert_miniatures.recipes.running import Window, begun, updating
from bert_miniatures.recipes.text_loading import TextInputs, groups_of_run, load_text_inputs, untrained
from bert_miniatures.state import Stop, load_state, save_state, stop_requests
from bert_miniatures.train import Progress, TrainState
from bert_miniatures.watch import Watch

__all__ = ["pretrain", "run_pretrain"]

_FREE = frozenset({"data.corpus", "teacher.model", "vocab"})  # checksums decide whether these are the same
_STATE = "state.safetensors"
_TRIAL = 0.01  # of the budget, to measure the updates of each length
_CHECKS = 20  # how often a budget is compared with the clock, at least

_Saved = tuple[dict[str, torch.Tensor], dict[str, Any]]


def pretrain(
    model: str | Path,
    corpus: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    vocab: str | Path | None = None,
    data: Mapping[str, Any] | None = None,
    train: Mapping[str, Any] | None = None,
    resume: bool = False,
    overwrite: bool = False,
    watch: Watch | None = None,
) -> dict[str, Any]:
    """Pre-train a model on text and return what result.json holds.

    Args:
        model: a size of the 24 with `vocab`; without it any MODEL of the command line, which is trained further.
        corpus: text files (.txt, .jsonl, each also as .gz .xz .zst, or .parquet).
        out: the run folder.
        vocab: the folder with the vocabulary of a new model, whose weights are drawn.
        data: further settings of `CorpusConfig`, as in {"max_length": 64, "masking": "word"}.
        train: settings of `PretrainTrainConfig`, as in {"budget": "2h"} or {"steps": 10_000}.
        resume: continue the run in `out`.
        overwrite: replace the run in `out`.

    Raises:
        UserError: the input is wrong; the sentence says what and where.
        Diverged: the loss became NaN; result.json records it.

    Example:
        >>> made = pretrain("2/128", ["wiki.txt.xz"], "runs/mine", vocab="vocab",
        ...                 train={"budget": "2h"})  # doctest: +SKIP
        >>> made["scores"]["held_out"]["accuracy"]  # doctest: +SKIP
        0.4121
    """
    files = [corpus] if isinstance(corpus, str | Path) else list(corpus)
    document = {"model": str(model), "vocab": vocab, "data": {"corpus": files, **(data or {})}, "train": train or {}}
    config = PretrainConfig.of(document)
    return run_pretrain(config, Path(out), resume=resume, overwrite=overwrite, watch=watch)


def run_pretrain(
    config: PretrainConfig, out: Path, *, resume: bool = False, overwrite: bool = False, watch: Watch | None = None
) -> dict[str, Any]:
    """Pre-train as `config` says and return what result.json holds; see `pretrain`.

    Where torch's process group is up, its processes share every batch, the first one alone writes, evaluates and
    speaks, and all return the same.
    """
    started, team, run = time.monotonic(), Team(), RunFolder(out)
    budget = parse_duration(config.train.budget) if config.train.budget else None
    watch = (watch or Watch()) if team.first else Watch()
    finished, saved = None, None
    if team.first:
        finished = begun(config, run, watch, resume=resume, overwrite=overwrite, free=_FREE)
        saved = load_state(run.state / _STATE) if finished is None else None
    finished = team.share(finished)
    if finished is not None:
        return dict(finished)
    known = saved[1]["data"] if saved else None
    inputs = team.first_then_others(lambda: load_text_inputs(config, watch, out, known))
    team.check_same({**inputs.checksums, "settings": config.train.model_dump(mode="json")})
    lessons = team.first_then_others(lambda: lessons_of(config, inputs, watch))
    inputs = replace(inputs, teacher=None)  # its weights are not needed any more
    work = _Pretraining(config, run, inputs, lessons, watch, team, budget, started)
    if team.first:
        write_toml(run.config, config)
    return work.result(saved)


class _Pretraining:
    """One run: what the steps below share."""

    def __init__(
        self,
        config: PretrainConfig,
        run: RunFolder,
        inputs: TextInputs,
        lessons: Lessons,
        watch: Watch,
        team: Team,
        budget: float | None,
        started: float,
    ) -> None:
        self.config, self.run, self.inputs, self.watch, self.team = config, run, inputs, watch, team
        self.budget, self.started, self.seconds_before, self.tokens = budget, started, 0.0, 0
        self.pace, self._state_file, self.lessons = Pace(0.0, 0.0), run.state / _STATE, lessons
        set_threads(config.train)
        parent = inputs.parent
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.course = lessons.course(course_of(config, parent, inputs.corpus, inputs.training), config, inputs)
        for batches in self.course.sources:
            if batches.batch_size < team.world:
                raise ConfigError(f"{batches.batch_size} rows for {team.world} processes; each needs one (batch_size)")
        self.held_out = held_out_of(config, parent, inputs.corpus, inputs.held_out) if team.first else []
        groups, seed = groups_of_run(config), config.train.seed
        sizes = trained_sizes(parent.config, config.train)
        model = build(sizes, lessons.weights, groups=groups, helpers=lessons.helpers, seed=seed)
        model.exact_speedups = config.train.exact_speedups
        self.model = model.to(self.device)
        self.state, self.objective = TrainState(self.model, config.train), lessons.objective()
        self.horizon = Horizon(self._events(), config.data.long_share, config.train.eval_every)
        self.mixed = config.train.precision == "bf16" or (
            config.train.precision == "auto" and self.device.type != "cpu"
        )
        self.peak = gemm_peak(self.device, mixed=self.mixed) * team.world if team.first else 0.0
        self.whole, self.recent, self.since_check = Speed(), Speed(), Speed()

    def _events(self) -> tuple[tuple[int, int], ...]:
        """Return how long the run is; nothing where a budget decides it later."""
        train = self.config.train
        if train.budget:
            return ()
        return train.schedule or ((0, train.steps or self.course.updates(train.epochs or 1)),)

    # ------------------------------------------------------------------------------------------- the run

    def result(self, saved: _Saved | None) -> dict[str, Any]:
        if saved is not None:
            self._go_on(saved[1])
        elif self.team.first:
            self.run.rewind(-1)
        self._restore(saved)
        if self.team.world > 1:
            self.watch.note(f"{self.team.world} processes share each batch of {self.config.train.batch_size}")
        with stop_requests() as stop:
            if not self.horizon.events:
                self._decide(stop)
            self._train_and_save(stop)
        document = self._finish() if self.team.first else None
        return dict(self.team.share(document))

    def _train_and_save(self, stop: Stop) -> None:
        """Train; where another process is lost, save what all had."""
        try:
            with self.team.losses():
                self._train(stop)
        except ProcessLost:
            if self.team.first and self.team.world > 1:  # no update is half done: its gradients did not come together
                self._save()
            raise

    def _train(self, stop: Stop) -> None:
        """Train to the end; each time that another number of updates becomes known, with another schedule."""
        self.saved_at = self.began = self.clock = time.monotonic()
        first, window = self.state.step, Window()
        while self.state.step < self.horizon.steps:
            begin, self.course.long_begins = self.state.step, self.horizon.long_begins
            steps = self.horizon.known_at(begin)
            with updating(self.state, self.objective, self.course, self.config.train, steps) as updates:
                for progress in updates:
                    window.add(progress, self.course.kind(progress.step - 1))
                    self._count()
                    due = self.horizon.is_due(progress.step)
                    if due or progress.step % self.config.train.log_every == 0:
                        window = self._mark(progress, window, first, due=due)
                    if self.team.any(stop.asked):
                        self._stopped(progress, window, first)
                    if self.horizon.cut(begin) <= progress.step:
                        break

    def _count(self) -> None:
        """Count the tokens of the update."""
        if self.team.first:
            course, share = self.course, self.config.data.mask_share
            tokens, work = course.cost(course.latest, self.model.config, share)
            self.tokens += tokens
            self.recent.add(tokens, work, 1, 0.0)

    def _stopped(self, progress: Progress, window: Window, first: int) -> None:
        self._mark(progress, window, first, stopping=True)
        self.watch.note(f"stopped at step {progress.step} of {progress.steps}; --resume continues from here")
        self.team.any(False)  # the others wait until it is saved
        raise KeyboardInterrupt

    def _mark(
        self, progress: Progress, window: Window, first: int, *, due: bool = False, stopping: bool = False
    ) -> Window:
        """Record, evaluate, correct and save in the first process; the others wait for it at the next meeting."""
        if self.team.first:
            if window.count:
                self._record(progress, window, first)
            if due:
                self._evaluate(progress.step)
            ended = progress.step == self.horizon.steps
            if stopping or ended or time.monotonic() - self.saved_at >= self._save_every():
                if self.budget is not None and not (stopping or ended):
                    self._correct()
                self._save()
                self.saved_at = time.monotonic()
            self.clock = time.monotonic()
        if self.budget is not None and not stopping:
            self._share_horizon()
        return Window()

    def _save_every(self) -> float:
        often = self.config.train.save_every
        return often if self.budget is None else min(often, self.budget / _CHECKS)

    def _record(self, progress: Progress, window: Window, first: int) -> None:
        (loss, norm), step, losses = window.read(), progress.step, window.losses()
        self.recent.seconds += time.monotonic() - self.clock
        tokens, work = self.recent.per_second()
        for total in (self.whole, self.since_check):
            total.add(self.recent.tokens, self.recent.work, self.recent.updates, self.recent.seconds)
        self.recent = Speed()
        phase, epoch, _ = self.course.at(step - 1)
        self.run.log(
            step=step,
            epoch=epoch + 1,
            max_length=self.course.phases[phase].rules.max_length,
            loss=loss,
            **({"losses": losses} if losses else {}),
            gradient_norm=norm,
            learning_rate=progress.learning_rate,
            tokens=self.tokens,
            tokens_per_second=round(tokens, 1),
            share_of_gemm_peak=round(work / self.peak, 4),
            seconds=round(self._seconds(), 3),
        )
        left = (time.monotonic() - self.began) / (step - first) * (self.horizon.steps - step)
        shown = ", ".join(f"{kind} {value:.3f}" for kind, value in losses.items()) or f"{loss:.3f}"
        said = f"loss {shown}, {tokens:,.0f} tokens/s, {work / self.peak:.0%} of the GEMM peak"
        self.watch.progress(step, self.horizon.steps, said, left)
        if not math.isfinite(loss) or not math.isfinite(norm):
            why = f"the loss became {loss} at step {step} of {self.horizon.steps}"
            self.run.finish(self._document({}, f"{why}; a smaller learning rate helps"))
            raise Diverged(f"{why}; a smaller --learning-rate helps (this run: {self.config.train.learning_rate:g})")

    def _evaluate(self, step: int) -> dict[str, float | None]:
        """Validate on the held-out documents, at the length that is being read."""
        phase, epoch, _ = self.course.at(step - 1)
        if not self.held_out[phase]:
            return {}
        scores = nulls(evaluate_masked(self.model, self.held_out[phase]))
        length = self.course.phases[phase].rules.max_length
        self.run.log(step=step, epoch=epoch + 1, split="held_out", max_length=length, tokens=self.tokens, scores=scores)
        self.watch.note(f"step {step}: held out {_shown(scores)}")
        return scores

    # ------------------------------------------------------------------------------------------- a budget

    def _decide(self, stop: Stop) -> None:
        """Measure some updates, undo them, and decide how many fit into the budget."""
        assert self.budget is not None
        if self.team.first:
            self._save()
        seconds = seconds_of_updates(
            self.state,
            self.objective,
            self.course,
            self.config.train,
            self.team,
            limit=_TRIAL * self.budget,
            asked=lambda: stop.asked,
        )
        self._restore(load_state(self._state_file) if self.team.first else None)
        if self.team.first:
            began = time.monotonic()
            if self.held_out[-1]:
                evaluate_masked(self.model, self.held_out[-1])
            self.pace = Pace(seconds[0], seconds[-1], time.monotonic() - began)
            left = self.budget - self._seconds()
            if left <= 0:
                self.watch.warn(f"the budget of {self.config.train.budget} was used up before the first update")
            self.horizon = self.horizon.begun(left, self.pace)
            self._save()
            self.watch.note(
                f"an update takes {self.pace.short:.3g} s: {self.horizon.steps} fit into the {left:.0f} s that are "
                f"left of {self.config.train.budget}"
            )
        self._share_horizon()

    def _correct(self) -> None:
        """Compare the budget with the clock; where they part, decide the number of updates anew."""
        assert self.budget is not None
        done, seconds = self.since_check.updates, self.since_check.seconds
        if not done:
            return
        step = self.state.step
        ratio = seconds / done / (self.pace.long if step > self.horizon.long_begins else self.pace.short)
        ratio = (1 + ratio) / 2  # a moment is not the machine
        self.pace = Pace(self.pace.short * ratio, self.pace.long * ratio, self.pace.evaluation)
        self.since_check, before = Speed(), self.horizon.steps
        self.horizon = self.horizon.corrected(step, self.budget - self._seconds(), self.pace)
        if self.horizon.steps != before:
            self.watch.note(f"step {step}: {self.horizon.steps} updates fit into the budget, not {before}")

    def _share_horizon(self) -> None:
        events = self.team.share(self.horizon.events)
        self.horizon = replace(self.horizon, events=tuple((at, end) for at, end in events))

    # ------------------------------------------------------------------------------------------- state

    def _save(self) -> None:
        facts = {"step": self.state.step, "events": self.horizon.events, "pace": self.pace, "tokens": self.tokens}
        facts |= {"seconds": self._seconds(), "data": dict(self.inputs.checksums)}
        save_state(self._state_file, self.state.tensors(), facts)

    def _restore(self, saved: _Saved | None) -> None:
        """Take a saved state; the other processes take it from the first."""
        if self.team.first and saved is not None:
            self.state.load(saved[0], saved[1]["step"])
        step = self.team.share(self.state.step)
        tensors = self.state.tensors()
        self.team.spread(tensors.values())
        if not self.team.first:
            self.state.load(tensors, step)
        self._share_horizon()

    def _go_on(self, facts: dict[str, Any]) -> None:
        """Take what else is known of the run that is resumed."""
        self.horizon = replace(self.horizon, events=tuple((at, end) for at, end in facts["events"]))
        self.pace, self.tokens, self.seconds_before = Pace(*facts["pace"]), facts["tokens"], facts["seconds"]
        self.run.rewind(facts["step"])
        if facts["step"]:
            self.watch.note(f"resumed at step {facts['step']} of {self.horizon.steps}")

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    # ------------------------------------------------------------------------------------------- the end

    def _finish(self) -> dict[str, Any]:
        parent, step = self.inputs.parent, self.state.step
        records = [r for r in self.run.records() if r.get("split") == "held_out" and r["step"] == step]
        scores = records[-1]["scores"] if records else self._evaluate(step)
        document = self._document({"held_out": scores} if scores else {}, None)
        weights = self.model.weights() | untrained(self.config, parent)
        folder = ModelFolder(parent.config, weights, parent.tokenizer)
        extra = {"parent_sha256": parent.fingerprint} if parent.fingerprint else {}
        extra |= {"corpus_sha256": self.inputs.corpus.checksum, "scores": document["scores"]}
        write_folder(self.run.model, folder, card=pretraining_card(document), extra=extra, overwrite=True)
        self.run.finish(document)
        return document

    def _document(self, scores: dict[str, Any], said: str | None) -> dict[str, Any]:
        config, (tokens, work) = self.config, self.whole.per_second()
        return {
            "scores": scores,
            "finding": said,
            **self.inputs.facts(config),
            **self.lessons.facts(),
            "steps": self.state.step,
            "schedule": [list(event) for event in self.horizon.events],
            "passes": round(self.course.passes(self.state.step), 4),
            "tokens": self.tokens,
            "speed": {
                "tokens_per_second": round(tokens, 1),
                "gemm_peak_gflops": round(self.peak / 1e9, 1),
                "share_of_gemm_peak": round(work / self.peak, 4),
            },
            "seed": config.train.seed,
            "batch_size": config.train.batch_size,
            "learning_rate": config.train.learning_rate,
            "warnings": self.watch.warnings,
            "device": str(self.device),
            "threads": torch.get_num_threads(),
            "versions": versions(),
            "seconds": round(self._seconds(), 3),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }


def _shown(scores: Mapping[str, float | None]) -> str:
    return ", ".join(f"{name} {'undefined' if value is None else f'{value:.4f}'}" for name, value in scores.items())
