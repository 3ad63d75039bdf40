"""A corpus as word pieces on the disk: tokenised once, opened by memory map.

Each file is encoded into a folder of its own, whole or absent, by as many processes as there are cores; the folders are
then joined. Work that was interrupted goes on with the files that are not done. The key of the result is made of the
files' bytes, the tokenizer and the rules, so that a changed corpus or tokenizer never meets an old encoding.
"""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt

from bert_miniatures.data.corpus import EncodingErrors, Faults, Source, document_hash, documents
from bert_miniatures.data.sentences import split_sentences
from bert_miniatures.errors import DataError, WorkFailed
from bert_miniatures.files import atomic_folder, cache_folder, read_json, write_json
from bert_miniatures.machine import cores
from bert_miniatures.pool import Job, Pool
from bert_miniatures.pool_worker import raise_for, serve
from bert_miniatures.tokenizer import Tokenizer
from bert_miniatures.transfer import locked
from bert_miniatures.watch import Watch

__all__ = ["EncodedCorpus", "corpus_checksum", "encode_corpus", "main"]

_FORMAT = "pretraining-1"  # another number where sentences, documents or files change
_CHARACTERS = 2**20  # of text handed to the tokenizer at once
_NO_LIMIT = 2**31 - 1  # pieces in a row
_WORKER = (sys.executable, "-P", "-m", "bert_miniatures.data.encoding")
_ARRAYS = {"sentences": "<i8", "documents": "<i8", "hashes": "<u8"}


@dataclass(frozen=True)
class EncodedCorpus:
    """The word pieces of a corpus, memory-mapped: sentence s is `ids[sentences[s]:sentences[s + 1]]`.

    Attributes:
        ids: uint16 or int32 [tokens], no special tokens.
        sentences: int64 [S + 1], where each sentence begins, and the end of the last.
        documents: int64 [D + 1], the number of each document's first sentence, and the end of the last.
        hashes: uint64 [D], of each document's text.
        checksum: of the corpus: its bytes and how they are read.
        unknown: how many pieces are [UNK].
        bad_lines: lines that were not UTF-8.
    """

    ids: npt.NDArray[np.uint16 | np.int32]
    sentences: npt.NDArray[np.int64]
    documents: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]
    checksum: str
    unknown: int = 0
    bad_lines: int = 0


def corpus_checksum(sources: Sequence[Source], on_errors: EncodingErrors = "error") -> str:
    """Return the SHA-256 of a corpus: the bytes of its files and how they are read, not their names."""
    rules = [[source.sha256, source.kind, source.packing, source.column] for source in sources]
    return hashlib.sha256(json.dumps([_FORMAT, on_errors, *rules]).encode()).hexdigest()


def encode_corpus(
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    *,
    on_errors: EncodingErrors = "error",
    processes: int | None = None,
    cache: Path | None = None,
    watch: Watch | None = None,
) -> EncodedCorpus:
    """Tokenise a corpus into the cache, or open it there, in memory for a few documents a process.

    Args:
        sources: from `open_corpus`.
        on_errors: what to do with lines that are not UTF-8; see `documents`.
        processes: at once; None means as many as there are cores. With 1 all is done in this process.
        cache: the folder; None means `pretraining` in the cache folder.

    Raises:
        DataError: the corpus cannot be read or has no words.
        DiskFull: no space left on the device.
    """
    watch = watch or Watch()
    checksum = corpus_checksum(sources, on_errors)
    key = hashlib.sha256(f"{checksum} {tokenizer.fingerprint}".encode()).hexdigest()[:32]
    folder = (cache or cache_folder() / "pretraining") / key
    if (found := _opened(folder)) is None:
        with locked(folder):
            if (found := _opened(folder)) is None:  # nobody else made it meanwhile
                _encode(sources, tokenizer, on_errors, processes, folder, watch)
                found = _opened(folder)
    if found is None:
        raise WorkFailed(f"{folder}: was written and cannot be read; is something else removing files there?")
    if found.bad_lines:
        first = read_json(folder / "facts.json")["first_bad_line"]
        watch.warn(f"{found.bad_lines:,} lines of the corpus are not UTF-8 ({on_errors}); the first is {first}")
    return found


