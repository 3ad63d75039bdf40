"""The reader of TensorFlow checkpoints against TensorFlow: its files, its reading of them, all ways to damage them."""

import contextlib
import io
import math
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import google_crc32c
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file

from bert_miniatures import tf_bundle
from bert_miniatures.errors import CheckpointError
from bert_miniatures.leveldb import masked, read_table
from bert_miniatures.tf_bundle import Entry, find_prefix, read_bundle, read_index

FIXTURES = Path(__file__).parent / "fixtures/tf"
REAL = Path(__file__).parents[1] / "../shared/checkpoints/uncased_L-4_H-256_A-4"
PRETRAINED, SHARDED = FIXTURES / "pretrained/bert_model.ckpt", FIXTURES / "sharded/bert_model.ckpt"
FINETUNED = FIXTURES / "finetuned/model.ckpt-7"
ORACLE = {PRETRAINED: "pretrained", SHARDED: "pretrained", FINETUNED: "finetuned"}
MAGIC = bytes.fromhex("57fb808b247547db")
every_checkpoint = pytest.mark.parametrize("prefix", ORACLE, ids=lambda prefix: prefix.parent.name)


# A writer of tables and messages. That it writes what TensorFlow writes is a test below, so what it writes wrongly on
# purpose is wrong in that one place only.


