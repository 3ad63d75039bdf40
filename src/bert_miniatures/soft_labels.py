"""What teachers say about texts: files of logits keyed by a hash of the text, their averages, looking texts up.

A file is Parquet with the columns `hash` (16 bytes) and `logits` (float32 [C]) and one JSON document in its metadata:
format version, kind, label names and the teachers. It holds no text.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bert_miniatures.errors import DataError
from bert_miniatures.files import atomic_write
from bert_miniatures.outputs import shares

__all__ = [
    "FORMAT",
    "About",
    "Hashes",
    "Lookup",
    "SoftLabels",
    "hashes_of",
    "is_soft_labels",
    "logits_from",
    "mean_of",
    "merge",
    "read",
    "write",
]

FORMAT = 1
_KEY = b"soft_labels"
_DIFFERENT = 1e-3  # the same text in another batch differs by rounding, which is far less
_SMALLEST = 1e-12  # a probability of 0 has no logit
_GROUP = 65_536  # rows of a row group in a merged file

Floats = npt.NDArray[np.float32]
Hashes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class About:
    """What the logits of a file mean.

    Attributes:
        kind: classification, regression or multilabel.
        labels: a name per column of the logits; empty for regression.
        teachers: who answered: name, sha256, and where known parameters and bytes of each.
    """

    kind: str
    labels: tuple[str, ...]
    teachers: tuple[Mapping[str, Any], ...] = ()

    @property
    def outputs(self) -> int:
        """Number of columns of the logits."""
        return len(self.labels) or 1

    def document(self) -> dict[str, Any]:
        """Return what is written into the metadata."""
        teachers = [dict(teacher) for teacher in self.teachers]
        return {"format": FORMAT, "kind": self.kind, "labels": list(self.labels), "teachers": teachers}


@dataclass(frozen=True, eq=False)
class SoftLabels:
    """Logits of texts.

    Attributes:
        hashes: uint8 [N, 16], of the texts, as `hashes_of` makes them.
        logits: float32 [N, C]; for regression [N, 1], the score. NaN where a teacher did not know the text.
    """

    about: About
    hashes: Hashes
    logits: Floats


def hashes_of(texts: Sequence[str], pairs: Sequence[str] | None) -> Hashes:
    """Return 16 bytes per text, or per pair of texts: uint8 [N, 16]. Any change of a text gives another hash."""
    out = bytearray()
    for i, text in enumerate(texts):
        raw = text.encode("utf-8", "surrogatepass")
        found = hashlib.blake2b(len(raw).to_bytes(8, "little") + raw, digest_size=16)
        if pairs is not None:
            found.update(pairs[i].encode("utf-8", "surrogatepass"))
        out += found.digest()
    return np.frombuffer(bytes(out), np.uint8).reshape(-1, 16)


# ---------------------------------------------------------------------------------------------------- averages


def logits_from(kind: str, probabilities: npt.NDArray[np.float64]) -> Floats:
    """Return logits whose softmax (multilabel: sigmoid) is these probabilities [N, C]; regression: the scores."""
    if kind == "regression":
        return probabilities.astype(np.float32)
    known = np.clip(probabilities, _SMALLEST, None)
    if kind == "multilabel":
        return (np.log(known) - np.log(np.clip(1 - probabilities, _SMALLEST, None))).astype(np.float32)
    return np.log(known).astype(np.float32)


def mean_of(kind: str, answers: Sequence[Floats]) -> Floats:
    """Average what several teachers say of the same rows, label by label.

    Probabilities are averaged, not logits: the soft cross-entropy is linear in the teacher's probabilities, so that
    learning from the mean is learning from each teacher for an equal share; and the logits of two teachers have no
    common scale, so that in a mean of logits the loudest teacher would decide. Of scores the mean is taken.

    Args:
        kind: of the task.
        answers: [N, C] per teacher, columns in one order.

    Returns:
        [N, C]; one teacher's logits as they are.
    """
    if len(answers) == 1:
        return answers[0]
    total = shares(kind, answers[0])
    for more in answers[1:]:
        total = total + shares(kind, more)
    return logits_from(kind, total / len(answers))


# ---------------------------------------------------------------------------------------------------- files


def write(path: Path, found: SoftLabels) -> None:
    """Write soft labels, atomically.

    Raises:
        DiskFull: no space left on the device.
    """
    from pyarrow import parquet

    table = _table(found)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        parquet.write_table(table, file)


def merge(parts: Iterable[Path], path: Path, about: About) -> int:
    """Write one file from many, atomically and in memory for a few parts; rows without an answer are left out.

    Returns:
        The number of rows written.
    """
    from pyarrow import parquet

    rows, held = 0, [SoftLabels(about, np.empty((0, 16), np.uint8), np.empty((0, about.outputs), np.float32))]
    with (
        atomic_write(path) as temporary,
        temporary.open("wb") as file,
        parquet.ParquetWriter(file, _table(held[0]).schema) as writer,
    ):
        for part in parts:
            found = read(part)
            known = ~np.isnan(found.logits).any(1)
            held.append(SoftLabels(about, found.hashes[known], found.logits[known]))
            rows += int(known.sum())
            if sum(len(one.hashes) for one in held) >= _GROUP:
                writer.write_table(_table(_joined(held, about)))
                held = []
        if held:
            writer.write_table(_table(_joined(held, about)))
    return rows


def _joined(found: Sequence[SoftLabels], about: About) -> SoftLabels:
    hashes, logits = [one.hashes for one in found], [one.logits for one in found]
    return SoftLabels(about, np.concatenate(hashes), np.concatenate(logits))


def _table(found: SoftLabels) -> Any:
    import pyarrow as pa

    raw = pa.py_buffer(np.ascontiguousarray(found.hashes).tobytes())
    hashes = pa.FixedSizeBinaryArray.from_buffers(pa.binary(16), len(found.hashes), [None, raw])
    flat = pa.array(np.ascontiguousarray(found.logits, np.float32).reshape(-1))
    logits = pa.FixedSizeListArray.from_arrays(flat, found.about.outputs)
    document = json.dumps(found.about.document(), ensure_ascii=False).encode()
    return pa.table({"hash": hashes, "logits": logits}).replace_schema_metadata({_KEY: document})


def is_soft_labels(path: Path) -> bool:
    """Tell whether a Parquet file is one of soft labels, by its metadata."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return _KEY in (parquet.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a whole Parquet file ({_first(error)})") from None


