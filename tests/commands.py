"""The command `miniatures` in processes of its own, as a user's shell starts it, and what a process may and may not do.

Importing torch takes seconds, so that a hundred commands would take minutes. `Shell` imports it once, in a process that
does nothing else, and forks a child for every command: the child has its own arguments, environment, limits, files and
exit status, and runs the same `main()` to the end of the interpreter. `start` runs `python -m bert_miniatures` from
nothing, where pipes, signals and the start itself matter.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOURCE = str(Path(__file__).parents[1] / "src")

_SERVER = """
import ctypes, gc, json, os, resource, struct, sys, warnings
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
        os.chdir(order["cwd"])
        os.environ.update(order["env"])
        if order["powerless"]:  # root may write anywhere; without its capabilities it is a user like others
            ctypes.CDLL(None, use_errno=True).capset(struct.pack("2I", 0x20080522, 0), bytes(24))
        for name, value in order["limits"].items():
            resource.setrlimit(getattr(resource, name), (value, value))
        sys.argv = ["miniatures", *order["arguments"]]
        main()
        sys.exit(0)
    status = os.waitpid(child, 0)[1]
    print(os.waitstatus_to_exitcode(status), file=answers, flush=True)
orders.close()
answers.close()
"""


@dataclass(frozen=True)
class Done:
    """What a command left: its exit status, standard output and standard error."""

    code: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The error, the last line of standard error; a traceback anywhere is a failure of the test."""
        assert "Traceback" not in self.err, self.err
        lines = self.err.splitlines()
        assert lines, "nothing on stderr"
        assert lines[-1].startswith("error: "), self.err
        return lines[-1].removeprefix("error: ")

    @property
    def json(self) -> Any:
        """Standard output as one JSON document, and nothing beside it."""
        return json.loads(self.out)


def environment(home: Path, **more: str) -> dict[str, str]:
    """An environment with every cache below `home` and without the network."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "MINIATURES_", "GLUE_"))}
    places = {"MINIATURES_HOME": str(home / "cache"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": SOURCE}
    return kept | places | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"} | more


def start(home: Path, *arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    """Start `python -m bert_miniatures` from nothing; `options` are those of Popen, `env` is added to ours."""
    env = environment(home, **options.pop("env", {}))
    pipes = {name: options.pop(name, subprocess.PIPE) for name in ("stdin", "stdout", "stderr")}
    return subprocess.Popen(
        [sys.executable, "-m", "bert_miniatures", *map(str, arguments)], env=env, cwd=home, **pipes, **options
    )


def finish(process: subprocess.Popen[bytes], stdin: bytes = b"", timeout: float = 120) -> Done:
    """Wait for the end of a process."""
    out, err = process.communicate(stdin, timeout=timeout)
    return Done(process.returncode, (out or b"").decode(), (err or b"").decode())


class Shell:
    """Runs commands from one process that has imported everything; see the top of the file."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.count = 0
        orders, self._orders = os.pipe()
        self._answers, answers = os.pipe()
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER, str(orders), str(answers)],
            pass_fds=(orders, answers),
            env=environment(home),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        os.close(orders)
        os.close(answers)
        self._replies = os.fdopen(self._answers)

    def __call__(
        self,
        *arguments: object,
        stdin: bytes = b"",
        cwd: Path | None = None,
        env: dict[str, str] | None = None,
        stdout: str | None = None,
        powerless: bool = False,
        **limits: int,
    ) -> Done:
        """Run a command to its end.

        Args:
            arguments: those of `miniatures`.
            stdin: bytes of standard input.
            cwd: the current folder; otherwise that of the shell.
            env: more of the environment.
            stdout: a file for standard output, as /dev/full; it is not read.
            powerless: without the rights of root, where the tests have them.
            limits: of the process, as `RLIMIT_FSIZE=4096`.
        """
        self.count += 1
        files = {name: self.home / f"{self.count}.{name}" for name in ("stdin", "stdout", "stderr")}
        files["stdin"].write_bytes(stdin)
        order: dict[str, Any] = {name: str(path) for name, path in files.items()}
        order |= {"stdout": stdout} if stdout else {}
        order |= {"arguments": list(map(str, arguments)), "cwd": str(cwd or self.home), "env": env or {}}
        order |= {"limits": limits, "powerless": powerless}
        os.write(self._orders, (json.dumps(order) + "\n").encode())
        code = int(self._replies.readline())
        out = "" if stdout else files["stdout"].read_text()
        return Done(code, out, files["stderr"].read_text())

    def close(self) -> None:
        """End the process."""
        os.close(self._orders)
        self._replies.close()
        self._server.wait()
