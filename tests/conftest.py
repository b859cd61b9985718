"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest
from sweeps import small_sweep

_ROOT = Path(__file__).parent.parent


def pytest_addoption(parser: pytest.Parser) -> None:
    """How much is tried beyond what every run tries."""
    parser.addoption("--fuzzed-lines", type=int, default=300, help="random command lines to try")
    parser.addoption("--fuzzing-seed", type=int, default=0, help="draws other command lines")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with the real datasets and the pretrained stories260K model (docs/data.md)."""
    folder = Path(os.environ.get("LOWRANK_BENCH_DATA", _ROOT.parent / "shared" / "data"))
    assert (folder / "FILES.tsv").is_file(), f"no datasets in {folder}; set LOWRANK_BENCH_DATA to their folder"
    return folder


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory):
    """A folder for checksums of large files in place of the user's."""
    os.environ["LOWRANK_BENCH_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory):
    """The configuration of a finished small sweep."""
    from lowrank_bench.runners.sweep import run_sweep

    config = small_sweep(tmp_path_factory.mktemp("finished"))
    run_sweep(config)
    return config
