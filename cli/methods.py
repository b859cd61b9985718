"""``bench methods``: what there is, and what is known of one method or policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..foundation.registry import Listing, Registry
from ..methods.registry import methods, policies
from ..methods.table import cells, listed
from .output import print_rows

_NEEDS, _SOURCES = ("data", "gradients", "trains", "shares", "ranks", "storage"), ("paper", "status", "note")


def _registry(of_policies: bool) -> Registry[Any]:
    return policies if of_policies else methods


def _cells(listing: Listing) -> Mapping[str, str]:
    requires = listed(listing)
    return {} if requires is None else cells(requires)


def list_all(of_policies: bool) -> None:
    """Print every method with what it needs and where it comes from, or every policy; imports no torch."""
    listings = _registry(of_policies).listings()
    if of_policies:
        rows = [(row.name, row.summary, row.origin) for row in listings]
        print_rows("rank policies", ["name", "what it does", "from"], rows)
        return
    # Two narrow tables: ten columns do not fit a terminal.
    for title, columns in (("methods", _NEEDS), ("where they come from", _SOURCES)):
        table = [(row.name, *(_cells(row).get(column, "?") for column in columns)) for row in listings]
        print_rows(title, ["name", *columns], table)
    foreign = [(row.name, row.summary, row.origin) for row in listings if row.origin != "built in"]
    if foreign:
        print_rows("from other packages", ["name", "what it does", "from"], foreign)


def show(name: str, of_policies: bool) -> None:
    """Print one method's summary, requirements and options with their defaults."""
    registry = _registry(of_policies)
    cls = registry.get(name)
    listing = next(row for row in registry.listings() if row.name == name)
    rows = [("what it does", listing.summary), *_cells(listing).items()]
    print_rows(name, ["", ""], [*rows, ("from", listing.origin)])
    options = [(option, str(field.default)) for option, field in cls.model_fields.items()]
    print_rows("options", ["option", "default"], options)
