"""The script for GPUs, in its small form in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu.py"


def script(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, env=os.environ)


def test_the_small_form_ends_with_a_table_whose_targets_are_met() -> None:
    done = script("--device", "cpu", "--small")
    assert done.returncode == 0, done.stdout + done.stderr
    table = done.stdout[done.stdout.index("section ") :].splitlines()
    assert table[-1]
    assert not any(" NO " in line or "failed" in line or "not measured" in line for line in table)
    decomposition = [line for line in table if line.startswith("decomposition")]
    assert sum("residual <" in line and " yes" in line for line in decomposition) == 6


def test_words_that_cannot_be_meant_are_refused() -> None:
    for words, answer in (
        (["--device", "cpu"], "add --small"),
        (["--device", "cpu", "--small", "--sections", "decoding"], "there are: decomposition"),
    ):
        done = script(*words)
        assert done.returncode == 2
        assert answer in done.stderr
