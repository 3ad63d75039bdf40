"""Micro-batches: requests wait in a bounded queue, and what waits is computed together in one thread.

While a batch is computed the next one gathers by itself. Only where the computer is free does a batch wait for company,
`window` seconds at most, and only if the batch before had some: a client that is alone waits for nobody.
"""

import asyncio
import contextlib
import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter

import numpy as np

from bert_miniatures.engine import Counts, Floats
from bert_miniatures.predict import Predictor
from bert_miniatures.serve.failures import Refused
from bert_miniatures.serve.limits import Limits
from bert_miniatures.serve.meters import ModelMeters

__all__ = ["Batcher"]

_LETTERS = 3  # characters per piece, for the estimate; English has 4 to 5
_LONGEST_RETRY = 60


@dataclass(eq=False)
class _Job:
    """A request in the queue."""

    texts: list[str]
    pairs: list[str] | None
    positions: int
    answer: "asyncio.Future[Floats]"
    waits: bool = True


class Batcher:
    """Computes logits for many clients with one model. All methods are for the event loop's thread.

    Args:
        predictor: the model.
        max_length: of a row, in pieces.
        limits: of queue, batch and time.
        meters: where batches are counted.
    """

    def __init__(self, predictor: Predictor, max_length: int, limits: Limits, meters: ModelMeters) -> None:
        self._predictor, self._max_length, self._limits, self._meters = predictor, max_length, limits, meters
        self._outputs = max(1, len(predictor.labels.names))
        self._jobs: deque[_Job] = deque()
        self._texts = self._positions = 0
        self._came = asyncio.Event()
        self._full = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._task: asyncio.Task[None] | None = None
        self._had_company = False
        self._rate = 100.0  # texts a second, measured

    def start(self) -> None:
        """Begin to work."""
        self._task = asyncio.get_running_loop().create_task(self._work())

    async def stop(self) -> None:
        """Refuse what still waits, finish what is being computed, and end the thread."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        for job in self._jobs:
            if not job.answer.done():
                job.answer.set_exception(Refused("stopping", "the service is stopping"))
        self._thread.shutdown(wait=True)

    async def logits(self, texts: list[str], pairs: list[str] | None) -> Floats:
        """Return [N, C] for the texts of a request, in their order.

        Raises:
            Refused: the queue is full, or there was no answer in time.
        """
        if self._texts + len(texts) > self._limits.queue:
            raise Refused("queue-full", f"{self._texts} texts wait already", retry_after=self._retry_after())
        answer: asyncio.Future[Floats] = asyncio.get_running_loop().create_future()
        job = _Job(texts, pairs, self._estimate(texts, pairs), answer)
        self._jobs.append(job)
        self._count(job, +1)
        self._came.set()
        if self._positions >= self._limits.batch:
            self._full.set()
        try:
            async with asyncio.timeout(self._limits.timeout):
                return await answer
        except TimeoutError:
            raise Refused(
                "timeout", f"no answer within {self._limits.timeout:g} seconds", retry_after=self._retry_after()
            ) from None
        finally:
            if job.waits:  # given up, by the clock or by the client
                self._jobs.remove(job)
                self._count(job, -1)

    def _estimate(self, texts: list[str], pairs: list[str] | None) -> int:
        lengths = map(len, texts) if pairs is None else map(lambda a, b: len(a) + len(b), texts, pairs)
        return sum(min(self._max_length, 3 + length // _LETTERS) for length in lengths)

    def _count(self, job: _Job, sign: int) -> None:
        self._texts += sign * len(job.texts)
        self._positions += sign * job.positions
        self._meters.queue.set(self._texts)

    def _retry_after(self) -> int:
        return min(_LONGEST_RETRY, max(1, math.ceil(self._texts / self._rate)))

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._came.wait()
            if self._had_company and self._positions < self._limits.batch and self._limits.window:
                self._full.clear()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._full.wait(), self._limits.window)
            jobs = self._take()
            if not self._jobs:
                self._came.clear()
            self._had_company = len(jobs) > 1
            if jobs:
                await self._answer(loop, jobs)

    def _take(self) -> list[_Job]:
        """Take what fits into a batch, one request at least."""
        jobs: list[_Job] = []
        positions = 0
        while self._jobs and (not jobs or positions + self._jobs[0].positions <= self._limits.batch):
            job = self._jobs.popleft()
            job.waits = False
            self._count(job, -1)
            if not job.answer.done():
                jobs.append(job)
                positions += job.positions
        return jobs

    async def _answer(self, loop: asyncio.AbstractEventLoop, jobs: list[_Job]) -> None:
        computed = loop.run_in_executor(self._thread, self._compute, jobs)
        try:
            found = await asyncio.shield(computed)
        except asyncio.CancelledError:  # the service stops; this batch is still answered
            self._hand_out(jobs, await computed)
            raise
        self._hand_out(jobs, found)

    def _hand_out(self, jobs: list[_Job], found: list[Floats | Exception]) -> None:
        for job, logits in zip(jobs, found, strict=True):
            if job.answer.done():  # nobody waits any more
                continue
            if isinstance(logits, Exception):
                job.answer.set_exception(logits)
            else:
                job.answer.set_result(logits)

    def _compute(self, jobs: list[_Job]) -> list[Floats | Exception]:
        """Compute jobs together; where that fails, one by one, so that no request spoils its neighbours."""
        start = perf_counter()
        engine = self._predictor.engine
        engine.counts = Counts()
        try:
            found: list[Floats | Exception] = list(self._together(jobs))
        except Exception:  # of any kind: it is handed to the request that causes it
            found = [self._alone(job) for job in jobs]
        seconds = perf_counter() - start
        texts = sum(len(job.texts) for job in jobs)
        self._rate += 0.1 * (texts / seconds - self._rate)
        done = [logits for logits in found if not isinstance(logits, Exception)]
        self._meters.batch(texts, seconds, engine.counts, np.concatenate(done) if done else None)
        return found

    def _together(self, jobs: list[_Job]) -> list[Floats]:
        """Compute single texts in one call and pairs in another."""
        found: dict[int, Floats] = {}
        for paired in (False, True):
            chosen = [i for i, job in enumerate(jobs) if (job.pairs is not None) == paired]
            texts = [text for i in chosen for text in jobs[i].texts]
            pairs = [text for i in chosen for text in jobs[i].pairs or ()] if paired else None
            if not texts:  # requests of no texts
                found |= {i: np.empty((0, self._outputs), np.float32) for i in chosen}
                continue
            logits = self._predictor.logits(texts, pairs)
            ends = np.cumsum([len(jobs[i].texts) for i in chosen])[:-1]
            found |= dict(zip(chosen, np.split(logits, ends), strict=True))
        return [found[i] for i in range(len(jobs))]

    def _alone(self, job: _Job) -> Floats | Exception:
        try:
            return self._together([job])[0]
        except Exception as error:  # as in `_compute`
            return error
