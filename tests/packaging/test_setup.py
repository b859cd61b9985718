"""What `make` says where a machine cannot be set up; nothing is made then."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from code_blocks import ROOT


def make(folder: Path, programs: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """Set up in a copy of the Makefile, with some programs replaced by shell scripts."""
    (folder / "bin").mkdir()
    for name, script in programs.items():
        program = folder / "bin" / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder / name)
    path = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")} | path
    return subprocess.run(["make", "setup", *words], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("kibibytes", [0, 999, 5 * 1024 * 1024 - 1])
def test_a_full_disk_is_said_before_anything_is_made(tmp_path, kibibytes):
    table = f"Filesystem 1024-blocks Used Available Capacity Mounted\\n/dev/x 9 9 {kibibytes} 9% /"
    done = make(tmp_path, {"df": f"printf '{table}\\n'"})
    assert done.returncode == 2
    assert f"takes up to 5 GiB of disk and {kibibytes // 1024**2} GiB are free here; free some" in done.stdout
    assert not (tmp_path / ".venv").exists()


def test_an_old_python_is_refused_with_what_to_type(tmp_path):
    done = make(tmp_path, {"python3.8": "exit 1"}, "PYTHON=python3.8")
    assert done.returncode == 2
    assert "needs Python 3.11 or newer; say which: make setup PYTHON=python3.11" in done.stdout
    assert not (tmp_path / ".venv").exists()
