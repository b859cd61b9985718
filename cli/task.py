"""bench task new, bench task check: writing a task file, and seeing what it makes of its data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..foundation.errors import UserError
from .interruption import interruptible
from .options import ChatTemplate, Revision
from .output import console, escape, print_rows, print_text

group = typer.Typer(no_args_is_help=True, help="Task files: your own data, prompt and benchmarks.")


@group.command("new")
def new(
    file: Annotated[Path, typer.Argument(help="New .yaml file.")] = Path("task.yaml"),
) -> None:
    """Write a task file in which every field is explained."""
    from ..evals.tasks.files.opening import ENDINGS
    from ..evals.tasks.files.template import template
    from ..foundation.files import write_atomic

    if file.suffix.lower() not in ENDINGS:
        raise UserError(f"'{file}' must end in {' or '.join(ENDINGS)}; write bench task new {file.stem or 'task'}.yaml")
    if file.exists():
        raise UserError(f"'{file}' exists already; name a new file, or remove it first")
    write_atomic(file, template())
    console().print(f"task file  {file}", highlight=False, soft_wrap=True)


@group.command("check")
def check(
    file: Annotated[Path, typer.Argument(help="Task file.")],
    model: Annotated[str, typer.Option(help="Preset, folder or hub id, whose tokenizer and size count.")] = "tiny",
    revision: Revision = None,
    chat_template: ChatTemplate = "auto",
) -> None:
    """Show examples with what is learnt, lengths, what is left out, overlap and cost; nothing is trained or written."""
    from ..runners.progress import duration
    from ..runners.task_check import check_task

    with interruptible("interrupted; nothing was written"):
        checked = check_task(file, model, revision, chat_template, console(stderr=True))
    screen = console()
    screen.print(
        f"task {checked.task} for {checked.model}; prompts: {escape(checked.prompt)}", highlight=False, soft_wrap=True
    )
    for number, example in enumerate(checked.examples, 1):
        screen.print(
            f"\n── training example {number}, {escape(example.title)}: {example.tokens} tokens, {example.learnt} "
            "of them learnt; ⟪…⟫ is read and not learnt",
            highlight=False,
            soft_wrap=True,
        )
        print_text("".join(text if learnt else f"⟪{text}⟫" for text, learnt in example.parts))
    card = checked.card
    print_rows(
        "training data",
        ["rows", "for training", "held out", "left out as empty", "duplicates, kept", "converted to text"],
        [
            tuple(
                f"{getattr(card, name):,}" for name in ("rows", "used", "held_out", "empty", "duplicates", "converted")
            )
        ],
    )
    names = [name for name in checked.quantiles if name != "sum"]
    fate = "cut" if checked.cut else "left out"
    print_rows(
        f"tokens of {checked.tokenised:,} examples; {checked.too_long:,} are longer than {checked.limit:,} and {fate}",
        names,
        [tuple(f"{checked.quantiles[name]:,}" for name in names)],
    )
    print_rows(
        "benchmarks",
        ["name", "problems", "left out as empty", "duplicates", "also in training", "nearly", "for example"],
        [
            (
                name,
                f"{benchmark.problems:,}",
                f"{benchmark.empty:,}",
                f"{benchmark.duplicates:,}",
                f"{checked.overlaps[name].exact:,}",
                f"{checked.overlaps[name].near:,}",
                checked.overlaps[name].example,
            )
            for name, benchmark in checked.benchmarks.items()
        ],
    )
    print_rows(
        f"estimated cost of bench run --methods svd --ratios {checked.ratio:g}",
        ["stage", "number", "time in all"],
        [(kind, str(count), duration(seconds)) for kind, count, seconds in checked.cost],
    )
    for note in checked.notes:
        screen.print(f"[yellow]note:[/yellow] {escape(note)}", highlight=False, soft_wrap=True)


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.add_typer(group, name="task")
