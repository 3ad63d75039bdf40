"""One file over HTTP, whole or not at all: resumed after a cut, verified, one process at a time.

Bytes go to `NAME.part`; `NAME.part.json` beside it says which version of the file they are from. A later attempt, in
this process or the next, asks for the rest with `Range` and `If-Range` (RFC 9110, 13.1.5 and 14.2), so a server whose
file has changed sends all of it again.
"""

import base64
import contextlib
import errno
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bert_miniatures.errors import DataError, DiskFull, DownloadFailed
from bert_miniatures.files import disk_full_is_an_error, read_json, writable_folder, write_json

if TYPE_CHECKING:
    import requests

__all__ = ["LARGEST", "Unreachable", "download", "locked", "say"]

LARGEST = 2 * 1024**3  # bytes; the largest archive of one model has 0.4 GB
_CHUNK = 64 * 1024
_TIMEOUT = (10.0, 30.0)  # seconds to connect, seconds without a byte
_LONGEST_WAIT = 60.0  # seconds
_FORWARD = 1024**2  # bytes that make an attempt count as progress
_TELL_EVERY = 10.0  # seconds between lines where there is no terminal
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_LATER = {408, 425, 429, 500, 502, 503, 504}


class Unreachable(DownloadFailed):
    """A server that does not answer, or answers that it cannot just now; another source may."""


class _TryAgainError(Exception):
    """This attempt failed in a way that the next may not.

    Args:
        wait: seconds that the server asked for.
    """

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


