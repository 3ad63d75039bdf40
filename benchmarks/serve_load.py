"""Requests per second and latency of `miniatures serve` against a transformers pipeline behind FastAPI.

    python benchmarks/serve_load.py --glue GLUE [--seconds 4] [--rounds 3] [--requests 100000]

Both servers answer the same 2-layer, 128-wide classifier (random weights: what they are does not change the work) in a
process of their own; the client is this process, over loopback:

    ours   `miniatures serve` with a deploy folder, fp32, its defaults
    naive  FastAPI and uvicorn (with the same C parser as ours), `pipeline("text-classification")` in a plain
           `def` endpoint: one request, one forward; the better one of torch with one thread and with all

A request is one sentence of SST-2 dev. Each of 1, 8 and 64 connections sends the next request when it has its answer;
the sides take turns, and ratios are taken within a round. Every answer is compared with what the model says of its text
(scores within 1e-4; the texts are chosen so that no two have the same score), so that a lost or swapped answer shows.

Then, ours alone: requests of 8 texts come at twice the rate that saturates the service, whether or not it has answered;
only 200, 429 and 503 may come back, one for each request. Last, resident memory over many requests.

Client and server share the machine's cores: the more the client needs, the less is left, which hits the faster side.
The processor time per request of each server is there too; other work on the machine disturbs it less than the clock.
"""

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "serve_load.json"
CONNECTIONS = (1, 8, 64)
TEXTS = 8  # of a request at overload
POOL = 400  # connections at overload
ALLOWED = {200, 429, 503}


# ------------------------------------------------------------------------------------------------- the two servers


def make_models(folder: Path) -> tuple[Path, Path]:
    """Make the classifier, as a model folder and as a deploy folder."""
    from bert_miniatures.exporting import export
    from start_model import make_classifier

    model = make_classifier(folder / "model", scale=30)  # so that the answers differ
    export(model, folder / "deploy")
    return model, folder / "deploy"


def serve_naively(model: str, port: int, threads: int) -> None:
    """Serve as most tutorials do."""
    import torch
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel
    from transformers import pipeline
    from transformers.utils import logging

    logging.set_verbosity_error()
    if threads:
        torch.set_num_threads(threads)
    classify = pipeline("text-classification", model=model, device="cpu", top_k=None)
    app = FastAPI()

    class Request(BaseModel):
        inputs: str

    @app.post("/predict")
    def predict(request: Request) -> Any:
        return classify([request.inputs], truncation=True, max_length=128)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    uvicorn.run(app, port=port, log_level="error")


@dataclass(frozen=True)
class Side:
    """A server that listens."""

    port: int
    process: "subprocess.Popen[bytes]"

    def processor(self) -> float:
        """Return the processor seconds that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> float:
        """Return its resident memory in MB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


@contextmanager
def started(arguments: Callable[[int], list[str]]) -> Iterator[Side]:
    """Start a server on a free port, wait until it answers, and end it."""
    import socket
    import urllib.request

    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, *arguments(port)])
    try:
        for _ in range(600):
            time.sleep(0.1)
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").read()
                break
            except OSError:
                if process.poll() is not None:
                    raise SystemExit(f"error: the server ended with {process.returncode}") from None
        yield Side(port, process)
    finally:
        process.terminate()
        process.wait(60)


# ------------------------------------------------------------------------------------------------- the client


@dataclass
class Seen:
    """What came back."""

    seconds: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: int = 0
    lost: int = 0

    def check(self, status: int, body: bytes, expected: list[tuple[str, float]], seconds: float) -> None:
        """Count an answer and compare it with its texts."""
        self.statuses[status] += 1
        if status != 200:
            return
        self.seconds.append(seconds)
        self.wrong += not same_answers(body, expected)


def same_answers(body: bytes, expected: list[tuple[str, float]]) -> bool:
    """Tell whether an answer is that of its texts."""
    try:
        best = [max(row, key=lambda one: one["score"]) for row in json.loads(body)]
    except (ValueError, TypeError, KeyError):
        return False
    return len(best) == len(expected) and all(
        row["label"] == label and abs(row["score"] - score) < 1e-4
        for row, (label, score) in zip(best, expected, strict=True)
    )


