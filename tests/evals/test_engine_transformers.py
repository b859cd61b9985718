"""The transformers engine, here and in a process of its own, by the suite of all engines."""

from contextlib import contextmanager

import pytest
from engine_contract import EngineContract

from lowrank_bench.evals.engines.transformers import TransformersEngine
from lowrank_bench.evals.hosting.host import HostedEngine


class TestTransformers(EngineContract):
    @contextmanager
    def open(self, checkpoint):
        with TransformersEngine(checkpoint, "float32") as engine:
            yield engine


class TestHostedTransformers(EngineContract):
    @contextmanager
    def open(self, checkpoint):
        with HostedEngine("transformers", checkpoint, "float32", threads=1) as engine:
            yield engine


class TestPublishedModel(TestTransformers):
    """The same on a model that others trained."""

    @pytest.fixture(scope="class")
    def checkpoint(self, data_dir):
        return data_dir / "models" / "stories260K"
