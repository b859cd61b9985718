"""An engine that a third party would publish under the entry point ``killed-once``."""

import os
import signal
import sys
from pathlib import Path

from lowrank_bench.evals.engines.transformers import TransformersEngine


class KilledOnce(TransformersEngine):
    """Is killed in its first generation, as the file says that CRASH_MARK names; later it does as transformers."""

    def generate(self, prompts, sampling, batch_size, progress=None):
        """Die, or generate."""
        mark = Path(os.environ["CRASH_MARK"])
        if not mark.exists():
            mark.touch()
            print("the processor is on fire", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().generate(prompts, sampling, batch_size, progress)
