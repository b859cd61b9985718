"""`bench` as a person starts it: in a process of its own, killed on the way or left alone."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

_START = (
    "import sys; from lowrank_bench.foundation.process import end_with; end_with(int(sys.argv.pop(1)), group=True); "
    "from lowrank_bench.cli import main; main()"
)
_DONE = re.compile(r"^\[(\d+)/(\d+)\]")


class SweepFailed(RuntimeError):
    """bench ended with an error; the message is the last line that it printed."""


class OutOfTime(SweepFailed):
    """bench was killed at the end of its time; the same command goes on from there."""


def bench(words: Sequence[str], seconds: float, kill_after: int = 0) -> int:
    """Run ``bench WORDS`` and show what it prints.

    Args:
        words: of the command line.
        seconds: after which it is killed.
        kill_after: stages after which it is killed with all its processes (SIGKILL); 0 lets it end.

    Returns:
        How many stages it reported as done.

    Raises:
        OutOfTime: the seconds are over.
        SweepFailed: another exit code than 0.
    """
    # A session of its own, so that the kill reaches its workers too; it ends with this process, whatever ends that.
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _START, str(os.getpid()), *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    late = threading.Event()

    def kill() -> None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    clock = threading.Timer(max(seconds, 1.0), lambda: (late.set(), kill()))
    clock.start()
    done, last = 0, ""
    try:
        for line in process.stdout:
            print(f"    {line}", end="", flush=True)
            last = line.strip() or last
            if match := _DONE.match(line):
                done = int(match[1])
            if kill_after and done >= kill_after:
                return done
        code = process.wait()
        if late.is_set():
            raise OutOfTime(f"not done after {seconds:.0f} s")
        if code != 0:
            raise SweepFailed(last)
        return done
    finally:
        clock.cancel()
        kill()
        process.wait()
        process.stdout.close()


def stages(folder: Path, kind: str = "") -> dict[str, dict[str, Any]]:
    """Return ``stage.json`` of the complete stages in a run folder, by key.

    A folder whose name begins with a dot is a stage in progress, also where its record is already written: a kill
    between the record and the rename to the stage's key leaves one.
    """
    files = sorted((folder / "stages").glob(f"{kind}*/stage.json"))
    return {file.parent.name: json.loads(file.read_text()) for file in files if not file.parent.name.startswith(".")}
