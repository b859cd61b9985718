"""Realistic records made without any model, as the fixtures `record` and `sweep`."""

from collections.abc import Callable

import pytest
from made_records import make_record, make_sweep

from lowrank_bench.records.files import Record


@pytest.fixture(scope="session")
def record() -> Callable[..., Record]:
    return make_record


@pytest.fixture(scope="session")
def sweep() -> Callable[..., list[Record]]:
    return make_sweep
