"""Texts a second and latency of Predictor against transformers, ONNX Runtime and OpenVINO.

    python benchmarks/predict_speed.py --glue GLUE [--rounds 5] [--texts 4000]

All answer the same 2-layer, 128-wide classifier of two classes (word vectors of a real model, the rest random: what the
numbers are does not change the work), text in, label and score out, tokenizing included:

    ours               `Predictor` on a deploy folder, fp32 and int8
    pipeline           transformers' text-classification pipeline as it comes: one text at a time
    pipeline, batches  the same with batch_size=32 and the texts sorted by length
    onnxruntime        torch's export of transformers' model, fused by onnxruntime's own optimizer for BERT, texts
                       sorted by length in batches of 32; fp32, and int8 by its dynamic quantisation
    openvino           the same graph, fp32, the same batches

Each is a process of its own with one thread. They take turns; a round gives the throughput over sentences of SST-2
train (ours works in blocks of 1,024 texts, as `predict` does) and the latency of single sentences of SST-2 dev. Ratios
are those within a round, the median over the rounds. The answers of all fp32 sides are compared, to 1e-4. What is not
installed is left out and said; sentence-transformers is not among them, its CrossEncoder takes batches of pairs alone.
Last, `predict_stream` with two workers and with one.

The share of the peak is that of the work of the plain model, nothing padded and nothing left out, over the fastest of a
few products of 1024 x 1024 matrices.
"""

import argparse
import json
import multiprocessing as mp
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from importlib.util import find_spec
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "predict_speed.json"
SIZE = "2/128"
BATCH = 32
BLOCK = 1024
MAX_LENGTH = 128
NAMES = ("negative", "positive")
Answer = tuple[str, float]
Engine = Callable[[list[str]], list[Answer]]


# ------------------------------------------------------------------------------------------------- the models


def make_models(folder: Path, glue: Path) -> None:
    """Make the classifier as a model folder, as a deploy folder, and as the graphs of the others."""
    from bert_miniatures.exporting import export
    from start_model import make_classifier

    make_classifier(folder / "model")
    # any loss of int8 is taken: random weights have no score to lose
    export(folder / "model", folder / "deploy", int8=True, check="sst2", glue=glue, margin=100.0, at_most=100.0)
    export_theirs(folder)


def export_theirs(folder: Path) -> None:
    """Export transformers' model with torch, fuse it and quantise it with what onnxruntime brings."""
    import onnx
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers.optimizer import optimize_model
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder / "model", attn_implementation="eager").eval()

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.model(input_ids=ids, attention_mask=mask, token_type_ids=kinds).logits
            return logits

    names = ["input_ids", "attention_mask", "token_type_ids"]
    free = {name: {0: "batch", 1: "sequence"} for name in names} | {"logits": {0: "batch"}}
    one = torch.ones(2, 7, dtype=torch.int64)
    torch.onnx.export(Logits(), (one, one, 0 * one), str(folder / "plain.onnx"), input_names=names, opset_version=17,
                      output_names=["logits"], dynamic_axes=free, dynamo=False)  # fmt: skip
    heads, width = model.config.num_attention_heads, model.config.hidden_size
    fused = optimize_model(str(folder / "plain.onnx"), model_type="bert", num_heads=heads, hidden_size=width)
    fused.save_model_to_file(str(folder / "fused.onnx"))
    more = {"DefaultTensorType": onnx.TensorProto.FLOAT}  # of outputs of fused operators
    quantize_dynamic(folder / "fused.onnx", folder / "int8.onnx", weight_type=QuantType.QInt8, extra_options=more)


# ------------------------------------------------------------------------------------------------- the sides


def ours(folder: Path, precision: str) -> Engine:
    from bert_miniatures import Predictor

    predictor = Predictor(folder / "deploy", threads=1, precision=precision)

    def answer(texts: list[str]) -> list[Answer]:
        blocks = (predictor(texts[i : i + BLOCK]) for i in range(0, len(texts), BLOCK))
        return [(row["label"], row["score"]) for block in blocks for row in block]

    return answer


def by_length(engine: Engine) -> Engine:
    """Give the texts sorted by their characters and put the answers back into order."""

    def answer(texts: list[str]) -> list[Answer]:
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found = engine([texts[i] for i in order])
        return [row for _, row in sorted(zip(order, found, strict=True))]

    return answer


def pipeline(folder: Path, batch: int) -> Engine:
    import torch
    from transformers import pipeline as make
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(1)
    classify = make("text-classification", model=str(folder / "model"), device="cpu")

    def answer(texts: list[str]) -> list[Answer]:
        found = classify(texts, batch_size=batch, truncation=True, max_length=MAX_LENGTH)
        return [(row["label"], row["score"]) for row in found]

    return by_length(answer) if batch > 1 else answer


