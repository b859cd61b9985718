"""bench leaderboard: ranks over runs and submissions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..foundation.errors import UserError, did_you_mean
from .output import console, escape

_SUBMISSIONS = Path("runs/submissions")


class _RunsOrCommand(TyperGroup):
    """``bench leaderboard RUN…`` and ``bench leaderboard add FILE``: what is no command is an argument of ``show``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or (args[0] not in self.commands and args[0] != "--help"):
            hint = did_you_mean(args[0], self.commands) if args and args[0].isalpha() else ""
            if hint and not Path(args[0]).exists():
                raise UserError(f"there is no run '{args[0]}' and no such command{hint}")
            args = ["show", *args]
        return super().parse_args(ctx, args)


group = typer.Typer(
    cls=_RunsOrCommand,
    add_completion=False,
    help="Rank methods over runs: bench leaderboard RUN… is short for bench leaderboard show RUN….",
)

Submissions = Annotated[Path, typer.Option(help="Folder of submissions; it may be missing.")]


@group.command()
def show(
    runs: Annotated[
        list[Path] | None, typer.Argument(help="Folders of runs, or their results.csv or .parquet.", metavar="RUN…")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for CSV, Markdown, LaTeX and the page.")] = Path("runs/leaderboard"),
    submissions: Submissions = _SUBMISSIONS,
    speed: Annotated[
        Path | None, typer.Option(help="Where bench speed put its records. \\[default: speed/ beside each run]")
    ] = None,
    all_metrics: Annotated[bool, typer.Option("--all-metrics", help="Not only each benchmark's headline.")] = False,
) -> None:
    """Rank methods within equal conditions and ratio bands, with paired tests against the best."""
    from ..results.leaderboard.gather import gather, write
    from ..results.leaderboard.texts import render_terminal

    board = gather(runs or [], submissions, speed, headline=not all_metrics)
    paths = write(board, out)
    render_terminal(board.boards, console())
    for path in paths:
        console().print(escape(str(path)), soft_wrap=True, highlight=False)


@group.command()
def add(
    records: Annotated[Path, typer.Argument(help="CSV with the columns of records.")],
    to: Annotated[Path, typer.Option("--to", help="Folder of submissions.")] = _SUBMISSIONS,
) -> None:
    """Check foreign records line by line and keep them; they appear as submitted, not measured here."""
    from ..results.leaderboard.submissions import MOST_FAULTS, FaultyFile
    from ..results.leaderboard.submissions import add as store

    try:
        added = store(records, to)
    except FaultyFile as error:
        for fault in error.faults[:MOST_FAULTS]:
            console(stderr=True).print(escape(str(fault)), soft_wrap=True, highlight=False)
        if len(error.faults) > MOST_FAULTS:
            console(stderr=True).print(f"… and {len(error.faults) - MOST_FAULTS} more", highlight=False)
        raise
    count = f"{added.records} record{'s' * (added.records > 1)}"
    outcome = f"added {count}:" if added.new else f"the same {count} were added before:"
    console().print(f"{outcome} {escape(str(added.path))}", soft_wrap=True, highlight=False)


@group.command()
def schema() -> None:
    """Print the JSON schema of a record, the same as docs/records.schema.json."""
    from ..records.json_schema import schema_text

    sys.stdout.write(schema_text())


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(group, name="leaderboard")
