"""The scripts that measure sweeps run, in small; what they measure is never asserted."""

import re
import runpy
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "perf"


@pytest.mark.parametrize(
    ("script", "options", "line"),
    [
        (
            "sweep_cost.py",
            ["--width", "64", "--layers", "1", "--repeats", "1"],
            r"eight ratios cost at most [\d.]+ times",
        ),
        ("overhead.py", ["--stages", "4", "--starts", "1"], r"overhead \d+ ms a stage"),
    ],
)
def test_runs_in_small(script, options, line, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, *options])
    with pytest.raises(SystemExit):
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
    assert re.search(line, capsys.readouterr().out)
