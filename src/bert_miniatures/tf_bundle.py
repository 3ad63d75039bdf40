"""Read a TensorFlow V2 checkpoint (a tensor bundle) without TensorFlow.

    PREFIX.index                 a LevelDB table, see leveldb.py
      key ""                     BundleHeaderProto: number of shards, endianness, version
      key "bert/…/kernel"        BundleEntryProto: dtype, shape, shard, offset, size, masked CRC32C
    PREFIX.data-00000-of-00001   the bytes of the tensors, one after the other

Every tensor is checked against its CRC32C, and the tensors must tile their shards from the first byte to the last, so
that a changed bit, a cut end or bytes too many are an error, never other weights. A `.meta` file is not needed.

Source: TensorFlow, core/protobuf/tensor_bundle.proto and core/util/tensor_bundle.
"""

import contextlib
import itertools
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from bert_miniatures.errors import CheckpointError, nearest
from bert_miniatures.leveldb import Window, masked, read_table

__all__ = ["Entry", "find_prefix", "read_bundle", "read_index"]

_FORMAT_VERSION = 1
# Far above any BERT; they keep a hostile file from asking for all memory. Sizes are in bytes.
_MAX_INDEX, _MAX_SHARDS, _MAX_RANK, _MAX_TENSOR = 2**20, 99_999, 32, 2**31
_CHUNK = 2**20

# Enum DataType of TensorFlow's core/framework/types.proto, from 1.
_DTYPES = [
    "float32", "float64", "int32", "uint8", "int16", "int8", "string", "complex64", "int64", "bool", "qint8",
    "quint8", "qint32", "bfloat16", "qint16", "quint16", "uint16", "complex128", "float16", "resource", "variant",
    "uint32", "uint64",
]  # fmt: skip
_READABLE: dict[str, np.dtype[Any]] = {"float32": np.dtype("<f4"), "int32": np.dtype("<i4"), "int64": np.dtype("<i8")}

