"""Engines that end badly, as a third party's might; a process that imports this module knows them by name."""

import os
import signal
import sys
import time

from lowrank_bench.evals.engines.base import Completion, Engine, engines
from lowrank_bench.foundation.errors import UserError


@engines.register("faulty")
class Faulty(Engine):
    """Raises, exits, crashes, is killed, refuses or hangs, as the seed of sampling says; it has no model."""

    context_length = 8

    def __init__(self, checkpoint, dtype, device, revision):
        if dtype == "float16":
            raise UserError("this engine has no halves; use --dtype float32")

    def generate(self, prompts, sampling, batch_size, progress=None):
        """Do one prompt, then end in one of six ways."""
        if progress:
            progress(1, len(prompts))
        if sampling.seed == 0:
            raise ZeroDivisionError("no such thing as a half token")
        if sampling.seed == 1:
            print("last words: the cache is full", file=sys.stderr, flush=True)
            os._exit(3)
        if sampling.seed == 2:
            os.kill(os.getpid(), signal.SIGSEGV)
        if sampling.seed == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if sampling.seed == 4:
            raise UserError("this prompt is not to my taste; try another")
        if sampling.seed == 5:
            time.sleep(600)
        return [Completion((7,), "7", "length") for _ in prompts]

    def logprobs(self, sequences, batch_size, progress=None):
        """Say how many threads there are to be."""
        return [[float(os.environ["OMP_NUM_THREADS"])]]

    def close(self):
        """Do nothing."""
