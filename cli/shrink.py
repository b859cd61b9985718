"""bench shrink: the smallest model that still works for an application."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..foundation.errors import UserError
from ..runners.config.sweep import SweepConfig
from .config_options import takes_config
from .interruption import resumable_work
from .output import console, escape, numbers, print_rows

NOT_USED = ("ratios", "bytes", "bits", "controls", "keep", "tune")
"""Keys of a sweep that a search has no use for: no options here, and left out of a file that a sweep uses too."""


@takes_config(SweepConfig, without=NOT_USED)
def shrink(
    asked: dict[str, Any],
    keep: Annotated[str, typer.Option(help="Share of the uncompressed accuracy to keep at 95 % confidence: 95%.")],
    between: Annotated[str, typer.Option(help="Least and largest ratio of the search.")] = "1.1,8",
    resolution: Annotated[float, typer.Option(help="Of neighbouring ratios: 0.05 for steps of 5 %.")] = 0.05,
    confirm: Annotated[
        bool, typer.Option("--confirm/--no-confirm", help="Measure again on generated problems with another seed.")
    ] = True,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file of bench run; its ratios, bytes, bits, controls, tune and keep are left out."),
    ] = None,
) -> None:
    """Find the smallest model whose accuracy stays within a share of the uncompressed one's.

    By bisection over ratios, for the best of the methods. Every evaluation is a cell of an ordinary sweep: give the
    same command again to go on after an interruption.
    """
    from ..runners.config import make_config, merge, nest, read_yaml

    ends = numbers("ratio", between, float, "1.1,8") or []
    if len(ends) != 2:
        raise UserError(f"--between {between} has to be two ratios, such as 1.1,8")
    values, unused = _split(nest(read_yaml(config) if config else {}))
    checked = make_config(merge(values, asked))
    from ..results.shrink.run import sentence
    from ..results.shrink.run import shrink as search
    from ..runners.progress import duration

    share, screen = _share(keep), console()
    if unused:
        screen.print(escape(f"not used by a search: {', '.join(unused)} of {config}"), highlight=False, soft_wrap=True)
    with resumable_work():
        answer = search(checked, share, (ends[0], ends[1]), resolution, confirm, screen)
    rows = [
        (
            probe.method,
            f"{probe.target:g}x",
            f"{probe.parameters:,}",
            f"{probe.margin.accuracy:.1%}",
            f"{100 * probe.margin.value:+.1f} [{100 * probe.margin.low:+.1f}, {100 * probe.margin.high:+.1f}]",
            "yes" if probe.margin.holds else "undecided" if probe.margin.undecided else "no",
            "search" if probe.problem_seed is None else f"problems of seed {probe.problem_seed}",
        )
        for probe in [*answer.tried, *answer.confirmations]
    ]
    columns = ["method", "ratio", "parameters", answer.metric, f"points above {keep} of uncompressed", "keeps", "on"]
    print_rows(f"what was tried: {answer.benchmark}", columns, rows)

    def say(text: str) -> None:
        screen.print(escape(text), highlight=False, soft_wrap=True)

    probe_time = duration(answer.seconds_per_probe())
    if answer.smallest is None:
        _say_why_none(say, answer, keep, f"between {ends[0]:g}x and {ends[1]:g}x", probe_time)
        sys.exit(1)
    best = answer.smallest
    say(f"smallest: {best.method} at {best.target:g}x, {best.parameters:,} parameters; in the search {sentence(best)}")
    if answer.confirmations:
        last = answer.confirmations[-1]
        say(f"on generated problems that the search did not see (seed {last.problem_seed}): {sentence(last)}")
    else:
        why = "this benchmark has no others" if not answer.confirmable else "--no-confirm"
        say(
            f"not confirmed on other problems ({why}); the same problems chose the ratio, so its accuracy is rather "
            "too high than too low"
        )
    _say_what_is_next(say, answer, probe_time)
    say(f"model    {answer.model}")
    say(f"serve    vllm serve {answer.model}")
    say(f"results  {answer.folder / 'results.csv'}")


def _say_why_none(say: Any, answer: Any, keep: str, between: str, probe_time: str) -> None:
    from ..results.shrink.margin import problems_for_equal_answers

    measured = answer.tried[0].margin
    least = problems_for_equal_answers(measured.uncompressed, answer.share)
    if measured.right_or_wrong and (least is None or measured.n < least):
        enough = f"{least:,} show it" if least else "no number shows it"
        say(
            f"no model is shown to keep {keep} by {measured.n:,} problems, even with the answers of the uncompressed "
            f"one: {enough}; give the benchmark more problems, or ask for a smaller --keep"
        )
        return
    say(
        f"no model of these methods {between} is shown to keep {keep}; try other methods, a smaller --keep, longer "
        f"--recover-steps, or more problems (a cell takes about {probe_time})"
    )
    if probe := answer.undecided():
        say(f"{probe.method} at {probe.target:g}x is undecided{_problems_to_decide(probe)}")


def _problems_to_decide(probe: Any) -> str:
    need = probe.margin.problems_to_decide()
    return f"; its {probe.margin.n:,} problems do not decide it, about {need:,} would" if need else ""


def _say_what_is_next(say: Any, answer: Any, probe_time: str) -> None:
    following = answer.next_ratio()
    if following is None:
        say(f"the largest ratio of the search holds; go on with a larger --between (a cell takes about {probe_time})")
        return
    failed = [p for p in [*answer.tried, *answer.confirmations] if p.target == following and not p.margin.holds]
    probe = max(failed, key=lambda p: p.margin.value)
    say(
        f"{probe.method} at {following:g}x is not shown to hold{_problems_to_decide(probe)}; a finer --resolution "
        f"costs about {probe_time} a cell"
    )


def _split(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Split a file's values, in groups, into those that a search uses and the names of the others."""
    used: dict[str, Any] = {}
    unused: list[str] = []
    for name, value in values.items():
        if name in NOT_USED:
            unused.append(name)
        elif isinstance(value, dict):
            used[name], names = _split(value)
            unused += names
        else:
            used[name] = value
    return used, unused


def _share(text: str) -> float:
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%?\s*", text)
    if not match:
        raise UserError(f"--keep '{text}' is no share; write a percentage such as 95%")
    value = float(match[1])
    return value / 100 if "%" in text or value > 1 else value


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command()(shrink)
