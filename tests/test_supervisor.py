"""A part that has died or hangs ends the whole process: each test is a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from broker import until
from daemon import write_config

from edge_runtime.config import load
from edge_runtime.errors import ConfigError
from edge_runtime.supervisor import DIED, LAST_WORDS_S, LONGEST_RUNS, LOOKS, LOOP, MODEL, Watch, signs_of_work
from edge_runtime.worker import Worker

PREPARED = """
import os, select, signal, sys, threading, time
from edge_runtime.logs import to_stderr
from edge_runtime.supervisor import Watch, died, hung, watch_threads
from edge_runtime.worker import Worker
to_stderr()
watch_threads()
"""
NOWHERE = "mqtt://127.0.0.1:1"


def process(script: str, **options: Any) -> subprocess.Popen[str]:
    program = PREPARED + textwrap.dedent(script)
    return subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True, **options)


def ended(script: str) -> tuple[int, list[dict[str, Any]], list[str]]:
    """Exit status, events of the log, and what else was on stderr."""
    with process(script) as running:
        try:
            _, said = running.communicate(timeout=20)
        finally:
            running.kill()
    lines = said.splitlines()
    return running.returncode, [json.loads(x) for x in lines if x[0] == "{"], [x for x in lines if x[0] != "{"]


def test_an_exception_in_any_thread_ends_the_process_though_the_main_thread_waits() -> None:
    code, events, said = ended("""
        def lookup():
            raise ValueError("no such thing")
        threading.Thread(target=lookup, name="mqtt-connect", daemon=True).start()
        select.select([], [], [])
    """)

    assert code == DIED
    assert said == ["error: the thread mqtt-connect died: ValueError: no such thing"]
    assert [(event["event"], event["level"], event["thread_name"]) for event in events] == [
        ("thread_died", "critical", "mqtt-connect")
    ]
    assert "in lookup" in events[0]["traceback"]


def test_a_thread_that_leaves_by_sys_exit_has_died_too() -> None:
    code, _, said = ended("""
        threading.Thread(target=sys.exit, name="t").start()
        time.sleep(60)
    """)

    assert code == DIED
    assert said == ["error: the thread t died: SystemExit: "]


def test_an_exception_in_a_destructor_is_told_and_ends_nothing() -> None:
    code, events, said = ended("""
        class Gone:
            def __del__(self):
                raise OSError("closed twice")
        Gone()
        print("error: still here", file=sys.stderr)
    """)

    assert code == 0
    assert said == ["error: still here"]
    assert [event["event"] for event in events] == ["exception_ignored"]
    assert "closed twice" in events[0]["traceback"]


HANGS = {
    "in Python": "while True: pass",
    "in a call that never returns": "select.select([], [], [])",
    "for a lock": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
}


@pytest.mark.parametrize("how", HANGS)
def test_a_loop_that_hangs_ends_the_process_and_the_log_says_where(how: str) -> None:
    began = time.monotonic()
    code, events, said = ended(f"""
        def standstill():
            {HANGS[how]}
        with Watch({{"the loop": lambda: 1}}, 0.4):
            standstill()
    """)

    assert code == DIED
    assert said == ["error: the loop has not moved for 0.4 s"]
    assert (events[0]["event"], events[0]["part"]) == ("hung", "the loop")
    assert "in standstill" in events[0]["stacks"]["MainThread"]
    assert 0.4 < time.monotonic() - began < 15


def test_a_job_that_never_ends_is_a_hang_while_the_loop_goes_round() -> None:
    code, events, said = ended("""
        def endless():
            while True:
                time.sleep(0.01)
        worker, rounds = Worker(), 0
        worker.submit("p", endless)
        with Watch({"the loop": lambda: rounds, "the model": worker.busy_since_ns}, 0.4):
            while True:
                rounds += 1
                time.sleep(0.01)
    """)

    assert code == DIED
    assert said == ["error: the model has not moved for 0.4 s"]
    assert "in endless" in events[0]["stacks"]["predict"]


def test_a_process_that_was_stopped_for_longer_than_the_limit_goes_on() -> None:
    script = """
        rounds = 0
        with Watch({"the loop": lambda: rounds}, 0.6):
            print("error: begun", file=sys.stderr, flush=True)
            while rounds < 250:
                rounds += 1
                time.sleep(0.01)
        print("error: at its end", file=sys.stderr)
    """
    with process(script) as running:
        assert running.stderr is not None
        assert running.stderr.readline() == "error: begun\n"
        running.send_signal(signal.SIGSTOP)
        time.sleep(1.5)  # the stop is what is tested
        running.send_signal(signal.SIGCONT)
        _, said = running.communicate(timeout=20)

    assert running.returncode == 0, said
    assert said == "error: at its end\n"


def test_last_words_that_nobody_reads_do_not_hold_up_the_end() -> None:
    reader, writer = os.pipe()
    script = 'os.set_blocking(2, False)\ntry:\n    while True: os.write(2, b"x" * 4096)\n'
    script += 'except BlockingIOError:\n    os.set_blocking(2, True)\nhung("the loop", 1.0)\n'
    began = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", PREPARED + script], stderr=writer) as running:
        try:
            code = running.wait(20)
        finally:
            running.kill()
    os.close(reader)
    os.close(writer)

    assert code == -signal.SIGALRM
    assert LAST_WORDS_S < time.monotonic() - began < LAST_WORDS_S + 10


def test_the_abort_of_a_watchdog_leaves_the_stacks_behind() -> None:
    with process("""
        def standstill():
            print("error: here", file=sys.stderr, flush=True)
            time.sleep(60)
        standstill()
    """) as running:
        assert running.stderr is not None
        running.stderr.readline()
        running.send_signal(signal.SIGABRT)
        _, said = running.communicate(timeout=20)

    assert running.returncode == -signal.SIGABRT
    assert "in standstill" in said


def test_a_watch_looks_so_often_before_it_speaks_and_begins_anew_when_a_part_moves() -> None:
    shown: dict[str, object] = {"loop": 1, "model": None}
    watch = Watch({"loop": lambda: shown["loop"], "model": lambda: shown["model"]}, 8.0)

    assert [watch.look() for _ in range(LOOKS)] == [""] * LOOKS
    shown["loop"] = 2
    assert [watch.look() for _ in range(LOOKS)] == [""] * LOOKS
    assert watch.look() == "loop"


def test_every_run_of_a_model_is_a_move_of_the_loop_and_of_the_worker_that_is_at_it() -> None:
    loop, worker, session = SimpleNamespace(rounds=1), SimpleNamespace(busy_since_ns=lambda: 5), SimpleNamespace(runs=1)
    signs = signs_of_work(lambda: loop.rounds, worker, [session])
    before = signs[LOOP](), signs[MODEL]()
    session.runs = 2

    assert (signs[LOOP]() == before[0], signs[MODEL]() == before[1]) == (False, False)
    before = signs[LOOP](), signs[MODEL]()
    loop.rounds = 2
    assert (signs[LOOP]() == before[0], signs[MODEL]() == before[1]) == (False, True)


def test_an_idle_worker_and_none_show_that_there_is_nothing_to_do() -> None:
    idle = SimpleNamespace(busy_since_ns=lambda: None)

    assert [signs_of_work(lambda: 1, worker, [])[MODEL]() for worker in (idle, None)] == [None, None]


def test_what_has_nothing_to_do_does_not_hang() -> None:
    watch = Watch({"model": lambda: None}, 8.0)

    assert [watch.look() for _ in range(3 * LOOKS)] == [""] * 3 * LOOKS


def test_a_slow_model_is_given_its_time_and_none_is_none() -> None:
    assert Watch({}, 60.0, longest_run_s=0.1).limit_s == 60.0
    assert Watch({}, 60.0, longest_run_s=100.0).limit_s == 100.0 * LONGEST_RUNS
    assert Watch({}, 0.0, longest_run_s=100.0).limit_s == 0.0


def test_without_a_limit_there_is_no_thread() -> None:
    watch = Watch({"loop": lambda: 1}, 0.0)
    with watch:
        assert not watch._thread.is_alive()


def test_a_watch_ends_with_its_block() -> None:
    watch = Watch({"loop": lambda: 1}, 60.0)
    with watch:
        assert watch._thread.is_alive()
    assert not watch._thread.is_alive()


def test_a_worker_says_since_when_its_job_runs() -> None:
    clock = iter([5, 9]).__next__
    worker, seen = Worker(now_ns=clock), []
    assert worker.busy_since_ns() is None
    worker.submit("a", lambda: seen.append(worker.busy_since_ns()))
    worker.submit("b", lambda: seen.append(worker.busy_since_ns()))
    until(lambda: len(seen) == 2 and worker.busy_since_ns() is None, what="both jobs are done")
    worker.stop()

    assert seen == [5, 9]


def test_a_job_that_raised_leaves_the_worker_idle() -> None:
    worker = Worker()
    worker.submit("a", lambda: 1 / 0)
    until(lambda: len(worker._done) == 1, what="the job has raised")

    assert worker.busy_since_ns() is None
    worker.stop()


@pytest.mark.parametrize("where", ["main", "worker"])
def test_a_bug_in_the_running_daemon_is_told_in_one_line_and_in_the_log(tmp_path: Path, where: str) -> None:
    config = write_config(tmp_path, NOWHERE, pipeline='execution = "worker"')
    bug = (
        "from edge_runtime.loop import Loop\n"
        + {
            "main": "Loop.step = lambda self, *a, **k: 1 / 0\n",
            "worker": "step = Loop.step\ndef with_job(self, *a, **k):\n    self._worker.submit('p', lambda: 1 / 0)\n"
            "    self._worker._thread.join(0.05)\n    step(self, *a, **k)\nLoop.step = with_job\n",
        }[where]
    )
    script = f"{bug}from edge_runtime.__main__ import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", script, "run", str(config)], capture_output=True, text=True, timeout=60, check=False
    )

    lines = done.stderr.splitlines()
    assert done.returncode == DIED, done.stderr
    assert lines[-1] == "error: the thread main died: ZeroDivisionError: division by zero"
    died = json.loads(lines[-2])
    assert (died["event"], died["thread_name"]) == ("thread_died", "main")
    assert "ZeroDivisionError" in died["traceback"]
    assert [line for line in lines[:-1] if not line.startswith("{")] == []


@pytest.mark.parametrize("seconds", ["0.5", "-1"])
def test_a_watchdog_that_would_bite_at_once_is_refused(tmp_path: Path, seconds: str) -> None:
    config = write_config(tmp_path, NOWHERE)
    config.write_text(config.read_text().replace('id = "n1"', f'id = "n1"\nwatchdog_s = {seconds}'))

    with pytest.raises(ConfigError, match="watchdog_s"):
        load(config)
