"""From a figure or table to the sweep that measures it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ...evals.tasks.base import get_task
from ...models.presets import PRESETS, resolve_model
from ...runners.config import SweepConfig, make_config, nest
from ...runners.training.recipes import RECIPES, SMALL_MODEL_PARAMETERS
from ..published.verdicts import papers_model
from .specs import Form, Item


@dataclass(frozen=True)
class Changes:
    """What a user changes of an item; None keeps what the item says. Names are those of ``bench run``."""

    model: str | None = None
    revision: str | None = None
    ratios: tuple[float, ...] | None = None
    seeds: tuple[int, ...] | None = None
    finetune_steps: int | None = None
    recover_steps: int | tuple[int, ...] | None = None
    limit: int | None = None
    train_set: str | None = None
    data: Path | None = None
    out: Path | None = None
    workers: int | None = None
    engine: str | None = None
    device: str | None = None
    eval_batch_size: int | None = None
    allow_weak_isolation: bool | None = None


_SWEEP_KEYS = {field.name for field in fields(Changes)} - {"model", "revision", "finetune_steps", "recover_steps"}


def pick_form(item: Item, model: str | None, revision: str | None = None) -> Form:
    """Return the item's form for a model: the small one below 50 M parameters.

    Raises:
        UserError: the model cannot be found.
    """
    name = model or item.model
    if name in PRESETS:
        return item.small if PRESETS[name].recipe == "small" else item.full
    # By its name: a plan of the paper's own model needs no configuration from the hub.
    if papers_model(name) == papers_model(item.model):
        return item.full
    from ...models.loading import load_skeleton
    from ...models.matrices import model_size

    source = resolve_model(name, revision)
    parameters = model_size(load_skeleton(source.location, source.revision)).parameters
    return item.small if parameters < SMALL_MODEL_PARAMETERS else item.full


def sweep_config(item: Item, form: Form, changes: Changes) -> SweepConfig:
    """Return the sweep of an item in one of its forms, with the user's changes.

    Raises:
        UserError: a change that is not usable.
    """
    model = changes.model or item.model
    revision = changes.revision or (item.revision if model == item.model else None)
    values: dict[str, Any] = {
        "model": model,
        "revision": revision,
        "task": form.task,
        "methods": [line.spec for line in form.lines],
        "ratios": form.ratios,
        "recipe": form.recipe,
        "benchmarks": form.benchmarks,
        "context": form.context,
        "bos": ("never",),  # as the papers' numbers were measured
        "training_free": form.training_free,
        "name": f"{resolve_model(model, revision).short_name}-{form.sweep}".lower(),
    }
    values |= {key: value for key in _SWEEP_KEYS if (value := getattr(changes, key)) is not None}
    steps: dict[str, int | tuple[int, ...] | None] = {"finetune": form.finetune_steps, "recover": form.recover_steps}
    changed_steps: dict[str, int | tuple[int, ...] | None] = {
        "finetune": changes.finetune_steps,
        "recover": changes.recover_steps,
    }
    steps |= {stage: count for stage, count in changed_steps.items() if count is not None}
    values |= {stage: {"steps": count} for stage, count in steps.items() if count is not None}
    return make_config(nest({key: value for key, value in values.items() if value is not None}))


def captions(form: Form, config: SweepConfig) -> list[str]:
    """Return the sentences of a form's caption, with the steps and ratios of the run, which a user may have changed."""
    finetune_steps = config.training.finetune.steps or RECIPES[form.recipe].finetune.steps or 0
    recover_steps = config.training.recover.steps or (form.recover_steps or 0,)
    values = {
        "finetune_steps": f"{finetune_steps:,}",
        "recover_steps": " and ".join(f"{count:,}" if count else "none" for count in sorted(recover_steps)),
        "ratios": ", ".join(f"{ratio:.4g}x" for ratio in sorted(config.ratios)),
    }
    return [sentence.format(**values) for sentence in form.caption]


def departures(item: Item, form: Form, config: SweepConfig) -> list[str]:
    """Return what a run does differently from the paper, beyond what its records say; each a clause."""
    clauses = list(form.departs)
    if form is item.small:
        clauses.append("ours is the small form")
    trained = [name for name in ("finetune", "recover") if getattr(config.training, name).steps is not None]
    if form is item.full and trained:
        clauses.append(f"ours has other training steps ({', '.join(trained)})")
    chosen = RECIPES[config.training.recipe].train_set(config.task, config.training.train_set)
    source = chosen or get_task(config.task).default_source(config.execution.data)
    if form.train_set and source != form.train_set:
        clauses.append(f"other training data: ours is {source}, theirs {form.train_set} as far as known")
    return clauses
