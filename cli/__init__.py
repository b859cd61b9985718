"""The door: thin commands, each of which calls one public function."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from typing import NoReturn

import typer

from ..foundation.errors import UserError
from ..foundation.text import shortened
from . import (
    doctor,
    inspect,
    leaderboard,
    listings,
    push,
    regression,
    report,
    reproduce,
    results,
    run,
    samples,
    score,
    serving,
    shrink,
    single,
    task,
)
from .help import finish_help
from .interruption import end_on
from .output import Streams, console, escape
from .refusals import UsageError, path_sentence, usage_sentence

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
    shrink,
    reproduce,
    listings,
    single,
    task,
    samples,
    score,
    serving,
    push,
    results,
    inspect,
    leaderboard,
    report,
    regression,
    doctor,
)
for _group in _GROUPS:
    _group.add_to(app)
finish_help(app)


def main() -> None:
    """Run the command line; bad input becomes one sentence and exit code 2."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its warnings would stand before our one sentence
    end_on((signal.SIGINT,), "interrupted")
    streams = Streams()
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        _fail(str(error))
    except UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            sys.exit(error.exit_code)
        _fail(usage_sentence(error))
    except typer.Abort:
        _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or the interpreter complains when it flushes at its end
        sys.exit(0)
    except (OSError, RuntimeError) as error:
        sentence = path_sentence(error)
        if not sentence:
            raise
        _fail(sentence)
    finally:
        unwritten = streams.close() if not isinstance(sys.exc_info()[1], BrokenPipeError) else ""
    if unwritten:
        _fail(
            f"standard output cannot be written ({unwritten}), so part of what was said is lost; the work is done and "
            "its files are complete",
            1,
        )
    if isinstance(code, int) and code:
        sys.exit(code)


def _fail(message: str, code: int = 2) -> NoReturn:
    with suppress(OSError):
        console(stderr=True).print(f"[bold red]error:[/] {escape(shortened(message))}", soft_wrap=True, highlight=False)
    sys.exit(code)
