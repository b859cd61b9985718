"""The benchmark of calibration, on the built-in model."""

import sys
from pathlib import Path

import pytest

from lowrank_bench.models.presets import PRESETS

sys.path.insert(0, str(Path(__file__).parents[2] / "perf"))


def test_it_prints_ratios_of_cpu_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import calibration

    asked = ["calibration", str(PRESETS["tiny"].source), "--layers", "1", "--examples", "2", "--length", "16"]
    monkeypatch.setattr(sys, "argv", asked)
    assert calibration.main() == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith("2 x 16 tokens")
    assert [row[:16].strip() for row in rows[2:]] == [
        *("forward", "calibration", "Gram matrices", "fit svd", "LAPACK", "whitened", "float64 SVDs"),
    ]
    assert [row.rpartition(" of ")[2] for row in rows if " of " in row] == ["forward"] * 2 + ["LAPACK", "float64 SVDs"]