def graph(folder: Path, run: Callable[[dict[str, Any]], Any]) -> Engine:
    """Return an engine: the fast tokenizer of transformers in batches, then `run`, then softmax."""
    import numpy as np
    from transformers import AutoTokenizer

    from bert_miniatures.outputs import softmax

    tokenizer = AutoTokenizer.from_pretrained(folder / "model")

    def answer(texts: list[str]) -> list[Answer]:
        found: list[Answer] = []
        for start in range(0, len(texts), BATCH):
            batch = tokenizer(texts[start : start + BATCH], padding=True, truncation=True, max_length=MAX_LENGTH,
                              return_tensors="np")  # fmt: skip
            logits = run({name: batch[name].astype(np.int64) for name in batch})
            shares = softmax(logits)
            found += [(NAMES[best], float(row[best])) for best, row in zip(shares.argmax(1), shares, strict=True)]
        return found

    return by_length(answer)


def onnxruntime(folder: Path, name: str) -> Engine:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = ort.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])
    return graph(folder, lambda inputs: session.run(None, inputs)[0])


def openvino(folder: Path) -> Engine:
    import openvino as ov

    core = ov.Core()
    settings = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    compiled = core.compile_model(core.read_model(folder / "plain.onnx"), "CPU", settings)
    return graph(folder, lambda inputs: compiled(inputs)[0])


# side -> (the package that it needs, what makes its engine, precision)
SIDES: dict[str, tuple[str, Callable[[Path], Engine], str]] = {
    "ours fp32": ("onnxruntime", lambda folder: ours(folder, "fp32"), "fp32"),
    "ours int8": ("onnxruntime", lambda folder: ours(folder, "int8"), "int8"),
    "pipeline": ("transformers", lambda folder: pipeline(folder, 1), "fp32"),
    "pipeline, batches": ("transformers", lambda folder: pipeline(folder, BATCH), "fp32"),
    "onnxruntime fp32": ("onnxruntime", lambda folder: onnxruntime(folder, "fused.onnx"), "fp32"),
    "onnxruntime int8": ("onnxruntime", lambda folder: onnxruntime(folder, "int8.onnx"), "int8"),
    "openvino": ("openvino", openvino, "fp32"),
}


def serve(pipe: Any, side: str, folder: Path, texts: list[str], singles: list[str]) -> None:
    """Wait for orders: answer some texts at once or one by one, and tell the seconds."""
    engine = SIDES[side][1](folder)
    engine(texts[:BLOCK])
    while order := pipe.recv():
        what, count = order
        started = time.perf_counter()
        if what == "answers":
            pipe.send(engine(texts[:count]))
        elif what == "all":
            engine(texts[:count])
            pipe.send(time.perf_counter() - started)
        else:
            seconds = []
            for text in singles[:count]:
                before = time.perf_counter()
                engine([text])
                seconds.append(time.perf_counter() - before)
            pipe.send(seconds)


# ------------------------------------------------------------------------------------------------- the measurement


def installed() -> list[str]:
    """Return the sides that can run here; say which cannot."""
    missing = [side for side, (package, _, _) in SIDES.items() if find_spec(package) is None]
    for side in missing:
        print(f"{side}: not installed, left out", file=sys.stderr)
    return [side for side in SIDES if side not in missing]


