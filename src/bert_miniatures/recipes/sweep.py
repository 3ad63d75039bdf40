"""A sweep: plan -> cells -> forecast -> worker processes -> run folders -> the best cell of each model and task.

This process never imports torch; its workers do (recipes/worker.py).
"""

import importlib.util
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from bert_miniatures import forecast
from bert_miniatures.budget import fit
from bert_miniatures.choice import Choice, choose
from bert_miniatures.config import FinetuneConfig
from bert_miniatures.distill_config import DistillConfig, inputs_key
from bert_miniatures.errors import ConfigError, DiskFull, MissingExtra, UserError, WorkFailed
from bert_miniatures.eta import Eta
from bert_miniatures.keeping import drop_weights, planned_seeds
from bert_miniatures.plan import SweepConfig, expand, group_of, without_seed
from bert_miniatures.pool import Event, Job, Pool, terminated_is_interrupted
from bert_miniatures.recipes.schedule import Everything, Schedule
from bert_miniatures.recipes.sweep_checks import check_data, check_models, workers_that_fit
from bert_miniatures.results import collect
from bert_miniatures.sweep_folder import SweepFolder
from bert_miniatures.watch import Watch, clock

__all__ = ["ENGINES", "Summary", "run_sweep"]

ENGINES = ("local", "ray")
_WORKER = (sys.executable, "-P", "-m", "bert_miniatures.recipes.worker")


class Engine(Protocol):
    """What hands out jobs: `pool.Pool`, or the Ray engine."""

    def submit(self, job: Job, *, first: bool = False) -> None:
        """Add a job to the end of the queue, or to its front."""

    def events(self) -> Iterator[Event]:
        """Yield what happens until no job is left."""


@dataclass
class Summary:
    """What a sweep did.

    Attributes:
        cells: how many the plan has.
        done: how many of them are finished, in this call or before.
        failed: cell -> reason.
        degenerate: cell -> finding; such cells are finished, they are results.
        left_out: what the budget or the search left out, a sentence each.
        choices: the best cell of each model and task.
        warnings: what makes a number doubtful.
        forecast: the table of costs of what was not done yet.
        seconds: forecast for the wall.
    """

    cells: int
    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    degenerate: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    forecast: str = ""
    seconds: float = 0.0


def run_sweep(
    plan: SweepConfig,
    out: Path,
    *,
    workers: int | None = None,
    budget: float | None = None,
    adaptive: bool = False,
    keep_all: bool = False,
    dry_run: bool = False,
    engine: str = "local",
    watch: Watch | None = None,
) -> Summary:
    """Run the cells of a plan that are not done yet, each in its run folder below `out`.

    Args:
        plan: which cells; see `plan.expand`.
        out: the sweep's folder; a second call with the same plan does what is missing.
        workers: processes; None takes a core each, fewer where the memory is short.
        budget: seconds on the wall; cells that do not fit are left out, see `budget.fit`.
        adaptive: leave bad cells behind early, see `recipes.adaptive`.
        keep_all: keep the weights of every cell.
        dry_run: forecast and stop; nothing is written.
        engine: "local", or "ray" for a Ray cluster.

    Raises:
        UserError: the plan, its data or its models are wrong, or the folder is another sweep's; nothing was begun.
        DiskFull: the disk is full; what was done is whole, and the next call goes on.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the cells at work have saved their state.

    Example:
        >>> summary = run_sweep(SweepConfig(models=("tiny",), tasks=("mrpc",)), Path("sweep"))  # doctest: +SKIP
        >>> summary.choices[0].label  # doctest: +SKIP
        '8, 3e-4, 4'
    """
    watch, cells, folder = watch or Watch(), expand(plan), SweepFolder(Path(out))
    if engine not in ENGINES:
        raise ConfigError(f"unknown engine '{engine}'; it is one of {', '.join(ENGINES)}")
    if importlib.util.find_spec("torch") is None:
        raise MissingExtra("sweeping", "train")
    sizes, data = check_models(cells.values()), check_data(cells.values(), watch)
    if engine == "ray" and not dry_run:
        from bert_miniatures.ray_cluster import connect

        count = workers or connect()
    else:
        count = workers_that_fit(cells.values(), sizes, data, watch, workers)
    with terminated_is_interrupted():
        if dry_run:
            return _dry_run(_Sweep(cells, folder, count, watch, adaptive=adaptive), budget)
        with folder.locked() as lock:
            folder.take(plan, cells)
            sweep = _Sweep(cells, folder, count, watch, keep_all=keep_all, adaptive=adaptive)
            with _engine(engine, count, folder, cells, lock) as at_work:
                sweep.prepare(at_work)
                sweep.forecast(at_work)
                sweep.write_costs()
                sweep.cut(budget)
                sweep.run(at_work)
            return sweep.summarise()


