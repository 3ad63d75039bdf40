"""The table of checks, and the examination that goes through it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from bert_miniatures.doctor import data, folder, machine, packages, places, plan
from bert_miniatures.doctor.subject import Finding, Found, Subject
from bert_miniatures.errors import MiniaturesError

__all__ = ["AREAS", "CHECKS", "Check", "Report", "examine", "repair"]


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        name: what a program calls it.
        area: what it looks at.
        function: yields findings.
        gate: where it finds something, the rest of its area is not looked at.
    """

    name: str
    area: str
    function: Callable[[Subject], Found]
    gate: bool = False


CHECKS: tuple[Check, ...] = (
    Check("cgroup-cores", "machine", machine.quota),
    Check("memory", "machine", machine.little_memory),
    Check("instructions", "machine", machine.no_avx2),
    Check("gpu", "machine", machine.gpu_unused),
    Check("threads-value", "threads", machine.thread_numbers),
    Check("threads", "threads", machine.threads),
    Check("pinned", "threads", machine.pinned),
    Check("requirements", "packages", packages.requirements),
    Check("extras", "packages", packages.extras),
    Check("clashes", "packages", packages.clashes),
    Check("cache", "places", places.writable),
    Check("disk", "places", places.space),
    Check("offline-value", "places", places.offline_values),
    Check("address", "places", places.addresses),
    Check("glue-dir", "places", places.glue_folder),
    Check("offline", "places", places.not_here),
    Check("folder", "model", folder.here, gate=True),
    Check("model-type", "model", folder.model_type),
    Check("label-names", "model", folder.label_names),
    Check("label-order", "model", folder.labels_agree),
    Check("max-length", "model", folder.longest_text),
    Check("lfs-pointer", "model", folder.pointer, gate=True),
    Check("truncated", "model", folder.truncated, gate=True),
    Check("vocabulary", "model", folder.vocabulary, gate=True),
    Check("case", "model", folder.case),
    Check("pickle", "model", folder.pickled),
    Check("readable", "model", folder.readable, gate=True),
    Check("not-finite", "model", folder.not_finite),
    Check("deployed", "model", folder.runs_here),
    Check("data", "data", data.readable, gate=True),
    Check("balance", "data", data.balance),
    Check("duplicates", "data", data.duplicates),
    Check("conflicts", "data", data.conflicts),
    Check("leakage", "data", data.leakage),
    Check("unseen", "data", data.unseen),
    Check("dev-size", "data", data.dev_size),
    Check("empty", "data", data.empty),
    Check("encoding", "data", data.garbled),
    Check("column", "data", data.not_texts),
    Check("lengths", "data", data.lengths),
    Check("unknown-pieces", "data", data.unknown),
    Check("batch-size", "run", plan.batch_size),
    Check("learning-rate", "run", plan.learning_rate),
    Check("epochs", "run", plan.epochs),
    Check("precision", "run", plan.bf16),
    Check("positions", "run", plan.positions),
    Check("run-memory", "run", plan.memory),
    Check("updates", "run", plan.updates),
)  # the probe is last, and added by `examine`

# area -> what it has to say that is no finding
AREAS: dict[str, Callable[[Subject], Iterator[str]] | None] = {
    "machine": machine.facts,
    "threads": None,
    "packages": packages.facts,
    "places": places.facts,
    "model": folder.facts,
    "data": data.facts,
    "run": plan.facts,
}


@dataclass
class Report:
    """What was found.

    Attributes:
        facts: area -> sentences.
        findings: (check, what it found), in the order of the table.
        skipped: check -> why it could not look.
    """

    facts: dict[str, list[str]] = field(default_factory=dict)
    findings: list[tuple[Check, Finding]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def examine(subject: Subject) -> Report:
    """Look at everything that the subject has.

    Raises:
        UnknownName: the model is neither one of the 24 nor a folder, or there is no such task.
    """
    report = Report()
    if subject.model is not None:
        _ = subject.published
    if subject.data.task is not None:
        _ = subject.task
    said: list[str] = []
    closed: set[str] = set()
    last = Check("probe", "run", partial(plan.probed, said=said))
    for check in (*CHECKS, last):
        if not _applies(check, subject):
            continue
        if check.area in closed or (check is last and closed):
            report.skipped[check.name] = "something before it must be put right first"
            continue
        try:
            found = list(check.function(subject))
        except MiniaturesError as error:
            report.skipped[check.name] = str(error)
            continue
        report.findings += [(check, one) for one in found]
        if check.gate and found:
            closed.add(check.area)
    for area, tell in AREAS.items():
        report.facts[area] = _told(tell, subject) if tell else []
    report.facts["run"] += said
    return report


def _applies(check: Check, subject: Subject) -> bool:
    asked = {"model": subject.folder is not None, "data": subject.has_data and subject.is_here}
    asked["run"] = subject.planned
    return asked.get(check.area, True)


def _told(tell: Callable[[Subject], Iterator[str]], subject: Subject) -> list[str]:
    found = []
    try:
        for text in tell(subject):
            found.append(text)
    except MiniaturesError:
        pass  # a check of the same area says it
    return found


def repair(report: Report) -> dict[int, str]:
    """Make the repairs that cannot lose anything.

    Returns:
        Position in `report.findings` -> what was done.
    """
    return {i: one.repair() for i, (_, one) in enumerate(report.findings) if one.repair is not None}
