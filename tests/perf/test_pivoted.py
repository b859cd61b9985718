"""The benchmark of pivoting storage, at shapes that take no time; and that the storage is exact."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "perf" / "pivoted.py"


@pytest.mark.parametrize(("m", "n", "rank"), [(9, 5, 3), (5, 9, 5), (8, 8, 1)])
def test_rows_and_coefficients_are_the_matrix(m, n, rank):
    spec = importlib.util.spec_from_file_location("pivoted", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    weight = torch.randn(m, rank, dtype=torch.float64) @ torch.randn(rank, n, dtype=torch.float64)
    chosen, coefficients, order = module.pivoted(weight, rank)
    assert chosen.numel() + coefficients.numel() == rank * (m + n - rank)
    torch.testing.assert_close(torch.cat([chosen, coefficients @ chosen])[order], weight)


def test_it_prints_a_table():
    command = [sys.executable, str(SCRIPT), "--shapes", "24x16", "--ratios", "2", "--seconds", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [row[3:5] for row in rows] == [["float32", "1"], ["float32", "128"], ["bfloat16", "1"], ["bfloat16", "128"]]
    assert all(row[2] == "4" and row[5] == "0.90" for row in rows)
    assert all(float(row[-1]) < (1e-4 if row[3] == "float32" else 0.1) for row in rows)
