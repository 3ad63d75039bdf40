"""Several processes that share the batches of a run, as torchrun starts them.

The first process alone reads and writes the run folder, evaluates and speaks; the others compute their share of every
batch and wait for it. They meet at an update's gradients (train.py), at `Team.any` after it, and where one of them has
something that all need. A process that ends closes its connections, and every meeting of the others fails at once:
nobody waits for one who will not come. Why it ended is said once, by whom it happened to.
"""

import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bert_miniatures.errors import ConfigError, MiniaturesError, ProcessLost
from bert_miniatures.machine import LINGERING, Launch

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

__all__ = ["Team", "joined"]

T = TypeVar("T")
_JOINING, _WAITING = timedelta(minutes=10), timedelta(days=1)  # the others wait while the first one evaluates
_HEARD = 10.0  # seconds that the first process waits for the others to hear of an error
_LOST = re.compile(r"gloo|nccl|connection (closed|reset|refused)|broken pipe", re.IGNORECASE)


class Team:
    """The processes of this run: one alone, or those of torch's default process group, which must take CPU tensors.

    Attributes:
        rank: this process's number.
        world: how many processes there are.
        first: whether this process is the one that reads, writes and speaks.
    """

    def __init__(self) -> None:
        up = dist.is_available() and dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if up else (0, 1)
        self.first = self.rank == 0

    def any(self, flag: bool) -> bool:
        """Tell all processes whether one of them has the flag up. All must call it, and it waits for all."""
        if self.world == 1:
            return flag
        found = torch.tensor([int(flag)], dtype=torch.int32)
        with self.losses():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found.item())

    def share(self, document: Any) -> Any:
        """Return the first process's document (what JSON holds) in all processes."""
        if self.world == 1:
            return document
        raw = json.dumps(document).encode() if self.first else b""
        size = torch.tensor([len(raw)], dtype=torch.int64)
        with self.losses():
            dist.broadcast(size, 0)
            text = torch.zeros(int(size.item()), dtype=torch.uint8)
            if self.first:
                text = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
            dist.broadcast(text, 0)
        return json.loads(bytes(text.tolist()))

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Copy the first process's tensors into those of the others."""
        if self.world > 1:
            with self.losses():
                for tensor in tensors:
                    dist.broadcast(tensor, 0)

    def first_then_others(self, work: Callable[[], T]) -> T:
        """Do the work in the first process, then in the others: they find what it left in a cache."""
        if self.world == 1:
            return work()
        found = work() if self.first else None
        self.any(False)
        return work() if found is None else found

    def check_same(self, document: Any) -> None:
        """Check that all processes have the same document.

        Raises:
            ConfigError: this process has another one than the first.
            ProcessLost: another process has.
        """
        theirs = self.share(document)
        for key, value in document.items():
            if value != theirs[key]:
                raise ConfigError(
                    f"process {self.rank} of {self.world} on {socket.gethostname()} reads another {key} than process "
                    "0; all need the same command and the same files"
                )
        self.any(False)

    @contextmanager
    def losses(self) -> Iterator[None]:
        """Turn what torch says of a connection that broke into one sentence.

        Raises:
            ProcessLost: another process ended.
        """
        try:
            yield
        except RuntimeError as error:
            if self.world == 1 or not (isinstance(error, dist.DistError) or _LOST.search(str(error))):
                raise
            raise ProcessLost(
                f"another of the {self.world} processes of this run ended; the same command with --resume goes on "
                "from the last saved state"
            ) from error


@contextmanager
def joined(launch: Launch) -> Iterator[None]:
    """Join the process group that the launcher prepared, and leave it at the end.

    An error inside the block is raised in one process, the one where it came first; the others end in silence.

    Raises:
        SystemExit: another process failed first; the exit code is that of its error.
        ProcessLost: this process did not reach the others.
        ConfigError: fewer GPUs than processes.
    """
    store = _meet(launch)
    try:
        _join(launch, store)
        yield
    except BaseException as error:
        code = _first_code(store, launch.rank, _code_of(error))
        _leave_group()  # those that wait for this process in a collective operation wait in vain
        with suppress(KeyboardInterrupt):
            if launch.rank == 0:  # the store may be in this process
                _wait_until_heard(store, launch.world)
            if code is not None:
                time.sleep(LINGERING)  # launchers end all processes when one fails: first the other one must speak
        if code is not None:
            raise SystemExit(code) from None
        raise
    finally:
        _leave_group()


def _leave_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _meet(launch: Launch) -> "Store":
    if not dist.is_available():
        raise ConfigError("this torch was built without torch.distributed; one process needs no torchrun")
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    address, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    if launch.local == launch.world:  # all on this machine: nothing need be reachable from outside
        loopback = next((name for _, name in socket.if_nameindex() if name in {"lo", "lo0"}), None)
        for library in ("GLOO", "NCCL"):
            if loopback:
                os.environ.setdefault(f"{library}_SOCKET_IFNAME", loopback)
    try:
        store: Store = next(rendezvous("env://", timeout=_JOINING))[0]
        return PrefixStore(f"miniatures-{launch.restarts}", store)  # what an earlier start left there is not ours
    except (RuntimeError, ValueError) as error:
        raise _not_there(launch, f"{address}:{port}", error) from error


def _join(launch: Launch, store: "Store") -> None:
    backend = "gloo"
    if torch.cuda.is_available():
        found = torch.cuda.device_count()
        if found < launch.local:
            raise ConfigError(
                f"{launch.local} processes on this machine and {found} GPU{'s' * (found != 1)}: give each process one "
                "(torchrun --nproc-per-node), or train on the CPU with CUDA_VISIBLE_DEVICES= (empty)"
            )
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", launch.rank)))
        backend = "cpu:gloo,cuda:nccl"
    try:
        dist.init_process_group(backend, store=store, rank=launch.rank, world_size=launch.world, timeout=_WAITING)
    except (RuntimeError, ValueError) as error:
        raise _not_there(launch, "its connections", error) from error


def _not_there(launch: Launch, where: str, error: Exception) -> ProcessLost:
    first = next(iter(str(error).splitlines()), type(error).__name__)
    return ProcessLost(f"process {launch.rank} of {launch.world} did not find the others at {where}: {first}")


def _code_of(error: BaseException) -> int:
    if isinstance(error, MiniaturesError):
        return error.exit_code
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _wait_until_heard(store: "Store", world: int) -> None:
    """Give the others the time to learn which error came first; a slow machine needs more than a moment."""
    until = time.monotonic() + _HEARD
    with suppress(RuntimeError):
        while store.add("heard", 0) < world and time.monotonic() < until:
            time.sleep(0.02)


def _first_code(store: "Store", rank: int, code: int) -> int | None:
    """Return the exit code of the process that failed first; None where that is this one, or nobody can tell."""
    try:
        first = store.compare_set("failed", "", f"{code} {rank}").decode()
        store.add("heard", 1)
    except RuntimeError:  # the process that held the store is gone
        return None
    return None if first == f"{code} {rank}" else int(first.split()[0])
