"""The package of docs/adding-a-method.md, installed by pip: listed, run in a sweep, under the contract by one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from code_blocks import code_blocks
from commands import FRESH, bench

from lowrank_bench.foundation.fork_server import run_apart

GUIDE = "docs/adding-a-method.md"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip has installed the package."""
    source, site = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    (source / "my_package").mkdir()
    (source / "my_package" / "__init__.py").touch()
    for block in code_blocks(GUIDE):
        if block.language == "toml":
            (source / "pyproject.toml").write_text(block.text)
        elif block.file.startswith("my_package/"):
            (source / block.file).write_text(block.text)
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
    rows = [line for line in done.stdout.splitlines() if line.endswith("my-package")]
    assert [row.split()[0] for row in rows] == ["half-svd", "rms-svd"]


@pytest.mark.usefixtures("installed")
def test_runs_in_a_sweep(tmp_path: Path) -> None:
    words = [
        "run",
        "--methods",
        "half-svd:power=1.0,rms-svd:samples=8",
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
    assert ",rms-svd," in rows
    assert '""power"":1.0' in rows


def run_pytest(folder: str) -> None:
    os.chdir(folder)
    sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "test_half.py"]))


@pytest.mark.usefixtures("installed")
def test_passes_the_contract_with_one_class(tmp_path: Path) -> None:
    (contract,) = [block.text for block in code_blocks(GUIDE, "Testing it")]
    (tmp_path / "test_half.py").write_text(contract)
    code, printed = run_apart(run_pytest, str(tmp_path))
    assert code == 0, printed[-3000:]
    assert " passed" in printed
