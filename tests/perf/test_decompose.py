"""The benchmark of decompositions, at a width that takes a second."""

import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "perf" / "decompose.py"


def test_it_ends_with_a_table_whose_errors_are_within_the_promise() -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--width", "32,48", "--cpu"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("  ") for line in done.stdout.splitlines() if line.startswith(("32 ", "48 "))]
    assert len(rows) == 4
    assert sum("one fit" in cell for row in rows for cell in row) == 2