def measure(folder: Path, texts: list[str], singles: list[str], rounds: int) -> dict[str, Any]:
    """Let the sides take turns; return rates and latencies of each round."""
    context = mp.get_context("spawn")
    pipes, processes = {}, []
    for side in installed():
        near, far = context.Pipe()
        process = context.Process(target=serve, args=(far, side, folder, texts, singles), daemon=True)
        process.start()
        far.close()
        processes.append(process)
        pipes[side] = near

    def ask(side: str, what: str, count: int) -> Any:
        pipes[side].send((what, count))
        return pipes[side].recv()

    compared = {side: ask(side, "answers", 200) for side in pipes}
    for side, answers in compared.items():
        if SIDES[side][2] == "fp32":
            worst = max(abs(a[1] - b[1]) for a, b in zip(answers, compared["ours fp32"], strict=True))
            if worst > 1e-4:
                raise SystemExit(f"error: {side} differs from ours by {worst:.1e}")
    found: dict[str, dict[str, list[float]]] = {side: {"rate": [], "p50": [], "p99": []} for side in pipes}
    for number in range(rounds + 1):
        for side in pipes:
            count = len(texts) if side != "pipeline" else max(1, len(texts) // 4)  # it takes its time
            rate = count / ask(side, "all", count)
            seconds = sorted(ask(side, "each", len(singles)))
            if number:  # the first round warms up
                found[side]["rate"].append(rate)
                found[side]["p50"].append(statistics.median(seconds) * 1e3)
                found[side]["p99"].append(seconds[int(0.99 * len(seconds))] * 1e3)
        print(f"round {number} of {rounds}", file=sys.stderr, flush=True)
    for pipe in pipes.values():
        pipe.send(None)
    for process in processes:
        process.join(30)
    return found


def workers(folder: Path, texts: list[str], rounds: int) -> dict[str, float]:
    """Return the texts a second of one worker process's work and of two, after the first answers."""
    from bert_miniatures.predict import predict_stream

    def rate(count: int) -> float:
        def chunks() -> Iterator[tuple[list[str], None]]:
            for start in range(0, len(texts), BLOCK):
                yield texts[start : start + BLOCK], None

        one = {"threads": 1} if count == 1 else {}
        stream = predict_stream(folder / "deploy", chunks(), workers=count, **one)
        done, skipped = 0, 4 * count  # until all have started
        for number, answers in enumerate(stream, start=1):
            if number == skipped:
                started = time.perf_counter()
            done += len(answers) if number > skipped else 0
        return done / (time.perf_counter() - started)

    rates = [(rate(1), rate(2)) for _ in range(rounds)]
    one, two = (statistics.median(column) for column in zip(*rates, strict=True))
    ratio = statistics.median(b / a for a, b in rates)
    return {"one": round(one), "two": round(two), "two / one": round(ratio, 2)}


def summary(found: dict[str, dict[str, list[float]]], gflops: float, peak: float) -> dict[str, Any]:
    def ratio(a: str, b: str, what: str) -> float:
        return round(statistics.median(x / y for x, y in zip(found[a][what], found[b][what], strict=True)), 2)

    rate = {side: statistics.median(rows["rate"]) for side, rows in found.items()}
    p50 = {side: statistics.median(rows["p50"]) for side, rows in found.items()}
    out: dict[str, Any] = {
        side: {
            "texts_per_second": round(rate[side]),
            "p50_ms": round(p50[side], 3),
            "p99_ms": round(statistics.median(found[side]["p99"]), 3),
            "share_of_gemm_peak": round(rate[side] * gflops / peak, 3),
        }
        for side in found
    }
    ratios = {"ours fp32 / pipeline": ratio("ours fp32", "pipeline", "rate")}
    for mine in ("ours fp32", "ours int8"):
        others = [s for s in found if not s.startswith("ours") and SIDES[s][2] == SIDES[mine][2]]
        best, quickest = max(others, key=lambda s: rate[s]), min(others, key=lambda s: p50[s])
        ratios[f"{mine} / {best}"] = ratio(mine, best, "rate")
        ratios[f"latency: {mine} / {quickest}"] = ratio(mine, quickest, "p50")
    return {"sides": out, "ratios": ratios}


def work_of(folder: Path, texts: list[str]) -> float:
    """Return the billions of floating-point operations of a text, forward."""
    from bert_miniatures.tokenizer import Tokenizer
    from finetune_speed import flops_of

    tokenizer = Tokenizer.from_folder(folder / "model")
    return flops_of(SIZE, [[0, *tokenizer.ids(text)[: MAX_LENGTH - 2], 0] for text in texts]) / 3 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue", type=Path, required=True, help="GLUE in the official layout")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--texts", type=int, default=4000, help="sentences of SST-2 train")
    parser.add_argument("--singles", type=int, default=200, help="sentences of SST-2 dev, one at a time")
    options = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = "1"  # inherited by every side
    from bert_miniatures.card import versions
    from finetune_speed import cpu_name, gemm_peak
    from start_model import sst2  # torch, which what is measured must not import

    texts, singles = sst2(options.glue, "train")[: options.texts], sst2(options.glue, "dev")[: options.singles]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(folder, options.glue)
        found = measure(folder, texts, singles, options.rounds)
        peak, gflops = gemm_peak(1), work_of(folder, texts)
        result = summary(found, gflops, peak)
        result["workers"] = workers(folder, sst2(options.glue, "train")[:40_000], max(1, options.rounds // 2))
    packages = ("onnxruntime", "torch", "transformers", "openvino")
    machine = {"cpu": cpu_name(), "cores": os.cpu_count()} | versions(*packages)
    about = {"size": SIZE, "texts": len(texts), "rounds": options.rounds, "threads": 1}
    about |= {"gemm_peak_gflops": round(peak, 1), "gflop_per_text": round(gflops, 4)}
    about |= {"date": date.today().isoformat(), "machine": machine}
    RESULT.write_text(json.dumps(about | result, indent=1) + "\n")
    print(json.dumps(about | result, indent=1))


if __name__ == "__main__":
    main()
