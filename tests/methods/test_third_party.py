"""The package of docs/adding-a-method.md, installed by pip: listed, run in a sweep, under the contract by one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from code_blocks import code_blocks

GUIDE = "docs/adding-a-method.md"


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that finds the installed package."""
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
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    return os.environ | {"PYTHONPATH": path, "COLUMNS": "200"}


def bench(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    code = "from lowrank_bench.cli import main; main()"
    return subprocess.run([sys.executable, "-c", code, *words], env=environment, capture_output=True, text=True)


def test_is_listed(environment: dict[str, str]) -> None:
    done = bench(environment, "methods")
    assert done.returncode == 0, done.stderr
    rows = [line for line in done.stdout.splitlines() if line.endswith("my-package")]
    assert [row.split()[0] for row in rows] == ["half-svd", "rms-svd"]


def test_runs_in_a_sweep(environment: dict[str, str], tmp_path: Path) -> None:
    words = [
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
    done = bench(environment, "run", *words, *more)
    assert done.returncode == 0, done.stderr
    rows = (tmp_path / "tiny-toy-math" / "results.csv").read_text()
    assert ",half-svd," in rows
    assert ",rms-svd," in rows
    assert '""power"":1.0' in rows


def test_passes_the_contract_with_one_class(environment: dict[str, str], tmp_path: Path) -> None:
    (contract,) = [block.text for block in code_blocks(GUIDE, "Testing it")]
    (tmp_path / "test_half.py").write_text(contract)
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path / "test_half.py")]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
