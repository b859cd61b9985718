"""One sentence about the first thing that is wrong with a configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from ...foundation.errors import did_you_mean, reason
from .options import config_options, put


def sentence(error: ValidationError, root: type[BaseModel]) -> str:
    """Return the sentence; what a key of another place should be is read from the models below ``root``."""
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    key = ".".join(path[1:] if len(path) > 1 and path[1:2] and group_of(path[1], root) == path[0] else path)
    if problem["type"] == "extra_forbidden":
        return _unknown_key(path, root)
    if problem["type"] == "missing" and any(part.isdigit() for part in path):
        return f"an entry of '{path[0]}' has no '{path[-1]}'; write '- NAME', or '- {{name: NAME, options: {{…}}}}'"
    if problem["type"] == "missing":
        return f"'{key}' is missing; say it on the command line (--{key}) or in the YAML file ({key}: …)"
    if problem["type"] == "value_error":
        return reason(problem)
    if problem["type"] == "too_short":
        return f"{key} is empty; write one value or more, or leave it out"
    if problem["input"] is None:
        return f"{key} has no value; write one, or leave the line out"
    if problem["type"] in ("model_type", "dict_type"):
        return f"{key} cannot be {problem['input']!r}; it holds lines 'key: value' (docs/cli.md has an example)"
    return f"{key} cannot be {problem['input']!r}: {reason(problem)}"


def nested_model(field: FieldInfo) -> type[BaseModel] | None:
    """Return the model that a field holds, alone or in a tuple."""
    kinds = (field.annotation, *get_args(field.annotation))
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def group_of(name: str, root: type[BaseModel]) -> str:
    """Return the group of ``root`` that has a field of this name, or the empty string."""
    if name in root.model_fields:
        return ""
    for group, field in root.model_fields.items():
        model = field.annotation
        if isinstance(model, type) and issubclass(model, BaseModel) and name in model.model_fields:
            return group
    return ""


def _unknown_key(path: Sequence[str], root: type[BaseModel]) -> str:
    *parents, key = path
    in_list = any(part.isdigit() for part in parents)  # such as an entry of methods, with keys of its own
    if not in_list and (group := group_of(key, root)):
        return f"the key '{'.'.join(path)}' is '{group}.{key}'; in YAML write {group}: {{{key}: …}}"
    if not in_list and key in root.model_fields:
        return f"the key '{'.'.join(path)}' is '{key}'; in YAML write it without indentation, below no other key"
    if not in_list and (option := next((o for o in config_options(root) if o.name == key), None)):
        written = _in_flow(put([option], {key: "…"}))
        return f"the key '{'.'.join(path)}' is an option of the command line; in YAML write {written[1:-1]}"
    model: type[BaseModel] = root
    for part in parents:
        if part in model.model_fields:
            model = nested_model(model.model_fields[part]) or model
    allowed = list(model.model_fields)
    return f"unknown key '{'.'.join(path)}'{did_you_mean(key, allowed) or ';'} allowed: {', '.join(sorted(allowed))}"


def _in_flow(value: Any) -> str:
    """Return nested mappings as YAML on one line."""
    if not isinstance(value, Mapping):
        return str(value)
    return "{" + ", ".join(f"{key}: {_in_flow(inner)}" for key, inner in value.items()) + "}"
