"""Make a figure or table again: plan, estimate, run what is missing, draw, judge."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from ...foundation.errors import UserError
from ...foundation.files import write_atomic
from ...models.hub import hub_answers, is_cached
from ...models.known_shapes import SHAPES
from ...models.presets import ModelSource, resolve_model
from ...records.files import read_records
from ...results.sweep import run_sweep
from ...results.tables.escape import clean, markdown_text
from ...results.tables.pivot import Pivot, is_fraction
from ...results.tables.table import Table, text_columns
from ...results.tables.writers import markdown_grid, to_csv
from ...runners.config import SweepConfig
from ...runners.dry_run import show_plan
from ...runners.estimates.disk import disk_bytes
from ...runners.plan import make_plan
from ...runners.progress import duration
from ...runners.sweep import plan_seconds
from ..figures import Heading, draw_figure
from ..published.verdicts import Verdict
from .configs import Changes, captions, departures, pick_form, sweep_config
from .hours import gpu_hours
from .outcome import comparable, findings, panel_table, quoted_methods, quoted_numbers, verdicts
from .specs import Form, Item

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Reproduction:
    """What a finished reproduction left behind.

    Attributes:
        folder: of the sweep's results and of these files.
        pictures: PNG before SVG.
        verdicts: one for each of the paper's numbers.
        findings: a sentence for each of the paper's findings.
    """

    folder: Path
    pictures: list[Path]
    verdicts: list[Verdict]
    findings: list[str]


def reproduce(
    item: Item, changes: Changes, console: Console, dry_run: bool = False, draw_quoted: bool | None = None
) -> Reproduction | None:
    """Make an item again.

    Args:
        item: figure or table.
        changes: what the user wants otherwise.
        console: where everything is printed.
        dry_run: stop after the plan.
        draw_quoted: draw the paper's numbers; None draws them where model and form are the paper's.

    Raises:
        UserError: a model or data that are not here, before any work; or whatever the sweep raises.
    """
    form = pick_form(item, changes.model, changes.revision)
    config = sweep_config(item, form, changes)
    _announce(item, form, config, console)
    _show_plan(item, config, console, dry_run)
    if dry_run:
        return None
    result = run_sweep(config, console)
    return conclude(item, form, config, result.csv, console, draw_quoted)


def conclude(
    item: Item, form: Form, config: SweepConfig, csv_path: Path, console: Console, draw_quoted: bool | None = None
) -> Reproduction:
    """Draw and judge the records of a finished sweep, for each number of steps after compression by itself."""
    frame, budgets = read_records(csv_path), sorted(config.training.recover.steps or ())
    stem = csv_path.parent / f"{item.kind}-{item.name}"
    if len(budgets) < 2:
        return _conclude(item, form, config, frame, stem, console, draw_quoted)
    parts = []
    for steps in budgets:
        rows = frame[frame["steps_budget"].isin((0, steps))]  # 0: the uncompressed model
        own = stem.with_name(f"{stem.name}-{steps}-steps")
        parts.append(_conclude(item, form, config, rows, own, console, draw_quoted, f"{steps:,} steps"))
    return Reproduction(
        csv_path.parent,
        [picture for part in parts for picture in part.pictures],
        [verdict for part in parts for verdict in part.verdicts],
        [sentence for part in parts for sentence in part.findings],
    )


def _conclude(
    item: Item,
    form: Form,
    config: SweepConfig,
    frame: pd.DataFrame,
    stem: Path,
    console: Console,
    draw_quoted: bool | None,
    budget: str = "",
) -> Reproduction:
    """Draw and judge records of one number of steps after compression, which is named where there are several."""
    model = str(frame["model"].iloc[0])
    tables = [(panel, panel_table(frame, panel)) for panel in form.panels]
    notes = departures(item, form, config) + ([f"{budget} after the first finetuning"] if budget else [])
    results = verdicts(item, form, model, tables, notes)
    draw = comparable(item, form, model) if draw_quoted is None else draw_quoted
    pictures: list[Path] = []
    sentences: list[str] = []
    for panel, table in tables:
        rows = [row for row in quoted_numbers(item, model) if draw and row.benchmark in (panel.benchmark, *_all(item))]
        panel_stem = stem.with_name(stem.name + (f"-{panel.name}" if panel.name else ""))
        pictures += draw_figure(
            table, panel_stem, _heading(item, form, config, table, budget), rows, quoted_methods(form)
        )
        prefix = f"{panel.name}: " if panel.name and item.claims else ""
        prefix = f"{budget}: {prefix}" if budget else prefix
        sentences += [prefix + sentence for sentence in findings(item, form, table)]
    _write(stem, item, _caption(form, config), results, sentences)
    _print_outcome(item, results, sentences, pictures, stem, console)
    return Reproduction(stem.parent, pictures, results, sentences)


def _all(item: Item) -> tuple[str, ...]:
    # Of an item with one picture every number belongs into it, also with another benchmark for the paper's.
    return tuple(panel.benchmark for panel in item.full.panels) if len(item.full.panels) == 1 else ()


def _announce(item: Item, form: Form, config: SweepConfig, console: Console) -> None:
    console.print(Text(f"{item.paper}, {item.shown}: {item.title}", style="bold"))
    for claim in item.claims:
        console.print(Text(f"the paper: {claim.text}"))
    for sentence in captions(form, config):
        console.print(Text(sentence, style="dim"))
    for clause in departures(item, form, config):
        console.print(Text(f"note: {clause}; the verdicts will say so", style="yellow"))


def _show_plan(item: Item, config: SweepConfig, console: Console, dry_run: bool) -> None:
    source = resolve_model(config.model, config.revision)
    unreachable = not source.is_local and not _within_reach(source)
    if unreachable and source.location not in SHAPES:
        raise _not_here(item, source)
    plan = make_plan(config, dry=dry_run or unreachable)
    show_plan(plan, console)
    hours = gpu_hours(plan)
    if hours is not None:
        for sentence in hours.sentences():
            console.print(Text(sentence))
    else:
        time = duration(plan_seconds(plan))
        console.print(f"about {time} and at most {disk_bytes(plan) / 1e6:,.0f} MB to go", highlight=False)
    if unreachable and not dry_run:
        raise _not_here(item, source)


def _not_here(item: Item, source: ModelSource) -> UserError:
    return UserError(
        f"{item.shown} of {item.paper} needs {source.location}, which is not on this machine, and the hub cannot "
        "be reached; run it where the hub is (with access to the model), name the model's folder with --model DIR, "
        "or see it in small with --model tiny"
    )


def _within_reach(source: ModelSource) -> bool:
    """Whether a hub model's configuration is on this machine already, or the hub answers."""
    return is_cached(source.location, source.revision, "config.json") or hub_answers()