def _opened(folder: Path) -> EncodedCorpus | None:
    """Map the arrays of a finished encoding; None where it is absent or a file has not the size that it should."""
    try:
        facts = read_json(folder / "facts.json")
        found = {name: _mapped(folder / name, kind) for name, kind in (_ARRAYS | {"ids": facts["ids"]}).items()}
        counts = (len(found["ids"]), len(found["sentences"]) - 1, len(found["documents"]) - 1, len(found["hashes"]))
        if counts != (facts["tokens"], facts["sentences"], facts["documents"], facts["documents"]):
            return None
        return EncodedCorpus(
            **found, checksum=facts["checksum"], unknown=facts["unknown"], bad_lines=facts["bad_lines"]
        )
    except (DataError, OSError, ValueError, KeyError, TypeError):
        return None


def _mapped(path: Path, kind: str) -> Any:
    return np.asarray(np.memmap(path, dtype=np.dtype(kind), mode="r"))


# ---- all files


def _encode(
    sources: Sequence[Source],
    tokenizer: Tokenizer,
    on_errors: EncodingErrors,
    processes: int | None,
    folder: Path,
    watch: Watch,
) -> None:
    parts = folder.with_name(f"{folder.name}.parts")
    shutil.rmtree(folder, ignore_errors=True)  # a damaged one
    parts.mkdir(parents=True, exist_ok=True)
    for leftover in parts.glob(".*.tmp*"):
        shutil.rmtree(leftover, ignore_errors=True)
    todo = {source.sha256: source for source in sources if not (parts / source.sha256 / "facts.json").is_file()}
    watch.note(f"tokenising {len(todo)} of {len(sources)} files into {folder}; this is done once")
    processes = min(processes or cores(), len(todo))
    work = _in_this_process if processes <= 1 else _in_processes
    work(list(todo.values()), tokenizer, on_errors, parts, processes, watch)
    _join([parts / source.sha256 for source in sources], folder, corpus_checksum(sources, on_errors))
    shutil.rmtree(parts, ignore_errors=True)


def _in_this_process(
    sources: Sequence[Source], tokenizer: Tokenizer, on_errors: EncodingErrors, parts: Path, _: int, watch: Watch
) -> None:
    progress = _Progress(sources, watch)
    for source in sources:
        _encode_file(source, tokenizer, on_errors, parts / source.sha256, partial(progress, source))


def _in_processes(
    sources: Sequence[Source], tokenizer: Tokenizer, on_errors: EncodingErrors, parts: Path, count: int, watch: Watch
) -> None:
    tokenizer.save(parts / "tokenizer")
    progress, by_name = _Progress(sources, watch), {str(source.path): source for source in sources}
    environment = {"TOKENIZERS_PARALLELISM": "false"}
    with Pool(_WORKER, count, parts / "log", environment) as pool:
        for name, source in sorted(by_name.items(), key=lambda item: -item[1].path.stat().st_size):
            described = asdict(source) | {"path": str(source.path.absolute())}
            pool.submit(Job(name, {"source": described, "on_errors": on_errors, "parts": str(parts.absolute())}))
        for event in pool.events():
            if event.note:
                watch.note(event.note)
            if event.progress:
                progress(by_name[event.job.name], event.progress[0])
            raise_for(event.job.name, event.answer or {}, "tokenised")


class _Progress:
    """Adds what the files have come to; counted in bytes of the files as they lie on the disk."""

    def __init__(self, sources: Sequence[Source], watch: Watch) -> None:
        self._watch, self._at = watch, dict.fromkeys((source.sha256 for source in sources), 0)
        self._total = sum(source.path.stat().st_size for source in sources)

    def __call__(self, source: Source, at: int) -> None:
        self._at[source.sha256] = at
        done = sum(self._at.values())
        self._watch.progress(done >> 10, self._total >> 10, "KiB of text tokenised")


def _join(parts: Sequence[Path], folder: Path, checksum: str) -> None:
    """Put the files' arrays one after the other. Sentences and documents are counted on."""
    facts = [read_json(part / "facts.json") for part in parts]
    total = {name: sum(fact[name] for fact in facts) for name in ("tokens", "sentences", "documents")}
    if not total["tokens"]:
        raise DataError("the corpus has no words")
    with atomic_folder(folder) as temporary:
        _append(temporary / "ids", [part / "ids" for part in parts])
        _append(temporary / "hashes", [part / "hashes" for part in parts])
        for name, unit in (("sentences", "tokens"), ("documents", "sentences")):
            with (temporary / name).open("wb") as out:
                start = 0
                out.write(np.int64(0).tobytes())
                for part, fact in zip(parts, facts, strict=True):
                    for block in _blocks(part / name):
                        out.write((block + start).tobytes())
                    start += fact[unit]
        counts = {name: sum(fact[name] for fact in facts) for name in ("unknown", "bad_lines")}
        first = next((fact["first_bad_line"] for fact in facts if fact["bad_lines"]), "")
        known = {"format": _FORMAT, "checksum": checksum, "ids": facts[0]["ids"], "first_bad_line": first}
        write_json(temporary / "facts.json", known | total | counts)