# Protobuf messages: field number -> wire type.
Fields = dict[int, int]
_VARINT, _MESSAGE, _FIXED32 = 0, 2, 5
_HEADER_FIELDS = {1: _VARINT, 2: _VARINT, 3: _MESSAGE}  # num_shards, endianness, version
_VERSION_FIELDS = {1: _VARINT, 2: _VARINT}  # producer, min_consumer
_ENTRY_FIELDS = {1: _VARINT, 2: _MESSAGE, 3: _VARINT, 4: _VARINT, 5: _VARINT, 6: _FIXED32, 7: _MESSAGE}  # as in Entry
_SHAPE_FIELDS = {2: _MESSAGE}  # dim, one message each
_DIM_FIELDS = {1: _VARINT}  # size


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies and what it is.

    Attributes:
        dtype: TensorFlow's name, as in "float32" or "int64"; "type 99" for a number that has no name here.
        shape: sizes of the dimensions, () for a scalar.
        shard: number of the data file, from 0.
        offset: of its first byte in that file.
        size: in bytes.
        crc32c: checksum of its bytes, masked, as the file has it.
    """

    dtype: str
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc32c: int


@dataclass(frozen=True)
class _Bundle:
    """An index that has been checked: its tensors and the number of bytes of each data file."""

    prefix: Path
    entries: dict[str, Entry]
    shard_sizes: list[int]


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error


# The protobuf messages ------------------------------------------------------------------------------------------------


def _message(window: Window, fields: Fields, repeated: int = 0) -> tuple[dict[int, int], dict[int, list[Window]]]:
    """Return the numbers and the messages in a message, by field number. No field here may be negative.

    Args:
        window: the bytes of the message.
        fields: wire type by field number; anything else is an error.
        repeated: the field that may come more than once.
    """
    numbers: dict[int, int] = {}
    messages: dict[int, list[Window]] = {}
    while window.at < window.end:
        field, wire = divmod(window.varint(), 8)
        if fields.get(field) != wire or ((field in numbers or field in messages) and field != repeated):
            raise window.error(f"field {field} of wire type {wire}, unknown or there twice,")
        if wire == _MESSAGE:
            messages.setdefault(field, []).append(window.take(window.varint()))
            continue
        numbers[field] = window.fixed32() if wire == _FIXED32 else window.varint()
        if numbers[field] >> 63:
            raise window.error("a negative number")
    return numbers, messages


def _number_of_shards(header: Window) -> int:
    numbers, messages = _message(header, _HEADER_FIELDS)
    versions, _ = _message(messages[3][0], _VERSION_FIELDS) if 3 in messages else ({}, {})
    if numbers.get(2, 0) != 0:
        raise CheckpointError(
            f"{header.path}: the checkpoint was written on a big-endian machine, which is not read here; "
            "load and save it with TensorFlow on a little-endian one"
        )
    if versions.get(2, 0) > _FORMAT_VERSION:
        raise CheckpointError(
            f"{header.path}: needs a reader of bundle version {versions[2]} or newer, this one reads version "
            f"{_FORMAT_VERSION}; save the checkpoint with an older TensorFlow"
        )
    shards = numbers.get(1, 0)
    if not 0 < shards <= _MAX_SHARDS:
        raise header.error(f"a number of shards of {shards}")
    return shards


def _entry(name: str, value: Window) -> Entry:
    numbers, messages = _message(value, _ENTRY_FIELDS, repeated=7)
    if 7 in messages:
        raise _partitioned(value.path, name)
    kind = numbers.get(1, 0)
    if not kind:
        raise value.error(f"'{name}' has no dtype,")
    dtype = _DTYPES[kind - 1] if kind <= len(_DTYPES) else f"type {kind}"
    shape = _shape(messages[2][0]) if 2 in messages else ()
    entry = Entry(dtype, shape, numbers.get(3, 0), numbers.get(4, 0), numbers.get(5, 0), numbers.get(6, 0))
    if dtype in _READABLE and entry.size != math.prod(shape) * _READABLE[dtype].itemsize:
        raise value.error(f"'{name}' has {entry.size} bytes, which do not fit {dtype} {list(shape)},")
    return entry


def _shape(window: Window) -> tuple[int, ...]:
    _, messages = _message(window, _SHAPE_FIELDS, repeated=2)
    dims = messages.get(2, [])
    if len(dims) > _MAX_RANK:
        raise window.error(f"a shape of {len(dims)} dimensions")
    shape = tuple(_message(dim, _DIM_FIELDS)[0].get(1, 0) for dim in dims)
    if math.prod(size or 1 for size in shape) >= 2**60:  # an empty tensor too: NumPy takes no such shape
        raise window.error(f"a shape of impossible size {list(shape)}")
    return shape


def _partitioned(path: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: {name!r} is a partitioned variable, stored in slices, which are not read here; "
        "load it and save it in one piece with TensorFlow"
    )


# The bundle -----------------------------------------------------------------------------------------------------------


def _open(prefix: Path) -> _Bundle:
    path = Path(f"{prefix}.index")
    with _reading(path):
        if not path.is_file():
            raise CheckpointError(
                f"{path}: no such file; a TensorFlow checkpoint is X.index with X.data-00000-of-0000N"
            )
        with path.open("rb") as file:
            data = file.read(_MAX_INDEX + 1)
    if len(data) > _MAX_INDEX:
        raise CheckpointError(f"{path}: over {_MAX_INDEX // 2**20} MiB, too large for the index of a checkpoint")
    return _parse(Path(prefix), path, data)


def _parse(prefix: Path, path: Path, data: bytes) -> _Bundle:
    """Return the bundle whose index `path` holds these bytes."""
    table = read_table(path, data)
    header = table.pop(b"", None)
    if header is None:
        raise CheckpointError(f"{path}: has no bundle header; it is not the index of a TensorFlow checkpoint")
    shards = _number_of_shards(header)
    entries = {}
    for key, value in table.items():
        name = _name(key, value)
        entries[name] = _entry(name, value)
    return _Bundle(prefix, entries, _shard_sizes(path, entries, shards))


def _name(key: bytes, value: Window) -> str:
    if key.startswith(b"\0"):  # the key of one slice: 0, name, 0 1, extents
        raise _partitioned(value.path, key[1:].split(b"\0")[0].decode("utf-8", "backslashreplace"))
    name = key.decode("utf-8", "backslashreplace")
    if not name.isprintable() or name.encode() != key:
        raise value.error("a name that is not printable UTF-8 before the entry")
    return name


def _shard_sizes(path: Path, entries: dict[str, Entry], shards: int) -> list[int]:
    """Return the bytes of each shard. TensorFlow writes tensors without gap or overlap; anything else is an error."""
    sizes = [0] * shards
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].shard, item[1].offset, item[1].size)):
        if entry.shard >= shards:
            raise CheckpointError(f"{path}: '{name}' lies in shard {entry.shard}, the checkpoint has {shards} (from 0)")
        if entry.offset != sizes[entry.shard]:
            raise CheckpointError(
                f"{path}: '{name}' begins at byte {entry.offset} of shard {entry.shard}, the tensor before it ends at "
                f"{sizes[entry.shard]}; tensors must follow one another without gap or overlap"
            )
        sizes[entry.shard] += entry.size
    return sizes


def _tensor(file: BinaryIO, path: Path, name: str, entry: Entry) -> NDArray[Any]:
    """Read one tensor and check it against its checksum."""
    try:
        array = np.empty(entry.size, np.uint8)
    except MemoryError:
        raise CheckpointError(f"{path}: no memory for the {entry.size} bytes of '{name}'") from None
    file.seek(entry.offset)
    crc = 0
    for start in range(0, entry.size, _CHUNK):
        stop = min(start + _CHUNK, entry.size)
        chunk = file.read(stop - start)
        if len(chunk) != stop - start:
            raise CheckpointError(f"{path}: ends inside '{name}', at byte {entry.offset + start + len(chunk)}")
        crc = google_crc32c.extend(crc, chunk)
        array[start:stop] = np.frombuffer(chunk, np.uint8)
    if masked(crc) != entry.crc32c:
        raise CheckpointError(
            f"{path}: the checksum of '{name}' is wrong (bytes {entry.offset} to {entry.offset + entry.size}); "
            "the file is damaged, fetch or copy it again"
        )
    dtype = _READABLE[entry.dtype]
    return array.view(dtype).reshape(entry.shape).astype(dtype.newbyteorder("="), copy=False)


def _check_wanted(bundle: _Bundle, name: str) -> None:
    path = Path(f"{bundle.prefix}.index")
    if name not in bundle.entries:
        guess = nearest(name, bundle.entries)
        raise CheckpointError(f"{path}: has no tensor '{name}'" + (f"; did you mean '{guess}'?" if guess else ""))
    entry = bundle.entries[name]
    if entry.dtype not in _READABLE:
        raise CheckpointError(f"{path}: '{name}' is {entry.dtype}; only {', '.join(_READABLE)} are read")
    if entry.size > _MAX_TENSOR:
        raise CheckpointError(f"{path}: '{name}' has {entry.size} bytes, over the limit of {_MAX_TENSOR}")


def _shard_file(bundle: _Bundle, shard: int) -> Path:
    """Return the path of a data file after checking that it is there and as long as the index says."""
    path = Path(f"{bundle.prefix}.data-{shard:05d}-of-{len(bundle.shard_sizes):05d}")
    with _reading(path):
        if not path.is_file():
            raise CheckpointError(
                f"{path}: no such file; the checkpoint is the .index file and its data files together"
            )
        size = path.stat().st_size
    if size != bundle.shard_sizes[shard]:
        raise CheckpointError(
            f"{path}: {size} bytes long, the index says {bundle.shard_sizes[shard]}; it is cut short, damaged or of "
            "another checkpoint, fetch or copy it again"
        )
    return path


def _tensors(bundle: _Bundle, names: list[str]) -> dict[str, NDArray[Any]]:
    for name in names:
        _check_wanted(bundle, name)
    paths = [_shard_file(bundle, shard) for shard in range(len(bundle.shard_sizes))]
    on_disk = sorted(names, key=lambda name: (bundle.entries[name].shard, bundle.entries[name].offset))
    found: dict[str, NDArray[Any]] = {}
    for shard, inside in itertools.groupby(on_disk, key=lambda name: bundle.entries[name].shard):
        with _reading(paths[shard]), paths[shard].open("rb") as file:
            found |= {name: _tensor(file, paths[shard], name, bundle.entries[name]) for name in inside}
    return {name: found[name] for name in names}


def read_index(prefix: Path) -> dict[str, Entry]:
    """List the tensors of a checkpoint, in the order of their names. Only `PREFIX.index` is opened.

    Args:
        prefix: path without `.index`, as in `folder/bert_model.ckpt`.

    Raises:
        CheckpointError: the index is missing, damaged, or of a kind that is not read (big-endian, snappy, slices).

    Example:
        >>> read_index(Path("tests/fixtures/tf/pretrained/bert_model.ckpt"))["bert/pooler/dense/kernel"].shape
        (12, 12)
    """
    return _open(prefix).entries


def read_bundle(prefix: Path, names: Iterable[str] | None = None) -> dict[str, NDArray[Any]]:
    """Read tensors of a checkpoint; each is checked against its CRC32C, each data file against its length.

    Args:
        prefix: path without `.index`, as in `folder/bert_model.ckpt`.
        names: the tensors to read, all of them by default. Only their bytes are read.

    Returns:
        Arrays by name, in the order of `names`, float32, int32 or int64. The memory used is that of these arrays
        and 1 MiB.

    Raises:
        CheckpointError: a file is missing, damaged or cut short, a name is not in the index, or a tensor is of a dtype
            that is not read.

    Example:
        >>> arrays = read_bundle(Path("tests/fixtures/tf/pretrained/bert_model.ckpt"), ["bert/pooler/dense/bias"])
        >>> arrays["bert/pooler/dense/bias"].dtype
        dtype('float32')
    """
    bundle = _open(prefix)
    return _tensors(bundle, list(bundle.entries if names is None else names))


def find_prefix(folder: Path) -> Path | None:
    """Return the prefix of the TensorFlow checkpoint in a folder, or None where there is none.

    Of several, `bert_model.ckpt` comes first, then the one with the highest step number (`model.ckpt-123`); the text
    file `checkpoint` is not asked. Hidden files are left out.

    Args:
        folder: a folder, the path of an `.index` file, or a prefix.

    Raises:
        CheckpointError: several checkpoints without a step number that tells them apart, or the folder is not readable.

    Example:
        >>> find_prefix(Path("tests/fixtures/tf/finetuned")).name
        'model.ckpt-7'
    """
    folder = Path(folder)
    with _reading(folder):
        if not folder.is_dir():
            prefix = folder.with_suffix("") if folder.suffix == ".index" else folder
            return prefix if Path(f"{prefix}.index").is_file() else None
        files = [path for path in sorted(folder.iterdir()) if path.suffix == ".index" and path.is_file()]
    prefixes = [path.with_suffix("") for path in files if not path.name.startswith(".")]
    by_step: dict[int, list[Path]] = {}
    for prefix in prefixes:
        step = re.search(r"-([0-9]+)$", prefix.name)
        by_step.setdefault(int(step[1]) if step else -1, []).append(prefix)
    best = [prefix for prefix in prefixes if prefix.name == "bert_model.ckpt"]
    best = best or by_step.get(max(by_step, default=-1), [])
    if len(best) > 1:
        listed = ", ".join(prefix.name for prefix in best)
        raise CheckpointError(f"{folder}: holds several checkpoints ({listed}); give the path of one of them")
    return best[0] if best else None
