"""bench reproduce: a paper's figure or table again, on our own numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..foundation.errors import UserError
from .config_options import declared
from .interruption import resumable_work
from .options import Data, Limit, Revision, TrainSet, Weak
from .output import console, numbers, print_rows


def reproduce(
    paper: Annotated[str | None, typer.Argument(help="Which paper; without it, all that can be made again.")] = None,
    figure: Annotated[str | None, typer.Option(help="Which figure: 3a.")] = None,
    table: Annotated[str | None, typer.Option(help="Which table: uniform.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Instead of the paper's; below 50 M parameters the item comes out in small.")
    ] = None,
    revision: Revision = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and the estimate, and stop.")] = False,
    ratios: Annotated[str | None, typer.Option(help="Instead of the item's: 2,4,7.")] = None,
    seeds: Annotated[str | None, declared("seeds")] = None,
    finetune_steps: Annotated[int | None, declared("finetune_steps")] = None,
    recover_steps: Annotated[str | None, declared("recover_steps")] = None,
    limit: Limit = None,
    train_set: TrainSet = None,
    data: Data = None,
    out: Annotated[Path | None, declared("out")] = None,
    workers: Annotated[int | None, declared("workers")] = None,
    engine: Annotated[str | None, declared("engine")] = None,
    device: Annotated[str | None, declared("device")] = None,
    eval_batch_size: Annotated[int | None, declared("eval_batch_size")] = None,
    quoted: Annotated[
        bool | None,
        typer.Option(
            "--quoted/--no-quoted", help=r"Draw the paper's numbers. \[default: where the model is the paper's]"
        ),
    ] = None,
    allow_weak_isolation: Weak = False,
) -> None:
    """Make a paper's figure or table again: plan, run what is missing, draw, judge beside the paper's own numbers."""
    from ..papers.reproduce.catalogue import PAPERS, find_item, get_paper

    if paper is None and (figure is not None or table is not None):
        raise UserError("name the paper before its figure or table, such as bench reproduce basis-selection --figure 7")
    if paper is None or (figure is None and table is None and not dry_run):
        papers = PAPERS.values() if paper is None else [get_paper(paper)]
        rows = [(p.name, f"--{item.kind} {item.name}", item.title) for p in papers for item in p.items]
        print_rows("what can be made again", ["paper", "option", "what it shows"], rows)
        return
    item = find_item(paper, figure, table)
    from ..papers.reproduce.configs import Changes
    from ..papers.reproduce.run import reproduce as make

    chosen_ratios = numbers("ratio", ratios, float, "2,4,7")
    budgets = numbers("number of recover steps", recover_steps, int, "600,1200")
    chosen_seeds = numbers("seed", seeds, int, "1,2,3")
    changes = Changes(
        model=model,
        revision=revision,
        ratios=None if chosen_ratios is None else tuple(chosen_ratios),
        seeds=None if chosen_seeds is None else tuple(chosen_seeds),
        finetune_steps=finetune_steps,
        recover_steps=None if budgets is None else tuple(budgets),
        limit=limit,
        train_set=train_set,
        data=data,
        out=out,
        workers=workers,
        engine=engine,
        device=device,
        eval_batch_size=eval_batch_size,
        allow_weak_isolation=allow_weak_isolation or None,
    )
    with resumable_work():
        make(item, changes, console(), dry_run, quoted)


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(reproduce)
