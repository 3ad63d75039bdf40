"""A teacher reads sentences once: vectors and neighbours in shards, by several processes, whole or absent.

Work that was interrupted, with `kill -9` too, goes on with the shards that are not there. A shard is computed by one
thread from its own rows alone: the bytes do not depend on how many processes there are.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from bert_miniatures.data.encoding import EncodedCorpus
from bert_miniatures.data.pairs import PairRules, Pairs, draw_pairs, near_rows, open_pairs, pairs_key, write_pairs
from bert_miniatures.data.teacher_store import (
    TeacherStore,
    join,
    mapped,
    missing,
    open_store,
    open_texts,
    shard,
    store_key,
    write_shard,
    write_texts,
)
from bert_miniatures.data.teacher_texts import Selection
from bert_miniatures.errors import WorkFailed
from bert_miniatures.files import atomic_folder, cache_folder, write_json
from bert_miniatures.machine import cores
from bert_miniatures.pool import Job, Pool
from bert_miniatures.pool_worker import raise_for, serve
from bert_miniatures.teacher import Precision, Teacher, TeacherFolder, check_readable, read_teacher
from bert_miniatures.tokenizer import Tokenizer
from bert_miniatures.transfer import locked
from bert_miniatures.watch import Watch

__all__ = ["main", "make_pairs", "make_store"]

_Found = TypeVar("_Found")

_WORKER = (sys.executable, "-P", "-m", "bert_miniatures.teacher_pass")
_SHARD = {"vectors": 1024, "near": 2048}  # texts; of the first a core makes one in about 20 s with a 6/384 teacher


def make_store(
    corpus: EncodedCorpus,
    documents: npt.NDArray[np.int64],
    student: Tokenizer,
    teacher: TeacherFolder,
    selection: Selection,
    *,
    precision: Precision = "fp32",
    processes: int | None = None,
    cache: Path | None = None,
    watch: Watch | None = None,
) -> TeacherStore:
    """Have a teacher read sentences of a corpus, or open what it made of them before.

    Args:
        corpus: from `encode_corpus`.
        documents: the numbers of those to choose sentences from, ascending.
        student: the tokenizer that the corpus was encoded with.
        selection: which sentences.
        precision: of the teacher.
        processes: at once; None means as many as there are cores, and one on a GPU. With 1 all is done here.
        cache: the folder; None means `teacher` in the cache folder.

    Raises:
        ConfigError: the teacher cannot read the student's pieces.
        DataError: the corpus has no sentence of these lengths.
        DiskFull: no space left on the device.
    """
    watch = watch or Watch()
    key = store_key(corpus, documents, student, f"{teacher.fingerprint} {precision}", selection)
    folder = (cache or cache_folder() / "teacher") / key
    if (found := open_store(folder)) is not None:
        return found
    with locked(folder):
        if open_store(folder) is None:  # nobody else made it meanwhile
            check_readable(teacher, student)
            parts = folder.with_name(f"{folder.name}.parts")
            _write_parts(corpus, documents, student, teacher, selection, parts)
            texts = open_texts(parts / "texts")
            assert texts is not None
            watch.note(
                f"the teacher {teacher.folder} reads {texts.sentences:,} sentences, {texts.copies:,} thinned copies "
                f"and {texts.phrases:,} phrases into {folder}; this is done once"
            )
            request: dict[str, Any] = {"parts": str(parts.absolute()), "teacher": str(teacher.folder.absolute())}
            request["precision"] = precision
            request |= {"pooling": teacher.pooling if not (teacher.folder / "modules.json").is_file() else None}
            _Shards("vectors", len(texts), parts, request, watch, "sentences read by the teacher").make(processes)
            _join_store(folder, parts, len(texts), teacher.width)
            shutil.rmtree(parts, ignore_errors=True)
    return _whole(open_store(folder), folder)


def make_pairs(
    store: TeacherStore, rules: PairRules, *, processes: int | None = None, watch: Watch | None = None
) -> Pairs:
    """Draw pairs of a store's texts, or open those that were drawn before.

    Raises:
        DiskFull: no space left on the device.
    """
    watch, folder = watch or Watch(), store.folder / pairs_key(rules)
    if (found := open_pairs(folder)) is not None:
        return found
    with locked(folder):
        if open_pairs(folder) is None:
            parts = folder.with_name(f"{folder.name}.parts")
            among = min(rules.among, store.texts.sentences)
            count = min(rules.neighbours, among - 1)
            near = np.empty((0, count), np.int32)
            if count and rules.near:
                watch.note(f"looking for neighbours among {among:,} sentences; this is done once")
                request: dict[str, Any] = {"store": str(store.folder.absolute()), "parts": str(parts.absolute())}
                request |= {"among": among, "count": count}
                shards = _Shards("near", among, parts, request, watch, "sentences compared")
                shards.make(processes)
                near = np.concatenate([np.fromfile(path, "<i4") for path in shards.files()]).reshape(-1, count)
            write_pairs(folder, draw_pairs(store, near, rules))
            shutil.rmtree(parts, ignore_errors=True)
    return _whole(open_pairs(folder), folder)


def _whole(found: _Found | None, folder: Path) -> _Found:
    if found is None:
        raise WorkFailed(f"{folder}: was written and cannot be read; is something else removing files there?")
    return found


def _write_parts(
    corpus: EncodedCorpus,
    documents: npt.NDArray[np.int64],
    student: Tokenizer,
    teacher: TeacherFolder,
    selection: Selection,
    parts: Path,
) -> None:
    """Write what processes need to know, unless it is there."""
    if open_texts(parts / "texts") is None:
        write_texts(corpus, documents, student, selection, parts / "texts")
    student.save(parts / "tokenizer")


def _join_store(folder: Path, parts: Path, rows: int, width: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)  # a damaged one
    with atomic_folder(folder, overwrite=True) as temporary:
        for path in (parts / "texts").iterdir():
            shutil.copyfile(path, temporary / path.name)
        join(temporary / "vectors", [shard(parts, "vectors", at) for at in range(0, rows, _SHARD["vectors"])])
        write_json(temporary / "facts.json", {"width": width})


@dataclass(frozen=True)
class _Shards:
    """The shards of one kind.

    Attributes:
        kind: "vectors" or "near".
        rows: of all shards.
        request: what a worker must know, beside which rows.
    """

    kind: str
    rows: int
    parts: Path
    request: dict[str, Any]
    watch: Watch
    what: str

    def files(self) -> list[Path]:
        return [shard(self.parts, self.kind, at) for at in range(0, self.rows, _SHARD[self.kind])]

    def make(self, processes: int | None) -> None:
        """Make those that are not there."""
        todo = missing(self.parts, self.kind, self.rows, _SHARD[self.kind])
        if torch.cuda.is_available() and self.kind == "vectors":
            processes = 1
        count = min(processes or cores(), len(todo))
        heard = self._progress(todo)
        jobs = {str(span[0]): self.request | {"kind": self.kind, "start": span[0], "end": span[1]} for span in todo}
        if count > 1:
            self._in_processes(jobs, count, heard)
        else:
            self._here(jobs, heard)

    def _here(self, jobs: dict[str, dict[str, Any]], heard: Callable[[int], None]) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            for request in jobs.values():
                _work(request, lambda done, total: None)
                heard(request["end"] - request["start"])
        finally:
            torch.set_num_threads(before)
            _teacher.cache_clear()

    def _in_processes(self, jobs: dict[str, dict[str, Any]], count: int, heard: Callable[[int], None]) -> None:
        environment = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.parts.mkdir(parents=True, exist_ok=True)
        with Pool(_WORKER, count, self.parts / "log", environment) as pool:
            for name, request in jobs.items():
                pool.submit(Job(name, request))
            for event in pool.events():
                if event.note:
                    self.watch.note(event.note)
                if event.answer is not None:
                    raise_for(f"{self.what}, from {event.job.name} on", event.answer, "done")
                    heard(event.job.request["end"] - event.job.request["start"])

    def _progress(self, todo: list[tuple[int, int]]) -> Callable[[int], None]:
        left, began, done = sum(end - start for start, end in todo), time.monotonic(), 0

        def heard(rows: int) -> None:
            nonlocal done
            done += rows
            seconds = (time.monotonic() - began) / done * (left - done)
            self.watch.progress(self.rows - left + done, self.rows, self.what, seconds)

        return heard


# ---- a shard


def main() -> None:
    """Make the shards that are asked for until the input ends."""
    torch.set_num_threads(1)
    serve(_work)


def _work(request: dict[str, Any], say: Callable[[int, int], None]) -> None:
    parts, start, end = Path(request["parts"]), request["start"], request["end"]
    rows: npt.NDArray[Any]
    if request["kind"] == "vectors":
        texts = open_texts(parts / "texts")
        assert texts is not None
        teacher = _teacher(request["teacher"], request["pooling"], str(parts / "tokenizer"), request["precision"])
        bounds = texts.bounds[start : end + 1]
        rows = teacher.vectors(texts.ids[bounds[0] : bounds[-1]], bounds - bounds[0])
    else:
        facts = json.loads((Path(request["store"]) / "facts.json").read_text(encoding="utf-8"))
        vectors = mapped(Path(request["store"]) / "vectors", "<f2").reshape(-1, facts["width"])
        rows = near_rows(vectors, request["among"], start, end, request["count"])
    write_shard(shard(parts, request["kind"], start), rows)


@lru_cache(maxsize=1)
def _teacher(folder: str, pooling: Any, student: str, precision: Precision) -> Teacher:
    return Teacher(read_teacher(Path(folder), pooling), Tokenizer.from_folder(Path(student)), precision)


if __name__ == "__main__":
    main()
