"""A process that answers as a service would, with nothing loaded but what that needs, and says how long it took.

Reads one JSON object from standard input and writes one to standard output:

    {"graph": path, "threads": [1, 2], "lengths": [[17], [32], [30, 31, …]], "calls": [32, 17, …], "seconds": 0.6}
    {"threads": {"1": {"groups": [s, s, …], "p50": s, "p95": s}, …}, "resident": bytes, "peak": bytes}
"""

import itertools
import json
import string
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bert_miniatures.predict_onnx import open_session, run
from bert_miniatures.tokenizer import SPECIAL, Tokenizer
from bert_miniatures.zoo import POSITIONS, VOCABULARY

__all__ = ["main", "measure"]

LEAST_CALLS, LEAST_REPEATS = 30, 3
SHARE = 0.25  # of the seconds for calls, that each group of texts may take


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Open the graph with each number of threads and time it; memory is that of the first."""
    tokenizer = Tokenizer(_vocabulary())
    answer: dict[str, Any] = {"threads": {}}
    for threads in request["threads"]:
        session = open_session(Path(request["graph"]), threads)

        def answered(texts: Sequence[str], session: Any = session) -> None:
            run(session, tokenizer.encode(texts, None, max_length=POSITIONS), tokenizer.pad_id)

        groups = [
            _median(answered, [_text(n) for n in lengths], request["seconds"] * SHARE) for lengths in request["lengths"]
        ]
        calls = _calls(answered, [_text(n) for n in request["calls"]], request["seconds"])
        p50, p95 = (float(x) for x in np.percentile(calls, [50, 95]))
        answer["threads"][str(threads)] = {"groups": groups, "p50": p50, "p95": p95}
        if "peak" not in answer:
            answer |= _memory()
        del session, answered
    return answer


def _vocabulary() -> list[str]:
    """Return as many pieces as the published vocabulary has; each is a word."""
    letters = string.ascii_lowercase
    words = ("".join(word) for size in (1, 2, 3, 4) for word in itertools.product(letters, repeat=size))
    return [*SPECIAL, *itertools.islice(words, VOCABULARY - len(SPECIAL))]


def _text(length: int) -> str:
    """Return a text that is so many word pieces with its special tokens."""
    words = string.ascii_lowercase
    return " ".join(words[i % 26] + words[(7 * i) % 26] for i in range(max(1, length - 2)))


def _median(answered: Callable[[Sequence[str]], None], texts: Sequence[str], seconds: float) -> float:
    """Return the median time of answering these texts at once."""
    answered(texts)
    times: list[float] = []
    while len(times) < LEAST_REPEATS or (sum(times) < seconds and len(times) < 500):
        began = perf_counter()
        answered(texts)
        times.append(perf_counter() - began)
    return float(np.median(times))


def _calls(answered: Callable[[Sequence[str]], None], texts: Sequence[str], seconds: float) -> list[float]:
    """Return the times of answering one text after the other, as requests come in."""
    times: list[float] = []
    for text in itertools.cycle(texts):
        if len(times) >= LEAST_CALLS and sum(times) >= seconds:
            return times
        began = perf_counter()
        answered([text])
        times.append(perf_counter() - began)
    return times


def _memory() -> dict[str, int]:
    """Return resident bytes, and the most there ever were."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        return {name: 1024 * int(lines[key].split()[0]) for name, key in (("resident", "VmRSS"), ("peak", "VmHWM"))}
    except (OSError, KeyError, ValueError):  # not Linux
        import resource

        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {"resident": most, "peak": most}


def main() -> None:
    """Answer one request."""
    print(json.dumps(measure(json.load(sys.stdin))))


if __name__ == "__main__":
    main()
