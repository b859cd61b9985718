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
from pathlib import Path

from lowrank_bench.foundation.fork_server import ForkServer

FRESH = [sys.executable, "-c", "from lowrank_bench.cli import main; main()"]


def _main(out: int, err: int, words: list[str], folder: str, environment: dict[str, str]) -> None:
    os.dup2(out, 1)
    os.dup2(err, 2)
    os.environ.clear()
    os.environ.update(environment)
    time.tzset()
    os.chdir(folder)
    sys.argv = ["bench", *words]
    import transformers

    from lowrank_bench.cli import main

    transformers.utils.logging.set_verbosity_error()  # read from what `main` sets where transformers is imported later

    main()


def bench(
    *words: object, cwd: Path | None = None, without: str = "", timeout: float | None = None, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a command; returns its exit code and what it printed.

    Args:
        words: of the command line.
        cwd: working folder.
        without: a variable to take out of the environment.
        timeout: seconds after which it is killed; its exit code is -9 then.
        environment: variables to put into it.
    """
    line = [str(word) for word in words]
    surroundings = {k: v for k, v in os.environ.items() if k != without} | {"COLUMNS": "200"} | environment
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = ForkServer.get_or_start(1).start(
            _main, line, str(cwd or Path.cwd()), surroundings, files=[out.fileno(), err.fileno()]
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