def varint(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + varint(value >> 7)


def number(field: int, value: int) -> bytes:
    return varint(field * 8) + varint(value) if value else b""


def message(field: int, content: bytes) -> bytes:
    return varint(field * 8 + 2) + varint(len(content)) + content


def header(shards: int = 1, endianness: int = 0, min_consumer: int = 0) -> bytes:
    return number(1, shards) + number(2, endianness) + message(3, number(1, 1) + number(2, min_consumer))


def entry(
    dtype: int = 1, shape: tuple[int, ...] = (), shard: int = 0, offset: int = 0, size: int | None = None, crc: int = 1
) -> bytes:
    size = 4 * math.prod(shape) if size is None else size
    dims = b"".join(message(2, number(1, dim)) for dim in shape)
    place = number(3, shard) + number(4, offset) + number(5, size)
    return number(1, dtype) + message(2, dims) + place + varint(6 * 8 + 5) + crc.to_bytes(4, "little")


def block(pairs: list[tuple[bytes, bytes]], interval: int) -> bytes:
    content, restarts, before = b"", [], b""
    for place, (key, value) in enumerate(pairs):
        shared = 0
        if place % interval == 0:
            restarts.append(len(content))
        else:
            shared = next((i for i, (a, b) in enumerate(zip(key, before, strict=False)) if a != b), len(before))
        content += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    array = restarts or [0]
    return content + b"".join(place.to_bytes(4, "little") for place in [*array, len(array)])


def sealed(content: bytes, kind: int = 0) -> bytes:
    typed = content + bytes([kind])
    return typed + masked(google_crc32c.value(typed)).to_bytes(4, "little")


def table(pairs: dict[bytes, bytes], per_block: int = 999, kind: int = 0, metaindex: bytes | None = None) -> bytes:
    data, index = b"", []
    for start in range(0, len(pairs), per_block):
        chosen = list(pairs.items())[start : start + per_block]
        content, limit = block(chosen, 16), chosen[-1][0]
        if start + per_block >= len(pairs) and limit[:1] not in (b"", b"\xff"):
            limit = bytes([limit[0] + 1])  # the shortest key above all, as LevelDB has it
        index.append((limit, varint(len(data)) + varint(len(content))))
        data += sealed(content, kind)
    return with_tail(data, index, metaindex)


def with_tail(data: bytes, index: list[tuple[bytes, bytes]], metaindex: bytes | None = None) -> bytes:
    filters, blocks = block([], 1) if metaindex is None else metaindex, block(index, 1)
    handles = varint(len(data)) + varint(len(filters)) + varint(len(data) + len(filters) + 5) + varint(len(blocks))
    return data + sealed(filters) + sealed(blocks) + handles.ljust(40, b"\0") + MAGIC


def bundle(**entries: bytes) -> dict[bytes, bytes]:
    return {b"": header()} | {name.encode(): value for name, value in entries.items()}


def flips(data: bytes) -> Iterator[bytes]:
    changed = bytearray(data)
    for bit in range(8 * len(data)):
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)
        changed[bit // 8] ^= 1 << bit % 8


def index_of(prefix: Path) -> bytes:
    return Path(f"{prefix}.index").read_bytes()


def refusal(call: Callable[..., object], *arguments: object) -> str:
    """Return the message of the CheckpointError that the call raises, or an empty string if it raises none."""
    try:
        call(*arguments)
    except CheckpointError as error:
        return str(error)
    return ""


def refusal_of_index(data: bytes) -> str:
    return refusal(tf_bundle._parse, Path("m"), Path("m.index"), data)


# What TensorFlow wrote ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [2**20, 40], ids=["whole", "in chunks"])
@every_checkpoint
def test_arrays_equal_those_of_tensorflow(prefix: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf_bundle, "_CHUNK", chunk)
    expected = load_file(FIXTURES / f"{ORACLE[prefix]}.safetensors")
    arrays = read_bundle(prefix)
    assert list(arrays) == sorted(expected)
    for name, array in arrays.items():
        assert (array.dtype, array.shape) == (expected[name].dtype, expected[name].shape), name
        assert array.tobytes() == expected[name].tobytes(), name
        assert array.flags.writeable


@every_checkpoint
def test_the_entries_make_the_bytes_that_tensorflow_wrote(prefix: Path) -> None:
    entries = read_index(prefix)
    numbers = {"float32": 1, "int64": 9}
    pairs = {b"": header(shards=len(list(prefix.parent.glob("*.data-*"))))}
    for name, e in entries.items():
        pairs[name.encode()] = entry(numbers[e.dtype], e.shape, e.shard, e.offset, e.size, e.crc32c)
    assert table(pairs) == index_of(prefix)


def test_the_fixture_holds_what_it_says() -> None:
    finetuned = read_index(FINETUNED)
    assert len(read_index(PRETRAINED)) == 39 + 7
    assert (len(finetuned), finetuned["global_step"].dtype) == (3 * (39 + 2) + 1, "int64")
    assert read_bundle(FINETUNED, ["global_step"])["global_step"] == 7
    bits = read_bundle(FINETUNED, ["output_bias/adam_m"])["output_bias/adam_m"].view(np.uint32)
    assert bits.tolist() == [0x80000000, 0x00000001, 0x7FC01234]
    assert {e.shard for e in read_index(SHARDED).values()} == {0, 1}


def test_the_index_of_a_published_checkpoint() -> None:
    if not REAL.is_dir():
        pytest.skip(f"no {REAL}")
    line = re.compile(r"(\S+) dtype 1 \[(.*)\] offset (\d+) size (\d+) crc32c\(masked\) ([0-9a-f]{8})")
    listed = {}
    for name, shape, offset, size, crc in line.findall((REAL / "index-listing.txt").read_text()):
        dims = tuple(int(dim) for dim in shape.split(","))
        listed[name] = Entry("float32", dims, 0, int(offset), int(size), int(crc, 16))
    entries = read_index(REAL / "bert_model.ckpt")
    assert entries == listed
    assert sum(name.startswith("bert/") for name in entries) == 71
    assert sum(name.startswith("cls/") for name in entries) == 7
    assert sum(math.prod(e.shape) for e in entries.values()) == 11_267_900
    assert "data-00000-of-00001: no such file" in refusal(read_bundle, REAL / "bert_model.ckpt")


def test_names_choose_and_order() -> None:
    names = ["cls/seq_relationship/output_bias", "bert/pooler/dense/bias", "cls/seq_relationship/output_bias"]
    assert list(read_bundle(SHARDED, names)) == names[:2]
    assert read_bundle(SHARDED, []) == {}
    unknown = refusal(read_bundle, SHARDED, ["bert/pooler/bias"])
    assert unknown.endswith("has no tensor 'bert/pooler/bias'; did you mean 'bert/pooler/dense/bias'?")


@pytest.mark.parametrize("per_block", [1, 2, 17, 47])
def test_tables_of_several_blocks(tmp_path: Path, per_block: int) -> None:
    pairs = {key: value.content() for key, value in read_table(tmp_path, index_of(PRETRAINED)).items()}
    (tmp_path / "a.index").write_bytes(table(pairs, per_block=per_block))
    assert read_index(tmp_path / "a") == read_index(PRETRAINED)


def test_empty_tensors_and_empty_shards(tmp_path: Path) -> None:
    one, empty = masked(google_crc32c.value(b"\1\0\0\0")), masked(0)
    pairs = bundle(a=entry(3, crc=one), b=entry(1, (3, 0), crc=empty), c=entry(9, (0,), offset=4, crc=empty))
    (tmp_path / "m.index").write_bytes(table(pairs | {b"": header(shards=2)}))
    (tmp_path / "m.data-00000-of-00002").write_bytes(b"\1\0\0\0")
    (tmp_path / "m.data-00001-of-00002").touch()
    arrays = read_bundle(tmp_path / "m")
    kinds = [(array.dtype.name, array.shape, array.tolist()) for array in arrays.values()]
    assert kinds == [("int32", (), 1), ("float32", (3, 0), [[], [], []]), ("int64", (0,), [])]


# Damage ---------------------------------------------------------------------------------------------------------------


@every_checkpoint
def test_every_bit_flip_of_the_index_is_an_error(prefix: Path) -> None:
    for data in flips(index_of(prefix)):
        assert refusal_of_index(data)


@every_checkpoint
def test_every_truncation_of_the_index_is_an_error(prefix: Path) -> None:
    data = index_of(prefix)
    for end in range(len(data)):
        assert refusal_of_index(data[:end])
        assert refusal_of_index(data[end + 1 :])
    for more in (b"\0", MAGIC, data[-48:], data):
        assert refusal_of_index(data + more)
        assert refusal_of_index(more + data)


@every_checkpoint
def test_every_bit_flip_of_the_data_is_an_error(prefix: Path) -> None:
    """All bits, tensor by tensor; together the tensors are the whole of the data files."""
    covered = 0
    for name, place in read_index(prefix).items():
        path = next(prefix.parent.glob(f"{prefix.name}.data-{place.shard:05d}-*"))
        own = path.read_bytes()[place.offset : place.offset + place.size]
        at_start = Entry(place.dtype, place.shape, 0, 0, place.size, place.crc32c)
        assert tf_bundle._tensor(io.BytesIO(own), path, name, at_start).tobytes() == own
        for data in flips(own):
            assert "the checksum of" in refusal(tf_bundle._tensor, io.BytesIO(data), path, name, at_start)
        covered += place.size
    assert covered == sum(path.stat().st_size for path in prefix.parent.glob("*.data-*"))


@every_checkpoint
def test_a_bit_flip_on_disk_is_an_error(prefix: Path, tmp_path: Path) -> None:
    """Through the public function: one bit in every 211th byte and in the last, of each file."""
    shutil.copytree(prefix.parent, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob(f"{prefix.name}.*"):
        whole = path.read_bytes()
        for at in [*range(0, len(whole), 211), len(whole) - 1]:
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
            assert refusal(read_bundle, tmp_path / prefix.name).startswith(f"{path}: ")
        path.write_bytes(whole)
    assert len(read_bundle(tmp_path / prefix.name)) == len(read_index(prefix))


@every_checkpoint
def test_every_truncation_of_the_data_is_an_error(prefix: Path, tmp_path: Path) -> None:
    shutil.copytree(prefix.parent, tmp_path, dirs_exist_ok=True)
    opened = tf_bundle._open(tmp_path / prefix.name)
    for path in tmp_path.glob("*.data-*"):
        whole = path.read_bytes()
        with path.open("r+b") as file:
            for size in reversed(range(len(whole))):
                file.truncate(size)
                assert f"{path.name}: {size} bytes long, the index says" in refusal(tf_bundle._tensors, opened, [])
        path.write_bytes(whole + b"\0")
        assert f"{len(whole) + 1} bytes long" in refusal(read_bundle, opened.prefix)
        path.unlink()
        assert f"{path.name}: no such file" in refusal(read_bundle, opened.prefix)
        path.write_bytes(whole)


def test_a_file_that_shrinks_while_it_is_read_is_an_error() -> None:
    arguments = io.BytesIO(b"123456789"), Path("data"), "w", Entry("float32", (7,), 0, 2, 28, 0)
    assert refusal(tf_bundle._tensor, *arguments) == "data: ends inside 'w', at byte 9"


# Files that are whole and still wrong ---------------------------------------------------------------------------------

TWO = {"a": entry(shape=(2,)), "b": entry(shape=(3,), offset=8)}
ONE = sealed(block([(b"a", b"")], 16))
BETWEEN = b"\0\1\0a" + bytes([0, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0])
SHARING = b"\0\1\0a\1\1\0b" + bytes([0, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0])
WRONG = {
    "snappy": (table(bundle(**TWO), kind=1), "block at byte 0 is compressed with snappy"),
    "unknown compression": (table(bundle(**TWO), kind=4), "unknown compression 4"),
    "bytes after the blocks": (with_tail(sealed(block([], 1)) + b"\0", [(b"a", b"\0\x08")]), "1 bytes too many"),
    "bytes before a block": (with_tail(b"\0" + sealed(block([], 1)), [(b"a", b"\1\x08")]), "next begins at 1"),
    "filter": (table(bundle(**TWO), metaindex=block([(b"filter", b"")], 1)), "metaindex block that is not empty"),
    "no restart array": (table(bundle(**TWO), metaindex=b""), "block of 0 bytes with 0 restart points"),
    "no restart points": (table(bundle(**TWO), metaindex=bytes(8)), "block of 8 bytes with 0 restart points"),
    "restart array too long": (table(bundle(**TWO), metaindex=b"\0\0\0\0\2\0\0\0"), "with 2 restart points"),
    "restart point elsewhere": (table(bundle(**TWO), metaindex=bytes([1, *[0] * 3, 1, *[0] * 3])), "out of order"),
    "restart point between": (with_tail(sealed(BETWEEN), [(b"a", b"\0\x10")]), "points are not where keys begin"),
    "restart point twice": (table(bundle(**TWO), metaindex=bytes(8) + b"\2\0\0\0"), "points are out of order"),
    "sharing at a restart point": (with_tail(sealed(SHARING), [(b"b", b"\0\x14")]), "key of 1 shared and 1 own"),
    "sharing with nothing": (with_tail(sealed(b"\1" + SHARING[1:]), [(b"b", b"\0\x14")]), "key of 1 shared and 1 own"),
    "blocks out of order": (with_tail(ONE + ONE, [(b"a", b"\0\x0c"), (b"b", b"\x11\x0c")]), "key in the wrong block"),
    "block listed twice": (with_tail(sealed(block([], 1)), [(b"a", b"\0\x08"), (b"b", b"\0\x08")]), "next begins at 0"),
    "long block handle": (with_tail(sealed(block([], 1)), [(b"a", b"\0\x08\0")]), "1 bytes too many"),
    "key above its limit": (with_tail(sealed(block([(b"b", b"")], 1)), [(b"a", b"\0\x0c")]), "key in the wrong block"),
    "keys out of order": (table({b"": header(), b"b": TWO["a"], b"a": TWO["b"]}), "key out of order"),
    "long key": (table(bundle(**{"a" * 1025: entry(shape=(2,))})), "key of 0 shared and 1025 own"),
    "another file": (b"PK\3\4" * 50, "does not end like the index"),
    "no header": (table({b"a": entry(shape=(2,))}), "no bundle header"),
    "big-endian": (table({b"": header(endianness=1)}), "big-endian"),
    "newer": (table({b"": header(min_consumer=2)}), "bundle version 2 or newer"),
    "many shards": (table({b"": header(shards=100_000)}), "number of shards of 100000"),
    "slices": (table(bundle(a=entry(shape=(2,)) + message(7, b""))), "'a' is a partitioned variable"),
    "a slice": (table({b"": header(), b"\0emb\0\1\x80": entry(shape=(2,))}), "'emb' is a partitioned variable"),
    "control characters": (table({b"": header(), b"\x1b[2J": entry(shape=(2,))}), "not printable"),
    "name not UTF-8": (table({b"": header(), b"\xff": entry(shape=(2,))}), "not printable UTF-8"),
    "no dtype": (table(bundle(a=entry(0, (2,)))), "'a' has no dtype"),
    "size": (table(bundle(a=entry(shape=(2,), size=9))), r"'a' has 9 bytes, which do not fit float32 \[2\]"),
    "negative dimension": (table(bundle(a=entry(shape=(2**64 - 1,), size=0))), "negative number"),
    "negative offset": (table(bundle(a=entry(shape=(2,), offset=2**64 - 8))), "negative number"),
    "over 64 bits": (table(bundle(a=entry(offset=2**64))), "over 64 bits"),
    "endless number": (table(bundle(a=b"\x08" + b"\xff" * 11)), "over 64 bits"),
    "number too long": (table(bundle(a=b"\x08\x81\0")), "not in its shortest form"),
    "huge and empty": (table(bundle(a=entry(shape=(2**62, 0), size=0))), "shape of impossible size"),
    "rank": (table(bundle(a=entry(shape=(1,) * 33))), "shape of 33 dimensions"),
    "field twice": (table(bundle(a=entry(shape=(2,)) + number(1, 1))), "field 1 of wire type 0, .* there twice"),
    "shape twice": (table(bundle(a=entry(shape=(2,)) + message(2, b""))), "field 2 of wire type 2"),
    "unknown field": (table(bundle(a=entry(shape=(2,)) + number(8, 1))), "field 8 of wire type 0"),
    "field cut": (table(bundle(a=varint(6 * 8 + 5) + b"123")), "4 bytes expected, 3 left"),
    "shard": (table(bundle(a=entry(shape=(2,), shard=1))), "shard 1, the checkpoint has 1"),
    "gap": (table(bundle(a=entry(shape=(2,)), b=entry(shape=(3,), offset=12))), "'b' begins at byte 12 .* ends at 8"),
    "overlap": (table(bundle(a=entry(shape=(2,)), b=entry(shape=(3,), offset=4))), "'b' begins at byte 4 .* ends at 8"),
    "late start": (table(bundle(a=entry(shape=(2,), offset=4))), "'a' begins at byte 4 .* ends at 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_indexes_are_refused_in_one_sentence(case: str) -> None:
    data, what = WRONG[case]
    assert re.fullmatch(rf"m\.index: .*{what}.*", refusal_of_index(data))


def test_what_is_not_an_index(tmp_path: Path) -> None:
    assert "m.index: no such file" in refusal(read_index, tmp_path / "m")
    assert "File name too long" in refusal(read_index, tmp_path / ("m" * 300))
    assert "a key too many" in refusal_of_index(table({b"%06d" % number: b"" for number in range(100_001)}))
    (tmp_path / "m.index").write_bytes(bytes(2**20 + 1))
    assert "over 1 MiB" in refusal(read_index, tmp_path / "m")


def test_dtypes_that_are_listed_but_not_read(tmp_path: Path) -> None:
    (tmp_path / "m.index").write_bytes(table(bundle(a=entry(14, (3,), size=6), b=entry(99, (1,), offset=6, size=5))))
    (tmp_path / "m.data-00000-of-00001").write_bytes(bytes(11))
    assert [place.dtype for place in read_index(tmp_path / "m").values()] == ["bfloat16", "type 99"]
    assert "'a' is bfloat16; only float32, int32, int64 are read" in refusal(read_bundle, tmp_path / "m")
    assert "'b' is type 99" in refusal(read_bundle, tmp_path / "m", ["b"])


def test_a_huge_tensor_is_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "m.index").write_bytes(table(bundle(a=entry(shape=(2**38,)))))
    with (tmp_path / "m.data-00000-of-00001").open("wb") as file:
        file.truncate(2**40)
    assert f"'a' has {2**40} bytes, over the limit" in refusal(read_bundle, tmp_path / "m")


# Laws -----------------------------------------------------------------------------------------------------------------


def listed_or_refused(data: bytes) -> None:
    with contextlib.suppress(CheckpointError):
        entries = tf_bundle._parse(Path("m"), Path("m.index"), data).entries
        assert all(isinstance(place, Entry) for place in entries.values())


@given(st.binary(max_size=300), st.booleans())
def test_random_bytes_are_refused(data: bytes, ending: bool) -> None:
    assert refusal_of_index(data + MAGIC * ending)


@given(st.binary(max_size=60))
def test_random_values_behind_good_checksums(value: bytes) -> None:
    listed_or_refused(table(bundle(a=value)))
    listed_or_refused(table({b"": value}))
    listed_or_refused(with_tail(sealed(value), [(b"a", varint(0) + varint(len(value)))]))
    listed_or_refused(with_tail(b"", [(b"a", value)]))
    listed_or_refused(table(bundle(**TWO), metaindex=value))


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=4))
def test_changes_behind_good_checksums(changes: list[tuple[int, int]]) -> None:
    """A good block with some bytes changed and its checksum made good again."""
    content = bytearray(block(list(bundle(**TWO).items()), 16))
    for at, byte in changes:
        content[at % len(content)] = byte
    listed_or_refused(with_tail(sealed(bytes(content)), [(b"\xff", varint(0) + varint(len(content)))]))


# Finding the checkpoint -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ([], None),
        (["vocab.txt", "model.ckpt-7.meta", "checkpoint"], None),
        (["odd.name.index"], "odd.name"),
        (["bert_model.ckpt.index", "model.ckpt-900.index"], "bert_model.ckpt"),
        (["model.ckpt-99.index", "model.ckpt-1000.index", "model.ckpt-1001.index"], "model.ckpt-1001"),
        (["model.ckpt.index", "model.ckpt-0.index"], "model.ckpt-0"),
        (["._bert_model.ckpt.index", "odd.index"], "odd"),
    ],
)
def test_the_checkpoint_of_a_folder(tmp_path: Path, names: list[str], expected: str | None) -> None:
    (tmp_path / "folder.index").mkdir()
    for name in names:
        (tmp_path / name).touch()
    assert find_prefix(tmp_path) == (expected and tmp_path / expected)


def test_what_else_names_a_checkpoint(tmp_path: Path) -> None:
    assert find_prefix(PRETRAINED) == PRETRAINED
    assert find_prefix(Path(f"{PRETRAINED}.index")) == PRETRAINED
    assert find_prefix(tmp_path / "absent") is None
    assert find_prefix(tmp_path / "absent.index") is None
    (tmp_path / "a.index").touch()
    (tmp_path / "b.index").touch()
    assert "several checkpoints (a, b); give the path" in refusal(find_prefix, tmp_path)
