"""From a configuration to a plan: everything is checked that can be checked without work."""

from __future__ import annotations

from pathlib import Path

from ..evals.base import benchmarks
from ..evals.hosting.choice import choose_engine
from ..evals.tasks.files.opening import open_task
from ..evals.tasks.files.task import FileTask
from ..evals.tasks.lookup import benchmark_names
from ..foundation.errors import UserError
from ..methods.base import create_method
from ..methods.ranks.budget import Budget, RatioOutOfReachError, allocate_by_shapes
from ..models.matrices import model_size
from ..models.presets import resolve_model
from ..models.untouched import out_of_reach
from .choices import build_method, pick_device, pick_dtype, pick_recipe
from .config import SweepConfig
from .estimates.at_hand import AtHand, assumed_device, assumed_engine, find_at_hand, read_skeleton
from .estimates.machine import Machine
from .graph import Plan
from .layout import Layout
from .points import points
from .process_setup import read_setup
from .store.folders import StageStore, verify_around
from .store.shared import SharedStore
from .tracking.names import require_installed
from .training.recipes import RECIPES


def make_plan(
    config: SweepConfig, assumed: Machine | None = None, dry: bool = False, compress_only: bool = False
) -> Plan:
    """Check everything that can be checked without work, and lay out the stages.

    Args:
        config: what to run.
        assumed: the machine to plan for in a dry run, instead of this one.
        dry: nothing is going to run: where hub and cache have neither model nor data, what is known of them counts.
        compress_only: only fit and compress stages, of the model as it is; then the task may be empty, and no training
            data are read where no method needs them.

    Raises:
        UserError: anything unusable, before a single file is written.
    """
    require_installed(config.execution.report_to)
    task = open_task(config.task) if config.task or not compress_only else None
    typed, task_file = config, None
    if isinstance(task, FileTask):
        config = config.model_copy(update={"task": task.name})  # as records, keys and titles call it
        task_file = task.file.model_dump_json(by_alias=True)
    for spec in config.methods:
        if create_method(spec.name, spec.options).requirements.trains and config.training.training_free:
            raise UserError(f"method '{spec.name}' trains while it compresses; leave it out, or --training-free")
    names = () if compress_only or task is None else benchmark_names(config.benchmarks or task.benchmarks)
    context = config.evaluation.context
    if context and not any(benchmarks.get(name).has_context for name in names):
        raise UserError(f"--context is for perplexities and none of {', '.join(names)} is one; leave it out")
    # Before anything in it is read: a model in a damaged stage folder is refused as such.
    verify_around(Path(config.model))
    source = resolve_model(config.model, config.revision)
    execution = config.execution
    device = assumed_device(execution.device) if assumed else pick_device(execution.device)
    if execution.data is not None and not execution.data.is_dir():
        raise UserError(f"the data folder {execution.data} does not exist; name the folder that holds gsm8k/, math/, …")
    at_hand = find_at_hand(config, source, names, assumed) if dry else AtHand()
    skeleton, at_hand = read_skeleton(source, at_hand, dry)
    most = getattr(skeleton.config, "max_position_embeddings", None)
    if context and most and max(context) > most:
        raise UserError(
            f"--context {max(context)} is more than {source.name} takes ({most}); ask for at most that many tokens"
        )
    parameters = model_size(skeleton).parameters
    recipe_name = pick_recipe(config.training.recipe, source, parameters)
    recipe = RECIPES[recipe_name]
    engine = assumed_engine(config.evaluation.engine) if assumed else None
    engine = engine or choose_engine(config.evaluation.engine, skeleton.config, parameters, device)
    root = execution.folder / "stages"
    store = SharedStore(root, execution.storage) if execution.storage else StageStore(root)
    dtype = pick_dtype(config.evaluation.dtype, recipe.dtype, device)
    plan = Plan(config, typed, source, recipe, recipe_name, device, engine, dtype.dtype, store, skeleton)
    plan.dtype_note = dtype.why
    plan.task_file = task_file
    if dtype.why and execution.executor == "ray":
        plan.dtype_note += "; this machine decides for all nodes of the cluster"
    plan.assumed, plan.at_hand, plan.dry = assumed, at_hand, dry
    if execution.accelerate is not None:
        plan.setup = read_setup(execution.accelerate, device, assumed.count if assumed else None)
    # Before the layout, which reads the ratios and bits that this puts into `plan.points`.
    _check_ratios(plan)
    asked = config.evaluation.pretrained
    pretrained = task is not None and task.pretrained_row if asked is None else asked
    Layout(plan, names, pretrained, compress_only).lay_out()
    return plan


def _check_ratios(plan: Plan) -> None:
    for spec in plan.config.methods:
        method = build_method(spec, plan.recipe, plan.config.seeds[0])
        plan.points[spec.shown] = points(plan.config, plan.skeleton, method, plan.saves(trains=False))
        for ratio in plan.ratios(spec.shown):
            shape = method.shape(plan.skeleton, ratio)
            try:
                allocation = allocate_by_shapes(Budget(ratio, method.guard, plan.config.rank_multiple), shape)
            except RatioOutOfReachError as refusal:
                reasons = [str(refusal), out_of_reach(plan.skeleton)]
                raise RatioOutOfReachError("; ".join(filter(None, reasons)), refusal.largest) from refusal
            plan.allocations[spec.shown, ratio] = allocation
