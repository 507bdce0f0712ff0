from __future__ import annotations

import gc
from pathlib import Path

import pytest
from daemon import write_config

from edge_runtime.check import check
from edge_runtime.config import load


@pytest.mark.parametrize("execution", ["inline", "worker"])
def test_a_check_leaves_no_file_open(tmp_path: Path, execution: str) -> None:
    path = write_config(tmp_path, "mqtt://127.0.0.1:1", pipeline=f'execution = "{execution}"')
    config = load(path)
    check(config, str(path))
    gc.collect()
    before = list(Path("/proc/self/fd").iterdir())

    gc.disable()
    try:
        found = check(config, str(path))
        after = list(Path("/proc/self/fd").iterdir())
    finally:
        gc.enable()

    assert [pipeline.execution for pipeline in found.pipelines] == [execution]
    assert len(after) == len(before)
