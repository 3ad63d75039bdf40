"""Archives: what comes out equals what went in, and nothing that lies, escapes or is damaged comes out at all."""

import io
import resource
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_miniatures import archive
from bert_miniatures.errors import CheckpointError, OutputExists, UserError
from bert_miniatures.zoo import ZOO
from loopback import FILES, make_zip

TINY, MINI = ZOO["2/128"], ZOO["4/256"]


def make_tar(path: Path, files: dict[str, bytes], change: Callable[[tarfile.TarInfo], None] | None = None) -> Path:
    with tarfile.open(path, "w:gz") as bundle:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if change:
                change(info)
            bundle.addfile(info, io.BytesIO(data))
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refuses(path: Path, target: Path, match: str) -> None:
    """Unpacking is an error that names the archive, and leaves nothing behind."""
    before = sorted(target.parent.iterdir())
    with pytest.raises(CheckpointError, match=match) as caught:
        archive.unpack(path, target)
    assert str(path) in str(caught.value)
    assert sorted(target.parent.iterdir()) == before


MAKERS = pytest.mark.parametrize("make", [make_zip, make_tar], ids=["zip", "tar.gz"])


# ------------------------------------------------------------------------------------------------ what works


@MAKERS
def test_what_comes_out_is_what_went_in(make: Callable[..., Path], tmp_path: Path) -> None:
    path = make(tmp_path / "model", FILES | {"variables/deep/file.txt": b"\x00\xff"})
    archive.unpack(path, tmp_path / "out")
    assert contents(tmp_path / "out") == FILES | {"variables/deep/file.txt": b"\x00\xff"}
    assert sorted(archive.names(path)) == sorted([*FILES, "variables/deep/file.txt"])


NAME = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=7)


