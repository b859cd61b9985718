"""From plain data, of the command line or of YAML, to a validated configuration."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...foundation.errors import UserError
from ...foundation.plain import parse_yaml, read_input
from .options import config_options, parse_lists
from .sentences import group_of
from .sweep import SweepConfig


def make_config(values: Mapping[str, Any], kind: type[SweepConfig] = SweepConfig) -> SweepConfig:
    """Validate plain data with the nesting of `SweepConfig`.

    Raises:
        UserError: one sentence about the first thing that is wrong.
    """
    return kind(**values)


_INSTEAD = {"ratios": "bytes", "bytes": "ratios"}
"""Fields that say the same in two ways, of which a sweep has one."""


def nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """Put options that have no group, as on the command line, into the groups of `SweepConfig`.

    Groups that are given as mappings keep their values; names that no group has stay at the top.
    """
    nested: dict[str, Any] = {}
    for name, value in values.items():
        if group := group_of(name, SweepConfig):
            nested[group] = nested.get(group, {}) | {name: value}
        elif isinstance(value, Mapping):
            nested[name] = nested.get(name, {}) | value
        else:
            nested[name] = value
    return nested


def merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with changes over them, mapping by mapping; what should be a mapping and is none stays as it is.

    Shares of bytes take the place of ratios, and ratios that of shares.
    """
    merged = {name: value for name, value in values.items() if not changes.get(_INSTEAD.get(name, ""))}
    for name, change in changes.items():
        old = merged.get(name)
        if isinstance(change, Mapping) and isinstance(old, Mapping):
            merged[name] = merge(old, change)
        elif old is None or not isinstance(change, Mapping):
            merged[name] = change
    return merged


def read_yaml(path: Path) -> dict[str, Any]:
    """Read the keys of a sweep from a YAML file.

    Raises:
        UserError: no such file, no YAML, or not a mapping.
    """
    values = parse_yaml(read_input(path, "config file"), f"the config file {path}")
    if not isinstance(values, dict):
        raise UserError(f"the config file {path} must hold 'key: value' lines; see docs/cli.md for an example")
    if odd := next((key for key in values if not isinstance(key, str)), None):
        raise UserError(f"the config file {path} has the key {odd!r}, which is no name; see docs/cli.md for an example")
    parse_lists(config_options(SweepConfig), values)
    return values
