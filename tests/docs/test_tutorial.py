"""The tutorial notebook runs from the first cell to the last, and says what its outputs say."""

import json
import subprocess
import sys
from pathlib import Path

import nbformat
from code_blocks import ROOT

NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def texts(notebook: nbformat.NotebookNode) -> list[str]:
    """Return what the code cells showed as text, in order."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs]


def test_it_runs(tmp_path: Path) -> None:
    copied = tmp_path / NOTEBOOK.name
    copied.write_bytes(NOTEBOOK.read_bytes())
    subprocess.run([sys.executable, str(ROOT / "measurements" / "execute_notebook.py"), str(copied)], check=True)
    notebook = nbformat.read(copied, as_version=4)
    shown = "\n".join(texts(notebook))
    assert "LowRankLinear 404,992 parameters" in shown
    assert "2.000 times fewer parameters" in shown
    assert (
        sum("image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())) == 1
    )


def test_it_is_committed_with_small_outputs_and_without_folders_of_a_machine() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert len(text) < 100_000
    assert "/tmp/" not in text
    notebook = nbformat.reads(text, as_version=4)
    assert all(cell.outputs or "import" in cell.source for cell in notebook.cells if cell.cell_type == "code")
    assert '"stderr"' not in json.dumps(notebook.cells)
