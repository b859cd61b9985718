"""vLLM in a process of its own, by the suite of all engines, and against the transformers engine."""

import sys
from contextlib import contextmanager

from engine_contract import EngineContract

from lowrank_bench.evals.hosting.host import HostedEngine


@contextmanager
def vllm(checkpoint, dtype="float32"):
    with HostedEngine("vllm", checkpoint, dtype, threads=1) as engine:
        yield engine
    assert "vllm" not in sys.modules


class TestHostedVllm(EngineContract):
    open = staticmethod(vllm)
