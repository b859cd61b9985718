"""The door: thin commands, each of which calls one public function."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

import typer

from ..foundation.errors import UserError
from . import (
    doctor,
    inspect,
    leaderboard,
    listings,
    regression,
    report,
    reproduce,
    results,
    run,
    samples,
    serving,
    single,
)
from .output import console, escape

app = typer.Typer(
    name="bench",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="How small can a language model be made for one application, and by which low-rank method, before it stops "
    "working? Finetune, compress, finetune again, measure.",
)
_GROUPS = (
    run,
    reproduce,
    listings,
    single,
    samples,
    serving,
    results,
    inspect,
    leaderboard,
    report,
    regression,
    doctor,
)
for _group in _GROUPS:
    _group.add_to(app)


def main() -> None:
    """Run the command line; a `UserError` becomes one sentence and exit code 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its warnings would stand before our one sentence
    try:
        app()
    except UserError as error:
        _fail(str(error))
    except BrokenPipeError:
        sys.exit(0)


def _fail(message: str) -> NoReturn:
    console(stderr=True).print(f"[bold red]error:[/] {escape(message)}", soft_wrap=True, highlight=False)
    sys.exit(2)