def _append(path: Path, parts: Sequence[Path]) -> None:
    with path.open("wb") as out:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, out, 2**20)


def _blocks(path: Path) -> Iterator[npt.NDArray[np.int64]]:
    with path.open("rb") as file:
        while data := file.read(2**20):
            yield np.frombuffer(data, "<i8")


# ---- one file


def _encode_file(
    source: Source, tokenizer: Tokenizer, on_errors: EncodingErrors, folder: Path, heard: Callable[[int], None]
) -> None:
    """Write a file's arrays; here `sentences` and `documents` have the ends only."""
    faults = Faults()
    with atomic_folder(folder, overwrite=True) as temporary, ExitStack() as stack:
        files = {name: stack.enter_context((temporary / name).open("wb")) for name in ("ids", *_ARRAYS)}
        writer = _Writer(tokenizer, files)
        for document in documents(source, on_errors=on_errors, faults=faults, heard=heard):
            writer.add(document)
        writer.flush()
        facts = {"tokens": writer.tokens, "sentences": writer.sentences, "documents": writer.documents}
        facts |= {"unknown": writer.unknown, "bad_lines": faults.lines}
        write_json(temporary / "facts.json", facts | {"ids": writer.kind, "first_bad_line": faults.first})


class _Writer:
    """Collects documents and encodes them a million characters at a time."""

    def __init__(self, tokenizer: Tokenizer, files: Mapping[str, IO[bytes]]) -> None:
        self.tokens = self.sentences = self.documents = self.unknown = 0
        self.kind = "<u2" if len(tokenizer.vocabulary) <= 2**16 else "<i4"
        self._tokenizer, self._files = tokenizer, files
        self._texts: list[str] = []
        self._counts: list[int] = []
        self._hashes: list[int] = []
        self._characters = 0

    def add(self, document: list[str]) -> None:
        before = len(self._texts)
        for paragraph in document:
            self._texts += split_sentences(paragraph)
            self._characters += len(paragraph)
        self._counts.append(len(self._texts) - before)
        self._hashes.append(document_hash(document))
        if self._characters >= _CHARACTERS:
            self.flush()

    def flush(self) -> None:
        """Write what was collected. Sentences without a piece, and documents without a sentence, are left out."""
        encoded = self._tokenizer.encode(self._texts, max_length=_NO_LIMIT)
        ends = np.cumsum(encoded.lengths, dtype=np.int64)
        inner = np.ones(len(encoded.ids), bool)
        inner[ends - encoded.lengths] = inner[ends - 1] = False  # [CLS] and [SEP]
        lengths = encoded.lengths.astype(np.int64) - 2
        owner = np.repeat(np.arange(len(self._counts)), self._counts)
        counts = np.bincount(owner[lengths > 0], minlength=len(self._counts)).astype(np.int64)
        lengths = lengths[lengths > 0]
        self._files["ids"].write(encoded.ids[inner].astype(self.kind).tobytes())
        self._files["sentences"].write((self.tokens + np.cumsum(lengths)).astype("<i8").tobytes())
        self._files["documents"].write((self.sentences + np.cumsum(counts[counts > 0])).astype("<i8").tobytes())
        self._files["hashes"].write(np.array(self._hashes, "<u8")[counts > 0].tobytes())
        self.tokens += int(lengths.sum())
        self.sentences += len(lengths)
        self.documents += int((counts > 0).sum())
        self.unknown += encoded.unknown
        self._texts, self._counts, self._hashes, self._characters = [], [], [], 0


# ---- the process of a pool: see pool.py for what it hears and says


def main() -> None:
    """Encode the files that are asked for until the input ends; its end while one is encoded stops that too."""
    serve(_work)


def _work(request: dict[str, Any], say: Callable[[int, int], None]) -> None:
    parts, described = Path(request["parts"]), request["source"]
    source = Source(**described | {"path": Path(described["path"])})
    said = 0.0

    def heard(at: int) -> None:
        nonlocal said
        if time.monotonic() - said > 0.5:
            said = time.monotonic()
            say(at, source.path.stat().st_size)

    tokenizer = Tokenizer.from_folder(parts / "tokenizer")
    _encode_file(source, tokenizer, cast(EncodingErrors, request["on_errors"]), parts / source.sha256, heard)


if __name__ == "__main__":
    main()