@settings(max_examples=25, deadline=None)
@given(files=st.dictionaries(NAME, st.binary(max_size=300), max_size=5), gz=st.booleans())
def test_any_files_survive(files: dict[str, bytes], gz: bool, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("any")
    files = {name.casefold(): data for name, data in files.items()}  # a file system may fold case
    path = (make_tar if gz else make_zip)(folder / "a", {f"d/{name}": data for name, data in files.items()})
    archive.unpack(path, folder / "out")
    assert contents(folder / "out") == {f"d/{name}": data for name, data in files.items()}


@MAKERS
def test_only_wanted_files_are_written(make: Callable[..., Path], tmp_path: Path) -> None:
    path = make(tmp_path / "model", FILES)
    archive.unpack(path, tmp_path / "out", wanted=lambda name: name == "vocab.txt")
    assert contents(tmp_path / "out") == {"vocab.txt": FILES["vocab.txt"]}


def test_an_existing_folder_is_kept_unless_told(tmp_path: Path) -> None:
    path, out = make_zip(tmp_path / "a.zip", FILES), tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("mine")
    with pytest.raises(OutputExists):
        archive.unpack(path, out)
    assert contents(out) == {"mine": b"mine"}
    archive.unpack(path, out, overwrite=True)
    assert contents(out) == FILES


# ------------------------------------------------------------------------------------------------ escapes

UNSAFE = [
    "../evil",
    "a/../../evil",
    "/etc/evil",
    "..\\evil",
    "C:\\evil",
    "c:evil",
    "a\nb",
    "x" * 300,
    "..",
    "file:stream",
]


@pytest.mark.parametrize("name", UNSAFE)
@MAKERS
def test_a_name_that_leaves_the_folder_is_refused(make: Callable[..., Path], name: str, tmp_path: Path) -> None:
    inside = tmp_path / "deep" / "er"
    inside.mkdir(parents=True)
    refuses(make(inside / "bad", FILES | {name: b"boo"}), inside / "out", "unsafe name")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["bad"]
    assert not Path("/etc/evil").exists()


def test_a_name_hidden_behind_a_zero_byte_is_refused(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "bad.zip", {"vocab.txt#/../../evil": b"boo"})
    path.write_bytes(path.read_bytes().replace(b"vocab.txt#", b"vocab.txt\0"))
    refuses(path, tmp_path / "out", "unsafe name")


def test_an_unsafe_name_is_refused_even_where_not_wanted(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "bad.zip", FILES | {"../evil": b"boo"})
    with pytest.raises(CheckpointError, match="unsafe name"):
        archive.unpack(path, tmp_path / "out", wanted=lambda name: name == "vocab.txt")


def test_a_symlink_in_a_zip_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.zip"
    with zipfile.ZipFile(path, "w") as bundle:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        bundle.writestr(info, "/etc/passwd")
    refuses(path, tmp_path / "out", "link or a device")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(kind: bytes, tmp_path: Path) -> None:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname, info.size = kind, "/etc/passwd", 0

    refuses(make_tar(tmp_path / "bad.tar.gz", {"link": b""}, change), tmp_path / "out", "link or a device")


@MAKERS
def test_the_same_name_twice_is_refused(make: Callable[..., Path], tmp_path: Path) -> None:
    refuses(make(tmp_path / "bad", {"a/vocab.txt": b"1", "a//vocab.txt": b"2"}), tmp_path / "out", "there twice")
    refuses(make(tmp_path / "bad2", {"a": b"1", "a/b": b"2"}), tmp_path / "out", "there twice")


# ------------------------------------------------------------------------------------------------ bombs


@MAKERS
def test_a_bomb_is_refused_before_it_is_written(make: Callable[..., Path], tmp_path: Path) -> None:
    path = make(tmp_path / "bomb", {"vocab.txt": b"ok", "zeros": bytes(archive.RATIO_FLOOR + 1)})
    assert path.stat().st_size < 100_000
    refuses(path, tmp_path / "out", "unpacks to more than")


@MAKERS
def test_the_limit_is_the_sum_of_all_files(make: Callable[..., Path], tmp_path: Path) -> None:
    path = make(tmp_path / "a", {"1": bytes(600), "2": bytes(401)})
    archive.unpack(path, tmp_path / "whole", limit=1001)
    with pytest.raises(CheckpointError, match="more than 1,000 bytes"):
        archive.unpack(path, tmp_path / "out", limit=1000)
    assert not (tmp_path / "out").exists()


def test_a_tar_is_not_read_without_end_for_what_is_not_wanted(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "bomb.tar.gz", {"zeros": bytes(18_000_000), "vocab.txt": b"ok"})
    archive.unpack(path, tmp_path / "whole", wanted=lambda name: name == "vocab.txt")
    with pytest.raises(CheckpointError, match=r"unpacks to more than 16,7"):
        archive.unpack(path, tmp_path / "out", wanted=lambda name: name == "vocab.txt", limit=1000)
    assert not (tmp_path / "out").exists()


def zip_that_declares(path: Path, real: int, declared: int) -> Path:
    """Write a zip whose headers say another size than its deflated bytes have."""
    make_zip(path, {"zeros": bytes(real)})
    path.write_bytes(path.read_bytes().replace(struct.pack("<L", real), struct.pack("<L", declared)))
    return path


def test_a_zip_that_declares_less_than_it_holds_is_stopped(tmp_path: Path) -> None:
    path = zip_that_declares(tmp_path / "bomb.zip", real=30_000_000, declared=10)
    refuses(path, tmp_path / "out", "damaged or cut short")


def test_a_zip_that_declares_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    path = zip_that_declares(tmp_path / "short.zip", real=1000, declared=2000)
    refuses(path, tmp_path / "out", "declares 2,000 bytes and has 1,000")


def test_a_tar_header_that_wants_much_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as bundle:
        info = tarfile.TarInfo("a")
        info.pax_headers = {"comment": "x" * 20_000_000}
        bundle.addfile(info)
    refuses(path, tmp_path / "out", "a header of 20,")


@MAKERS
def test_too_many_entries_are_refused(make: Callable[..., Path], tmp_path: Path) -> None:
    path = make(tmp_path / "many", {f"{i}": b"" for i in range(12)})
    archive.unpack(path, tmp_path / "whole", entries=12)
    with pytest.raises(CheckpointError, match="more than 11 entries"):
        archive.unpack(path, tmp_path / "out", entries=11)
    assert not (tmp_path / "out").exists()


def test_a_huge_zip_directory_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "many.zip", {f"{i:0200}": b"" for i in range(60)})
    with pytest.raises(CheckpointError, match="its directory has room for more than 11 entries"):
        archive.unpack(path, tmp_path / "out", entries=11)


def test_a_zip64_directory_is_counted_too(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "many.zip", {f"{i:0200}": b"" for i in range(60)})
    data = path.read_bytes()
    end = len(data) - 22
    size, offset = struct.unpack_from("<LL", data, end + 12)
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 60, 60, size, offset)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    tail = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(data[:end] + record + locator + tail)
    assert len(archive.names(path)) == 60
    with pytest.raises(CheckpointError, match="its directory has room for more than 11 entries"):
        archive.names(path, entries=11)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_unpack_without_a_bound_are_refused(method: int, tmp_path: Path) -> None:
    refuses(make_zip(tmp_path / "odd.zip", FILES, method), tmp_path / "out", "packed by method")


# ------------------------------------------------------------------------------------------------ damage


@MAKERS
def test_every_truncation_is_an_error(make: Callable[..., Path], tmp_path: Path) -> None:
    path = make(tmp_path / "whole", {"bert_config.json": b"{}", "vocab.txt": bytes(range(97))})
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        refuses(path, tmp_path / "out", "damaged|empty|not a .zip")


@MAKERS
def test_every_flipped_bit_is_an_error_or_harmless(make: Callable[..., Path], tmp_path: Path) -> None:
    """Some bits of a header mean nothing here (dates, permissions); the files are right or there are none."""
    files = {"vocab.txt": bytes(range(61))}
    path, out = make(tmp_path / "whole", files), tmp_path / "out"
    data, refused = path.read_bytes(), 0
    bits = range(0, len(data) * 8, 5)  # every byte, each place in turn
    for bit in bits:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            archive.unpack(path, out, overwrite=True)
        except CheckpointError:
            refused += 1
        else:
            assert contents(out) == files, bit
    assert refused > len(bits) // 2


