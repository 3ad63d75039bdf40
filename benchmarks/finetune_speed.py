"""Training speed: this package against transformers' Trainer, alternating in one run.

    python benchmarks/finetune_speed.py --size 2/128 --glue GLUE [--rounds 7]

Three sides train the same random model on the same rows with the same batch size for the same number of updates:

    ours       train() as `miniatures finetune` calls it
    trainer    the Trainer's best configuration on a CPU: padding to the longest of a batch, group_by_length, fused
               AdamW, the better one of one thread and all
    run_glue   the defaults of transformers' run_glue.py: every row padded to 128

Each side is a process of its own that lives through the whole run and waits while another one works. Round by round
each trains for a fixed number of updates, by default a pass over all rows (run_glue a quarter of it), so that all see
the same lengths; printed are medians over the rounds, and medians of the ratios within a round. The rows are the
sentences of SST-2 dev and test (25.5 pieces on average) with random labels, or, without --glue, random pieces of the
same length distribution.
"""

import argparse
import json
import multiprocessing as mp
import os
import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
BATCH = 32
SKIPPED = 3  # updates at the start of a round that are not timed


def rows_of(glue: Path | None, vocabulary: Path | None) -> list[list[int]]:
    """Return encoded rows, with [CLS] and [SEP]."""
    import numpy as np

    drawn = np.random.default_rng(1)
    if glue is None or vocabulary is None:
        lengths = np.clip(drawn.gamma(2.6, 9.4, 2693).astype(int) + 2, 4, 70)
        pieces = np.minimum(drawn.zipf(1.3, int(lengths.sum())) + 1000, 15_000)
        return [[101, *row.tolist()[2:], 102] for row in np.split(pieces, np.cumsum(lengths)[:-1])]
    from bert_miniatures.tokenizer import Tokenizer

    tokenizer = Tokenizer.from_vocabulary(vocabulary)
    lines = [line.split("\t")[0] for line in (glue / "SST-2" / "dev.tsv").read_text("utf-8").split("\n")[1:] if line]
    lines += [line.split("\t")[1] for line in (glue / "SST-2" / "test.tsv").read_text("utf-8").split("\n")[1:] if line]
    return [[tokenizer.cls_id, *tokenizer.ids(text)[:126], tokenizer.sep_id] for text in lines]


def sizes(size: str) -> dict[str, int]:
    layers, width = (int(part) for part in size.split("/"))
    return {
        "num_hidden_layers": layers,
        "hidden_size": width,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
    }


def serve_ours(pipe: Any, size: str, rows: list[list[int]], steps: int, threads: int) -> None:
    import numpy as np
    import torch

    from bert_miniatures.config import ModelConfig, TrainConfig
    from bert_miniatures.data.batches import Batches, Dataset
    from bert_miniatures.model import build
    from bert_miniatures.objectives import classification
    from bert_miniatures.tokenizer import Encoded
    from bert_miniatures.train import TrainState, train

    torch.set_num_threads(threads)
    lengths = np.array([len(row) for row in rows], np.int32)
    flat = np.concatenate([np.array(row, np.int32) for row in rows])
    labels = np.random.default_rng(2).integers(0, 2, len(rows))
    data = Dataset(Encoded(flat, lengths, lengths, 0, 0, 0), labels)
    used = data.used_ids()
    config = TrainConfig(batch_size=BATCH, epochs=1000)
    model = build(ModelConfig(vocab_size=len(used), **sizes(size)), groups={"pooler", "head"}, classes=2)
    state = TrainState(model, config)
    updates = train(state, classification(), Batches(data.renumber(used), BATCH, 1), config)
    while pipe.recv():
        for _ in range(SKIPPED):
            next(updates)
        started = time.perf_counter()
        for _ in range(steps):
            progress = next(updates)
        float(progress.loss)
        pipe.send(time.perf_counter() - started)


def serve_trainer(
    pipe: Any, size: str, rows: list[list[int]], steps: int, threads: int, best: bool, scratch: str
) -> None:
    import numpy as np
    import torch
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        logging,
    )

    torch.set_num_threads(threads)
    logging.set_verbosity_error()
    labels = np.random.default_rng(2).integers(0, 2, len(rows))
    pad = 0 if best else 128
    data = [
        {
            "input_ids": row + [0] * (pad - len(row)),
            "attention_mask": [1] * len(row) + [0] * (pad - len(row)),
            "labels": int(label),
        }
        for row, label in zip(rows, labels, strict=True)
    ]

    def collate(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in batch)
        out = {
            key: torch.tensor([row[key] + [0] * (width - len(row[key])) for row in batch])
            for key in ("input_ids", "attention_mask")
        }
        return out | {"labels": torch.tensor([row["labels"] for row in batch])}

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == SKIPPED:
                self.started = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == SKIPPED + steps:
                self.seconds = time.perf_counter() - self.started

    model = BertForSequenceClassification(BertConfig(vocab_size=30_522, num_labels=2, **sizes(size)))
    while pipe.recv():
        more = {"train_sampling_strategy": "group_by_length", "optim": "adamw_torch_fused"} if best else {}
        arguments = TrainingArguments(
            output_dir=scratch,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-4,
            max_steps=SKIPPED + steps,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
            **more,
        )
        clock = Clock()
        trainer = Trainer(model=model, args=arguments, train_dataset=data, data_collator=collate, callbacks=[clock])
        trainer.remove_callback(next(c for c in trainer.callback_handler.callbacks if "Printer" in type(c).__name__))
        trainer.train()
        pipe.send(clock.seconds)


