"""Which trackers there are, and what a training has to know of them."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...foundation.errors import UserError
from ..data_spec import Frozen

TRACKERS = ("tensorboard", "mlflow", "wandb", "trackio")
"""Names as transformers has them; each is the module, and the package that pip installs."""


class Tracking(Frozen):
    """Where a sweep is reported to; part of no key.

    Attributes:
        names: of `TRACKERS`.
        sweep: the sweep's name, by which runs are grouped.
        folder: of the sweep's results; what a tracker keeps on disk goes there unless its own variables say otherwise.
    """

    names: tuple[str, ...]
    sweep: str
    folder: Path

    def arguments(self, title: str) -> dict[str, Any]:
        """Return arguments of transformers for a run."""
        # None would let trackio copy what it has to a public page of the hub.
        return {"run_name": title, "project": self.sweep, "trackio_static_space_id": False}


def require_installed(names: tuple[str, ...]) -> None:
    """Refuse trackers whose package is missing.

    Raises:
        UserError: names them, with the command that installs them.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        verb = "are" if len(missing) > 1 else "is"
        raise UserError(
            f"--report-to {','.join(names)} needs {' and '.join(missing)}, which {verb} not installed; type "
            f"pip install {' '.join(missing)}, or leave {'them' if len(missing) > 1 else 'it'} out"
        )