def _heading(item: Item, form: Form, config: SweepConfig, table: Pivot, budget: str = "") -> Heading:
    title = f"{item.paper}, {item.shown}, made again: {table.model}, {table.variant}"
    if form is item.small:
        title = f"{item.paper}, {item.shown} in small: {table.model}, {table.variant}"
    title += f", {budget} after the first finetuning" if budget else ""
    passed = is_fraction(table.metric) and item.paper == "basis-selection"
    scorer = f", {table.scorer}" if table.scorer else ""
    y = f"pass@1 [%] ({table.metric}{scorer})" if passed and table.metric != "pass@1" else ""
    return Heading(title, _caption(form, config), y)


def _caption(form: Form, config: SweepConfig) -> str:
    sentences = [f"{clause[0].upper()}{clause[1:]}." for clause in form.departs]
    return " ".join([*captions(form, config), *sentences])


def _lines(results: list[Verdict]) -> list[list[str]]:
    return [
        [
            row.quoted.model,
            row.quoted.benchmark,
            row.quoted.method,
            f"{row.quoted.ratio:.3g}x",
            row.quoted.shown,
            row.ours_shown,
            row.outcome,
            row.reason,
        ]
        for row in results
    ]


_HEADER = ["model", "benchmark", "method", "ratio", "quoted", "ours", "verdict", "why"]


def _write(stem: Path, item: Item, caption: str, results: list[Verdict], sentences: list[str]) -> None:
    lines = _lines(results)
    sources = [[*line, row.quoted.source, row.quoted.place] for row, line in zip(results, lines, strict=True)]
    verdicts = Table("verdicts", text_columns(*_HEADER, "source", "place"), sources)
    write_atomic(stem.with_name(f"{stem.name}-verdicts.csv"), to_csv([verdicts]))
    parts = [f"# {markdown_text(f'{item.paper}, {item.shown}: {item.title}')}"]
    parts += [markdown_text(caption)] if caption else []
    parts += [f"- {markdown_text(sentence)}" for sentence in sentences]
    parts.append(markdown_grid(Table("", text_columns(*_HEADER), lines)) if results else _nothing(item))
    write_atomic(stem.with_suffix(".md"), "\n\n".join(parts) + "\n")


def _nothing(item: Item) -> str:
    return f"The paper's text gives no numbers for {item.shown}, so there is nothing to compare ours with."


def _print_outcome(
    item: Item, results: list[Verdict], sentences: list[str], pictures: list[Path], stem: Path, console: Console
) -> None:
    console.print()
    for sentence in sentences:
        console.print(Text(clean(sentence)))
    if results:
        _print_verdicts(results, console)
    else:
        console.print(_nothing(item), highlight=False)
    for path in pictures:
        if path.suffix == ".png":
            console.print(f"picture  {path}", soft_wrap=True, highlight=False)
    console.print(f"verdicts {stem.with_name(f'{stem.name}-verdicts.csv')}", soft_wrap=True, highlight=False)


def _print_verdicts(results: list[Verdict], console: Console) -> None:
    console.print(Text("beside the paper's own numbers (quoted)", style="bold"))
    groups: dict[tuple[str, str], list[Verdict]] = {}
    for row in results:
        groups.setdefault((row.outcome, row.reason), []).append(row)
    for (outcome, reason), rows in groups.items():
        console.print(Text(clean(f"{outcome}: {reason}")))
        for row in rows:
            ours = f", ours {row.ours_shown}" if row.ours else ""
            cell = f"{row.quoted.model} {row.quoted.benchmark} {row.quoted.method} {row.quoted.ratio:.3g}x"
            console.print(Text(clean(f"  {cell}: quoted {row.quoted.shown}{ours}")))
