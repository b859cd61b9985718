"""Options of a command made from a configuration: declared once, on the fields of the models."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Annotated, Any, get_type_hints

import typer
from pydantic import BaseModel

from ..runners.config.options import ConfigOption, config_options, empties, put
from ..runners.config.sweep import SweepConfig
from .output import numbers, split_list

OPTIONS = {option.name: option for option in config_options(SweepConfig)}
"""The options of a sweep by name."""


def declared(name: str) -> Any:
    """Return the typer option of a field of `SweepConfig`, for a command that has a few of them and no panels.

    Args:
        name: of the option, with underscores.
    """
    return _typer_option(OPTIONS[name], panel=None)


def takes_config(
    model: type[BaseModel], without: Sequence[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each field of a configuration; it gets those that were given as ``asked``, nested.

    Args:
        model: the configuration.
        without: options that the command does not have.

    Raises:
        UserError: by the command, for numbers that are none.
    """
    options = [option for option in config_options(model) if option.name not in without]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        own = [
            parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
            for name, parameter in inspect.signature(command).parameters.items()
            if name != "asked"
        ]
        generated = [_parameter(option) for option in options]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            values = {option.name: _parsed(option, given.pop(option.name)) for option in options}
            command(asked=put(options, values), **given)

        parameters = [*generated, *own]
        run.__signature__ = inspect.Signature(parameters, return_annotation=None)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters} | {"return": None}
        del run.__wrapped__
        return run

    return decorate


def _parameter(option: ConfigOption) -> inspect.Parameter:
    kind: Any = str if option.several else option.type
    annotation = Annotated[kind | None, _typer_option(option, option.declared.panel)]
    return inspect.Parameter(option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _typer_option(option: ConfigOption, panel: str | None) -> Any:
    flag = "--" + option.name.replace("_", "-")
    names = (f"{flag}/--no-{flag[2:]}",) if option.type is bool and not option.switch else (flag,)
    default = f" [default: {option.default}]" if option.default else ""
    return typer.Option(
        *names,
        help=(option.help + default).replace("[", r"\["),  # or rich would take it for markup and drop it
        envvar=option.declared.environment or None,
        show_default=False,
        rich_help_panel=panel,
    )


def _parsed(option: ConfigOption, value: Any) -> Any:
    if value is None:
        return None
    if empties(option, value):
        return []
    if option.several:
        split_list(value)  # refuses an empty list
    if option.declared.parse is not None:
        return option.declared.parse(value)
    if not option.several:
        return value
    if option.type is str:
        return split_list(value)
    kind = "share of the bytes" if option.name == "bytes" else option.name.removesuffix("s").replace("_", " ")
    return numbers(kind, value, option.type, option.declared.example)
