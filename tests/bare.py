"""A virtual environment as a machine for GPU work has it: torch, transformers and their requirements, and no more."""

import importlib.metadata
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement

LISTED = ("torch", "transformers", "accelerate", "peft", "pandas", "pyarrow", "matplotlib", "typer", "rich")
"""What the machine has; what these require comes with them."""
WHEELS = ("pydantic", "pydantic-core", "annotated-types", "typing-inspection")
"""What perf/gpu.py needs beside, by its docstring."""


def required(names: Iterable[str]) -> set[str]:
    """Return the names of distributions and of all that they require here, extras left out."""
    distributions: set[str] = set()
    left = [*names]
    while left:
        name = left.pop().lower().replace("_", "-")
        if name in distributions:
            continue
        distributions.add(name)
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                left.append(requirement.name)
    return distributions


def link(names: Iterable[str], folder: Path) -> None:
    """Make a folder for the import path with links to the top-level files and folders of installed distributions."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        files = importlib.metadata.files(name)
        assert files, f"{name} has no list of its files"
        tops = {file.parts[0] for file in files} - {"..", "__pycache__"}
        for top in sorted(tops):
            if not top.endswith(".pth") and not (folder / top).exists():
                (folder / top).symlink_to(Path(str(importlib.metadata.distribution(name).locate_file(top))))


def bare_environment(folder: Path) -> tuple[Path, Path]:
    """Make the environment; our own package is not installed in it.

    Returns:
        Its interpreter, and a folder with the wheels that belong on PYTHONPATH.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    site = next((folder / "venv" / "lib").glob("python*/site-packages"))
    link(required(LISTED) - set(WHEELS), site)
    link(WHEELS, folder / "wheels")
    return folder / "venv" / "bin" / "python", folder / "wheels"
