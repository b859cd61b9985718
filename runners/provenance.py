"""Where a number came from: versions, commit, machine."""

from __future__ import annotations

import inspect
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ..foundation.environment import kernel_choices, number_formats
from ..foundation.files import digest, sha256_file
from ..foundation.version import __version__


class Hardware(BaseModel):
    """What a process runs on.

    Attributes:
        cpu: the processor's name.
        cores, threads: how many it may use, and the CPU threads of torch.
        gpus: names of all GPUs.
        system: kernel and its version.
        environment: variables that change its numbers, where some are set.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    cpu: str
    cores: int | None = None
    threads: int
    gpus: tuple[str, ...] = ()
    system: str = ""
    environment: dict[str, str] = {}


class Provenance(BaseModel):
    """Versions of the libraries by name, commit of the package (empty outside a checkout), and machine."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    versions: dict[str, str]
    git_commit: str
    hardware: Hardware

    def plain(self) -> dict[str, Any]:
        """Return it as plain data for JSON, without what is empty of the environment."""
        return self.model_dump(exclude_unset=True)


_PACKAGES = ("torch", "transformers", "datasets", "accelerate", "numpy", "lm_eval")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@cache
def versions() -> dict[str, str]:
    """Return the versions of this package, Python and the libraries that numbers depend on."""
    from ..evals.hosting.choice import vllm_version  # loads torch, which those who only read stages do without

    known = {"lowrank_bench": __version__, "python": platform.python_version()} | {p: _version(p) for p in _PACKAGES}
    return known | {"vllm": vllm_version()}


@cache
def git_commit() -> str:
    """Return the commit of the package's checkout, with ``+changes`` if its files differ, or '' outside a checkout."""
    root = Path(__file__).parent.parent
    # git would otherwise answer for any repository that an installed package lies in.
    if not (root / ".git").exists():
        return ""
    try:
        run = {"cwd": root, "capture_output": True, "text": True, "timeout": 20, "check": True}
        commit = subprocess.run(["git", "rev-parse", "HEAD"], **run).stdout.strip()  # type: ignore[call-overload]
        changed = subprocess.run(["git", "status", "--porcelain", "-uno"], **run).stdout.strip()  # type: ignore[call-overload]
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{commit}+changes" if changed else str(commit)


@cache
def code_digest(*classes: type) -> str:
    """Return one sha256 (hex) over the source files of this package and of those that classes from elsewhere are in."""
    root = Path(__file__).parent.parent
    # In a checkout the package's folder also holds tests, benchmarks and whatever else a user keeps there.
    folders = {part.parent for part in root.glob("*/__init__.py")}
    own = __name__.partition(".")[0]
    folders |= {_top(Path(inspect.getfile(cls))) for cls in classes if cls.__module__.partition(".")[0] != own}
    files = [(folder, file) for folder in folders for file in (folder.rglob("*.py") if folder.is_dir() else [folder])]
    return digest(sorted([file.relative_to(folder.parent).as_posix(), sha256_file(file)] for folder, file in files))


def _top(file: Path) -> Path:
    """Return the folder of the whole package that a module's file is in, or the file of one that is in none."""
    top = file
    while (top.parent / "__init__.py").is_file():
        top = top.parent
    return top


@cache
def processor() -> str:
    """Return the CPU's own name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def hardware() -> Hardware:
    """Return what the process runs on, and the environment variables that change its numbers, if any is set."""
    import torch

    gpus = (
        [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    )
    known = Hardware(
        cpu=processor(),
        cores=len(os.sched_getaffinity(0)),
        threads=torch.get_num_threads(),
        gpus=tuple(gpus),
        system=f"{platform.system()} {platform.release()}",
    )
    environment = number_formats() | kernel_choices()
    return known.model_copy(update={"environment": environment}) if environment else known


def device_name(device: str) -> str:
    """Return the name that records show for a torch device."""
    import torch

    return torch.cuda.get_device_name(device) if device.startswith("cuda") else processor()


def provenance() -> Provenance:
    """Return versions, commit and hardware of this process."""
    return Provenance(versions=versions(), git_commit=git_commit(), hardware=hardware())