class Client(asyncio.Protocol):
    """A connection that has one request in flight at most.

    Args:
        seen: where answers are counted.
        free: is called when an answer is there and the next request may be sent.
    """

    def __init__(self, seen: Seen, free: "Callable[[Client], None]") -> None:
        self.seen, self.free = seen, free
        self.data = b""
        self.expected: list[tuple[str, float]] | None = None
        self.transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def send(self, request: bytes, expected: list[tuple[str, float]]) -> None:
        """Send a request."""
        self.expected, self.began = expected, time.perf_counter()
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, found, rest = self.data.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        if len(rest) < length:
            return
        assert self.expected is not None
        self.seen.check(int(head[9:12]), rest[:length], self.expected, time.perf_counter() - self.began)
        self.data, self.expected = rest[length:], None
        self.free(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.seen.lost += self.expected is not None
        self.expected = None


Requests = list[tuple[bytes, list[tuple[str, float]]]]


def requests_of(texts: list[str], answers: list[tuple[str, float]], size: int) -> Requests:
    """Return requests of `size` texts as bytes, each with what should come back."""
    found = []
    for i in range(0, len(texts) - size + 1, size):
        body = json.dumps({"inputs": texts[i] if size == 1 else texts[i : i + size]}).encode()
        head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        found.append((f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body, answers[i : i + size]))
    return found


async def closed_loop(
    port: int, connections: int, requests: Requests, seconds: float, most: int | None = None
) -> tuple[Seen, float]:
    """Let each connection send its next request when it has an answer; return what came back and how long it took."""
    seen, sent = Seen(), 0
    loop = asyncio.get_running_loop()
    start = time.perf_counter()
    done = loop.create_future()
    waiting = connections

    def go_on(client: Client) -> None:
        nonlocal sent, waiting
        if time.perf_counter() - start < seconds and (most is None or sent < most):
            request = requests[sent % len(requests)]
            sent += 1
            client.send(*request)
        else:
            waiting -= 1
            if not waiting:
                done.set_result(None)

    made = [await loop.create_connection(lambda: Client(seen, go_on), "127.0.0.1", port) for _ in range(connections)]
    start = time.perf_counter()
    for _, client in made:
        go_on(client)
    with contextlib.suppress(TimeoutError):  # what never came is counted as lost
        await asyncio.wait_for(done, seconds + 30)
    spent = time.perf_counter() - start
    for transport, _ in made:
        transport.close()
    seen.lost = sent - sum(seen.statuses.values())
    return seen, spent


async def open_loop(port: int, rate: float, requests: Requests, seconds: float) -> tuple[Seen, int, int]:
    """Send requests at a rate, answered or not.

    Returns:
        What came back, how many were sent, and how many could not be because every connection waited.
    """
    seen, free = Seen(), deque[Client]()
    loop = asyncio.get_running_loop()
    made = [await loop.create_connection(lambda: Client(seen, free.append), "127.0.0.1", port) for _ in range(POOL)]
    free.extend(client for _, client in made)
    start, due, sent, held = time.perf_counter(), 0, 0, 0
    while (now := time.perf_counter() - start) < seconds:
        while due < now * rate:
            if free:
                free.popleft().send(*requests[sent % len(requests)])
                sent += 1
            else:
                held += 1
            due += 1
        await asyncio.sleep(0.001)
    for _ in range(3000):  # what is in flight
        if sum(seen.statuses.values()) + seen.lost >= sent:
            break
        await asyncio.sleep(0.01)
    for transport, _ in made:
        transport.close()
    seen.lost = sent - sum(seen.statuses.values())
    return seen, sent, held


# ------------------------------------------------------------------------------------------------- the measurement


def percentile(seconds: list[float], share: float) -> float:
    return sorted(seconds)[min(len(seconds) - 1, int(share * len(seconds)))] * 1e3


def run(coroutine: Any) -> Any:
    return asyncio.run(coroutine)


def checked(name: str, seen: Seen, allowed: set[int]) -> None:
    if seen.wrong or seen.lost or set(seen.statuses) - allowed:
        raise SystemExit(f"error: {name}: {seen.wrong} wrong, {seen.lost} lost, statuses {dict(seen.statuses)}")


def compare(sides: dict[str, Side], requests: Requests, rounds: int, seconds: float) -> dict[str, Any]:
    """Measure the sides in turns."""
    result: dict[str, Any] = {}
    for connections in CONNECTIONS:
        rates: dict[str, list[float]] = {}
        p50: dict[str, list[float]] = {}
        p99: dict[str, list[float]] = {}
        used: dict[str, list[float]] = {}
        for number in range(rounds + 1):
            for name, side in sides.items():
                before = side.processor()
                seen, spent = run(closed_loop(side.port, connections, requests, seconds if number else 0.5))
                checked(name, seen, {200})
                if number:
                    rates.setdefault(name, []).append(len(seen.seconds) / spent)
                    used.setdefault(name, []).append((side.processor() - before) / len(seen.seconds) * 1e3)
                    p50.setdefault(name, []).append(percentile(seen.seconds, 0.5))
                    p99.setdefault(name, []).append(percentile(seen.seconds, 0.99))
        entry: dict[str, Any] = {}
        for name in sides:
            entry[name] = {
                "requests_per_second": round(statistics.median(rates[name]), 1),
                "p50_ms": round(statistics.median(p50[name]), 2),
                "p99_ms": round(statistics.median(p99[name]), 2),
                "processor_ms_per_request": round(statistics.median(used[name]), 3),
            }
            print(f"{connections:3} connections  {name:16}  {entry[name]}", flush=True)
        others = [name for name in sides if name != "ours"]
        entry["ours / better naive"] = round(
            statistics.median(rates["ours"][i] / max(rates[name][i] for name in others) for i in range(rounds)), 2
        )
        print(f"{connections:3} connections  ours / better naive: {entry['ours / better naive']}", flush=True)
        result[str(connections)] = entry
    return result


def overload(port: int, requests: Requests, seconds: float) -> dict[str, Any]:
    """Offer twice what saturates the service."""
    seen, spent = run(closed_loop(port, 32, requests, seconds))
    saturating = len(seen.seconds) / spent
    checked("at saturation", seen, {200})
    seen, sent, held = run(open_loop(port, 2 * saturating, requests, seconds))
    checked("at overload", seen, ALLOWED)
    found = {
        "texts_per_request": TEXTS,
        "saturating_requests_per_second": round(saturating, 1),
        "sent": sent,
        "not_sent_because_all_connections_waited": held,
        "statuses": {str(status): count for status, count in sorted(seen.statuses.items())},
        "answered_per_second": round(len(seen.seconds) / seconds, 1),
        "p99_ms_of_answers": round(percentile(seen.seconds, 0.99), 1),
        "wrong": seen.wrong,
        "lost": seen.lost,
    }
    print(f"overload: {found}", flush=True)
    return found


def memory(side: Side, requests: Requests, most: int) -> dict[str, Any]:
    """Watch resident memory over many requests, after a tenth of them."""
    first = max(1, most // 10)
    seen, _ = run(closed_loop(side.port, 64, requests, 600, first))
    checked("memory", seen, {200})
    before = side.memory()
    seen, _ = run(closed_loop(side.port, 64, requests, 600, most - first))
    checked("memory", seen, {200})
    found = {"requests": most, "mb_after_a_tenth": round(before, 1), "mb_at_the_end": round(side.memory(), 1)}
    print(f"memory: {found}", flush=True)
    return found


def distinct(deploy: Path, texts: list[str]) -> tuple[list[str], list[tuple[str, float]]]:
    """Return the texts whose answers differ by more than the tolerance, and the answers."""
    from bert_miniatures import Predictor

    kept: dict[tuple[str, int], tuple[str, tuple[str, float]]] = {}
    for text, answer in zip(texts, Predictor(deploy, threads=1)(texts), strict=True):
        kept.setdefault((answer["label"], round(answer["score"] / 4e-4)), (text, (answer["label"], answer["score"])))
    rows = list(kept.values())
    return [text for text, _ in rows], [answer for _, answer in rows]


def main() -> None:
    if sys.argv[1:2] == ["--naive"]:
        serve_naively(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--glue", type=Path, required=True, help="GLUE in the official layout")
    parser.add_argument("--seconds", type=float, default=4, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=100_000, help="over which memory is watched")
    parser.add_argument("--only", choices=("compare", "overload", "memory"), help="one part alone")
    parser.add_argument("--out", type=Path, default=RESULT, help="where the JSON goes")
    options = parser.parse_args()
    from bert_miniatures.card import versions
    from finetune_speed import cpu_name
    from start_model import sst2  # torch, whose import the naive server pays itself

    machine = {"cpu": cpu_name(), "cores": os.cpu_count()}
    machine |= versions("fastapi", "uvicorn", "httptools", "onnxruntime", "transformers")
    result: dict[str, Any] = {"date": date.today().isoformat(), "machine": machine, "seconds": options.seconds}
    wanted = [options.only] if options.only else ["compare", "overload", "memory"]
    with tempfile.TemporaryDirectory() as folder:
        model, deploy = make_models(Path(folder))
        texts, answers = distinct(deploy, sst2(options.glue, "dev"))
        result |= {"texts": len(texts), "rounds": options.rounds}
        ours = ["-m", "bert_miniatures", "serve", str(deploy), "--port"]
        naive = [__file__, "--naive", str(model)]
        one = requests_of(texts, answers, 1)
        with started(lambda port: [*ours, str(port)]) as side:
            if "compare" in wanted:
                with (
                    started(lambda port: [*naive, str(port), "1"]) as single,
                    started(lambda port: [*naive, str(port), "0"]) as every,
                ):
                    sides = {"ours": side, "naive, 1 thread": single, "naive, threads": every}
                    result["compare"] = compare(sides, one, options.rounds, options.seconds)
            if "memory" in wanted:
                result["memory"] = memory(side, one, options.requests)
        if "overload" in wanted:
            with started(lambda port: [*ours, str(port), "--queue", "256"]) as side:
                result["overload"] = overload(side.port, requests_of(texts, answers, TEXTS), options.seconds)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
