"""A method in a package of its own, installed by pip: listed, run in a sweep, under the contract by one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

METHOD = '''"""Column-scaled SVD, for a test."""

from lowrank_bench.methods.base import methods
from lowrank_bench.methods.fitted import Factors
from lowrank_bench.methods.linalg import svd
from lowrank_bench.methods.matrixwise import MatrixCompressor


class HalfSVD(MatrixCompressor):
    """W = SVD_r(W D) D^-1 with D a power of the column norms."""

    power: float = 0.5

    def decompose(self, weight, statistic, rank):
        scale = weight.norm(dim=0).clamp_min(1e-12) ** self.power
        u, s, vt = svd(weight * scale)
        root = s.sqrt()
        return Factors(u * root, root[:, None] * vt / scale, s)
'''

PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "acme-half"
version = "1.0"
[project.entry-points."lowrank_bench.methods"]
half-svd = "acme_half:HalfSVD"
[tool.setuptools]
py-modules = ["acme_half"]
"""

CONTRACT = """
from lowrank_bench.methods.contract import CompressorContract

class TestHalfSVD(CompressorContract):
    method = "half-svd"
    def weigh(self, model, name, error):
        return error * model.get_submodule(name).weight.detach().norm(dim=0).clamp_min(1e-12) ** 0.5
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that finds the installed package."""
    source, site = tmp_path_factory.mktemp("acme"), tmp_path_factory.mktemp("site")
    (source / "acme_half.py").write_text(METHOD)
    (source / "pyproject.toml").write_text(PROJECT)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True, capture_output=True)
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    return os.environ | {"PYTHONPATH": path, "COLUMNS": "200"}


def bench(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    code = "from lowrank_bench.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True)


def test_is_listed(environment: dict[str, str]) -> None:
    done = bench(environment, "methods")
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("half-svd") and "acme" in line)
    assert "acme-half" in row


def test_runs_in_a_sweep(environment: dict[str, str], tmp_path: Path) -> None:
    words = [
        "--methods",
        "half-svd:power=1.0",
        "--model",
        "tiny",
        "--task",
        "toy-math",
        "--ratios",
        "2",
        "--limit",
        "4",
    ]
    more = ["--finetune-steps", "1", "--recover-steps", "1", "--max-new-tokens", "4", "--out", str(tmp_path)]
    done = bench(environment, "run", *words, *more)
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "tiny-toy-math" / "results.csv").read_text()
    assert ",half-svd," in rows
    assert '""power"":1.0' in rows


def test_passes_the_contract_with_one_class(environment: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "test_half.py").write_text(CONTRACT)
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "test_half.py")]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
