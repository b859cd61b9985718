"""The benchmark of example losses, at a vocabulary that takes no time."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "perf" / "example_losses.py"


def test_both_forms_are_right_and_compared() -> None:
    command = [sys.executable, str(SCRIPT), "--tokens", "16", "--vocabulary", "500"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    *rows, last = done.stdout.splitlines()
    assert last.startswith("strided ÷ rows ")
    assert [row.split()[0] for row in rows] == ["strided", "rows"]
    assert all(float(row.split()[-1]) < 1e-6 for row in rows)
