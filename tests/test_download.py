"""Downloads: whatever the server does, the bytes are right or there are none; offline, no socket is opened."""

import hashlib
import random
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bert_miniatures import download as module
from bert_miniatures import transfer
from bert_miniatures.errors import CheckpointError, DownloadFailed, Offline
from bert_miniatures.transfer import Unreachable, download
from bert_miniatures.zoo import ZOO
from loopback import FILES, GUARD, Server, goog_hash, make_zip, python

DATA = random.Random(7).randbytes(300_007)
OTHER = random.Random(8).randbytes(300_007)


def get(server: Server, target: Path, attempts: int = 5) -> bytes:
    return download(f"{server.url}/a.zip", target, attempts=attempts, pause=0.001).read_bytes()


def left(target: Path) -> list[str]:
    return sorted(path.name for path in target.parent.iterdir() if not path.name.endswith(".lock"))


# ------------------------------------------------------------------------------------------------ one file


def test_a_file_comes_whole_and_only_once(tmp_path: Path) -> None:
    with Server({"/a.zip": DATA}) as server:
        server.goog_hash = True
        assert get(server, tmp_path / "a.zip") == DATA
        assert get(server, tmp_path / "a.zip") == DATA
    assert [asked.headers.get("range") for asked in server.asked] == [None]
    assert left(tmp_path / "a.zip") == ["a.zip"]


def test_a_cut_connection_is_continued(tmp_path: Path) -> None:
    with Server({"/a.zip": DATA}) as server:
        server.goog_hash, server.cuts = True, [100_000, 131_072]
        assert get(server, tmp_path / "a.zip") == DATA
    first, second, third = server.asked
    assert "range" not in first.headers
    begun = [int(asked.headers["range"].removeprefix("bytes=").rstrip("-")) for asked in (second, third)]
    assert 0 < begun[0] <= 100_000 < begun[1] <= 231_072  # what had come was not asked for again
    etag = f'"{hashlib.sha1(DATA, usedforsecurity=False).hexdigest()}"'
    assert {asked.headers["if-range"] for asked in (second, third)} == {etag}


