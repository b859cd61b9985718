"""The plan in words: what is done, what is to do, ranks, parameters, time."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..foundation.errors import UserError
from ..models.footprint import check_model
from .config import SweepConfig
from .disk import disk_sentence
from .memory import COLUMNS, TITLE, evaluation_needs, evaluation_rows, memory_rows, plan_ways
from .plan import Plan, build_method, make_plan
from .progress import duration
from .sweep import plan_seconds, plan_warnings


def print_plan(config: SweepConfig, console: Console) -> None:
    """Print the plan of a sweep; writes nothing and runs nothing.

    Raises:
        UserError: whatever `make_plan` finds.
    """
    plan = make_plan(config)
    show_plan(plan, console)
    table = Table(*COLUMNS, title=TITLE, title_justify="left", box=None, pad_edge=False)
    needs = evaluation_needs(plan)
    for row in memory_rows(plan_ways(plan)) + evaluation_rows(needs, plan.device):
        table.add_row(*map(escape, row))
    console.print(table)
    for need in needs.values():
        try:
            check_model(need, plan.source.name, plan.device)
        except UserError as refusal:
            console.print(f"note: {escape(str(refusal))}", highlight=False, soft_wrap=True)
    console.print(f"about {duration(plan_seconds(plan))} and {disk_sentence(plan)}", highlight=False, soft_wrap=True)


def show_plan(plan: Plan, console: Console) -> None:
    """Print what a plan is of, its stages to do and done, and its ranks."""
    console.print(
        f"{plan.source.name} ({plan.parameters:,} parameters, {plan.source.sha256[:12]}), task {plan.config.task}, "
        f"recipe {plan.recipe_name}, {plan.dtype} on {plan.device}",
        highlight=False,
    )
    for note in plan_warnings(plan):
        console.print(f"note: {note}", highlight=False)
    console.print(_stages(plan))
    console.print(_ranks(plan))


def _stages(plan: Plan) -> Table:
    pending = set(plan.pending())
    total, todo = Counter[str](), Counter[str]()
    for key, stage in plan.stages.items():
        total[stage.kind] += 1
        todo[stage.kind] += key in pending
    table = Table("stage", "to do", "done", title="stages", title_justify="left", box=None, pad_edge=False)
    for kind in ("finetune", "fit", "compress", "recover", "evaluate"):
        if total[kind]:
            table.add_row(kind, str(todo[kind]), str(total[kind] - todo[kind]))
    return table


def _ranks(plan: Plan) -> Table:
    table = Table(
        *("method", "ratio", "parameters", "ranks", "dense"),
        title="resolved ranks (least to most; methods with a policy of their own settle them from the spectra)",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for spec in plan.config.methods:
        method = build_method(spec, plan.recipe, plan.config.seeds[0])
        policy = getattr(method, "policy", method.default_policy)
        for ratio in plan.config.ratios:
            allocation = plan.allocations[spec.shown, ratio]
            target = f"{plan.parameters / ratio:,.0f}"
            if policy != "uniform":
                table.add_row(spec.shown, f"{ratio:g}x", f"at most {target}", f"by {policy}", "")
                continue
            ranks = sorted(allocation.ranks.values())
            dense = len(method.targets(plan.skeleton)) - len(ranks)
            shown = f"{ranks[0]} to {ranks[-1]}" if ranks else "none"
            table.add_row(spec.shown, f"{ratio:g}x", f"{allocation.parameters:,}", shown, str(dense) if dense else "")
    return table