def say(text: str) -> None:
    """Tell the user what goes on, on stderr."""
    print(text, file=sys.stderr, flush=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of `path` against other processes; say so when one has to be waited for."""
    import filelock

    writable_folder(path.parent)
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0.2)
    except filelock.Timeout:
        say(f"another process works on {path}; waiting for it")
        lock.acquire()
    except NotImplementedError:  # a network file system without locks: two processes may do the same work
        yield
        return
    try:
        yield
    finally:
        lock.release()


def download(url: str, target: Path, *, attempts: int = 5, pause: float = 1.0) -> Path:
    """Download a file; go on where an earlier attempt stopped; give it its name when size and checksum are right.

    Args:
        url: http or https address.
        target: where the file appears, whole or not at all; a file that is there is kept.
        attempts: how often to try in a row without getting further.
        pause: seconds before the second attempt; doubles with each one, up to a minute.

    Raises:
        Unreachable: the server does not answer.
        DownloadFailed: it refuses, or the bytes do not match their checksum.
        DiskFull: no space left.
    """
    import requests

    with locked(target), disk_full_is_an_error(target), requests.Session() as session:
        if target.is_file():
            return target
        part = _Part.at(target.with_name(target.name + ".part"), url)
        failures = 0
        while True:
            before = part.size
            try:
                part.receive(session)
                break
            except _TryAgainError as reason:
                failures = 1 if part.size - before >= _FORWARD else failures + 1
                if failures >= attempts:
                    raise Unreachable(f"{url}: {reason}; gave up after {failures} attempts") from reason
                time.sleep(min(max(reason.wait, pause * 2 ** (failures - 1)), _LONGEST_WAIT))
            except OSError as error:
                if error.errno in _FULL:
                    part.drop()  # it takes the room that somebody needs now
                raise
        part.finish(target)
    return target


@dataclass
class _Part:
    """What is there of a download, and of which version of the file.

    Attributes:
        validator: strong ETag or Last-Modified of the version that the bytes are from; empty: cannot be resumed.
        total: bytes of the whole file, None where the server did not say.
        hashes: checksums of the whole file that the server stated: `md5` and `crc32c` in base64.
        resumed: whether the bytes are from more than one response.
    """

    path: Path
    url: str
    validator: str = ""
    total: int | None = None
    hashes: dict[str, str] = field(default_factory=dict)
    resumed: bool = False

    @classmethod
    def at(cls, path: Path, url: str) -> "_Part":
        """Take up what an earlier attempt left at `path`, if it is of this address and can be continued."""
        with contextlib.suppress(DataError):
            kept = read_json(_beside(path))
            keys = {"url", "validator", "total", "hashes"}
            if isinstance(kept, dict) and kept.keys() == keys and kept["url"] == url and path.is_file():
                return cls(path, **kept)
        return cls(path, url)

    @property
    def size(self) -> int:
        """Bytes that the next attempt need not ask for."""
        return self.path.stat().st_size if self.validator and self.path.is_file() else 0

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        _beside(self.path).unlink(missing_ok=True)
        self.validator, self.total, self.hashes = "", None, {}

    def finish(self, target: Path) -> None:
        self.path.replace(target)
        _beside(self.path).unlink(missing_ok=True)

    def receive(self, session: "requests.Session") -> None:
        """Make one request for what is missing, write what comes, check it.

        Raises:
            _TryAgainError: another attempt may work.
        """
        import requests

        have = self.size
        if self.total is None or have != self.total:
            headers = {"Accept-Encoding": "identity", "User-Agent": "bert-miniatures"}
            if have:
                headers |= {"Range": f"bytes={have}-", "If-Range": self.validator}
            try:
                with session.get(self.url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
                    self._write(response, self._begin(response, have))
            except requests.exceptions.SSLError as error:
                raise Unreachable(f"{self.url}: {_short(error)}") from error
            except (
                requests.ConnectionError,
                requests.Timeout,
                requests.exceptions.ChunkedEncodingError,
            ) as error:
                raise _TryAgainError(_short(error)) from error
            except requests.RequestException as error:
                raise DownloadFailed(f"{self.url}: {_short(error)}") from error
        self._verify()

    def _begin(self, response: "requests.Response", have: int) -> int:
        """Judge the answer, note which version of the file it is, and return where its bytes begin."""
        status, headers = response.status_code, response.headers
        if status in _LATER:
            wait = headers.get("Retry-After", "")
            raise _TryAgainError(f"HTTP {status} {response.reason}", float(wait) if wait.isdigit() else 0.0)
        start, total = _span(headers, status)
        stated = {headers[name] for name in ("ETag", "Last-Modified") if name in headers}
        changed = bool(stated) and self.validator not in stated
        if status == 416 or (status == 206 and (start != have or changed)):
            self.drop()
            raise _TryAgainError(f"HTTP {status}: the file there is not the one that was begun")
        if status not in {200, 206}:
            raise DownloadFailed(f"{self.url}: HTTP {status} {response.reason}")
        self.resumed = status == 206
        if not self.resumed:
            if have:
                say(f"{self.url}: cannot be continued, beginning again")
            self.drop()
            self.validator, self.total, self.hashes = _validator(headers), total, _hashes(headers)
        self._check_room(start)
        kept = {"url": self.url, "validator": self.validator, "total": self.total, "hashes": self.hashes}
        write_json(_beside(self.path), kept)
        return start

    def _check_room(self, have: int) -> None:
        total = self.total or 0
        if total > LARGEST:
            raise DownloadFailed(f"{self.url}: {total:,} bytes; expected at most {LARGEST:,}")
        needed, free = total - have, shutil.disk_usage(self.path.parent).free
        if needed > free:
            raise DiskFull(f"{self.path}: needs {needed:,} bytes more, and {free:,} are free there")

    def _write(self, response: "requests.Response", start: int) -> None:
        with self.path.open("ab" if start else "wb") as file, _progress(self.url, start, self.total) as advance:
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                advance(len(chunk))
                if file.tell() > LARGEST:
                    break
        if self.path.stat().st_size > LARGEST:
            self.drop()
            raise DownloadFailed(f"{self.url}: more than {LARGEST:,} bytes came; nothing was kept")

    def _verify(self) -> None:
        """Compare size and checksums; bytes that came in several answers get one more chance from the beginning."""
        size = self.path.stat().st_size
        total = size if self.total is None else self.total
        if size < total:  # a server may send less than it was asked for
            raise _TryAgainError(f"{size:,} of {total:,} bytes came")
        found = {} if size > total else _digests(self.path, set(self.hashes))
        wrong = f"{size:,} bytes came; expected {total:,}" if size > total else ""
        for name, value in found.items():
            wrong = wrong or f"{name} of the bytes is {value}; expected {self.hashes[name]}" * (
                value != self.hashes[name]
            )
        if wrong:
            self.drop()
            if self.resumed:
                raise _TryAgainError(wrong)
            raise DownloadFailed(f"{self.url}: {wrong}; nothing was kept")


def _beside(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _validator(headers: Any) -> str:
    """Return what `If-Range` may be asked with: a weak ETag may not."""
    etag = str(headers.get("ETag", ""))
    return etag if etag and not etag.startswith("W/") else str(headers.get("Last-Modified", ""))


def _span(headers: Any, status: int) -> tuple[int, int | None]:
    """Return the first byte of the answer and the size of the whole file, from Content-Range or Content-Length."""
    if status != 206:
        length = headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    unit, _, span = headers.get("Content-Range", "").partition(" ")
    start = span.partition("-")[0]
    return (int(start) if unit == "bytes" and start.isdigit() else -1), None


def _hashes(headers: Any) -> dict[str, str]:
    """Read `x-goog-hash: crc32c=n03x6A==,md5=Ojk9c3dhfxgoKVVHYwFbHQ==`."""
    stated = (item.strip().partition("=") for item in headers.get("x-goog-hash", "").split(","))
    return {name: value for name, _, value in stated if name in {"md5", "crc32c"}}


def _digests(path: Path, names: set[str]) -> dict[str, str]:
    """Return the checksums of a file as `x-goog-hash` spells them: big-endian bytes in base64."""
    import hashlib

    import google_crc32c

    crc32c: Any = google_crc32c.Checksum
    running: dict[str, Any] = {"md5": hashlib.md5(usedforsecurity=False), "crc32c": crc32c()}
    wanted = [running[name] for name in names]
    with path.open("rb") as file:
        while wanted and (chunk := file.read(1024**2)):
            for checksum in wanted:
                checksum.update(chunk)
    return {name: base64.b64encode(running[name].digest()).decode() for name in names}


def _short(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


@contextlib.contextmanager
def _progress(url: str, have: int, total: int | None) -> Iterator[Any]:
    """Show how far a download is, on stderr: a bar on a terminal, else a line now and then."""
    size = f" of {total / 1e6:.1f} MB" if total else ""
    say(f"{url}: {'going on at' if have else 'fetching'} {have / 1e6:.1f}{size or ' MB'}")
    if sys.stderr.isatty():
        from rich import progress
        from rich.console import Console

        columns = (progress.BarColumn(), progress.DownloadColumn(), progress.TransferSpeedColumn())
        with progress.Progress(
            *columns, progress.TimeRemainingColumn(), console=Console(stderr=True), transient=True
        ) as bar:
            task = bar.add_task("", total=total, completed=have)
            yield lambda count: bar.advance(task, count)
        return
    told = time.monotonic()

    def advance(count: int) -> None:
        nonlocal have, told
        have += count
        if time.monotonic() - told > _TELL_EVERY:
            told = time.monotonic()
            say(f"{url}: {have / 1e6:.1f}{size or ' MB'}")

    yield advance
