"""The page on export steps is one program, and says what that program finds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edge_runtime.model.bundle import read

pytestmark = pytest.mark.torch

PAGE = (Path(__file__).parents[1] / "docs" / "export-steps.md").read_text()


def test_the_program_on_the_page_runs_and_finds_what_the_page_says(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "export_steps"}

    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(compile(block, "docs/export-steps.md", "exec"), names)

    printed = capsys.readouterr().out
    for expected in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL):
        assert expected in printed
    told = re.findall(r"^\| ([^|]+) \| ([\d.]+) KB \| ([\d.]+) % \| ([\d.]+ dB|equal|-) \|$", PAGE, re.MULTILINE)
    assert [name for name, *_ in told] == [name for name, *_ in names["rows"]]
    for (name, kb, percent, snr), (_name, size_kb, accuracy, snr_db) in zip(told, names["rows"], strict=True):
        assert float(kb) == pytest.approx(size_kb, rel=0.1), name
        assert float(percent) == pytest.approx(100 * accuracy, abs=5), name
        if snr.endswith("dB"):
            assert float(snr.removesuffix(" dB")) == pytest.approx(snr_db, abs=6), name
    assert set(names["small"].steps) <= set(read(Path("tones-0.1.0.edge")).manifest.provenance.steps)


def test_every_step_of_the_first_table_exists_with_these_options() -> None:
    """Each signature in the table is Python: called with its own defaults it gives a step."""
    import inspect

    from export import clean, fuse, half, prune, prune_units, qat, quantize, weight_only

    modules = {
        m.__name__.removeprefix("export."): m
        for m in (clean, fuse, half, prune, prune_units, qat, quantize, weight_only)
    }
    signatures = re.findall(r"^\| `(\w+)\.(\w+)\((.*?)\)` \|", PAGE, re.MULTILINE)

    assert len(signatures) == 9
    for module, function, options in signatures:
        parameters = inspect.signature(getattr(modules[module], function)).parameters.values()
        found = [p.name if p.default is p.empty else f"{p.name}={p.default!r}".replace("'", '"') for p in parameters]
        assert ", ".join(found) == options, function
