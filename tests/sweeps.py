"""A sweep small enough for tests."""

from pathlib import Path
from typing import Any

import yaml

from lowrank_bench.runners.config import SweepConfig, make_config, merge, nest


def small_sweep(out: Path, **changes: Any) -> SweepConfig:
    """Return a sweep of a few steps on the built-in model: the whole line in seconds; options without their groups."""
    values: dict[str, Any] = {
        "model": "tiny",
        "task": "toy-math",
        "methods": ["svd", "fwsvd:samples=8", "bs:prunings=3"],
        "ratios": [2, 4],
        "finetune": {"steps": 2},
        "recover": {"steps": 4},
        "limit": 4,
        "max_new_tokens": 8,
        "out": out,
    }
    if "bytes" in changes:  # in place of ratios
        del values["ratios"]
    return make_config(nest(values | changes))


def changed(config: SweepConfig, **changes: Any) -> SweepConfig:
    """Return a sweep with other values of some options."""
    return make_config(merge(config.model_dump(exclude_unset=True), nest(changes)))


def write_config(config: SweepConfig, file: Path) -> Path:
    """Write what differs from the defaults as a configuration for ``bench run --config``; returns the file."""
    file.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True, exclude_defaults=True)))
    return file
