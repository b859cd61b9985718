"""The commands about stored samples: compare, rescore, show."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..foundation.text import visible
from .options import Data, Weak
from .output import console, escape, print_rows, print_text

Benchmark = Annotated[str | None, typer.Option(help="Which benchmark, where there are several.")]
Seed = Annotated[int | None, typer.Option(help="Which seed, where there are several.")]
NAMES = "A samples.jsonl file, its folder, or RUN:LABEL@RATIO such as runs/tiny-toy-math:svd@3."


def compare(
    a: Annotated[str, typer.Argument(help=NAMES)],
    b: Annotated[str, typer.Argument(help=NAMES)],
    benchmark: Benchmark = None,
    seed: Seed = None,
    scorer: Annotated[str | None, typer.Option(help="Whose verdicts count. \\[default: the headline's]")] = None,
) -> None:
    """Say whether two evaluations of the same problems really differ (paired test)."""
    from ..results.samples.stored import compare_samples

    result = compare_samples(a, b, benchmark, seed, scorer)
    console().print(escape(result.sentence(a, b)), soft_wrap=True, highlight=False)


def rescore(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    data: Data = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the new results. \\[default: RUN/rescored]")] = None,
    allow_weak_isolation: Weak = False,
) -> None:
    """Apply today's scorers to the stored completions of a run, without a model."""
    from ..foundation.progress import reporting
    from ..results.samples.stored import rescore_run
    from ..runners.progress import show_progress

    with show_progress(console(stderr=True), f"rescore {run}") as progress, reporting(progress):
        changes, csv = rescore_run(run, data, out, allow_weak_isolation)
    rows = [
        (
            c.label,
            f"{c.ratio:g}x",
            str(c.steps or ""),
            str(c.seed),
            c.benchmark,
            f"{c.before:.4g}",
            f"{c.after:.4g}",
            "" if c.before == c.after else "changed",
        )
        for c in changes
    ]
    print_rows("rescored", ["label", "ratio", "steps", "seed", "benchmark", "before", "now", ""], rows)
    console().print(f"results  {csv}", soft_wrap=True, highlight=False)


def show(
    samples: Annotated[str, typer.Argument(help=NAMES)],
    benchmark: Benchmark = None,
    seed: Seed = None,
    verdict: Annotated[
        str | None, typer.Option(help="Only this headline verdict: correct, wrong, no-answer, …")
    ] = None,
    finish: Annotated[str | None, typer.Option(help="Only this finish reason: stop or length.")] = None,
    problem: Annotated[str | None, typer.Option(help="Only this problem id.")] = None,
    contains: Annotated[str | None, typer.Option(help="Only completions with this text.")] = None,
    limit: Annotated[int, typer.Option(min=0, help="Most samples to show; 0 shows all.")] = 10,
    data: Data = None,
) -> None:
    """Page through problems, completions, answers and verdicts (through a pager on a terminal)."""
    from ..results.samples.stored import Filters, load_samples, problem_text, sample_file, show_samples

    lines = load_samples(sample_file(samples, benchmark, seed))
    chosen = list(show_samples(lines, Filters(verdict, finish, problem, contains)))
    shown = chosen if limit == 0 else chosen[:limit]
    parts = [
        f"{len(chosen)} of {len(lines)} samples" + (f", the first {len(shown)}" if len(shown) < len(chosen) else "")
    ]
    for line in shown:
        answers = ", ".join(f"{name}: {value}" for name, value in line["answers"].items())
        verdicts = ", ".join(f"{name}: {value}" for name, value in line["verdicts"].items())
        parts.append(
            f"── problem {line['problem']}, sample {line['sample']}, ended by {line['finish_reason']} ──\n"
            f"{problem_text(line, data)}\n┄┄ completion\n{line['completion']}\n┄┄ answers   {answers}\n"
            f"┄┄ verdicts  {verdicts}   (headline: {line['scorer']})"
        )
    text = "\n\n".join(parts)
    if sys.stdout.isatty():
        screen = console()
        with screen.pager():
            screen.print(visible(text), markup=False, highlight=False)
    else:
        print_text(text)


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (compare, rescore, show):
        app.command()(command)
