"""The command that scores one completion: why does it count as it does?"""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from ..foundation.errors import UserError, unknown
from .options import Data, Weak
from .output import console, escape, print_rows, print_text

MOST_CHARACTERS = 10_000_000


def score(
    benchmark: Annotated[str, typer.Argument(help="A benchmark that generates: gsm8k, math, humaneval, mbpp, …")],
    completion: Annotated[str, typer.Option(help="What the model answered; - reads it from standard input.")],
    gold: Annotated[
        str | None, typer.Option(help="The right answer: a number, LaTeX, or for code its asserts.")
    ] = None,
    item: Annotated[str | None, typer.Option(help="Instead of --gold: the id of one of the problems.")] = None,
    stage: Annotated[
        str, typer.Option(help="pretrained or finetuned; decides the headline and how a program is cut out.")
    ] = "finetuned",
    data: Data = None,
    allow_weak_isolation: Weak = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print an object by scorer, with answer and verdict.")
    ] = False,
) -> None:
    """Score one completion: each scorer's extracted answer and verdict."""
    if stage not in ("pretrained", "finetuned"):
        raise unknown("stage", stage, ["pretrained", "finetuned"])
    from ..evals.base import benchmarks
    from ..evals.one_completion import score_completion
    from ..runners.evaluating import default_settings

    text = _read_standard_input() if completion == "-" else completion
    settings = default_settings(data_dir=data, stage=stage, allow_weak_isolation=allow_weak_isolation)
    scored = score_completion(benchmarks.get(benchmark)(), text, settings, gold, item)
    if scored.stop:
        console(stderr=True).print(
            f"[yellow]note:[/yellow] an evaluation would have ended this completion before "
            f"{escape(repr(scored.stop))}; here all of it is scored",
            highlight=False,
            soft_wrap=True,
        )
    if as_json:
        print_text(json.dumps(scored.scorers, ensure_ascii=False, indent=2))
        return
    rows = [
        (
            name,
            "headline" if name == scored.headline else "",
            fields["verdict"],
            "none" if fields["answer"] is None else fields["answer"],
        )
        for name, fields in scored.scorers.items()
    ]
    print_rows(f"{benchmark}, {stage}", ["scorer", "", "verdict", "answer"], rows)
    for fields in scored.scorers.values():
        if "kind" in fields:
            detail = f" ({fields['detail']})" if fields["detail"] else ""
            console().print(
                f"{escape(fields['kind'] + detail)}, {fields['seconds']:g} s, isolation {fields['isolation']}",
                highlight=False,
                soft_wrap=True,
            )


def _read_standard_input() -> str:
    """Return what comes on standard input, as text."""
    raw = sys.stdin.buffer.read(MOST_CHARACTERS + 1)
    if len(raw) > MOST_CHARACTERS:
        raise UserError(f"standard input holds more than {MOST_CHARACTERS:,} bytes; a completion has a few thousand")
    return raw.decode("utf-8", "replace")


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(score)
