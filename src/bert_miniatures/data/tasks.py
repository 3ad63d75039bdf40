"""The GLUE tasks as rows of one table. Whatever differs between tasks is a field, so no code asks for a task's name.

Source: Wang et al. 2019, "GLUE: A Multi-Task Benchmark and Analysis Platform for Natural Language Understanding", arXiv
1804.07461; file layouts and row counts of the official archives; submission format of the GLUE server. The share of the
majority class of WNLI test, 65.1, is in Devlin et al. 2019, arXiv 1810.04805, appendix B.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from bert_miniatures.errors import UnknownName

__all__ = ["KINDS", "OWN_METRICS", "TASKS", "Columns", "SplitFile", "Submission", "Task", "fold", "task_named"]

KINDS = ("classification", "regression", "multilabel")

# What own data is scored with; the first one selects.
OWN_METRICS: dict[str, tuple[str, ...]] = {
    "classification": ("accuracy", "macro_f1"),
    "regression": ("pearson", "spearman"),
    "multilabel": ("micro_f1", "macro_f1"),
}


@dataclass(frozen=True)
class SplitFile:
    """One official file.

    Attributes:
        file: its name inside the task's folder.
        columns: how many tab-separated columns each row has.
        text: positions of the text columns, counted from 0.
        label: position of the label column; None where the labels are hidden.
        index: position of the row's own number; None where rows are only counted.
        rows: official number of rows, without the header.
        header: whether the first line names the columns.
        skips_short: the official file has rows cut short by a line break; they are left out and counted.
    """

    file: str
    columns: int
    text: tuple[int, ...]
    label: int | None
    index: int | None
    rows: int
    header: bool = True
    skips_short: bool = False


@dataclass(frozen=True)
class Submission:
    """One file of a submission to the GLUE server: tab-separated, header `index<TAB>prediction`.

    Attributes:
        file: its name inside the zip.
        split: the split whose predictions it holds.
        answers: label name -> what the server wants; empty for scores.
        decimals: digits after the point of a score, which is clipped to the task's `score_range` first.
    """

    file: str
    split: str
    answers: Mapping[str, str] = field(default_factory=dict)
    decimals: int = 3


@dataclass(frozen=True)
class Columns:
    """The columns of an own file.

    Attributes:
        text: name of the text column.
        pair: name of the second text's column; None for single texts.
        label: name of the label column; None where there is none.
    """

    text: str
    pair: str | None = None
    label: str | None = None


@dataclass(frozen=True)
class Task:
    """What is learnt and how it is scored: a GLUE task, or the user's own (`data.examples.own_task`).

    Attributes:
        name: short name, as in `sst2`; "own" for the user's own data.
        title: GLUE's spelling, as in `SST-2`.
        kind: "classification", "regression" or "multilabel".
        labels: label names in the order of the model's outputs; empty for regression.
        metrics: names known to `metrics.score`; the first one selects the best epoch.
        pair: whether a row has two texts.
        folder: name of the folder with the official files.
        splits: split name -> official file.
        main_split: what "dev" and "test" mean where there are two of them.
        raw_labels: what the official files say -> label name.
        score_range: lowest and highest score of a regression task.
        submission: the files that this task adds to a submission.
        predicted_by: name of the task whose model answers this one, where it has no training data.
        notes: what surprises people about this task, a sentence each; for own data, the guesses made about the file.
        degenerate_note: what to know before hunting for a bug when a model only learns one class.
        columns: columns of an own file.
        aliases: other names of the task or of its folder.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    pair: bool
    title: str = ""
    folder: str = ""
    splits: Mapping[str, SplitFile] = field(default_factory=dict)
    main_split: Mapping[str, str] = field(default_factory=dict)
    raw_labels: Mapping[str, str] = field(default_factory=dict)
    score_range: tuple[float, float] | None = None
    submission: tuple[Submission, ...] = ()
    predicted_by: str = ""
    notes: tuple[str, ...] = ()
    degenerate_note: str = ""
    columns: Columns | None = None
    aliases: tuple[str, ...] = ()

    def split_named(self, name: str) -> str:
        """Return the split's own name: "dev" of MNLI is "dev_matched".

        Raises:
            UnknownName: the task has no such split.

        Example:
            >>> TASKS["mnli"].split_named("dev")
            'dev_matched'
        """
        found = self.main_split.get(name, name)
        if found not in self.splits:
            raise UnknownName(f"split of {self.title or self.name}", name, self.splits)
        return found


