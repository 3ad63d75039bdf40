"""Texts and what a teacher makes of them, on the disk: written once in shards, opened by memory map.

A store is a folder, whole or absent; while it is made there is a folder of parts beside it, in which every file is
whole or absent. The key of a store is made of the corpus, the documents, the tokenizer, the teacher and the selection.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_miniatures.data.encoding import EncodedCorpus
from bert_miniatures.data.teacher_texts import Selection, choose, gathered, phrases, thinned
from bert_miniatures.errors import DataError
from bert_miniatures.files import atomic_folder, atomic_write, read_json, write_json
from bert_miniatures.tokenizer import Tokenizer

__all__ = ["TeacherStore", "Texts", "join", "mapped", "missing", "open_store", "open_texts", "shard", "store_key",
           "write_shard", "write_texts"]  # fmt: skip

Ints = npt.NDArray[np.int64]

_FORMAT = "teacher-1"  # another number where texts or files change
_BLOCK = 2**16  # sentences read at once


@dataclass(frozen=True)
class Texts:
    """N sentences, C thinned copies and P phrases, memory-mapped: text t is `ids[bounds[t]:bounds[t + 1]]`.

    Attributes:
        ids: in the student's pieces, no special ones among them, uint16 or int32.
        bounds: int64 [N + C + P + 1].
        sentences: N; text N + i is a thinned copy of text i.
        phrases: P; the last ones.
    """

    ids: npt.NDArray[np.uint16 | np.int32]
    bounds: Ints
    sentences: int
    phrases: int = 0

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def copies(self) -> int:
        """How many thinned copies there are."""
        return len(self) - self.sentences - self.phrases

    @property
    def alone(self) -> Ints:
        """The numbers of those that are learnt each by itself: sentences and phrases."""
        return np.concatenate([np.arange(self.sentences), np.arange(self.sentences + self.copies, len(self))])


@dataclass(frozen=True)
class TeacherStore:
    """Texts with the teacher's vectors.

    Attributes:
        vectors: float16 [N + C + P, W], memory-mapped.
        folder: where they are.
    """

    texts: Texts
    vectors: npt.NDArray[np.float16]
    folder: Path


def store_key(corpus: EncodedCorpus, documents: Ints, tokenizer: Tokenizer, teacher: str, selection: Selection) -> str:
    """Return the name of a store.

    Args:
        teacher: what decides its vectors: weights, tokenizer, pooling, precision.
    """
    of_documents = hashlib.sha256(np.ascontiguousarray(documents, "<i8").data).hexdigest()
    parts = [_FORMAT, corpus.checksum, tokenizer.fingerprint, of_documents, teacher, asdict(selection)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def open_store(folder: Path) -> TeacherStore | None:
    """Map a finished store; None where it is absent or a file has not the size that it should."""
    try:
        facts = read_json(folder / "facts.json")
        texts = open_texts(folder)
        vectors = mapped(folder / "vectors", "<f2").reshape(-1, facts["width"])
        return TeacherStore(texts, vectors, folder) if texts and len(vectors) == len(texts) else None
    except (DataError, OSError, ValueError, KeyError, TypeError):
        return None


def open_texts(folder: Path) -> Texts | None:
    """Map texts alone."""
    try:
        facts = read_json(folder / "texts.json")
        arrays = mapped(folder / "ids", facts["ids"]), mapped(folder / "bounds", "<i8")
        texts = Texts(*arrays, facts["sentences"], facts.get("phrases", 0))
        whole = len(texts) == facts["texts"] and texts.bounds[-1] == len(texts.ids)
        return texts if whole else None
    except (DataError, OSError, ValueError, KeyError, TypeError):
        return None


def mapped(path: Path, kind: str) -> Any:
    """Map a file of numbers."""
    return np.asarray(np.memmap(path, dtype=np.dtype(kind), mode="r"))


def write_texts(
    corpus: EncodedCorpus, documents: Ints, tokenizer: Tokenizer, selection: Selection, folder: Path
) -> None:
    """Choose sentences, thin some, take phrases of them, and write all into a folder, whole or not at all.

    Raises:
        DataError: the corpus has no sentence of these lengths.
        DiskFull: no space left on the device.
    """
    numbers = choose(corpus, documents, tokenizer, selection)
    kind = np.dtype(corpus.ids.dtype).newbyteorder("<")
    facts: dict[str, Any] = {"ids": kind.str, "sentences": len(numbers)}
    with atomic_folder(folder, overwrite=True) as temporary:
        lengths = []
        with (temporary / "ids").open("wb") as file:
            for start in range(0, len(numbers), _BLOCK):
                block = numbers[start : start + _BLOCK]
                ids, bounds = gathered(corpus.ids, corpus.sentences[block], corpus.sentences[block + 1])
                file.write(ids.astype(kind).tobytes())
                lengths.append(np.diff(bounds))
            file.flush()
            bounds = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
            copied = bounds[: min(selection.copies, len(numbers)) + 1]
            for ids, counts in thinned(mapped(temporary / "ids", kind.str), copied, tokenizer, selection.seed):
                file.write(ids.astype(kind).tobytes())
                lengths.append(counts)
            if selection.phrases:
                whole = mapped(temporary / "ids", kind.str)
                spans = np.stack(phrases(whole, bounds, tokenizer, selection.phrases, selection.seed))
                for start in range(0, spans.shape[1], _BLOCK):
                    ids, ends = gathered(whole, *spans[:, start : start + _BLOCK])
                    file.write(ids.astype(kind).tobytes())
                    lengths.append(np.diff(ends))
                facts["phrases"] = spans.shape[1]
        bounds = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype("<i8")
        (temporary / "bounds").write_bytes(bounds.tobytes())
        facts["texts"] = len(bounds) - 1
        write_json(temporary / "texts.json", facts)


# ---- shards: numbered rows of a table, a file each


def shard(parts: Path, kind: str, start: int) -> Path:
    """Return the file of the rows from `start` on."""
    return parts / kind / f"{start:09}"


def write_shard(path: Path, rows: npt.NDArray[Any]) -> None:
    """Write some rows, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(np.ascontiguousarray(rows).tobytes())


def missing(parts: Path, kind: str, rows: int, size: int) -> list[tuple[int, int]]:
    """Return (first row, end) of the shards that are not there, and remove what was left half-written."""
    for leftover in (parts / kind).glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
    spans = [(start, min(start + size, rows)) for start in range(0, rows, size)]
    return [span for span in spans if not shard(parts, kind, span[0]).is_file()]


def join(path: Path, parts: Iterable[Path]) -> None:
    """Put files one after the other."""
    with path.open("wb") as out:
        for part in parts:
            with part.open("rb") as file:
                shutil.copyfileobj(file, out, 2**20)
