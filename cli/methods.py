"""``bench methods``: what there is, and what is known of one method or policy."""

from __future__ import annotations

from typing import Any

from ..foundation.registry import Registry
from ..methods.registry import methods, policies
from .output import print_rows

COLUMNS = ("data", "gradients", "training", "shares", "ranks", "storage", "paper", "status")
"""What a method's module says of itself in ``FACTS``."""


def _registry(of_policies: bool) -> Registry[Any]:
    return policies if of_policies else methods


def list_all(of_policies: bool) -> None:
    """Print every method with its facts, or every policy; imports no torch."""
    listings = _registry(of_policies).listings()
    if of_policies:
        rows = [(row.name, row.summary, row.origin) for row in listings]
        print_rows("rank policies", ["name", "what it does", "from"], rows)
        return
    # Two narrow tables: ten columns do not fit a terminal.
    for title, columns in (("methods", COLUMNS[:-2]), ("where they come from", COLUMNS[-2:])):
        table = [(row.name, *(row.facts.get(column, "?") for column in columns)) for row in listings]
        print_rows(title, ["name", *columns], table)
    foreign = [(row.name, row.summary, row.origin) for row in listings if row.origin != "built in"]
    if foreign:
        print_rows("from other packages", ["name", "what it does", "from"], foreign)


def show(name: str, of_policies: bool) -> None:
    """Print one method's summary, facts and options with their defaults."""
    registry = _registry(of_policies)
    cls = registry.get(name)
    listing = next(row for row in registry.listings() if row.name == name)
    rows = [("what it does", listing.summary), *((key, listing.facts[key]) for key in COLUMNS if key in listing.facts)]
    print_rows(name, ["", ""], [*rows, ("from", listing.origin)])
    options = [(option, str(field.default)) for option, field in cls.model_fields.items()]
    print_rows("options", ["option", "default"], options)
