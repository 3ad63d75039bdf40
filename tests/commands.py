"""The command `miniatures` in processes of its own, as a user's shell starts it, and what such a process may do.

Importing torch takes seconds, so that a hundred commands would take minutes. `Shell` imports it once, in a process that
does nothing else, and forks a child for every command: the child has its own arguments, environment, limits, files and
exit status, and runs the same `main()`. `start` runs `python -m bert_miniatures` from nothing, where pipes, signals,
the start and the end of the interpreter matter.
"""

import atexit
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = str(Path(__file__).parents[1] / "src")

_SERVER = """
import ctypes, gc, json, os, resource, struct, sys, traceback, warnings
import torch._dynamo
warnings.simplefilter("error")
import bert_miniatures.recipes.scoring, bert_miniatures.predict_torch, bert_miniatures.data.stream
import bert_miniatures.cli.console, pyarrow.parquet, safetensors.numpy, sklearn.metrics, scipy.stats
from bert_miniatures.cli import main

orders, answers = os.fdopen(int(sys.argv[1])), os.fdopen(int(sys.argv[2]), "w")
gc.freeze()  # a child that collects would copy every page
for line in orders:
    order = json.loads(line)
    child = os.fork()
    if not child:
        orders.close()
        answers.close()
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            file = os.open(order[name], os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
        os.umask(order["umask"])
        os.chdir(order["cwd"])
        os.environ.update(order["env"])
        if order["powerless"]:  # root may write anywhere; without its capabilities it is a user like others
            ctypes.CDLL(None, use_errno=True).capset(struct.pack("2I", 0x20080522, 0), bytes(24))
        for name, value in order["limits"].items():
            resource.setrlimit(getattr(resource, name), (value, value))
        sys.argv = ["miniatures", *order["arguments"]]
        code = 0
        try:
            main()
        except SystemExit as done:
            code = done.code
        except BaseException:  # what the interpreter would do
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)  # to take the interpreter down would copy every page
    _, status, used = os.wait4(child, 0)
    print(os.waitstatus_to_exitcode(status), used.ru_maxrss, file=answers, flush=True)
orders.close()
answers.close()
"""


@dataclass(frozen=True)
class Done:
    """What a command left: its exit status, standard output and standard error.

    Attributes:
        peak: the most memory that the process had, in KiB; 0 where nobody asked.
    """

    code: int
    out: str
    err: str
    peak: int = 0

    @property
    def error(self) -> str:
        """The one sentence of an error, the last line of standard error."""
        assert self.code, self.out
        lines = self.err.splitlines()
        assert "Traceback" not in self.err, self.err
        assert [line.startswith("error: ") for line in lines].count(True) == 1, self.err
        assert lines[-1].startswith("error: "), self.err
        assert "this should not happen" not in lines[-1], self.err
        return lines[-1].removeprefix("error: ")

    @property
    def json(self) -> Any:
        """Standard output as one JSON document, and nothing beside it."""
        assert self.code == 0, self.err
        return json.loads(self.out)

    @property
    def rows(self) -> list[Any]:
        """Standard output as a JSON document a line."""
        assert self.code == 0, self.err
        return [json.loads(line) for line in self.out.splitlines()]


def environment(home: Path, **more: str) -> dict[str, str]:
    """An environment with every cache below `home` and without the network."""
    dropped = ("HF_", "MINIATURES_", "GLUE_", "PYTHONUNBUFFERED", "PYTHONIOENCODING", "NO_COLOR")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    places = {"MINIATURES_HOME": str(home / "cache"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": SOURCE}
    return kept | places | {"OMP_NUM_THREADS": "1"} | more


def start(home: Path, *arguments: object, code: str = "", **options: Any) -> subprocess.Popen[bytes]:
    """Start `python -m bert_miniatures` from nothing.

    Args:
        home: the current folder, and where caches go.
        arguments: those of `miniatures`.
        code: Python to run before.
        options: those of Popen; `env` is added to ours.
    """
    env = environment(home, **options.pop("env", {}))
    pipes = {name: options.pop(name, subprocess.PIPE) for name in ("stdin", "stdout", "stderr")}
    before = ["-c", f"{code}\nfrom bert_miniatures.cli import main\nmain()"] if code else ["-m", "bert_miniatures"]
    return subprocess.Popen([sys.executable, *before, *map(str, arguments)], env=env, cwd=home, **pipes, **options)


def finish(process: subprocess.Popen[bytes], stdin: bytes = b"", timeout: float = 120) -> Done:
    """Wait for the end of a process."""
    out, err = process.communicate(stdin, timeout=timeout)
    return Done(process.returncode, (out or b"").decode(), (err or b"").decode())


class Shell:
    """Runs commands from one process that has imported everything; see the top of the file."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self._count = 0
        orders, self._orders = os.pipe()
        replies, answers = os.pipe()
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(orders), str(answers)],
            pass_fds=(orders, answers),
            env=environment(home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(orders)
        os.close(answers)
        self._replies = os.fdopen(replies)

    def __call__(
        self,
        *arguments: object,
        stdin: bytes | str = b"",
        stdout: str = "",
        stderr: str = "",
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        umask: int = 0o022,
        powerless: bool = False,
        **limits: int,
    ) -> Done:
        """Run a command to its end, with the cache folder of the test that runs.

        Args:
            arguments: those of `miniatures`.
            stdin: bytes of standard input, or the file or terminal that it is.
            stdout, stderr: a file or terminal; it is not read.
            cwd: the current folder; otherwise that of the shell.
            env: more of the environment.
            powerless: without the rights of root, where the tests have them.
            limits: of the process, as `RLIMIT_FSIZE=4096`.
        """
        self._count += 1
        files = {name: self.home / f"{self._count}.{name}" for name in ("stdin", "stdout", "stderr")}
        files["stdin"].write_bytes(stdin if isinstance(stdin, bytes) else b"")
        given = {"stdin": stdin if isinstance(stdin, str) else "", "stdout": stdout, "stderr": stderr}
        order: dict[str, Any] = {name: given[name] or str(path) for name, path in files.items()}
        order |= {"arguments": list(map(str, arguments)), "cwd": str(cwd or self.home), "limits": limits}
        order |= {"umask": umask, "powerless": powerless}
        order |= {"env": {"MINIATURES_HOME": os.environ["MINIATURES_HOME"]} | (env or {})}
        os.write(self._orders, (json.dumps(order) + "\n").encode())
        code, peak = map(int, self._replies.readline().split())
        out, err = ("" if given[name] else files[name].read_text() for name in ("stdout", "stderr"))
        return Done(code, out, err, peak)

    def close(self) -> None:
        """End the process."""
        os.close(self._orders)
        self._server.wait()
        self._replies.close()
        shutil.rmtree(self.home)


def until(true: Callable[[], object], seconds: float = 60) -> None:
    """Wait until something is true, looking often; fail where it takes too long."""
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends, "it never happened"
        time.sleep(0.02)


@functools.cache
def shell() -> Shell:
    """Return the shell of this test process; it ends with it."""
    found = Shell(Path(tempfile.mkdtemp(prefix="miniatures-tests-")))
    atexit.register(found.close)
    return found
