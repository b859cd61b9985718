"""Ctrl-C at any time is a line and exit code 130, also where the process has only begun to import."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import FRESH

LISTENING = ("env", "--default-signal=INT")
"""Tests that run in the background of a shell inherit an ignored SIGINT."""
SWALLOWS = """
import time
print("importing", flush=True)
try:
    time.sleep(60)
except BaseException:  # as modules do that try an import and go on without it
    pass
time.sleep(60)
"""


def interrupt_when(process, begun):
    """Send SIGINT to a process as soon as something is the case; returns its exit code and standard error."""
    while not begun():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=60)[1]
    return process.returncode, errors


@pytest.mark.parametrize("library", ["_multiarray_umath", "libtorch_cpu", "pandas"])
def test_while_libraries_are_imported(tmp_path, library):
    words = ["run", "--methods", "svd", "--model", "tiny", "--task", "toy-math", "--out", str(tmp_path / "runs")]
    process = subprocess.Popen(
        [*LISTENING, *FRESH, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    maps = Path(f"/proc/{process.pid}/maps")
    code, errors = interrupt_when(process, lambda: library in maps.read_text())
    assert code == 130, errors
    assert errors.count("\n") == 1
    assert "interrupted" in errors
    assert not list((tmp_path / "runs").rglob("results.csv"))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=lambda value: getattr(value, "name", "")
)
def test_an_import_that_would_swallow_it(tmp_path, number, code):
    (tmp_path / "swallows.py").write_text(SWALLOWS)
    program = (
        "from lowrank_bench.cli.interruption import interruptible\n"
        "with interruptible('ended early'):\n"
        "    import swallows\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen(
        [*LISTENING, sys.executable, "-c", program],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    assert process.communicate(timeout=60)[1] == "ended early\n"
    assert process.returncode == code


def test_what_is_ignored_stays_ignored():
    """As of a process that nohup started."""
    program = (
        "import signal\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "from lowrank_bench.cli.interruption import interruptible\n"
        "with interruptible('ended'):\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "print('went on')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "went on\n", "")