@MAKERS
def test_a_flipped_bit_in_the_weights_is_an_error(make: Callable[..., Path], tmp_path: Path) -> None:
    path = make(tmp_path / "whole", {"weights": bytes(range(256)) * 300})
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)
    refuses(path, tmp_path / "out", "damaged or cut short")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><title>404</title>", "a web page, not an archive"),
        (b"BZh91AY&SY", "not a .zip or .tar.gz"),
        (b"PK\3\4", "damaged or cut short"),
    ],
)
def test_what_is_no_archive_is_said(data: bytes, match: str, tmp_path: Path) -> None:
    (tmp_path / "model.zip").write_bytes(data)
    refuses(tmp_path / "model.zip", tmp_path / "out", match)


def test_a_missing_archive_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        archive.unpack(tmp_path / "none.zip", tmp_path / "out")


def test_no_space_left_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", {"weights": bytes(range(256)) * 4000})
    code = """
import sys
from pathlib import Path
from bert_miniatures import archive, errors
try:
    archive.unpack(Path(sys.argv[1]), Path(sys.argv[2]))
except errors.DiskFull as error:
    print(error)
"""

    def full() -> None:  # writing beyond this size fails as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    command = [sys.executable, "-c", code, str(path), str(tmp_path / "out")]
    run = subprocess.run(command, preexec_fn=full, capture_output=True, text=True, check=True)
    assert run.stdout.startswith(f"{tmp_path / 'out'}: no space left on the device")
    assert [file.name for file in tmp_path.iterdir()] == ["a.zip"]


# ------------------------------------------------------------------------------------------------ one of several


def both(prefix: str = "") -> dict[str, bytes]:
    return {
        f"{prefix}{model.official}/{name}": data + model.official.encode()
        for model in (TINY, MINI)
        for name, data in FILES.items()
    }


@MAKERS
def test_a_model_is_found_in_its_own_archive(make: Callable[..., Path], tmp_path: Path) -> None:
    for number, prefix in enumerate(("", "uncased/", "./x/y/")):
        extra = {"README.md": b"x", "__MACOSX/._bert_config.json": b"x", prefix + "events.out": b"x"}
        path = make(tmp_path / f"{number}.any", {prefix + name: data for name, data in FILES.items()} | extra)
        folder = archive.find_model(path, TINY, tmp_path / f"out{number}")
        assert contents(folder) == FILES


@MAKERS
def test_a_model_is_found_among_folders(make: Callable[..., Path], tmp_path: Path) -> None:
    path = make(tmp_path / "all", both("models/"))
    for model in (MINI, TINY):
        folder = archive.find_model(path, model, tmp_path / model.official)
        assert contents(folder) == {name: data + model.official.encode() for name, data in FILES.items()}


@MAKERS
def test_a_model_is_found_among_archives(make: Callable[..., Path], tmp_path: Path) -> None:
    inner = {}
    for model in (TINY, MINI):
        path = make_zip(tmp_path / "inner.zip", {name: data + model.official.encode() for name, data in FILES.items()})
        inner[f"{model.official}.zip"] = path.read_bytes()
    path.unlink()
    path = make(tmp_path / "all", inner)
    for model in (MINI, TINY):
        folder = archive.find_model(path, model, tmp_path / model.official)
        assert contents(folder) == {name: data + model.official.encode() for name, data in FILES.items()}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["all", TINY.official, MINI.official]
    (tmp_path / "folder").mkdir()
    archive.unpack(path, tmp_path / "folder" / "deep")  # the same, already unpacked
    folder = archive.find_model(tmp_path / "folder", MINI, tmp_path / "scratch")
    assert contents(folder) == {name: data + MINI.official.encode() for name, data in FILES.items()}


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    for name, data in FILES.items():
        (tmp_path / name).write_bytes(data)
    assert archive.find_model(tmp_path, TINY, tmp_path / "scratch") == tmp_path
    assert not (tmp_path / "scratch").exists()


def test_a_model_that_is_not_there_is_said(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "all.zip", both())
    with pytest.raises(CheckpointError, match=f"holds 2 models, none named {ZOO['8/512'].official}: {TINY.official}"):
        archive.find_model(path, ZOO["8/512"], tmp_path / "out")
    path = make_zip(tmp_path / "none.zip", {"readme": b""})
    with pytest.raises(CheckpointError, match="no model in there"):
        archive.find_model(path, TINY, tmp_path / "out")


def test_an_archive_in_an_archive_in_an_archive_is_refused(tmp_path: Path) -> None:
    data = make_zip(tmp_path / "0.zip", FILES).read_bytes()
    data = make_zip(tmp_path / "1.zip", {"a.zip": data}).read_bytes()
    path = make_zip(tmp_path / "2.zip", {"b.zip": data})
    with pytest.raises(CheckpointError, match=r"'b.zip' holds an archive again"):
        archive.find_model(path, TINY, tmp_path / "out")
    assert not (tmp_path / "out").exists()
