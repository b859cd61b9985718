"""Methods and recoveries from their names and options, with the same sentences for what is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ..foundation.errors import UserError, did_you_mean, reason
from ..foundation.registry import Registry


def part_class(registry: Registry[Any], base: type[Any], name: str) -> Any:
    """Return the class of a part.

    Raises:
        UserError: unknown name, or what was published by this name is no such part or leaves out a method of it.
    """
    cls, title = registry.get(name), f"{registry.kind} '{name}'"
    if not (isinstance(cls, type) and issubclass(cls, base)):
        raise UserError(f"{title} is no {base.__name__}; derive it from {base.__module__}.{base.__name__}")
    if missing := sorted(getattr(cls, "__abstractmethods__", ())):
        raise UserError(f"{title} does not define {', '.join(missing)}; see {base.__module__}.{base.__name__}")
    return cls


def create_part(registry: Registry[Any], base: type[Any], name: str, options: Mapping[str, Any] | None) -> Any:
    """Build a part whose fields are its options.

    Args:
        registry: where it is registered.
        base: the pydantic model that it derives from.
        name: of the part.
        options: those that differ from its defaults.

    Raises:
        UserError: unknown name, unknown option or unusable value, with the nearest name or what is allowed.
    """
    cls, title = part_class(registry, base, name), f"{registry.kind} '{name}'"
    try:
        return cls(**(options or {}))
    except ValidationError as error:
        problem = error.errors()[0]
        option = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            allowed = sorted(cls.model_fields)
            raise UserError(
                f"{title} has no option '{option}'{did_you_mean(option, allowed) or ';'} "
                f"allowed: {', '.join(allowed) or 'none'}"
            ) from error
        raise UserError(
            f"{title}: the option {option}={problem['input']!r} is not usable: {reason(problem)}"
        ) from error