def _three(
    labelled: tuple[int, tuple[int, ...], int],
    test: tuple[int, tuple[int, ...]],
    rows: tuple[int, int, int],
    *,
    header: bool = True,
    index: int | None = None,
    skips_short: bool = False,
) -> dict[str, SplitFile]:
    """Describe train, dev and test: (columns, text, label) of the first two, (columns, text) of the third."""
    columns, text, label = labelled
    named = zip(("train", "dev"), rows[:2], strict=True)
    splits = {
        name: SplitFile(f"{name}.tsv", columns, text, label, index, count, header, skips_short) for name, count in named
    }
    return splits | {"test": SplitFile("test.tsv", test[0], test[1], None, 0, rows[2])}


_ZERO_ONE = ("0", "1")
_NLI = ("entailment", "neutral", "contradiction")
_RTE = ("entailment", "not_entailment")
_COLA = ("unacceptable", "acceptable")
_SST2 = ("negative", "positive")
_MRPC = ("not_equivalent", "equivalent")
_QQP = ("not_duplicate", "duplicate")


def _raw(labels: tuple[str, ...], raw: tuple[str, ...] = ()) -> dict[str, str]:
    return dict(zip(raw or labels, labels, strict=True))


def _answers(labels: tuple[str, ...], raw: tuple[str, ...] = ()) -> dict[str, str]:
    return dict(zip(labels, raw or labels, strict=True))


_MNLI_SPLITS = {
    "train": SplitFile("train.tsv", 12, (8, 9), 11, 0, 392_702),
    "dev_matched": SplitFile("dev_matched.tsv", 16, (8, 9), 15, 0, 9_815),
    "dev_mismatched": SplitFile("dev_mismatched.tsv", 16, (8, 9), 15, 0, 9_832),
    "test_matched": SplitFile("test_matched.tsv", 10, (8, 9), None, 0, 9_796),
    "test_mismatched": SplitFile("test_mismatched.tsv", 10, (8, 9), None, 0, 9_847),
}
_NLI_ORDER = (
    "label order differs between MNLI models (here and on the Hub: entailment, neutral, contradiction); names decide, "
    "never numbers"
)

