"""Worker processes: jobs, deaths, the end. The workers here are a few lines of Python."""

import os
import signal
import sys
import time

import pytest

from bert_miniatures.errors import WorkFailed
from bert_miniatures.pool import Job, Pool, terminated_is_interrupted

WORKER = """
import json, os, signal, sys, time
for line in sys.stdin:
    message = json.loads(line)
    if "stop" in message:
        open(os.environ["MARK"], "a").write("stopped ")
        break
    job = message["job"]
    print(json.dumps({"progress": [1, 2]}), flush=True)
    if job.get("die") and not os.path.exists(job["die"]):
        open(job["die"], "w").close() if job.get("once") else None
        print('{"answer": {"do', end="", flush=True) if job.get("half") else None
        os.kill(os.getpid(), job.get("signal", signal.SIGKILL))
    if "exit" in job:
        print("this is why", file=sys.stderr)
        sys.exit(job["exit"])
    time.sleep(job.get("sleep", 0))
    print(json.dumps({"answer": {"done": job["number"], "pid": os.getpid(), "threads": os.environ.get("THREADS")}}), flush=True)
"""


@pytest.fixture
def pool(tmp_path):
    with Pool(
        (sys.executable, "-c", WORKER), 2, tmp_path / "log", {"MARK": str(tmp_path / "mark"), "THREADS": "1"}
    ) as pool:
        yield pool


def test_all_jobs_are_answered_by_few_workers(pool):
    for number in range(11):
        pool.submit(Job(f"job {number}", {"number": number}))
    events = list(pool.events())
    answers = {event.job.name: event.answer for event in events if event.answer}
    assert {name: answer["done"] for name, answer in answers.items()} == {f"job {i}": i for i in range(11)}
    assert {answer["threads"] for answer in answers.values()} == {"1"}
    assert 1 <= len({answer["pid"] for answer in answers.values()}) <= 2
    assert all(event.progress == (1, 2) for event in events if not event.answer)


def test_jobs_may_be_added_while_others_run_and_first_ones_go_first(pool):
    pool.count = 1
    pool.submit(Job("a", {"number": 0}))
    pool.submit(Job("b", {"number": 1}))
    seen = []
    for event in pool.events():
        if event.answer:
            seen.append(event.job.name)
            if seen == ["a"]:
                pool.submit(Job("c", {"number": 2}), first=True)
    assert seen == ["a", "c", "b"]


@pytest.mark.parametrize("half", [False, True])
def test_a_killed_worker_is_replaced_and_its_job_tried_once_more(half, pool, tmp_path):
    """Killed in the middle of its answer, too."""
    pool.submit(Job("bad day", {"number": 5, "die": str(tmp_path / "died"), "once": True, "half": half}))
    events = list(pool.events())
    assert [event.note for event in events if event.note] == [
        "bad day: the worker was killed by signal 9; most likely out of memory; it is tried again"
    ]
    assert events[-1].answer["done"] == 5


def test_a_large_request_is_sent_whole_though_signals_come(pool):
    """A signal that is heard ends a blocked write before its end."""
    before = signal.signal(signal.SIGALRM, lambda number, frame: None)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        pool.submit(Job("large", {"number": 7, "text": "x" * 5_000_000}))
        assert [event.answer["done"] for event in pool.events() if event.answer] == [7]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_deaths_are_forgotten_when_a_job_is_answered(pool, tmp_path):
    """A search submits a cell several times; one bad day at each rung is no failure."""
    for rung in range(3):
        pool.submit(Job("cell", {"number": rung, "die": str(tmp_path / f"died{rung}"), "once": True}))
        assert list(pool.events())[-1].answer["done"] == rung


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"die": "/nonexistent/x"}, "killed by signal 9; most likely out of memory, 2 times"),
        ({"die": "/nonexistent/x", "signal": signal.SIGSEGV}, r"killed by signal 11 \(SIGSEGV\), 2 times"),
        ({"exit": 3}, r"ended with exit code 3 \(this is why\), 2 times"),
    ],
)  # fmt: skip
def test_a_job_that_kills_twice_is_failed_and_the_others_are_done(pool, request_, said):
    pool.submit(Job("killer", {"number": 0, **request_}))
    for number in range(5):
        pool.submit(Job(f"good {number}", {"number": number}))
    answers = {event.job.name: event.answer for event in pool.events() if event.answer}
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(answers["killer"]["failed"])
    assert len(answers) == 6


def test_an_idle_worker_that_is_killed_costs_nothing(pool):
    pool.submit(Job("a", {"number": 1}))
    list(pool.events())
    os.kill(pool.processes[0], signal.SIGKILL)
    time.sleep(0.05)
    pool.submit(Job("b", {"number": 2}))
    assert [event.answer["done"] for event in pool.events() if event.answer] == [2]


def test_the_end_asks_workers_to_stop_and_leaves_none(tmp_path):
    with Pool((sys.executable, "-c", WORKER), 2, tmp_path / "log", {"MARK": str(tmp_path / "mark")}) as pool:
        for number in range(2):
            pool.submit(Job(f"{number}", {"number": number, "sleep": 0.2}))
        next(pool.events())
        processes = pool.processes
    assert (tmp_path / "mark").read_text().count("stopped") == len(processes)
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_a_worker_that_does_not_stop_is_killed(tmp_path):
    with Pool((sys.executable, "-c", "import time; time.sleep(600)"), 1, tmp_path / "log") as pool:
        pool.submit(Job("a", {}))
        pool._hand_out()
        began = time.monotonic()
        pool.stop(patience=0.3)
        assert time.monotonic() - began < 5
        assert not pool.processes


def test_a_command_that_is_not_there(tmp_path):
    with (
        Pool((str(tmp_path / "nothing"),), 1, tmp_path / "log") as pool,
        pytest.raises(WorkFailed, match="cannot be started"),
    ):
        _only_event(pool)


def _only_event(pool):
    pool.submit(Job("a", {}))
    return list(pool.events())


def test_sigterm_is_heard_as_ctrl_c():
    with pytest.raises(KeyboardInterrupt), terminated_is_interrupted():
        _terminate_me()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def _terminate_me():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(1)