def gemm_peak(threads: int) -> float:
    """Return the fp32 multiply-add rate of a square matrix product in GFLOP/s, best of several."""
    import torch

    torch.set_num_threads(threads)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    best = 0.0
    for _ in range(20):
        started = time.perf_counter()
        for _ in range(5):
            a @ b
        best = max(best, 5 * 2 * 1024**3 / (time.perf_counter() - started) / 1e9)
    return best


def flops_of(size: str, rows: list[list[int]]) -> float:
    """Return multiply-adds x 2 that one example needs on average, forward and backward, nothing left out or padded."""
    s = sizes(size)
    weights = s["num_hidden_layers"] * 12 * s["hidden_size"] ** 2
    attention = [s["num_hidden_layers"] * 4 * s["hidden_size"] * len(row) ** 2 for row in rows]
    return 3 * statistics.mean(2 * weights * len(row) + extra for row, extra in zip(rows, attention, strict=True))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    rows = rows_of(options.glue, options.vocabulary)
    options.steps = options.steps or -(-len(rows) // BATCH) - SKIPPED
    context = mp.get_context("spawn")
    every = os.cpu_count() or 1
    sides: dict[str, tuple[Any, tuple[Any, ...]]] = {
        f"ours, {every} threads": (serve_ours, (every,)),
        "ours, 1 thread": (serve_ours, (1,)),
        f"trainer, {every} threads": (serve_trainer, (every, True, "unused")),
        "trainer, 1 thread": (serve_trainer, (1, True, "unused")),
        f"run_glue, {every} threads": (serve_trainer, (every, False, "unused")),
    }
    pipes, seconds = {}, {name: [] for name in sides}  # type: ignore[var-annotated]
    processes = []
    for name, (serve, extra) in sides.items():
        near, far = context.Pipe()
        steps = options.steps // 4 if name.startswith("run_glue") else options.steps
        # Not a daemon: those may not have children, and this package would fall back to threads.
        process = context.Process(target=serve, args=(far, options.size, rows, steps, *extra))
        process.start()
        far.close()  # so that it ends when this process does
        processes.append(process)
        pipes[name] = (near, steps)
    peak = 0.0
    for number in range(options.rounds + 1):
        for name, (pipe, steps) in pipes.items():
            pipe.send(True)
            rate = BATCH * steps / pipe.recv()
            if number:  # the first round warms up
                seconds[name].append(rate)
        peak = max(peak, gemm_peak(every))
        print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
    for pipe, _ in pipes.values():
        pipe.send(False)
    for process in processes:
        process.join()
    return summary(options, rows, seconds, peak)


def summary(options: argparse.Namespace, rows: list[list[int]], rates: dict[str, list[float]], peak: float) -> Any:
    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(rates[a], rates[b], strict=True))

    median = {name: statistics.median(values) for name, values in rates.items()}
    best = {
        side: max((name for name in median if name.startswith(side)), key=lambda name: median[name])
        for side in ("ours", "trainer", "run_glue")
    }
    work = flops_of(options.size, rows) / 1e9
    return {
        "size": options.size,
        "batch_size": BATCH,
        "pieces_per_row": round(statistics.mean(map(len, rows)), 1),
        "rounds": options.rounds,
        "updates_per_round": options.steps,
        "examples_per_second": {name: round(value, 1) for name, value in median.items()},
        "spread": {name: [round(min(v), 1), round(max(v), 1)] for name, v in rates.items()},
        "best": best,
        "ours_over_trainer": round(ratio(best["ours"], best["trainer"]), 2),
        "ours_over_run_glue": round(ratio(best["ours"], best["run_glue"]), 2),
        "gemm_peak_gflops": round(peak, 1),
        "share_of_gemm_peak": {name: round(value * work / peak, 3) for name, value in median.items()},
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("torch", "transformers", "bert-miniatures")},
    }


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="2/128")
    parser.add_argument("--glue", type=Path, default=os.environ.get("GLUE_DIR"))
    parser.add_argument("--vocabulary", type=Path, help="vocab.txt of the published models, with --glue")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, help="timed updates of a round; a pass over the rows unless given")
    options = parser.parse_args()
    result = measure(options)
    name = f"finetune_speed_{options.size.replace('/', '_')}.json"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
