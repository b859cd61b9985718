"""`bench` in a process of its own, without waiting for imports: forked from a fork server, as a sweep's workers are.

What a process finds when it starts afresh (installed packages, PYTHONPATH, how long ``bench --help`` takes) needs one
that does; those tests start it themselves.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from lowrank_bench.foundation import fork_server
from lowrank_bench.foundation.fork_server import ForkServer

OF_A_SWEEP = fork_server.MODULES
"""What the fork server of a sweep imports."""
PRELOADED = (
    *("lowrank_bench.cli.run", "lowrank_bench.results.sweep", "lowrank_bench.results.report.document"),
    *("pandas", "pyarrow.parquet", "matplotlib.pyplot", "matplotlib.backends.backend_svg", "scipy.stats", "rich.table"),
    "transformers.models.llama.modeling_llama",
)
"""What commands import before they have done anything: the fork server of a test process has imported it too."""
fork_server.MODULES = (*OF_A_SWEEP, *(name for name in PRELOADED if name not in OF_A_SWEEP))

FRESH = [sys.executable, "-c", "from lowrank_bench.cli import main; main()"]


def _main(
    out: int, err: int, words: list[str], folder: str, environment: dict[str, str], prepare: Callable[[], None]
) -> None:
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    tempfile.tempdir = None  # imports may have asked for it
    os.chdir(folder)
    sys.argv = ["bench", *words]
    import transformers

    from lowrank_bench.cli import main

    transformers.utils.logging.set_verbosity_error()  # read from what `main` sets where transformers is imported later

    prepare()
    main()


def nothing() -> None:
    """Prepare nothing."""


def bench(
    *words: object,
    cwd: Path | None = None,
    without: str = "",
    timeout: float | None = None,
    prepare: Callable[[], None] = nothing,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Run a command; returns its exit code and what it printed.

    Args:
        words: of the command line.
        cwd: working folder.
        without: a variable to take out of the environment.
        timeout: seconds after which it is killed; its exit code is -9 then.
        prepare: a function of a test module's top level, called in the process before the command.
        environment: variables to put into it.
    """
    line = [str(word) for word in words]
    surroundings = {k: v for k, v in os.environ.items() if k != without} | {"COLUMNS": "200"} | environment
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = ForkServer.get_or_start(1).start(
            _main, line, str(cwd or Path.cwd()), surroundings, prepare, files=[out.fileno(), err.fileno()]
        )
        child.pid  # noqa: B018 - waits for the imports of a fork server that is new
        if (code := child.join(timeout)) is None:
            child.kill()
            code = -signal.SIGKILL
        printed = []
        for file in (out, err):
            file.seek(0)
            printed.append(file.read().decode())
    return subprocess.CompletedProcess(["bench", *line], code, *printed)


class Running:
    """`bench` that is still running: killed when the test process ends.

    Attributes:
        pid: process id.
    """

    def __init__(self, words: list[str], folder: Path | None, environment: dict[str, str]) -> None:
        self._out, self._err = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115 - closed with this object
        surroundings = os.environ | environment
        self._child = ForkServer.get_or_start(1).start(
            _main,
            words,
            str(folder or Path.cwd()),
            surroundings,
            nothing,
            files=[self._out.fileno(), self._err.fileno()],
        )
        self.pid = self._child.pid

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal, or None while it runs."""
        return self._child.exitcode

    returncode = property(poll)

    def send_signal(self, number: int) -> None:
        """Send a signal to this process alone."""
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill this process alone."""
        self._child.kill()

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code.

        Raises:
            subprocess.TimeoutExpired: it runs longer.
        """
        if (code := self._child.join(timeout)) is None:
            raise subprocess.TimeoutExpired("bench", timeout or 0)
        return code

    def output(self) -> str:
        """Return what it has printed on standard output."""
        return self._printed(self._out)

    def errors(self) -> str:
        """Return what it has printed on standard error."""
        return self._printed(self._err)

    @staticmethod
    def _printed(file: IO[bytes]) -> str:
        return os.pread(file.fileno(), os.fstat(file.fileno()).st_size, 0).decode()


def start(*words: object, cwd: Path | None = None, **environment: str) -> Running:
    """Start a command without waiting for its end.

    Args:
        words: of the command line.
        cwd: working folder.
        environment: variables to put into it.
    """
    return Running([str(word) for word in words], cwd, environment)
