"""From a configuration to a plan: everything is checked that can be checked without work."""

from __future__ import annotations

from pathlib import Path

from ..evals.base import benchmarks
from ..evals.hosting.choice import choose_engine
from ..evals.tasks.base import benchmark_names, get_task
from ..foundation.errors import UserError
from ..methods.base import create_method
from ..methods.ranks.budget import Budget
from ..methods.ranks.policies.base import policies
from ..models.matrices import model_size
from ..models.presets import resolve_model
from .choices import build_method, pick_device, pick_recipe
from .config import SweepConfig
from .estimates.at_hand import AtHand, assumed_device, assumed_engine, find_at_hand, read_skeleton
from .estimates.machine import Machine
from .graph import Plan
from .layout import Layout
from .process_setup import read_setup
from .store.folders import StageStore, verify_around
from .store.shared import SharedStore
from .training.recipes import RECIPES


def make_plan(config: SweepConfig, assumed: Machine | None = None, dry: bool = False) -> Plan:
    """Check everything that can be checked without work, and lay out the stages.

    Args:
        config: what to run.
        assumed: the machine to plan for in a dry run, instead of this one.
        dry: nothing is going to run: where hub and cache have neither model nor data, what is known of them counts.

    Raises:
        UserError: anything unusable, before a single file is written.
    """
    task = get_task(config.task)
    for spec in config.methods:
        if create_method(spec.name, spec.options).trains and config.training_free:
            raise UserError(f"method '{spec.name}' trains while it compresses; leave it out, or --training-free")
    names = benchmark_names(config.benchmarks or task.benchmarks)
    if config.context and not any(benchmarks.get(name).has_context for name in names):
        raise UserError(f"--context is for perplexities and none of {', '.join(names)} is one; leave it out")
    verify_around(Path(config.model))
    source = resolve_model(config.model, config.revision)
    device = assumed_device(config.device) if assumed else pick_device(config.device)
    if config.data is not None and not config.data.is_dir():
        raise UserError(f"the data folder {config.data} does not exist; name the folder that holds gsm8k/, math/, …")
    at_hand = find_at_hand(config, source, names, assumed) if dry else AtHand()
    skeleton, at_hand = read_skeleton(source, at_hand, dry)
    most = getattr(skeleton.config, "max_position_embeddings", None)
    if config.context and most and max(config.context) > most:
        raise UserError(
            f"--context {max(config.context)} is more than {source.name} takes ({most}); ask for at most that many "
            "tokens"
        )
    parameters = model_size(skeleton).parameters
    recipe_name = pick_recipe(config.recipe, source, parameters)
    recipe = RECIPES[recipe_name]
    engine = assumed_engine(config.engine) if assumed else None
    engine = engine or choose_engine(config.engine, skeleton.config, parameters, device)
    root = config.out.expanduser().resolve() / "stages"
    store = SharedStore(root, config.storage) if config.storage else StageStore(root)
    plan = Plan(config, source, recipe, recipe_name, device, engine, config.dtype or recipe.dtype, store, skeleton)
    plan.assumed, plan.at_hand, plan.dry = assumed, at_hand, dry
    if config.accelerate is not None:
        plan.setup = read_setup(config.accelerate, device, assumed.count if assumed else None)
    _check_ratios(plan)
    Layout(plan, names, task.pretrained_row if config.pretrained is None else config.pretrained).lay_out()
    return plan


def _check_ratios(plan: Plan) -> None:
    for spec in plan.config.methods:
        method = build_method(spec, plan.recipe, plan.config.seeds[0])
        for ratio in plan.config.ratios:
            shape = method.shape(plan.skeleton, ratio)
            allocation = Budget(ratio, method.guard, plan.config.rank_multiple).allocate(
                shape, policies.get("uniform")()
            )
            plan.allocations[spec.shown, ratio] = allocation
