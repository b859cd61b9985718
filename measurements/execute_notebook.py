"""Execute a notebook and keep its outputs, without progress bars and warnings.

python measurements/execute_notebook.py docs/tutorial.ipynb
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import nbclient
import nbformat

TIMEOUT = 1800
"""Seconds for one cell on a busy machine; only there to end one that hangs."""


def execute_notebook(path: Path) -> Any:
    """Return the notebook with the outputs of this run: results, prints and pictures, nothing from stderr.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell failed; the message has the cell and its traceback.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.kernelspec.name = "python3"  # this Python's
    nbclient.NotebookClient(notebook, timeout=TIMEOUT, resources={"metadata": {"path": str(path.parent)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


if __name__ == "__main__":
    for name in sys.argv[1:]:
        nbformat.write(execute_notebook(Path(name)), name)
