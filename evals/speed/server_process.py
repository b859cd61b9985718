"""The process of a server: ``python -m lowrank_bench.evals.speed.server_process OWNER_ID OPTIONS…``.

It becomes ``vllm serve OPTIONS…``; it and the processes that vLLM starts end with their owner, whatever it does then.
"""

import os
import sys

from ...foundation.process import end_with, python_command


def main() -> None:
    """Watch the owner, then become vLLM's command line."""
    end_with(int(sys.argv[1]), group=True)
    command = python_command("-m", "vllm.entrypoints.cli.main", "serve", *sys.argv[2:])
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
