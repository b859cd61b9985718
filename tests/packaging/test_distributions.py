"""Both distributions hold every tracked file of the package, and what the wheel installs works without the checkout."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, metadata, requires
from pathlib import Path

import pytest
from code_blocks import ROOT
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

LAYERS = ("cli", "papers", "results", "runners", "evals", "methods", "models", "records", "foundation")
BUILD = "from setuptools import build_meta; print(build_meta.build_{kind}({out!r}))"


def tracked() -> list[str]:
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [name for name in names.split("\0") if name and (ROOT / name).is_file()]


def build(kind: str, source: Path, out: Path) -> Path:
    code = BUILD.format(kind=kind, out=str(out))
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The source distribution of the tracked files, and the wheel that is built from what it unpacks to."""
    work = tmp_path_factory.mktemp("packaging")
    for name in tracked():
        target = work / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    source = build("sdist", work / "source", work)
    with tarfile.open(source) as archive:
        archive.extractall(work, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # from 3.11.4 on
    return source, build("wheel", work / source.name.removesuffix(".tar.gz"), work)


def test_the_wheel_holds_the_tracked_files_of_the_package_and_no_others(distributions: tuple[Path, Path]) -> None:
    _, wheel = distributions
    package = [name for name in tracked() if name.split("/")[0] in (*LAYERS, "__init__.py", "py.typed")]
    with zipfile.ZipFile(wheel) as archive:
        members = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert members == {f"lowrank_bench/{name}" for name in package}


def test_the_source_distribution_holds_all_tracked_files(distributions: tuple[Path, Path]) -> None:
    with tarfile.open(distributions[0]) as archive:
        members = {member.name.split("/", 1)[1] for member in archive.getmembers() if member.isfile()}
    assert not set(tracked()) - members


def test_metadata_pass_twine(distributions: tuple[Path, Path]) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, distributions)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


def run_in(folder: Path, *words: object, **variables: object) -> str:
    """Run a command that has to succeed; returns what it prints."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {name: str(value) for name, value in variables.items()}
    command = list(map(str, words))
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def check_installed(environment: Path, folder: Path) -> None:
    """Check that the package and its command are in an environment; the requirements are borrowed from this one."""
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "requirements.pth").write_text(sysconfig.get_path("purelib") + "\n")  # its own .pth files are not read
    sweep = ["run", "--methods", "svd", "--model", "tiny", "--task", "toy-math", "--dry-run"]
    assert "svd" in run_in(folder, environment / "bin/bench", *sweep)
    assert not (folder / "runs").exists()
    file = run_in(
        folder, environment / "bin/python", "-c", "import lowrank_bench; print(lowrank_bench.__file__)"
    ).strip()
    assert Path(file).is_relative_to(site)


def test_pip_install_in_an_environment_of_its_own_gives_bench(distributions: tuple[Path, Path], tmp_path: Path) -> None:
    run_in(tmp_path, sys.executable, "-m", "venv", "clean")
    pip = [tmp_path / "clean/bin/python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    run_in(tmp_path, *pip, distributions[1])
    check_installed(tmp_path / "clean", tmp_path)


def test_uv_tool_install_gives_bench(distributions: tuple[Path, Path], tmp_path: Path) -> None:
    requirements = [Requirement(text) for text in requires("lowrank-bench") or ()]
    names = {requirement.name for requirement in requirements if not requirement.marker}
    (tmp_path / "excludes.txt").write_text("".join(f"{name}\n" for name in sorted(names)))
    uv = [Path(sys.executable).parent / "uv", "tool", "install", "--offline", "--no-index", "--no-config"]
    options = ["--python", sys.executable, "--excludes", tmp_path / "excludes.txt"]
    folders = {"UV_TOOL_DIR": "tools", "UV_TOOL_BIN_DIR": "bin", "UV_CACHE_DIR": "cache"}
    run_in(tmp_path, *uv, *options, distributions[1], **{key: tmp_path / name for key, name in folders.items()})
    assert (tmp_path / "bin/bench").exists()
    check_installed(tmp_path / "tools/lowrank-bench", tmp_path)


def test_pinned_versions_take_the_oldest_python_that_the_package_takes() -> None:
    """Debian 12 has Python 3.11.2: a pin that wants 3.11.5 makes the set-up fail there."""
    oldest = (
        tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=") + ".0"
    )
    pins = re.findall(r"^([\w.-]+)==", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    asked: dict[str, str] = {}
    for name in pins:
        with suppress(PackageNotFoundError):  # some are of vLLM alone
            asked[name] = metadata(name).get("Requires-Python") or ""
    assert len(asked) > 150
    assert {name: text for name, text in asked.items() if not SpecifierSet(text).contains(oldest)} == {}


def test_what_the_wheel_installs_runs_outside_the_checkout(distributions: tuple[Path, Path], tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    with zipfile.ZipFile(distributions[1]) as archive:
        archive.extractall(site)
        (entries,) = [name for name in archive.namelist() if name.endswith("/entry_points.txt")]
        assert "bench = lowrank_bench.cli:main" in archive.read(entries).decode()
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    bench = [sys.executable, "-P", "-c", "from lowrank_bench.cli import main; main()"]

    def run(*words: str) -> str:
        done = subprocess.run([*bench, *words], cwd=work, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    command = [sys.executable, "-P", "-c", "import lowrank_bench; print(lowrank_bench.__file__)"]
    imported_from = subprocess.run(
        command, cwd=work, env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert Path(imported_from.strip()).is_relative_to(site)
    assert "svd-llm" in run("methods")
    sweep = ("--methods", "svd", "--model", "tiny", "--task", "toy-math", "--ratios", "2", "--limit", "4")
    run("run", "--training-free", *sweep, "--max-new-tokens", "4", "--out", "runs")
    assert (work / "runs/tiny-toy-math/results.csv").is_file()