_ROWS = (
    Task(
        "cola", "classification", _COLA, ("matthews",), pair=False, title="CoLA", folder="CoLA",
        splits=_three((4, (3,), 1), (2, (1,)), (8_551, 1_043, 1_063), header=False),
        raw_labels=_raw(_COLA, _ZERO_ONE),
        submission=(Submission("CoLA.tsv", "test", _answers(_COLA, _ZERO_ONE)),),
        notes=("CoLA is scored by Matthews correlation; accuracy says little, since 69 % of dev is 'acceptable'",),
        degenerate_note="the published BERT-Tiny and BERT-Mini score 0.0 on CoLA too",
    ),
    Task(
        "sst2", "classification", _SST2, ("accuracy",), pair=False, title="SST-2", folder="SST-2",
        splits=_three((2, (0,), 1), (2, (1,)), (67_349, 872, 1_821)),
        raw_labels=_raw(_SST2, _ZERO_ONE),
        submission=(Submission("SST-2.tsv", "test", _answers(_SST2, _ZERO_ONE)),),
        notes=("SST-2 train has phrases as well as sentences, dev and test have sentences only",),
    ),
    Task(
        "mrpc", "classification", _MRPC, ("f1", "accuracy"), pair=True, title="MRPC", folder="MRPC",
        splits=_three((5, (3, 4), 0), (5, (3, 4)), (3_668, 408, 1_725)),
        raw_labels=_raw(_MRPC, _ZERO_ONE),
        submission=(Submission("MRPC.tsv", "test", _answers(_MRPC, _ZERO_ONE)),),
        notes=("always answering 'equivalent' gives F1 81.2 and accuracy 68.4 on MRPC dev",),
        degenerate_note="always answering 'equivalent' gives F1 81.2 on MRPC dev; BERT-Tiny's published F1 is 81.1",
    ),
    Task(
        "stsb", "regression", (), ("pearson", "spearman"), pair=True, title="STS-B", folder="STS-B",
        splits=_three((10, (7, 8), 9), (9, (7, 8)), (5_749, 1_500, 1_379), index=0),
        score_range=(0.0, 5.0),
        submission=(Submission("STS-B.tsv", "test"),),
        notes=("STS-B is regression from 0 to 5; the server refuses scores outside, so a submission is clipped",),
    ),
    Task(
        "qqp", "classification", _QQP, ("f1", "accuracy"), pair=True, title="QQP", folder="QQP",
        splits=_three((6, (3, 4), 5), (3, (1, 2)), (363_846, 40_430, 390_965), index=0, skips_short=True),
        raw_labels=_raw(_QQP, _ZERO_ONE),
        submission=(Submission("QQP.tsv", "test", _answers(_QQP, _ZERO_ONE)),),
        notes=("QQP test has another share of duplicates than train and dev, so F1 on dev and on test differ widely",),
    ),
    Task(
        "mnli", "classification", _NLI, ("accuracy",), pair=True, title="MNLI", folder="MNLI",
        splits=_MNLI_SPLITS, main_split={"dev": "dev_matched", "test": "test_matched"},
        raw_labels=_raw(_NLI),
        submission=(
            Submission("MNLI-m.tsv", "test_matched", _answers(_NLI)),
            Submission("MNLI-mm.tsv", "test_mismatched", _answers(_NLI)),
        ),
        notes=(_NLI_ORDER,),
        aliases=("mnli-m", "mnli-mm", "mnli_matched", "mnli_mismatched", "MultiNLI"),
    ),
    Task(
        "qnli", "classification", _RTE, ("accuracy",), pair=True, title="QNLI", folder="QNLI",
        splits=_three((4, (1, 2), 3), (3, (1, 2)), (104_743, 5_463, 5_463), index=0),
        raw_labels=_raw(_RTE),
        submission=(Submission("QNLI.tsv", "test", _answers(_RTE)),),
        notes=("QNLI means its second release (dev 5,463 rows); scores on the first release do not compare",),
        aliases=("QNLIv2",),
    ),
    Task(
        "rte", "classification", _RTE, ("accuracy",), pair=True, title="RTE", folder="RTE",
        splits=_three((4, (1, 2), 3), (3, (1, 2)), (2_490, 277, 3_000), index=0),
        raw_labels=_raw(_RTE),
        submission=(Submission("RTE.tsv", "test", _answers(_RTE)),),
        notes=("RTE dev has 277 rows: one point is 2.8 rows, so compare means over several seeds",),
    ),
    Task(
        "wnli", "classification", _RTE, ("accuracy",), pair=True, title="WNLI", folder="WNLI",
        splits=_three((4, (1, 2), 3), (3, (1, 2)), (635, 71, 146), index=0),
        raw_labels=_raw(_RTE, ("1", "0")),
        submission=(Submission("WNLI.tsv", "test", _answers(_RTE, ("1", "0"))),),
        notes=(
            "WNLI dev repeats sentences of train with the opposite label, so a model that learns train falls below "
            "chance on dev; the published miniatures all score 62.3 on test, always answering 'not_entailment' 65.1",
        ),
        degenerate_note="the published miniatures all score 62.3 on WNLI, always answering 'not_entailment' 65.1",
    ),
    Task(
        "ax", "classification", _NLI, ("matthews",), pair=True, title="AX", folder="AX",
        splits={"test": SplitFile("diagnostic.tsv", 3, (1, 2), None, 0, 1_104)},
        raw_labels=_raw(_NLI),
        submission=(Submission("AX.tsv", "test", _answers(_NLI)),),
        predicted_by="mnli",
        notes=("AX has no training data; the MNLI model answers it", _NLI_ORDER),
        aliases=("diagnostic", "diagnostics"),
    ),
)  # fmt: skip

TASKS: dict[str, Task] = {task.name: task for task in _ROWS}


def fold(name: str) -> str:
    """Return `name` without case, dashes and other marks, as tasks and folders are compared: "SST-2" -> "sst2"."""
    return re.sub(r"[\W_]", "", name).casefold()


_BY_FOLDED = {fold(name): task for task in _ROWS for name in (task.name, task.title, *task.aliases)}


def task_named(name: str) -> Task:
    """Return the GLUE task of this name, in GLUE's spelling or in ours.

    Args:
        name: `sst2`, `SST-2`, `STS-B`, `MNLI-m`, …, in any case.

    Raises:
        UnknownName: no such task.

    Example:
        >>> task_named("STS-B").name
        'stsb'
    """
    task = _BY_FOLDED.get(fold(name))
    if task is None:
        raise UnknownName("task", name, TASKS, "'miniatures finetune --help' lists the tasks")
    return task
