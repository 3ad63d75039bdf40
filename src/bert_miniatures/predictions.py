"""Files of predictions: the logits of a split in data-set order, with row ids and label names, as Parquet."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bert_miniatures.errors import DataError
from bert_miniatures.files import atomic_write

__all__ = ["Predictions", "read", "write"]


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model said about the rows of a split.

    Attributes:
        row_ids: what the official file calls each row, else its position [N].
        logits: [N, C], columns in the order of `labels`; regression [N, 1].
        labels: label names; empty for regression.
        gold: the right answers [N] or [N, C] as numbers, where they are known.
        task: name of the task that the rows belong to.
        checksum: SHA-256 of the data (`Examples.checksum`).
        model: fingerprint of the model folder; "" where it was not written down.
    """

    row_ids: Sequence[str]
    logits: npt.NDArray[np.float32]
    labels: Sequence[str]
    gold: npt.NDArray[np.generic] | None = None
    task: str = ""
    checksum: str = ""
    model: str = ""


def write(path: Path, found: Predictions) -> None:
    """Write predictions as Parquet, atomically.

    Raises:
        DiskFull: no space left on the device.
    """
    import pyarrow as pa
    from pyarrow import parquet

    flat = pa.array(np.ascontiguousarray(found.logits, np.float32).reshape(-1))
    logits = pa.FixedSizeListArray.from_arrays(flat, found.logits.shape[1])
    columns: dict[str, object] = {"row": pa.array(list(found.row_ids), pa.string()), "logits": logits}
    if found.gold is not None:
        columns["gold"] = found.gold.tolist()
    meta = {"labels": "\t".join(found.labels), "task": found.task, "checksum": found.checksum, "model": found.model}
    table = pa.table(columns).replace_schema_metadata(meta)
    with atomic_write(path) as temporary, temporary.open("wb") as file:  # a full disk then is Python's OSError
        parquet.write_table(table, file)


def read(path: Path) -> Predictions:
    """Read predictions, those of a run (`predictions/dev.parquet`) included.

    Raises:
        DataError: missing or damaged.

    Example:
        >>> read(Path("runs/sst2/predictions/dev.parquet")).logits.shape  # doctest: +SKIP
        (872, 2)
    """
    import pyarrow as pa
    from pyarrow import compute, parquet

    try:
        table = parquet.read_table(path)
        meta = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
        flat = compute.list_flatten(table["logits"]).to_numpy()
        logits = np.asarray(flat, np.float32).reshape(table.num_rows, -1)
        rows = [str(row) for row in table["row"].to_pylist()]
        gold = np.array(table["gold"].to_pylist()) if "gold" in table.column_names else None
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise DataError(f"{path}: not a file of predictions ({str(error).splitlines()[0]})") from None
    labels = tuple(meta["labels"].split("\t")) if meta.get("labels") else ()
    if labels and logits.shape[1] != len(labels):
        raise DataError(f"{path}: {logits.shape[1]} outputs a row, {len(labels)} label names")
    known = {name: meta.get(name, "") for name in ("task", "checksum", "model")}
    return Predictions(rows, logits, labels, gold, **known)
