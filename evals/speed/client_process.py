"""The process that sends requests: ``python -m lowrank_bench.evals.speed.client_process OWNER_ID LINES``.

It runs ``vllm bench serve`` once for each list of options in LINES (JSON), so that vLLM is imported once.
"""

import json
import sys

from ...foundation.process import end_with


def main() -> None:
    """Run vLLM's own client as its command line does."""
    end_with(int(sys.argv[1]))
    from vllm.benchmarks.serve import add_cli_args
    from vllm.benchmarks.serve import main as run_client
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    for options in json.loads(sys.argv[2]):
        parser = FlexibleArgumentParser()
        add_cli_args(parser)
        run_client(parser.parse_args(options))


if __name__ == "__main__":
    main()
