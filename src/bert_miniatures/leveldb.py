"""Read a LevelDB table: the container of a TensorFlow checkpoint's index.

    data blocks          keys in order, each with a value; a key shares its beginning with the key before it
    metaindex block      empty here
    index block          for each data block a key not below its last, and where it is
    footer, 48 bytes     where metaindex and index block are, zeros up to byte 40, 8 bytes magic
    each block           entries, restart array, 1 byte compression, 4 bytes masked CRC32C

The reader is strict: each byte is under a checksum or can have one value only (padding, magic, the shortest form of a
number, blocks that touch), so that a changed bit, a cut end or bytes too many are an error.

Source: LevelDB, doc/table_format.md; TensorFlow, lib/io/table.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path

import google_crc32c

from bert_miniatures.errors import CheckpointError

__all__ = ["Window", "masked", "read_table"]

_FOOTER, _TRAILER, _MAGIC = 48, 5, (0xDB4775248B80FB57).to_bytes(8, "little")
_MAX_KEY, _MAX_KEYS = 1024, 100_000  # bytes, number; they keep a hostile file from asking for all memory

Handle = tuple[int, int]


class Window:
    """A stretch of a file. Reading past its end, or finding what cannot be there, is an error that says where."""

    __slots__ = ("at", "data", "end", "path")

    def __init__(self, path: Path, data: bytes, at: int, end: int) -> None:
        self.path, self.data, self.at, self.end = path, data, at, end

    def error(self, what: str) -> CheckpointError:
        """Return the error to raise: the file, what is wrong, at which byte."""
        return CheckpointError(f"{self.path}: {what} at byte {self.at}; the file is damaged, fetch or copy it again")

    def content(self) -> bytes:
        """Return the bytes not read yet."""
        return self.data[self.at : self.end]

    def finish(self) -> None:
        """Raise if bytes are left over."""
        if self.at != self.end:
            raise self.error(f"{self.end - self.at} bytes too many")

    def take(self, size: int) -> "Window":
        """Return the next `size` bytes as a window and step over them."""
        if size > self.end - self.at:
            raise self.error(f"{size} bytes expected, {self.end - self.at} left,")
        self.at += size
        return Window(self.path, self.data, self.at - size, self.at)

    def fixed32(self) -> int:
        """Read a number of 4 bytes, lowest first."""
        return int.from_bytes(self.take(4).content(), "little")

    def varint(self) -> int:
        """Read a number of 7 bits a byte, lowest first. A form longer than needed is refused: it can hide a flip."""
        value = 0
        for shift in range(0, 64, 7):
            byte = self.take(1).content()[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if (shift and not byte) or value >> 64:
                    break
                return value
        raise self.error("a number over 64 bits or not in its shortest form")


def masked(crc: int) -> int:
    """Return a CRC32C as LevelDB and TensorFlow store it: rotated and shifted."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def read_table(path: Path, data: bytes) -> dict[bytes, Window]:
    """Return the values of a table by key, in order.

    Args:
        path: the file, for messages.
        data: all its bytes.

    Raises:
        CheckpointError: the bytes are not a whole, undamaged, uncompressed table without a filter.
    """
    metaindex, index = _footer(path, data)
    body, tail = Window(path, data, 0, metaindex[0]), Window(path, data, metaindex[0], len(data) - _FOOTER)
    filters, blocks = _block(tail, metaindex), _block(tail, index)
    if any(True for _ in _pairs(filters)):
        raise filters.error("a metaindex block that is not empty")
    found: dict[bytes, Window] = {}
    floor = None
    for limit, place in _pairs(blocks):
        block = _block(body, _handle(place))
        place.finish()
        for key, value in _pairs(block):
            if (floor is not None and key <= floor) or key > limit or len(found) == _MAX_KEYS:
                raise value.error("a key in the wrong block, or a key too many,")
            found[key] = value
        floor = limit
    body.finish()
    return found


def _footer(path: Path, data: bytes) -> tuple[Handle, Handle]:
    """Return the handles (offset, size) of the metaindex block and the index block."""
    if len(data) < _FOOTER or not data.endswith(_MAGIC):
        raise CheckpointError(
            f"{path}: does not end like the index of a TensorFlow V2 checkpoint; it is cut short, damaged or another "
            "kind of file, fetch or copy it again"
        )
    footer = Window(path, data, len(data) - _FOOTER, len(data) - len(_MAGIC))
    metaindex, index = _handle(footer), _handle(footer)
    if any(footer.content()):
        raise footer.error("footer padding that is not zero")
    if sum(metaindex) + _TRAILER != index[0] or sum(index) + _TRAILER != len(data) - _FOOTER:
        raise footer.error("a footer that does not fit the length of the file")
    return metaindex, index


def _handle(window: Window) -> Handle:
    return window.varint(), window.varint()


def _block(table: Window, handle: Handle) -> Window:
    """Return the content of a block, which must be the next in `table`, after checking its checksum."""
    offset, size = handle
    if offset != table.at:
        raise table.error(f"the end of a block, but the next begins at {offset},")
    content = table.take(size)
    kind = table.take(1).content()[0]
    if table.fixed32() != masked(google_crc32c.value(table.data[content.at : content.end + 1])):
        raise content.error("a block with a wrong checksum")
    if kind == 1:
        raise CheckpointError(
            f"{table.path}: the block at byte {offset} is compressed with snappy, which TensorFlow does not use in "
            "checkpoints and which is not read here; load and save the checkpoint with TensorFlow"
        )
    if kind:
        raise content.error(f"a block of unknown compression {kind}")
    return content


def _pairs(block: Window) -> Iterator[tuple[bytes, Window]]:
    """Yield the keys and values of a block; at a restart point a key is written whole."""
    restarts, begins = _restarts(block), {block.at}
    key: bytes | None = None
    while block.at < block.end:
        begins.add(block.at)
        usable = 0 if key is None or block.at in restarts else len(key)
        shared, own, size = block.varint(), block.varint(), block.varint()
        if shared > usable or shared + own > _MAX_KEY:
            raise block.error(f"a key of {shared} shared and {own} own bytes")
        following = (key or b"")[:shared] + block.take(own).content()
        if key is not None and following <= key:
            raise block.error("a key out of order")
        key = following
        yield key, block.take(size)
    if not restarts <= begins:
        raise block.error("a block whose restart points are not where keys begin, ending")


def _restarts(block: Window) -> set[int]:
    """Return the restart points from the array at the end of a block, and cut the array off."""
    size = block.end - block.at
    count = int.from_bytes(block.data[block.end - 4 : block.end], "little") if size >= 4 else 0
    if not 0 < count <= size // 4 - 1:
        raise block.error(f"a block of {size} bytes with {count} restart points")
    array = Window(block.path, block.data, block.end - 4 - 4 * count, block.end - 4)
    block.end = array.at
    offsets = [array.fixed32() for _ in range(count)]
    if offsets[0] != 0 or any(a >= b for a, b in itertools.pairwise(offsets)):
        raise block.error("a block whose restart points are out of order")
    return {block.at + offset for offset in offsets}
