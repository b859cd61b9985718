"""bench doctor: what this machine can do."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from .options import Data, Out
from .output import print_rows


def doctor(data: Data = None, out: Out = Path("runs")) -> None:
    """Say what this machine can do: devices, engines, isolation, data."""
    from ..runners.doctor import examine

    findings = examine(data, out)
    rows = [("ok" if f.fine else "no", f.subject, f.found + (f"; {f.remedy}" if f.remedy else "")) for f in findings]
    print_rows("this machine", ["", "what", "found"], rows)
    if not all(finding.fine for finding in findings):
        sys.exit(1)


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(doctor)
