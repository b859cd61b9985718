"""bench doctor: what this machine can do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import Data, Out
from .output import console, print_rows


def doctor(
    data: Data = None,
    out: Out = Path("runs"),
    repair: Annotated[
        bool, typer.Option("--repair", help="Compare all stages with their checksums; move damaged ones aside.")
    ] = False,
) -> None:
    """Say what this machine can do: devices, engines, isolation, data; and which stages are whole."""
    from ..runners import doctor as work

    if repair:
        whole, moved, left = work.repair(out)
        print_rows(
            "damaged stages",
            ["stage", "what is wrong", "moved to"],
            [(r.key, r.reason, str(r.moved_to)) for r in moved],
        )
        console().print(
            f"{whole} stages are complete, {len(moved)} damaged ones moved aside, "
            f"leavings of {len(left)} killed ones removed"
            + ("; run the same bench run again to do what is missing" if moved else ""),
            soft_wrap=True,
            highlight=False,
        )
        return
    examine = work.examine
    findings = examine(data, out)
    rows = [("ok" if f.fine else "no", f.subject, f.text + (f"; {f.remedy}" if f.remedy else "")) for f in findings]
    print_rows("this machine", ["", "what", "found"], rows)
    if not all(finding.fine for finding in findings):
        sys.exit(1)


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(doctor)