@settings(max_examples=20, deadline=None)
@given(
    size=st.integers(0, 200_000),
    cuts=st.lists(st.one_of(st.none(), st.integers(0, 200_000)), max_size=4),
    ranges=st.booleans(),
    length=st.booleans(),
)
def test_any_cuts_give_the_same_bytes(
    size: int, cuts: list[int | None], ranges: bool, length: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with Server({"/a.zip": DATA[:size]}) as server:
        server.cuts, server.ranges, server.length = cuts, ranges, length
        assert get(server, tmp_path_factory.mktemp("any") / "a.zip", attempts=6) == DATA[:size]


def test_a_later_process_goes_on_where_this_one_stopped(tmp_path: Path) -> None:
    with Server({"/a.zip": DATA}) as server:
        server.cuts = [200_000]
        with pytest.raises(Unreachable, match=r"/a\.zip: .*gave up after 1 attempts"):
            get(server, tmp_path / "a.zip", attempts=1)
        assert left(tmp_path / "a.zip") == ["a.zip.part", "a.zip.part.json"]
        assert get(server, tmp_path / "a.zip", attempts=1) == DATA
    assert server.asked[1].headers["range"] == f"bytes={200_000 // 65536 * 65536}-"
    assert left(tmp_path / "a.zip") == ["a.zip"]


def test_a_server_without_ranges_sends_everything_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Server({"/a.zip": DATA}) as server:
        server.cuts, server.ranges = [200_000], False
        assert get(server, tmp_path / "a.zip") == DATA
    assert "cannot be continued, beginning again" in capsys.readouterr().err


@pytest.mark.parametrize("honest", [True, False], ids=["If-Range honoured", "If-Range ignored"])
def test_a_file_that_changed_is_fetched_anew(honest: bool, tmp_path: Path) -> None:
    with Server({"/a.zip": DATA}) as server:
        server.cuts, server.if_range = [200_000], honest
        with pytest.raises(Unreachable):
            get(server, tmp_path / "a.zip", attempts=1)
        server.files["/a.zip"] = OTHER
        assert get(server, tmp_path / "a.zip", attempts=2) == OTHER


def test_a_server_may_answer_less_than_it_was_asked_for(tmp_path: Path) -> None:
    with Server({"/a.zip": DATA}) as server:
        server.cuts, server.most = [100_000], 90_000
        assert get(server, tmp_path / "a.zip") == DATA
    assert len(server.asked) == 4


def test_a_file_that_grew_under_the_same_etag_is_fetched_anew(tmp_path: Path) -> None:
    with Server({"/a.zip": DATA}) as server:
        server.cuts, server.etag = [200_000], {"/a.zip": '"same"'}
        with pytest.raises(Unreachable):
            get(server, tmp_path / "a.zip", attempts=1)
        server.files["/a.zip"] = OTHER + b"more"
        assert get(server, tmp_path / "a.zip") == OTHER + b"more"


def test_a_file_that_shrank_is_fetched_anew(tmp_path: Path) -> None:
    with Server({"/a.zip": DATA}) as server:
        server.cuts, server.etag = [200_000], {"/a.zip": '"same"'}
        with pytest.raises(Unreachable):
            get(server, tmp_path / "a.zip", attempts=1)
        server.files["/a.zip"] = OTHER[:1000]
        assert get(server, tmp_path / "a.zip") == OTHER[:1000]
    assert [asked.headers.get("range") is None for asked in server.asked] == [True, False, True]


def test_without_a_strong_validator_nothing_is_continued(tmp_path: Path) -> None:
    with Server({"/a.zip": DATA}) as server:
        server.cuts, server.etag = [200_000], {"/a.zip": 'W/"weak"'}
        assert get(server, tmp_path / "a.zip") == DATA
        assert [asked.headers.get("range") for asked in server.asked] == [None, None]
        server.cuts, server.last_modified = [200_000], "Thu, 20 Feb 2020 20:20:20 GMT"
        assert get(server, tmp_path / "b.zip") == DATA
        assert server.asked[-1].headers["if-range"] == server.last_modified


def test_a_part_of_another_address_is_not_continued(tmp_path: Path) -> None:
    with Server({"/a.zip": DATA, "/b.zip": OTHER}) as server:
        server.cuts = [200_000]
        with pytest.raises(Unreachable):
            get(server, tmp_path / "a.zip", attempts=1)
        assert download(f"{server.url}/b.zip", tmp_path / "a.zip").read_bytes() == OTHER


@pytest.mark.parametrize("junk", ["", "{", "[]", '{"url": 3}'])
def test_a_spoilt_note_beside_the_part_is_no_harm(junk: str, tmp_path: Path) -> None:
    (tmp_path / "a.zip.part").write_bytes(OTHER)
    (tmp_path / "a.zip.part.json").write_text(junk)
    with Server({"/a.zip": DATA}) as server:
        assert get(server, tmp_path / "a.zip") == DATA


def test_a_part_that_was_complete_needs_no_server(tmp_path: Path) -> None:
    with Server({"/a.zip": DATA}) as server:
        server.goog_hash, server.cuts = True, [200_000]
        with pytest.raises(Unreachable):
            get(server, tmp_path / "a.zip", attempts=1)
        (tmp_path / "a.zip.part").write_bytes(DATA)  # as if the process had died before the rename
        assert get(server, tmp_path / "a.zip") == DATA
    assert len(server.asked) == 1


# ------------------------------------------------------------------------------------------------ checksums


def test_checksums_are_spelt_as_google_does(tmp_path: Path) -> None:
    """The values are those that Cloud Storage states for these eleven bytes."""
    assert goog_hash(b"hello world") == "crc32c=yZRlqg==,md5=XrY7u+Ae7tCTyyK7j1rNww=="
    with Server({"/a.zip": b"hello world"}) as server:
        server.goog_hash = "crc32c=yZRlqg==, md5=XrY7u+Ae7tCTyyK7j1rNww==, sha9=x"
        assert get(server, tmp_path / "a.zip") == b"hello world"


@pytest.mark.parametrize("name", ["md5", "crc32c"])
def test_bytes_that_do_not_match_are_not_kept(name: str, tmp_path: Path) -> None:
    with Server({"/a.zip": DATA}) as server:
        server.goog_hash = next(part for part in goog_hash(OTHER).split(",") if part.startswith(name))
        with pytest.raises(DownloadFailed, match=rf"/a\.zip: {name} of the bytes is .* nothing was kept"):
            get(server, tmp_path / "a.zip")
    assert len(server.asked) == 1
    assert left(tmp_path / "a.zip") == []


def test_a_part_that_was_spoilt_on_the_disk_is_fetched_anew(tmp_path: Path) -> None:
    with Server({"/a.zip": DATA}) as server:
        server.goog_hash, server.cuts = True, [200_000]
        with pytest.raises(Unreachable):
            get(server, tmp_path / "a.zip", attempts=1)
        part = bytearray((tmp_path / "a.zip.part").read_bytes())
        part[12_345] ^= 1
        (tmp_path / "a.zip.part").write_bytes(part)
        assert get(server, tmp_path / "a.zip") == DATA


# ------------------------------------------------------------------------------------------------ refusals


def test_a_busy_server_is_asked_again(tmp_path: Path) -> None:
    with Server({"/a.zip": DATA}) as server:
        server.statuses = [503, 429, 500]
        assert get(server, tmp_path / "a.zip") == DATA
    assert len(server.asked) == 4


def test_the_server_decides_how_long_to_wait(tmp_path: Path) -> None:
    with Server({"/a.zip": DATA}) as server:
        server.statuses, server.retry_after = [503], "1"
        begun = time.monotonic()
        assert get(server, tmp_path / "a.zip") == DATA
    assert time.monotonic() - begun >= 1


def test_a_server_that_stays_busy_is_given_up(tmp_path: Path) -> None:
    with Server({"/a.zip": DATA}) as server:
        server.statuses = [503] * 9
        with pytest.raises(Unreachable, match=rf"{server.url}/a\.zip: HTTP 503 .* gave up after 3 attempts"):
            get(server, tmp_path / "a.zip", attempts=3)
    assert len(server.asked) == 3


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_final_and_names_the_address(status: int, tmp_path: Path) -> None:
    with Server() as server:
        server.statuses = [status]
        with pytest.raises(DownloadFailed, match=rf"{server.url}/a\.zip: HTTP {status}"):
            get(server, tmp_path / "a.zip")
    assert len(server.asked) == 1
    assert left(tmp_path / "a.zip") == []


def test_nobody_there_is_said_with_the_address(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match=r"http://127.0.0.1:9/a.zip: ConnectionError: .*; gave up after 2 attempts"):
        download("http://127.0.0.1:9/a.zip", tmp_path / "a.zip", attempts=2, pause=0.001)
    with pytest.raises(DownloadFailed, match=r"ftp://127\.0\.0\.1/a\.zip"):
        download("ftp://127.0.0.1/a.zip", tmp_path / "a.zip")


@pytest.mark.parametrize("length", [True, False], ids=["declared", "endless"])
def test_more_than_a_model_can_have_is_refused(length: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "LARGEST", 200_000)
    with Server({"/a.zip": DATA}) as server:
        server.length = length
        with pytest.raises(
            DownloadFailed, match="expected at most 200,000" if length else "more than 200,000 bytes came"
        ):
            get(server, tmp_path / "a.zip")
    assert left(tmp_path / "a.zip") == []


def test_no_space_left_is_said_and_frees_the_space(tmp_path: Path) -> None:
    code = """
import sys
from pathlib import Path
from bert_miniatures import errors, transfer
try:
    transfer.download(sys.argv[1], Path(sys.argv[2]))
except errors.DiskFull as error:
    print(error)
"""
    with Server({"/a.zip": DATA}) as server:
        run = python(code, tmp_path, f"{server.url}/a.zip", str(tmp_path / "a.zip"), limit=150_000)
    assert run.stdout.startswith(f"{tmp_path / 'a.zip'}: no space left on the device"), run.stderr
    assert left(tmp_path / "a.zip") == []


def test_two_that_want_the_same_file_fetch_it_once(tmp_path: Path) -> None:
    with Server({"/a.zip": DATA}) as server:
        server.delay = 0.5
        threads = [threading.Thread(target=get, args=(server, tmp_path / "a.zip")) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(server.asked) == 1
    assert (tmp_path / "a.zip").read_bytes() == DATA


# ------------------------------------------------------------------------------------------------ Google's archives

TINY = ZOO["2/128"]
RAW = FILES | {"bert_config.json": b'{"hidden_size": 128, "num_hidden_layers": 2}'}


@pytest.fixture
def google(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:  # type: ignore[misc]
    monkeypatch.setenv("MINIATURES_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    archive = make_zip(tmp_path / "made.zip", RAW).read_bytes()
    with Server({f"/models/{TINY.official}.zip": archive}) as server:
        server.goog_hash = True
        monkeypatch.setenv("MINIATURES_GOOGLE_URL", f"{server.url}/models/")
        yield server


def test_googles_archive_is_fetched_and_unpacked(google: Server, tmp_path: Path) -> None:
    folder = module.fetch(TINY, source="google")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == RAW
    assert folder.is_relative_to(tmp_path / "home")
    assert module.held(TINY)
    module.fetch(TINY, source="google", offline=True)  # the archive is there
    assert len(google.asked) == 1
    module.forget(TINY)
    assert not folder.exists()
    assert not module.held(TINY)


def test_a_damaged_archive_is_not_kept(google: Server) -> None:
    whole = google.files[f"/models/{TINY.official}.zip"]
    google.files[f"/models/{TINY.official}.zip"] = whole[:-100]
    with pytest.raises(DownloadFailed, match=r"\.zip: .*damaged or cut short"):
        module.fetch(TINY, source="google")
    assert not module.held(TINY)
    google.files[f"/models/{TINY.official}.zip"] = whole
    assert module.fetch(TINY, source="google").is_dir()


def test_the_address_without_a_mirror_is_googles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINIATURES_GOOGLE_URL", raising=False)
    assert module.google_url(TINY) == TINY.google_zip


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (b'{"hidden_size": 256, "num_hidden_layers": 4}', r"of size 4/256; expected 2/128 \(uncased_L-2_H-128_A-2\)"),
        (b"[]", "no config.json"),
        (b"{}", "of size None/None"),
    ],
)
def test_an_archive_of_another_model_is_refused(config: bytes, match: str, google: Server, tmp_path: Path) -> None:
    path = make_zip(tmp_path / "mine.zip", RAW | {"bert_config.json": config})
    with pytest.raises(CheckpointError, match=match) as caught:
        module.fetch(TINY, archive=path)
    assert str(caught.value).startswith(f"{path}: ")
    assert path.exists()
    assert list((tmp_path / "home" / "raw").iterdir()) == []
    assert google.asked == []


# ------------------------------------------------------------------------------------------------ offline

FETCH = """
import sys
from bert_miniatures import download, errors, zoo
try:
    print(download.fetch(zoo.lookup("tiny"), source=sys.argv[1], offline=eval(sys.argv[2])))
except errors.MiniaturesError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("source", ["hub", "google"])
def test_offline_says_what_is_missing_and_opens_no_socket(source: str, tmp_path: Path) -> None:
    run = python(GUARD + FETCH, tmp_path, source, "True")
    said = run.stdout
    assert said.startswith("Offline uncased_L-2_H-128_A-2 is not on this machine"), run.stderr
    for place in (
        tmp_path / "ours" / "models" / TINY.official,
        tmp_path / "ours" / "downloads" / f"{TINY.official}.zip",
        tmp_path / "hf" / "hub" / f"models--google--bert_{TINY.official}",
    ):
        assert f"\n  {place}: not there\n" in said
    assert f"http://127.0.0.1:9/{TINY.official}.zip" in said  # the mirror that is set
    assert f"http://127.0.0.1:9/google/bert_{TINY.official}" in said
    assert f"miniatures fetch tiny --archive {TINY.official}.zip" in said


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_the_environment_forbids_the_network_too(variable: str, tmp_path: Path) -> None:
    run = python(GUARD + FETCH, tmp_path, "hub", "None", **{variable: "1", "MINIATURES_GOOGLE_URL": ""})
    assert run.stdout.startswith("Offline uncased_L-2_H-128_A-2 is not on this machine"), run.stderr
    assert TINY.google_zip in run.stdout


def test_the_guard_sees_a_socket(tmp_path: Path) -> None:
    run = python(GUARD + FETCH, tmp_path, "google", "False")
    assert "a socket was used" in run.stderr


def test_offline_names_what_a_half_filled_cache_lacks(tmp_path: Path) -> None:
    snapshot = tmp_path / "hf" / "hub" / f"models--google--bert_{TINY.official}" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    run = python(GUARD + FETCH, tmp_path, "hub", "True")
    assert f"\n  {snapshot}: without vocab.txt and weights\n" in run.stdout


def test_offline_takes_what_the_hubs_cache_has(tmp_path: Path) -> None:
    folder = tmp_path / "hf" / "hub" / f"models--google--bert_{TINY.official}"
    for number, name in enumerate(("newer", "main")):
        snapshot = folder / "snapshots" / name
        snapshot.mkdir(parents=True)
        (snapshot / "config.json").write_bytes(RAW["bert_config.json"])
        (snapshot / "vocab.txt").write_text("")
        if number:
            (snapshot / "pytorch_model.bin").write_text("")
    run = python(GUARD + FETCH, tmp_path, "hub", "True")
    assert run.stdout.strip() == str(folder / "snapshots" / "main"), run.stderr


def test_offline_is_an_error_of_use() -> None:
    assert (Offline.exit_code, DownloadFailed.exit_code, Unreachable.exit_code) == (2, 1, 1)
