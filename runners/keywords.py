"""A sweep's configuration from Python keywords, in the words of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .config import SweepConfig, make_config, merge, nest, read_yaml, split_methods

_LISTS = ("ratios", "seeds", "benchmarks", "context")
_STEPS = {"finetune_steps": "finetune", "recover_steps": "recover"}
_BOTH_TRAININGS = {"lr": "learning_rate", "batch_size": "batch_size", "max_length": "max_length"}


def config_of(config: SweepConfig | Path | str | None, options: dict[str, Any]) -> SweepConfig:
    """Return a validated configuration.

    Args:
        config: where options that are not given come from: a configuration, or a YAML file as ``bench run --config``
            takes it.
        options: fields of `SweepConfig`, or options of ``bench run`` with ``_`` for ``-``. Lists may be texts with
            commas, as on the command line. None leaves an option out.

    Raises:
        UserError: one sentence about the first thing that is wrong.
    """
    values: dict[str, Any] = {}
    if isinstance(config, SweepConfig):
        values = config.model_dump(exclude_unset=True)
    elif config is not None:
        values = read_yaml(Path(config))
    given = {name: value for name, value in options.items() if value is not None}
    both = {field: given.pop(name) for name, field in _BOTH_TRAININGS.items() if name in given}
    for name, training in _STEPS.items():
        changes = both | ({"steps": given.pop(name)} if name in given else {})
        if changes:
            given[training] = changes
    return make_config(merge(values, nest({name: _listed(name, value) for name, value in given.items()})))


def _listed(name: str, value: Any) -> Any:
    """Return what a list's option holds as a list, any other value as it is."""
    if name == "methods":
        return split_methods(value) if isinstance(value, str) else value
    if name not in _LISTS or isinstance(value, (list, tuple)):
        return value
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else [value]
