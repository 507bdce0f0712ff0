"""How the daemon is started from the command line: at once, and as every other command is."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest
from broker import Broker, until
from daemon import Daemon, write_config

from edge_runtime.cli_run import _collecting_nothing
from edge_runtime.errors import BundleError

NOWHERE = "mqtt://127.0.0.1:1"


def without_bundle(folder: Path) -> Path:
    config = write_config(folder, NOWHERE)
    (folder / "means.edge").unlink()
    return config


def ended(*program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *program], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("wrong", ["bundle", "config"])
def test_an_error_of_the_start_is_the_same_whether_click_was_asked_or_not(tmp_path: Path, wrong: str) -> None:
    config = without_bundle(tmp_path)
    if wrong == "config":
        config.write_text(config.read_text().replace("[node]", "[nodes]"))

    direct = ended("-m", "edge_runtime", "run", str(config))
    by_click = ended("-c", "from edge_runtime.cli import main; main()", "run", str(config))

    assert direct.returncode == by_click.returncode == (1 if wrong == "bundle" else 2)
    assert direct.stderr == by_click.stderr
    assert direct.stderr.startswith("error: ")
    assert direct.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "missing.toml"], "File 'missing.toml' does not exist"),
        (["run"], "Missing argument 'CONFIG'"),
        (["run", __file__, "--jsn"], "No such option"),
        (["runs", __file__], "No such command"),
        (["run", "n" * 300], "does not exist"),
    ],
)
def test_what_is_not_plainly_a_start_is_explained_by_click(arguments: list[str], said: str) -> None:
    refused = ended("-m", "edge_runtime", *arguments)

    assert refused.returncode == 2
    assert said in refused.stderr


def test_a_start_that_fails_leaves_the_garbage_collector_as_it_was() -> None:
    frozen, enabled = gc.get_freeze_count(), []

    def start() -> None:
        enabled.append(gc.isenabled())
        raise BundleError("m.edge", "is missing")

    with pytest.raises(BundleError), _collecting_nothing():
        start()

    assert enabled == [False]
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_summary_that_nobody_reads_is_no_error_to_tell(tmp_path: Path, form: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "edge_runtime", "run", str(write_config(tmp_path, NOWHERE)), *form]
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, text=True) as process:
        os.close(writer)
        assert process.stderr is not None
        said = [process.stderr.readline()]
        while '"started"' not in said[-1]:
            said.append(process.stderr.readline())
            assert said[-1], said
        process.terminate()
        said += process.stderr.readlines()

    assert process.returncode == 1
    assert [line for line in said if not line.startswith("{")] == []


@pytest.mark.broker
def test_a_daemon_that_predicts_inline_has_the_loop_and_its_watch_for_threads(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    daemon = Daemon(write_config(tmp_path, broker.url, pipeline='execution = "inline"'))
    try:
        daemon.wait_connected()
        tasks = Path(f"/proc/{daemon.process.pid}/task")
        until(lambda: len(list(tasks.iterdir())) == 2, what="numpy and ONNX Runtime have no threads of their own")
        daemon.stop()
    finally:
        daemon.process.kill()
        daemon.process.wait()
