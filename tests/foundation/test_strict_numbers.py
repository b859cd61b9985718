"""Truth values are no numbers, in whatever people write."""

import pytest
from pydantic import ValidationError
from sweeps import small_sweep

from lowrank_bench.evals.tasks.files.schema import Part
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.foundation.strict_numbers import StrictNumbers
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.ranks.policies.base import parse_policy
from lowrank_bench.methods.recoveries.base import create_recovery


class Numbers(StrictNumbers):
    count: int = 0
    share: float | None = None
    steps: tuple[int, ...] = ()
    flag: bool = False
    either: bool | int = False


@pytest.mark.parametrize(
    "values", [{"count": True}, {"share": False}, {"steps": [3, True]}, {"steps": (False,)}, {"count": False}]
)
def test_a_truth_value_is_no_number(values):
    (name,) = values
    with pytest.raises(ValidationError, match=rf"{name}\n.*this is a number"):
        Numbers(**values)


@pytest.mark.parametrize(
    "values", [{"count": 1}, {"count": "3"}, {"share": 0}, {"steps": [1, 0]}, {"flag": True}, {"either": True}, {}]
)
def test_numbers_and_flags_are_taken(values):
    taken = Numbers(**values).model_dump(exclude_unset=True)
    assert {name: type(value) is bool for name, value in taken.items()} == {
        name: name in ("flag", "either") for name in values
    }


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"limit": True}, "limit cannot be True: this is a number"),
        ({"seeds": [True]}, r"seeds cannot be \[True\]"),
        ({"recover": {"steps": [True]}}, r"steps cannot be \[True\]"),
        ({"finetune": {"learning_rate": True}}, "learning_rate cannot be True"),
        ({"workers": True}, "workers cannot be True"),
    ],
)
def test_a_sweep_refuses_them(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        small_sweep(tmp_path, **changes)


def test_options_of_methods_policies_and_recoveries_refuse_them():
    with pytest.raises(UserError, match=r"samples=True is not usable.* this is a number"):
        create_method("svd-llm", {"samples": True})
    with pytest.raises(UserError, match=r"trials=True is not usable: this is a number"):
        parse_policy("ilp(trials=true)")
    with pytest.raises(UserError, match=r"r=True is not usable.* this is a number"):
        create_recovery("lora", {"r": True})
    assert issubclass(Part, StrictNumbers)
