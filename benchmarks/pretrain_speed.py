"""Pre-training speed: this package against transformers' BertForMaskedLM, alternating in one run.

    python benchmarks/pretrain_speed.py --size 2/128 [--rounds 5] [--steps 6]

Both sides train a random model on the same batches of 32 rows of 128 pieces, 15 % of them masked (19 a row):

    ours          train() with the masked-LM objective, as `miniatures pretrain` calls it without pairs
    transformers  forward and backward of BertForMaskedLM, clipping, fused AdamW in two groups, linear schedule; the
                  better one of one thread and all

Each side is a process of its own that waits while another one works. Printed are medians over the rounds, and medians
of the ratios within a round. The pieces are random: what they are does not change the work.
"""

import argparse
import json
import multiprocessing as mp
import os
import statistics
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from finetune_speed import RESULTS, cpu_name, gemm_peak, sizes

ROWS, POSITIONS, MASKED, VOCABULARY = 32, 128, 19, 30_522
SKIPPED = 2  # updates at the start of a round that are not timed


class Rows:
    """The same random batches for both sides: update `step` takes the rows of seed `step`."""

    per_epoch = 100_000

    def rows(self, epoch: int) -> "range_of_rows":
        return range_of_rows()

    def micro(self, rows: Any, size: int | None) -> Iterator[Any]:
        import torch

        from bert_miniatures.data.pretraining import PretrainBatch

        ids, chosen = zip(*(drawn_row(int(row)) for row in rows), strict=True)
        grid = torch.from_numpy(np.stack(ids))
        places = torch.from_numpy(np.concatenate([row * POSITIONS + at for row, at in enumerate(chosen)]))
        starts = torch.arange(len(rows)) * POSITIONS
        targets = grid.view(-1)[places]
        yield PretrainBatch(grid, None, None, None, None, places, targets, starts, None, grid.numel())


class range_of_rows:  # noqa: N801
    """Batch `i` of an epoch without a list of them all."""

    def __getitem__(self, part: slice) -> Iterator[Any]:
        for step in range(part.start, min(part.stop, Rows.per_epoch)):
            yield np.arange(step * ROWS, (step + 1) * ROWS)


def drawn_row(number: int) -> tuple[Any, Any]:
    """Return pieces [T] and masked positions, ascending, of one row."""
    drawn = np.random.default_rng(number)
    return drawn.integers(1000, VOCABULARY, POSITIONS), np.sort(drawn.permutation(POSITIONS)[:MASKED])


def serve_ours(pipe: Any, size: str, steps: int, threads: int) -> None:
    import torch

    from bert_miniatures.config import ModelConfig, TrainConfig
    from bert_miniatures.model import build
    from bert_miniatures.objectives import masked_lm
    from bert_miniatures.train import TrainState, train

    torch.set_num_threads(threads)
    model = build(ModelConfig(vocab_size=VOCABULARY, **sizes(size)), groups={"pooler", "mlm", "nsp"})
    config = TrainConfig(batch_size=ROWS, epochs=1)
    updates = train(TrainState(model, config), masked_lm(), Rows(), config)
    while pipe.recv():
        for _ in range(SKIPPED):
            next(updates)
        started = time.perf_counter()
        for _ in range(steps):
            progress = next(updates)
        float(progress.loss)
        pipe.send(time.perf_counter() - started)


def serve_transformers(pipe: Any, size: str, steps: int, threads: int) -> None:
    import torch
    from transformers import BertConfig, BertForMaskedLM, get_linear_schedule_with_warmup

    torch.set_num_threads(threads)
    model = BertForMaskedLM(BertConfig(vocab_size=VOCABULARY, **sizes(size))).train()
    plain = [p for n, p in model.named_parameters() if n.endswith("bias") or "LayerNorm" in n]
    decayed = [p for n, p in model.named_parameters() if not (n.endswith("bias") or "LayerNorm" in n)]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, 10_000, 100_000)
    step = 0

    def update() -> float:
        nonlocal step
        ids, chosen = zip(*(drawn_row(step * ROWS + row) for row in range(ROWS)), strict=True)
        grid = torch.from_numpy(np.stack(ids))
        labels = torch.full_like(grid, -100)
        for row, at in enumerate(chosen):
            labels[row, at] = grid[row, at]
        loss = model(input_ids=grid, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        step += 1
        return loss.item()

    while pipe.recv():
        for _ in range(SKIPPED):
            update()
        started = time.perf_counter()
        for _ in range(steps):
            update()
        pipe.send(time.perf_counter() - started)


def flops_of(size: str) -> float:
    """Return multiply-adds x 2 of an update: the plain encoder, the vocabulary at masked positions only."""
    s = sizes(size)
    width, tokens = s["hidden_size"], ROWS * POSITIONS
    encoder = s["num_hidden_layers"] * tokens * (24 * width**2 + 4 * width * POSITIONS)
    return 3.0 * (encoder + 2 * ROWS * MASKED * width * (VOCABULARY + width))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    context, every = mp.get_context("spawn"), os.cpu_count() or 1
    sides = {f"ours, {n} threads": (serve_ours, n) for n in sorted({1, every})}
    sides |= {f"transformers, {n} threads": (serve_transformers, n) for n in sorted({1, every})}
    pipes, processes = {}, []
    for name, (serve, threads) in sides.items():
        near, far = context.Pipe()
        processes.append(context.Process(target=serve, args=(far, options.size, options.steps, threads)))
        processes[-1].start()
        pipes[name] = near
    rates: dict[str, list[float]] = {name: [] for name in sides}
    peak = 0.0
    for number in range(options.rounds + 1):
        for name, pipe in pipes.items():
            pipe.send(True)
            rate = ROWS * POSITIONS * options.steps / pipe.recv()
            if number:  # the first round warms up
                rates[name].append(rate)
        peak = max(peak, gemm_peak(every))
        print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
    for pipe in pipes.values():
        pipe.send(False)
    for process in processes:
        process.join()
    median = {name: statistics.median(values) for name, values in rates.items()}
    best = {s: max((n for n in median if n.startswith(s)), key=lambda n: median[n]) for s in ("ours", "transformers")}
    ratios = [a / b for a, b in zip(rates[best["ours"]], rates[best["transformers"]], strict=True)]
    per_token = flops_of(options.size) / (ROWS * POSITIONS) / 1e9
    return {
        "size": options.size,
        "batch": [ROWS, POSITIONS],
        "masked_a_row": MASKED,
        "rounds": options.rounds,
        "updates_per_round": options.steps,
        "tokens_per_second": {name: round(value) for name, value in median.items()},
        "spread": {name: [round(min(v)), round(max(v))] for name, v in rates.items()},
        "best": best,
        "ours_over_transformers": round(statistics.median(ratios), 2),
        "gemm_peak_gflops": round(peak, 1),
        "share_of_gemm_peak": {name: round(value * per_token / peak, 3) for name, value in median.items()},
        "machine": {"cpu": cpu_name(), "cores": every},
        "versions": {name: version(name) for name in ("torch", "transformers", "bert-miniatures")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="2/128")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    options = parser.parse_args()
    result = measure(options)
    RESULTS.mkdir(exist_ok=True)
    path = Path(RESULTS) / f"pretrain_speed_{options.size.replace('/', '_')}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
