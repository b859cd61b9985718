"""A sweep's configuration from Python keywords, in the words of the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..foundation.errors import unknown
from .config import SweepConfig, make_config, merge, nest, read_yaml
from .config.options import config_options, parse_value, put


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
    by_name = {option.name: option for option in config_options(SweepConfig)}
    names = {*by_name, *SweepConfig.model_fields}
    if odd := next((name for name in given if name not in names), None):
        raise unknown("key", odd, names)
    known = {name: option for name, option in by_name.items() if name in given}
    flat = put(list(known.values()), {name: parse_value(option, given.pop(name)) for name, option in known.items()})
    return make_config(merge(merge(values, nest(given)), flat))
