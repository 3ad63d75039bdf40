"""Pairs of texts with the teacher's cosine: near neighbours, thinned copies, random ones; a function of the seed.

Near neighbours are found among the first sentences of a store, which are a random sample, by products of blocks.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bert_miniatures.data.teacher_store import TeacherStore, mapped
from bert_miniatures.errors import DataError
from bert_miniatures.files import atomic_folder, read_json, write_json

__all__ = ["PairRules", "Pairs", "cosines", "draw_pairs", "near_rows", "open_pairs", "pairs_key", "write_pairs"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]

_FORMAT = "pairs-1"
_CHUNK = 1024  # texts compared with the asking ones at once
_NEAR, _THINNED, _RANDOM = 0, 1, 2
_ARRAYS = {"a": "<i4", "b": "<i4", "cosine": "<f4", "kind": "<i1"}


@dataclass(frozen=True)
class PairRules:
    """Which pairs.

    Attributes:
        count: pairs. Where a kind has not so many some come more than once.
        near, thinned: shares; the others are random.
        among: neighbours are found among so many sentences.
        neighbours: of each; which of them makes a pair is drawn.
        seed: of all that is drawn.
    """

    count: int = 500_000
    near: float = 0.60
    thinned: float = 0.15
    among: int = 100_000
    neighbours: int = 8
    seed: int = 1

    @property
    def copies(self) -> int:
        """How many thinned copies are wanted."""
        return round(self.count * self.thinned)


@dataclass(frozen=True)
class Pairs:
    """P pairs of a store's texts.

    Attributes:
        a, b: numbers of the texts, int32 [P].
        cosine: the teacher's, float32 [P].
        kind: 0 near, 1 thinned, 2 random, int8 [P].
        mean, deviation: of the cosines.
    """

    a: npt.NDArray[np.int32]
    b: npt.NDArray[np.int32]
    cosine: Floats
    kind: npt.NDArray[np.int8]
    mean: float
    deviation: float

    def __len__(self) -> int:
        return len(self.a)


def pairs_key(rules: PairRules) -> str:
    """Return the name of the pairs' folder, which is in the folder of the store."""
    return f"pairs-{hashlib.sha256(json.dumps([_FORMAT, asdict(rules)]).encode()).hexdigest()[:16]}"


def cosines(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> Floats:
    """Return the cosine of each row of a with the same row of b, both [N, W]; 0 where a vector is 0."""
    found: Floats = np.einsum("nw,nw->n", _unit(a), _unit(b))
    return found


def _unit(rows: npt.NDArray[np.floating]) -> Floats:
    wide = rows.astype(np.float32)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    found: Floats = np.divide(wide, np.where(lengths > 0, lengths, 1), dtype=np.float32)
    return found


def near_rows(vectors: npt.NDArray[np.floating], among: int, start: int, end: int, count: int) -> npt.NDArray[np.int32]:
    """Return the numbers of the nearest others of rows `start` to `end`, the nearest first.

    Args:
        vectors: [N, W], any lengths.
        among: others are among the first so many.
        count: neighbours of each, at most `among` - 1.

    Returns:
        int32 [end - start, count].
    """
    asking, own = _unit(vectors[start:end]), np.arange(start, end)[:, None]
    best = np.full((end - start, 0), -2.0, np.float32)
    who = np.empty((end - start, 0), np.int64)
    for at in range(0, among, _CHUNK):
        others = np.arange(at, min(at + _CHUNK, among))
        close = asking @ _unit(vectors[others[0] : others[-1] + 1]).T
        np.putmask(close, own == others, -2.0)  # a text is not its own neighbour
        best = np.concatenate([best, close], 1)
        who = np.concatenate([who, np.broadcast_to(others, close.shape)], 1)
        if best.shape[1] > count:
            kept = np.argpartition(-best, count - 1, axis=1)[:, :count]
            best, who = np.take_along_axis(best, kept, 1), np.take_along_axis(who, kept, 1)
    order = np.argsort(-best, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(who, order, 1).astype(np.int32)


def draw_pairs(store: TeacherStore, near: npt.NDArray[np.int32], rules: PairRules) -> Pairs:
    """Draw pairs.

    Args:
        near: the neighbours of the first sentences, [S, K].
    """
    drawn = np.random.default_rng([rules.seed, 1])
    texts = store.texts
    wanted = (round(rules.count * rules.near), min(rules.copies, rules.count))
    picked = _some(near.size, wanted[0], drawn)
    near_a, near_b = picked // max(1, near.shape[1]), near.reshape(-1)[picked].astype(np.int64)
    copied = _some(texts.copies, wanted[1], drawn)
    left = rules.count - len(near_a) - len(copied)
    one = drawn.integers(0, texts.sentences, left)
    other = (one + drawn.integers(1, max(2, texts.sentences), left)) % texts.sentences
    a = np.concatenate([near_a, copied, one])
    b = np.concatenate([near_b, copied + texts.sentences, other])
    kind = np.repeat([_NEAR, _THINNED, _RANDOM], [len(near_a), len(copied), left])
    swap = (drawn.random(len(a)) < 0.5) & (kind == _THINNED)  # the copy is the first text as often as the second
    a, b = np.where(swap, b, a), np.where(swap, a, b)
    order = drawn.permutation(len(a))
    a, b, kind = a[order], b[order], kind[order]
    cosine = np.concatenate(
        [cosines(store.vectors[a[i : i + _CHUNK]], store.vectors[b[i : i + _CHUNK]]) for i in range(0, len(a), _CHUNK)]
    )
    deviation = float(cosine.std())
    return Pairs(
        a.astype(np.int32), b.astype(np.int32), cosine, kind.astype(np.int8), float(cosine.mean()), deviation or 1.0
    )


def _some(have: int, wanted: int, drawn: np.random.Generator) -> Ints:
    """Draw numbers below `have` without repeats; where there are too few, all of them over and over."""
    if not have:
        return np.empty(0, np.int64)
    if wanted > have:
        return np.resize(drawn.permutation(have), wanted)
    return drawn.choice(have, wanted, replace=False, shuffle=False)


def write_pairs(folder: Path, pairs: Pairs) -> None:
    """Write pairs into a folder, whole or not at all."""
    with atomic_folder(folder, overwrite=True) as temporary:
        for name, kind in _ARRAYS.items():
            (temporary / name).write_bytes(getattr(pairs, name).astype(kind).tobytes())
        facts = {"pairs": len(pairs), "mean": pairs.mean, "deviation": pairs.deviation}
        write_json(temporary / "facts.json", facts)


def open_pairs(folder: Path) -> Pairs | None:
    """Map finished pairs; None where they are absent or a file has not the size that it should."""
    try:
        facts = read_json(folder / "facts.json")
        found = {name: mapped(folder / name, kind) for name, kind in _ARRAYS.items()}
        if {len(array) for array in found.values()} != {facts["pairs"]}:
            return None
        return Pairs(**found, mean=facts["mean"], deviation=facts["deviation"])
    except (DataError, OSError, ValueError, KeyError, TypeError):
        return None
