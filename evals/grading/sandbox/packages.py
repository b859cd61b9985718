"""Which packages a program can import in a sandbox beside the standard library, with versions and files.

Covered: the packages of a stated list that are installed in the grader's own environment, each with what it needs.
Not covered: the rest of that environment. A program that imports something else ends as `missing-package`.
"""

from __future__ import annotations

import atexit
import compileall
import csv
import site
import sysconfig
import tempfile
from collections.abc import Mapping
from functools import cache
from importlib.metadata import Distribution, distributions
from importlib.util import cache_from_source
from pathlib import Path

OFFERED: Mapping[str, tuple[str, ...]] = {
    "numpy": (),
    "pandas": ("numpy", "python-dateutil", "six"),
    "regex": (),
    "sympy": ("mpmath",),
}
"""Packages on offer, with the further ones that each needs."""

PACKAGES = "/packages"
"""Where they are inside of a sandbox that isolates."""


@cache
def _installed() -> Mapping[str, Distribution]:
    """Return what is offered or needed and installed, by name; never from the working directory."""
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    if site.ENABLE_USER_SITE:
        folders.add(site.getusersitepackages())
    names = {*OFFERED, *(name for needs in OFFERED.values() for name in needs)}
    candidates = {name: list(distributions(name=name, path=sorted(folders))) for name in sorted(names)}
    # `package_paths` needs the RECORD: without one nothing says which files belong to the package.
    return {name: first[0] for name, first in candidates.items() if first and first[0].read_text("RECORD")}


@cache
def offered_versions() -> Mapping[str, str]:
    """Return the versions of what a program can import: packages of the list that are installed with all they need."""
    installed = _installed()
    return {name: installed[name].version for name, needs in OFFERED.items() if {name, *needs} <= installed.keys()}


@cache
def package_paths() -> tuple[tuple[str, Path], ...]:
    """Return the folders and files of those packages and of what they need: (name, path), sorted.

    A folder whose modules are not compiled is compiled here, since no sandbox can write to it.
    """
    paths: dict[str, Path] = {}
    for name in offered_versions():
        for part in (name, *OFFERED[name]):
            record = csv.reader((_installed()[part].read_text("RECORD") or "").splitlines())
            for top in {row[0].partition("/")[0] for row in record if row}:
                if top not in ("..", "__pycache__") and not top.endswith((".dist-info", ".data", ".pth")):
                    paths[top] = Path(str(_installed()[part].locate_file(top))).resolve()
    for path in paths.values():
        first = path / "__init__.py"
        if first.is_file() and not Path(cache_from_source(str(first))).is_file():
            compileall.compile_dir(str(path), quiet=2)
    return tuple(sorted(paths.items()))


@cache
def linked_packages() -> str:
    """Return a folder of links to the packages, which this process removes at its end: for where nothing isolates."""
    folder = tempfile.TemporaryDirectory(prefix="lowrank-bench-packages-")
    atexit.register(folder.cleanup)
    for name, path in package_paths():
        (Path(folder.name) / name).symlink_to(path)
    return folder.name