def read(path: Path) -> SoftLabels:
    """Read soft labels.

    Raises:
        DataError: missing, damaged, cut short, or of a newer format.
    """
    import pyarrow as pa
    from pyarrow import compute, parquet

    try:
        table = parquet.read_table(path)
        about = _about(json.loads((table.schema.metadata or {})[_KEY]), path)
        logits = np.asarray(compute.list_flatten(table["logits"]).to_numpy(), np.float32)
        logits = logits.reshape(table.num_rows, about.outputs)
        raw = b"".join(bytes(one) for one in map(_bytes_of, table["hash"].chunks))
        hashes = np.frombuffer(raw, np.uint8).reshape(table.num_rows, 16)
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a whole file of soft labels ({_first(error)})") from None
    return SoftLabels(about, hashes, logits)


def _bytes_of(chunk: Any) -> bytes:
    if chunk.type.byte_width != 16:
        raise ValueError(f"hashes of {chunk.type.byte_width} bytes")
    return bytes(memoryview(chunk.buffers()[1])[16 * chunk.offset : 16 * (chunk.offset + len(chunk))])


def _about(document: Mapping[str, Any], path: Path) -> About:
    if document["format"] > FORMAT:
        raise DataError(f"{path}: soft labels of format {document['format']}, newer than {FORMAT}, which is read here")
    return About(document["kind"], tuple(document["labels"]), tuple(document["teachers"]))


def _first(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error} is missing"
    return (str(error).splitlines() or [type(error).__name__])[0]


# ---------------------------------------------------------------------------------------------------- looking up


class Lookup:
    """Finds the logits of texts.

    Args:
        found: the soft labels. Where a text is there more than once with different logits, they are averaged.

    Attributes:
        conflicts: texts whose rows differed.
    """

    def __init__(self, found: SoftLabels) -> None:
        self.about, self.conflicts = found.about, 0
        usable = ~np.isnan(found.logits).any(1)
        words = _words(found.hashes[usable])
        order = np.lexsort((words[:, 1], words[:, 0]))
        words, logits = words[order], found.logits[usable][order]
        new = np.ones(len(words), bool)
        new[1:] = (words[1:] != words[:-1]).any(1)
        starts = np.flatnonzero(new)
        self.words, self.logits = words[starts], logits[starts]
        if len(starts) < len(words):
            self._settle(logits, starts)

    def _settle(self, logits: Floats, starts: npt.NDArray[np.int64]) -> None:
        low, high = np.minimum.reduceat(logits, starts), np.maximum.reduceat(logits, starts)
        differs = (high - low > _DIFFERENT).any(1)
        self.conflicts = int(differs.sum())
        counts = np.diff([*starts, len(logits)])[:, None]
        means = np.add.reduceat(shares(self.about.kind, logits), starts) / counts
        self.logits = self.logits.copy()
        self.logits[differs] = logits_from(self.about.kind, means[differs])

    def find(self, hashes: Hashes) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Return the logits [N, C], 0 where there are none, and which rows have some [N]."""
        out = np.zeros((len(hashes), self.about.outputs), np.float32)
        if not len(self.words) or not len(hashes):
            return out, np.zeros(len(hashes), bool)
        wanted = _words(hashes)
        # 64 bits are searched and 128 compared; that two texts of a file share 64 bits is not to be expected
        place = np.minimum(np.searchsorted(self.words[:, 0], wanted[:, 0]), len(self.words) - 1)
        known = (self.words[place] == wanted).all(1)
        out[known] = self.logits[place[known]]
        return out, known


def _words(hashes: Hashes) -> npt.NDArray[np.uint64]:
    return np.ascontiguousarray(hashes).view("<u8").reshape(-1, 2)
