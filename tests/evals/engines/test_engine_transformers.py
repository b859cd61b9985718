"""The transformers engine, here and in a process of its own, by the suite of all engines."""

import os
import signal
from contextlib import contextmanager

import pytest
from engine_contract import EngineContract

from lowrank_bench.evals.engines.base import Sampling
from lowrank_bench.evals.engines.transformers import TransformersEngine
from lowrank_bench.evals.hosting.host import EngineCrashed, HostedEngine, end_idle
from lowrank_bench.foundation.fork_server import ForkServer
from lowrank_bench.models.presets import PRESETS


class TestTransformers(EngineContract):
    @contextmanager
    def open(self, checkpoint):
        with TransformersEngine(checkpoint, "float32") as engine:
            yield engine


@contextmanager
def hosted(checkpoint, fork_server):
    """An engine whose process is forked from a fork server, or started afresh where there is none."""
    end_idle()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ForkServer, "running", lambda threads: fork_server)
        engine = HostedEngine("transformers", checkpoint, "float32", threads=1)
    with engine:
        yield engine
    end_idle()


class TestStartedTransformers(EngineContract):
    @contextmanager
    def open(self, checkpoint):
        with hosted(checkpoint, None) as engine:
            yield engine


class TestForkedTransformers(EngineContract):
    @contextmanager
    def open(self, checkpoint):
        with hosted(checkpoint, ForkServer.get_or_start(1)) as engine:
            yield engine


@pytest.mark.parametrize("forked", [False, True])
def test_a_killed_process_is_reported(forked):
    with hosted(PRESETS["tiny"].source, ForkServer.get_or_start(1) if forked else None) as engine:
        assert engine.generate([[0]], Sampling(2), 1)
        os.kill(engine.process_id, signal.SIGKILL)
        with pytest.raises(EngineCrashed, match=r"'transformers' died \(killed, most likely because memory ran out\)"):
            engine.generate([[0]], Sampling(2), 1)


class TestPublishedModel(TestTransformers):
    """The same on a model that others trained."""

    @pytest.fixture(scope="class")
    def checkpoint(self, data_dir):
        return data_dir / "models" / "stories260K"