def _dry_run(sweep: "_Sweep", budget: float | None) -> Summary:
    with tempfile.TemporaryDirectory(prefix="sweep-") as scratch:
        with Pool(_WORKER, sweep.count, Path(scratch) / "log", _environment(sweep.cells)) as pool:
            sweep.prepare(pool)
            sweep.forecast(pool)
        sweep.cut(budget)
    return sweep.summary


def _engine(
    name: str, count: int, folder: SweepFolder, cells: Mapping[str, FinetuneConfig], lock: int
) -> AbstractContextManager[Engine]:
    if name == "ray":
        from bert_miniatures.ray_cluster import connect
        from bert_miniatures.recipes.ray_engine import cells_on_cluster

        connect()
        return cells_on_cluster(count)
    return Pool(_WORKER, count, folder.log, _environment(cells), (lock,))


def _environment(cells: Mapping[str, FinetuneConfig]) -> dict[str, str]:
    threads = str(max(config.train.threads or 1 for config in cells.values()))
    return {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}


class _Sweep:
    """One call: what its steps share."""

    def __init__(
        self, cells: Mapping[str, FinetuneConfig], folder: SweepFolder, count: int, watch: Watch, *,
        keep_all: bool = False, adaptive: bool = False,
    ) -> None:  # fmt: skip
        self.cells, self.folder, self.count, self.watch = cells, folder, count, watch
        self.keep_all, self.adaptive = keep_all, adaptive
        self.summary = Summary(len(cells))
        self.todo = [name for name in cells if folder.status(name) != "done"]
        self.costs = forecast.read_costs(folder.forecast, count)
        self.seeds = planned_seeds(cells)
        if len(self.todo) < len(cells):
            watch.note(f"{len(cells) - len(self.todo)} of {len(cells)} cells are done already")

    # ------------------------------------------------------------------------------------------- before the start

    def prepare(self, engine: Engine) -> None:
        """Let teachers answer what they have not answered before; the cells only read it."""
        jobs: dict[str, str] = {}
        for name in self.todo:
            if isinstance(self.cells[name], DistillConfig):
                jobs.setdefault(inputs_key(self.cells[name]), name)
        for name in jobs.values():
            engine.submit(Job(f"prepare {name}", {"config": _plain(self.cells[name]), "prepare": True}))
        for event in engine.events():
            answer = event.answer or {}
            if event.note:
                self.watch.warn(event.note)
            if event.progress:
                self.watch.progress(*event.progress, "texts answered by the teacher")
            if "failed" in answer:
                name = group_of(event.job.name.removeprefix("prepare "))
                kind = UserError if answer.get("exit") == UserError.exit_code else WorkFailed
                raise kind(f"{name}: {answer['failed']}")

    def forecast(self, engine: Engine) -> None:
        """Time a few updates of each distinct cost that is not known yet, and say what the sweep will cost."""
        jobs: dict[str, str] = {}
        for name in self.todo:
            key = forecast.cost_key(self.cells[name])
            if key not in self.costs:
                jobs.setdefault(key, name)
        for name in jobs.values():
            engine.submit(Job(f"probe {name}", {"config": _plain(self.cells[name]), "probe": True}))
        for event in engine.events():
            self._probed(event, len(jobs))
        self._order()
        todo = {name: self.cells[name] for name in self.todo}
        if todo:
            self.summary.forecast = forecast.table(todo, self.costs, self.count)
            self.summary.seconds = forecast.total(todo, self.costs, self.count)
            self.watch.note(self.summary.forecast)
            if self.adaptive:
                self.watch.note("--adaptive: about a third of it for the first seed, and the best cells' other seeds")

    def _probed(self, event: Event, jobs: int) -> None:
        name, answer = event.job.name.removeprefix("probe "), event.answer or {}
        if event.note:
            self.watch.warn(event.note)
        if "cost" in answer:
            self.costs[forecast.cost_key(self.cells[name])] = forecast.Cost(**answer["cost"])
            self.watch.progress(0, len(self.cells), f"timing {jobs} kind{'s' if jobs > 1 else ''} of cell")
        elif answer.get("exit") == UserError.exit_code:
            raise UserError(f"{group_of(name)}: {answer['failed']}")
        elif "failed" in answer:
            self.watch.warn(f"{name} could not be timed: {answer['failed']}")

    def write_costs(self) -> None:
        """Keep the costs for the next call."""
        forecast.write_costs(self.folder.forecast, self.count, self.costs)

    def _order(self) -> None:
        """Order the cells: tasks and models as the user has them, within them the longest first, seeds together."""
        seconds = forecast.known_costs(self.cells, self.costs)
        groups = list(dict.fromkeys(group_of(name) for name in self.cells))

        def place(name: str) -> tuple[int, float, str, int]:
            return groups.index(group_of(name)), -seconds[name], without_seed(name), self.cells[name].train.seed

        self.todo.sort(key=place)

    def cut(self, budget: float | None) -> None:
        """Leave out what does not fit into the budget, and say so."""
        if budget is None or not self.todo:
            return
        todo = {name: self.cells[name] for name in self.todo}
        share = 1 / 3 if self.adaptive else 1.0  # what a search spends at most, see recipes.adaptive
        seconds = {name: share * cost for name, cost in forecast.known_costs(todo, self.costs).items()}
        first = min(config.train.seed for config in self.cells.values())
        kept, left_out = fit(todo, seconds, budget, self.count, first_seed=first)
        if not kept:
            cheapest = clock(min(seconds.values()))
            raise ConfigError(f"no cell fits into {clock(budget)}; the cheapest one takes about {cheapest}")
        self.todo, self.summary.left_out = kept, left_out
        self.summary.seconds = forecast.total({name: self.cells[name] for name in kept}, self.costs, self.count)
        gone = set(todo) - set(kept)
        self.seeds = planned_seeds({name: None for name in self.cells if name not in gone})
        if left_out:
            self.watch.note(f"to fit into {clock(budget)}, {len(gone)} of {len(todo)} cells are left out:")
            for text in left_out:
                self.watch.note(f"  {text}")

    # ------------------------------------------------------------------------------------------- the work

    def run(self, engine: Engine) -> None:
        """Run the cells."""
        for group in self.seeds:
            self._drop(group)
        self.seconds = forecast.known_costs({name: self.cells[name] for name in self.todo}, self.costs)
        self.eta = Eta(self.count)
        self.schedule = self._schedule()
        self._submit(self.schedule.start(), engine)
        try:
            for event in engine.events():
                self._heard(event, engine)
        except KeyboardInterrupt:
            self.watch.note("stopping: the cells at work save their state; the same command goes on from there")
            raise

    def _schedule(self) -> Schedule:
        if not self.adaptive:
            return Everything(self.todo)
        from bert_miniatures.recipes.adaptive import Searches

        return Searches(self.cells, self.todo, self.costs, self.folder, keep_all=self.keep_all)

    def _submit(self, work: Sequence[tuple[str, int | None]], engine: Engine, *, first: bool = False) -> None:
        for name, until in reversed(work) if first else work:
            out = str(self.folder.cell(name).path)
            engine.submit(Job(name, {"config": _plain(self.cells[name]), "out": out, "until": until}), first=first)
            begun = self.folder.status(name) == "begun"
            self.eta.expect(name, self.seconds[name], self.schedule.share(name), begun=begun)
        self.eta.later = self.schedule.later()

    def _heard(self, event: Event, engine: Engine) -> None:
        name, answer = event.job.name, event.answer or {}
        if event.note:
            self.watch.warn(event.note)
        if event.progress:
            self.eta.heard(name, *event.progress)
        if "stopped" in answer:  # someone asked that worker alone to stop
            engine.submit(event.job)
        elif answer:
            self._answered(name, answer)
            self._submit(self.schedule.heard(name, answer), engine, first=True)
        self._show()

    def _answered(self, name: str, answer: Mapping[str, Any]) -> None:
        self.eta.ended(name)
        if "done" in answer:
            self.folder.forgive(name)
            self.todo.remove(name)
            self._drop(group_of(name))
            self.watch.note(_line(name, answer["done"]))
        elif "failed" in answer:
            self._failed(name, answer)

    def _failed(self, name: str, answer: Mapping[str, Any]) -> None:
        reason = str(answer["failed"])
        if answer.get("code") == DiskFull.code:
            done = f"{len(self.cells) - len(self.todo)} of {len(self.cells)} cells are done and whole"
            raise DiskFull(f"{reason}; {done}; make room and give the same command again")
        self.folder.fail(name, reason, int(answer["exit"]))
        self.summary.failed[name] = reason
        self.watch.warn(f"{name} failed: {reason}")

    def _drop(self, group: str) -> None:
        if not self.keep_all:
            drop_weights(self.folder.path, group, self.seeds.get(group, {}))

    def _show(self) -> None:
        gone = len(self.schedule.left_behind())
        done, failed = len(self.cells) - len(self.todo), len(self.summary.failed)
        text = f"cells at {self.eta.rate():.0f} updates/s"
        text += (f", {gone} left behind" if gone else "") + (f", {failed} failed" if failed else "")
        self.watch.progress(done + gone, len(self.cells), text, left=self.eta.left())

    # ------------------------------------------------------------------------------------------- the end

    def summarise(self) -> Summary:
        """Read what is on the disk now."""
        summary = self.summary
        summary.done = sum(self.folder.status(name) == "done" for name in self.cells)
        for name in self.cells:
            finding = self.folder.result(name).get("finding") if self.folder.status(name) == "done" else None
            if finding:
                summary.degenerate[name] = finding
        gone = self.schedule.left_behind()
        for group in dict.fromkeys(map(group_of, gone)):
            count = sum(group_of(name) == group for name in gone)
            summary.left_out.append(f"{group}: {count} cells left behind early; their scores are in adaptive.json")
        places = [self.folder.path / group for group in planned_seeds(self.cells)]
        runs = collect([place for place in places if place.is_dir()], Watch())
        summary.choices = choose(runs)
        summary.warnings = [text for choice in summary.choices for text in choice.warnings]
        for choice in summary.choices:
            path = choice.run.path
            if choice.mean is not None and not (path / "model").is_dir():
                summary.warnings.append(
                    f"{path}: the best run now, but its weights were removed when another one was better; 'miniatures "
                    f"{_command(choice)} --config {path}/run.toml --out {path} --overwrite' brings them back"
                )
        return summary


def _command(choice: Choice) -> str:
    return "distill" if any(setting.startswith("teacher = ") for setting in choice.run.settings) else "finetune"


def _plain(config: FinetuneConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude_none=True)


def _line(name: str, result: Mapping[str, Any]) -> str:
    score = result["scores"].get("dev", {}).get(result["metric"])
    shown = "no score" if score is None else f"{result['metric']} {score:.4f}"
    finding = f"; {result['finding']}" if result["finding"] else ""
    return f"{name}: {shown} ({clock(result['seconds'])}){finding}"
