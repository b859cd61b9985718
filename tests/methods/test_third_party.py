"""A method in a package of its own, installed by pip: listed, run in a sweep, under the contract by one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from commands import FRESH, bench

from lowrank_bench.foundation.forked import run_apart

METHOD = '''"""Column-scaled SVD, for a test."""

from lowrank_bench.methods.base import methods
from lowrank_bench.methods.fitted import Factors
from lowrank_bench.methods.linalg import svd
from lowrank_bench.methods.matrixwise import MatrixCompressor


class HalfSVD(MatrixCompressor):
    """W = SVD_r(W D) D^-1 with D a power of the column norms."""

    power: float = 0.5

    def decompose(self, weight, statistic=None):
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
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the package."""
    source, site = tmp_path_factory.mktemp("acme"), tmp_path_factory.mktemp("site")
    (source / "acme_half.py").write_text(METHOD)
    (source / "pyproject.toml").write_text(PROJECT)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True, capture_output=True)
    return site


@pytest.fixture
def installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process, those forked for it and those that they start find the package."""
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")])))


@pytest.mark.usefixtures("installed")
def test_is_listed() -> None:
    """In a process that starts afresh."""
    done = subprocess.run([*FRESH, "methods"], env=os.environ | {"COLUMNS": "200"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    row = next(line for line in done.stdout.splitlines() if line.startswith("half-svd") and "acme" in line)
    assert "acme-half" in row


@pytest.mark.usefixtures("installed")
def test_runs_in_a_sweep(tmp_path: Path) -> None:
    words = [
        "run",
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
    done = bench(*words, *more)
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "tiny-toy-math" / "results.csv").read_text()
    assert ",half-svd," in rows
    assert '""power"":1.0' in rows


def run_pytest(folder: str) -> None:
    os.chdir(folder)
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "test_half.py"]))


@pytest.mark.usefixtures("installed")
def test_passes_the_contract_with_one_class(tmp_path: Path) -> None:
    (tmp_path / "test_half.py").write_text(CONTRACT)
    code, printed = run_apart(run_pytest, str(tmp_path))
    assert code == 0, printed[-3000:]
    assert " passed" in printed
