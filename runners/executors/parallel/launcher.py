"""Runs ``accelerate launch`` in a process that dies with the one that asked for it.

python -m lowrank_bench.runners.executors.parallel.launcher PARENT_ID ARGUMENTS-OF-ACCELERATE-LAUNCH…
"""

import os
import sys

from ....foundation.process import die_with_parent

LAUNCHER = "LOWRANK_BENCH_LAUNCHER"
"""Environment variable by which the processes that train know whose death is theirs."""

if __name__ == "__main__":
    die_with_parent(int(sys.argv.pop(1)))
    os.environ[LAUNCHER] = str(os.getpid())
    from accelerate.commands.launch import main

    main()
