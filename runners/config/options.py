"""Which options a configuration has on a command line: one for each field."""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

NONE = "none"
"""Given for an option with several values that is empty by default, it makes the option empty."""


@dataclass(frozen=True)
class Option:
    """What an option needs beyond its field's name, type, default and description.

    Attributes:
        name: of the option; empty is the field's. In a model of several fields ``{parent}`` is the name of the field
            that holds it; a name without it sets the field in each of them.
        default: what help shows instead of the field's default, such as ``the benchmark's`` for None. `NONE` can be
            given too: it empties the option, also one that a file has set.
        example: values with commas that an error sentence shows.
        parse: reads the text of one option; else values with commas are read by the field's type.
        environment: a variable that gives the value too.
        panel: heading of the help; empty is the group's.
    """

    name: str = ""
    default: str = ""
    example: str = ""
    parse: Callable[[str], Any] | None = None
    environment: str = ""
    panel: str = ""


@dataclass(frozen=True)
class ConfigOption:
    """One option of a command line.

    Attributes:
        name: with underscores.
        paths: of the fields that it sets, from the root.
        type: ``bool``, ``int``, ``float``, ``str`` or ``Path``; of the items where there are several.
        several: whether values are separated by commas.
        switch: a bool that can only be set, not unset.
        default: as help shows it, or empty.
        help: description of the field.
        declared: its metadata; the panel is filled in.
    """

    name: str
    paths: tuple[tuple[str, ...], ...]
    type: type
    several: bool
    switch: bool
    default: str
    help: str
    declared: Option


def config_options(root: type[BaseModel], panel: str = "What to run") -> list[ConfigOption]:
    """Return the options of a configuration in the order of its fields.

    Every field of the root and of its groups (fields that are a model) is one. A model inside a group has options only
    for fields with `Option` metadata; the others can be set in YAML.

    Args:
        root: the configuration.
        panel: heading of the fields that are in no group.
    """
    options: dict[str, ConfigOption] = {}
    for option in _flatten(root, (), Option(panel=panel), {}):
        known = options.get(option.name)
        options[option.name] = replace(known, paths=(*known.paths, *option.paths)) if known else option
    # Fields without a group first: what a command line has to say.
    return sorted(options.values(), key=lambda option: len(option.paths[0]) > 1)


def empties(option: ConfigOption, value: Any) -> bool:
    """Whether a value, as it was typed, makes an option empty."""
    return option.default == NONE and isinstance(value, str) and value.strip() == NONE


def parse_value(option: ConfigOption, value: Any) -> Any:
    """Return a value as the configuration takes it: texts as on the command line, one value of several as a list."""
    if empties(option, value):
        return []
    if isinstance(value, str) and option.declared.parse is not None:
        return option.declared.parse(value)
    if not option.several or isinstance(value, (list, tuple)):
        return value
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else [value]


def parse_lists(options: Sequence[ConfigOption], values: dict[str, Any]) -> None:
    """Replace lists that are written as one text or one value, in plain data with the configuration's nesting."""
    for option in options:
        for *groups, name in option.paths:
            inner: Any = values
            for group in groups:
                inner = inner.get(group) if isinstance(inner, dict) else None
            if option.several and isinstance(inner, dict) and inner.get(name) is not None:
                inner[name] = parse_value(option, inner[name])


def put(options: Sequence[ConfigOption], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain data with the nesting of the configuration, of the options that have a value."""
    nested: dict[str, Any] = {}
    for option in options:
        if values.get(option.name) is not None:
            for path in option.paths:
                inner = nested
                for part in path[:-1]:
                    inner = inner.setdefault(part, {})
                inner[path[-1]] = values[option.name]
    return nested


def _flatten(
    model: type[BaseModel], path: tuple[str, ...], above: Option, names: Mapping[str, str]
) -> Iterator[ConfigOption]:
    for name, field in model.model_fields.items():
        kind, several, optional = _plain_type(field)
        declared = next((item for item in field.metadata if isinstance(item, Option)), None)
        panel = (declared and declared.panel) or above.panel
        if issubclass(kind, BaseModel) and not several:
            inner = {"parent": name, "description": field.description or ""} if path else {}
            title = getattr(kind, "panel", panel)
            yield from _flatten(kind, (*path, name), Option(panel=title), inner)
        elif declared or len(path) < 2:
            chosen = replace(declared or Option(), panel=panel)
            yield ConfigOption(
                _filled(chosen.name or name, names),
                ((*path, name),),
                kind,
                several,
                kind is bool and not optional,  # one that may be None has --no-NAME too
                chosen.default or _shown(field),
                _filled(field.description or "", names),
                chosen,
            )


def _filled(text: str, names: Mapping[str, str]) -> str:
    return text.format(**names) if names else text


def _shown(field: FieldInfo) -> str:
    default = field.get_default()
    if isinstance(default, tuple):
        return ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in default)
    if default is None or isinstance(default, bool) or field.is_required():
        return ""
    return f"{default:g}" if isinstance(default, float) else str(default)


def _plain_type(field: FieldInfo) -> tuple[type, bool, bool]:
    """Return what a field holds without its limits, whether in a tuple, and whether None is allowed."""
    kind, several, optional = field.annotation, False, False
    while True:
        origin = get_origin(kind)
        if origin is Annotated:
            kind = get_args(kind)[0]
        elif origin in (Union, types.UnionType):
            optional = optional or type(None) in get_args(kind)
            kind = next(part for part in get_args(kind) if part is not type(None))
        elif origin is tuple:
            kind, several = get_args(kind)[0], True
        elif origin is Literal:
            return str, several, optional
        else:
            return typing.cast(type, kind), several, optional
