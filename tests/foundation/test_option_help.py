"""What ``bench methods NAME`` says of options comes from docstrings; every built-in option is described."""

import pytest

from lowrank_bench.foundation.option_help import option_help
from lowrank_bench.foundation.registry import Registry
from lowrank_bench.methods.registry import methods, policies, recoveries


class Plain:
    """Has options.

    Args:
        first: of two, ``none`` or `Plain`
            and more: of it.
        second, third: alike.

    Raises:
        fourth: no option.
    """


class Changed(Plain):
    """Says more.

    Attributes:
        second: in other words.
    """


class Silent(Plain):
    pass


class Other:
    """Has options in other hands' forms.

        Arguments:
          two (float): indented by two,
            and on.

          after: a blank line; None is `null`.

        Attributes:
    \t\ttabs: indented by tabs.
            below:
                on the next line.

        Notes:
            Not: an option.
    """


def test_descriptions_are_one_line_and_those_of_bases_stay() -> None:
    first = "of two, 'none' or Plain and more: of it."
    assert option_help(Plain) == {"first": first, "second": "alike.", "third": "alike."}
    assert option_help(Changed) == {"first": first, "second": "in other words.", "third": "alike."}
    assert option_help(Silent) == option_help(Plain)
    assert option_help(int) == {}
    assert option_help(Other) == {
        "two": "indented by two, and on.",
        "after": "a blank line; null is null.",
        "tabs": "indented by tabs.",
        "below": "on the next line.",
    }


@pytest.mark.parametrize("registry", [methods, policies, recoveries], ids=["methods", "policies", "recoveries"])
def test_every_built_in_option_is_described(registry: Registry) -> None:
    for row in registry.listings():
        if row.origin == "built in":
            kind = registry.get(row.name)
            assert not set(kind.model_fields) - set(option_help(kind)), row.name
