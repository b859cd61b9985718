"""The plan in words: what is done, what is to do, ranks, memory, disk, hours, and whether it fits the machine."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..methods.base import create_method
from ..methods.correction import corrector
from ..methods.estimates import calibration_passes
from ..models.footprint import context_length
from .choices import build_method
from .config import SweepConfig
from .estimates.disk import disk_sentence
from .estimates.machine import assume_machine
from .estimates.memory import COLUMNS, TITLE, evaluation_needs, evaluation_rows, load_modes, memory_rows
from .estimates.probe import probe_cpu
from .estimates.seconds import estimate, wall_seconds
from .estimates.verdict import evaluation_demands, judge, load_demands, training_demands, training_rows
from .executors.local import divide_cores
from .graph import Plan
from .plan import make_plan
from .progress import duration
from .specs import KINDS, CompressStage, FitStage, QuantiseStage
from .sweep import plan_warnings
from .training.data import example_length
from .tuning import tuning_sentence


def print_plan(config: SweepConfig, console: Console, assume: str | None = None) -> None:
    """Print the plan of a sweep; writes nothing and runs nothing.

    Args:
        config: the sweep.
        console: where to.
        assume: the machine to plan for, as `assume_machine` takes it, or None for this one.

    Raises:
        UserError: whatever `make_plan` finds.
    """
    plan = make_plan(config, None if assume is None else assume_machine(assume), dry=True)
    show_plan(plan, console)
    modes, needs = load_modes(plan), evaluation_needs(plan)
    memory = Table(*COLUMNS, title=TITLE, title_justify="left", box=None, pad_edge=False)
    trained = training_rows(plan.trainings)
    other = {title: mode for title, mode in modes.items() if mode.peak or title not in {row[0] for row in trained}}
    for row in trained + memory_rows(other) + evaluation_rows(needs, plan.device):
        memory.add_row(*map(escape, row))
    console.print(memory)
    for note in dict.fromkeys(peak.note for _, peak in plan.trainings.values() if peak.note):
        console.print(f"note on the memory of trainings: {escape(note)}", highlight=False, soft_wrap=True)
    _show_hours(plan, console)
    for reason in dict.fromkeys(choice.why for choice, _ in plan.trainings.values() if choice.why):
        console.print(f"placement: {escape(reason)}", highlight=False, soft_wrap=True)
    demands = training_demands(plan.trainings) + load_demands(modes) + evaluation_demands(needs, plan.device)
    console.print(escape(judge(plan.machine, demands, plan.refusals.values())), highlight=False, soft_wrap=True)


def _show_hours(plan: Plan, console: Console) -> None:
    estimated = estimate(plan)
    workers, _ = divide_cores(
        plan.config.execution.workers, plan.device, plan.parameters, max(len(estimated.seconds), 1)
    )
    kinds = estimated.by_kind(plan)
    table = Table(
        "stage", "to do", "each", "together", "by", title="time", title_justify="left", box=None, pad_edge=False
    )
    for kind in KINDS:
        if kind in kinds:
            count, seconds, measured = kinds[kind]
            by = "finished stages" if measured else "arithmetic"
            table.add_row(kind, str(count), duration(seconds / count), duration(seconds), by)
    console.print(table)
    time = duration(wall_seconds(plan, estimated.seconds, workers))
    if plan.machine.flops is None and len(estimated.measured) < len(estimated.seconds):
        speeds = f"arithmetic from a probe of one thread: {probe_cpu().sentence()}"
        console.print(speeds, highlight=False, soft_wrap=True)
    several = f" with {workers} workers" if workers > 1 else ""
    console.print(f"about {time}{several} and {disk_sentence(plan)}", highlight=False, soft_wrap=True)


def show_plan(plan: Plan, console: Console) -> None:
    """Print what a plan is of, its stages to do and done, and its ranks."""
    console.print(
        f"{plan.source.name} ({plan.parameters:,} parameters, {plan.source.sha256[:12]}), task {plan.config.task}, "
        f"recipe {plan.recipe_name}, {plan.dtype} on {plan.device}",
        highlight=False,
    )
    for note in plan_warnings(plan):
        console.print(f"note: {note}", highlight=False)
    for line in _calibrations(plan):
        console.print(f"calibration: {line}", markup=False, highlight=False, soft_wrap=True)
    if note := tuning_sentence(plan):
        console.print(f"tuning: {note}", markup=False, highlight=False, soft_wrap=True)
    if note := _budgets(plan):
        console.print(f"budgets: {note}", markup=False, highlight=False, soft_wrap=True)
    console.print(_stages(plan))
    console.print(_ranks(plan))


def _budgets(plan: Plan) -> str:
    """Say what several budgets share, or nothing where there is one."""
    budgets = sorted({cell.budget for cell in plan.cells if cell.budget})
    if len(budgets) < 2:
        return ""
    trains = [spec.shown for spec in plan.config.methods if create_method(spec.name, spec.options).requirements.trains]
    rest = "" if len(trains) == len(plan.config.methods) else ", and compressions of methods that do not train,"
    own = f"; {', '.join(trains)} trains while it compresses and is compressed for each" if trains else ""
    steps = ", ".join(f"{budget:,}" for budget in budgets)
    return f"{steps} steps after the first finetuning share it, fits{rest} and recover separately{own}"


def _calibrations(plan: Plan) -> list[str]:
    """Return what each kind of stage makes its statistics of, once where stages read alike."""
    context, lines = context_length(plan.skeleton.config), dict[str, None]()
    for stage in plan.stages.values():
        if stage.data is None or stage.train is not None:
            continue
        length = example_length(stage.data.task, stage.data.max_length, context)
        if isinstance(stage, FitStage):
            title, method = "fit", create_method(stage.execution.method, stage.execution.options)
        elif isinstance(stage, CompressStage):
            title, method = "compress", create_method(stage.spec.method, stage.spec.options)
        elif isinstance(stage, QuantiseStage) and stage.spec.correction:
            title, method = "correction", corrector(stage.spec.correction)
        else:
            continue
        gathers = calibration_passes(method) > 0 if title == "compress" else method.requirements.statistics
        samples = getattr(method, "samples" if gathers else "probe_samples", None)
        some = "all examples" if samples is None else f"{samples} examples"
        lines[f"{title} by {method.name} reads {some} of {stage.data.task}, of at most {length} tokens each"] = None
    return list(lines)


def _stages(plan: Plan) -> Table:
    pending = set(plan.pending())
    total, todo = Counter[str](), Counter[str]()
    for key, stage in plan.stages.items():
        total[stage.kind] += 1
        todo[stage.kind] += key in pending
    table = Table("stage", "to do", "done", title="stages", title_justify="left", box=None, pad_edge=False)
    for kind in KINDS:
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
        policy = method.requirements.policy
        for ratio in plan.ratios(spec.shown):
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
