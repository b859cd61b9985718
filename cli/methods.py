"""``bench methods``: what there is, and what is known of one method, policy or recovery."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

from pydantic_core import PydanticUndefined

from ..foundation.errors import unknown
from ..foundation.option_help import option_help
from ..foundation.registry import Listing, Registry
from ..methods.configured import part_class
from ..methods.registry import methods, policies, recoveries
from ..methods.table import cells, listed
from ..models.quantised.scheme import CONTROLS, SUMMARIES, Correction, Scheme, control_options, parse_control
from .output import print_rows, print_text

_NEEDS, _SOURCES = ("data", "gradients", "trains", "shares", "ranks", "storage"), ("paper", "status", "note")


Kind = Literal["methods", "policies", "recoveries"]
_REGISTRIES: dict[Kind, Registry[Any]] = {"methods": methods, "policies": policies, "recoveries": recoveries}
_TITLES: dict[Kind, str] = {"methods": "methods", "policies": "rank policies", "recoveries": "recoveries"}


def _cells(listing: Listing) -> Mapping[str, str]:
    requires = listed(listing)
    return {} if requires is None else cells(requires)


def list_all(kind: Kind) -> None:
    """Print every method with what it needs and where it comes from, or every other part; imports no torch."""
    listings = _REGISTRIES[kind].listings()
    if kind != "methods":
        rows = [(row.name, row.summary, row.origin) for row in listings]
        print_rows(_TITLES[kind], ["name", "what it does", "from"], rows)
        return
    # Two narrow tables: ten columns do not fit a terminal.
    for title, columns in (("methods", _NEEDS), ("where they come from", _SOURCES)):
        table = [(row.name, *(_cells(row).get(column, "?") for column in columns)) for row in listings]
        print_rows(title, ["name", *columns], table)
    print_rows(
        "controls (--controls; quantisation without a method)", ["name", "what it does"], list(SUMMARIES.items())
    )
    foreign = [(row.name, row.summary, row.origin) for row in listings if row.origin != "built in"]
    if foreign:
        print_rows("from other packages", ["name", "what it does", "from"], foreign)
        print_text("A '?' is known only after an import, which lists do without: bench methods NAME shows it.")


def show(name: str, kind: Kind) -> None:
    """Print one method's summary, requirements and options with their defaults and meanings, or a control's."""
    if kind == "methods" and name in CONTROLS:
        control = parse_control(name, {})
        print_rows(
            name, ["", ""], [("what it does", SUMMARIES[name]), ("from", "built in"), ("asked for by", "--controls")]
        )
        values = control.scheme.model_dump() | (control.correction.model_dump() if control.correction else {})
        meanings = option_help(Scheme) | option_help(Correction)
        _show_options({key: values[key] for key in control_options(name)}, meanings)
        return
    registry = _REGISTRIES[kind]
    if kind == "methods" and name not in registry.names():
        raise unknown("method or control", name, [*registry.names(), *CONTROLS])
    cls = part_class(registry, _base(kind), name)
    listing = next(row for row in registry.listings() if row.name == name)
    rows = [("what it does", listing.summary), *_cells(listing).items()]
    print_rows(name, ["", ""], [*rows, ("from", listing.origin)])
    _show_options({option: field.default for option, field in cls.model_fields.items()}, option_help(cls))


def _show_options(defaults: Mapping[str, Any], meanings: Mapping[str, str]) -> None:
    rows = [(option, _as_typed(default), meanings.get(option, "")) for option, default in defaults.items()]
    if not rows:
        print_text("It has no options.")
        return
    print_rows("options", ["option", "default", "what it does"], rows)


def _as_typed(value: Any) -> str:
    if value is PydanticUndefined:
        return "(has to be given)"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _base(kind: Kind) -> type[Any]:
    if kind == "policies":
        from ..methods.ranks.policies.base import Policy

        return Policy
    if kind == "recoveries":
        from ..methods.recoveries.base import Recovery

        return Recovery
    from ..methods.base import Compressor

    return Compressor
