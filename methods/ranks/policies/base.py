"""What a rank policy is."""

from __future__ import annotations

import re
from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import yaml
from pydantic import ConfigDict

from ....foundation.errors import UserError
from ....foundation.strict_numbers import StrictNumbers
from ...configured import create_part
from ...registry import policies

__all__ = ["Demand", "Evidence", "Loss", "Metric", "Policy", "parse_policy", "policies"]

if TYPE_CHECKING:
    from torch import Tensor

    from ..units import Unit

Demand = Callable[[float], float]
"""The rank that one unit wants at a level in 0..1; must not decrease with the level."""

Metric = Literal["loss", "accuracy", "divergence"]
"""What of the model a policy asks for."""

Loss = Callable[[Mapping[str, int]], float]
"""Mean loss with the named units cut to the given ranks; the error rate for policies whose metric is the accuracy, and
the divergence from the dense model for those whose metric is that."""


@dataclass(frozen=True)
class Evidence:
    """What a policy may look at when it shares out a budget.

    Attributes:
        units: in the order of the model.
        spectra: importance of each unit's components by name, descending; empty where no policy needs them.
        share: q, the share of the units' parameters that the budget can afford, 0..1.
        measured: what the policy's own `Policy.measure` gave while fitting.
        loss: mean loss over the calibration data when the named units are cut to the given ranks and all others are
            dense, or what else the policy `asks` for: the error rate, or the divergence from the dense model; None
            where there is no data.
    """

    units: Sequence[Unit]
    spectra: Mapping[str, Tensor] = field(default_factory=dict)
    share: float = 1.0
    measured: Mapping[str, Tensor] = field(default_factory=dict)
    loss: Loss | None = None


class Policy(StrictNumbers, ABC):
    """How a parameter budget is shared among the units of a model; its fields are its options.

    A policy only says what each unit wants as a common level rises from 0 (least) to 1 (everything); meeting the
    budget exactly is the budget's job. A policy that treats each unit alone implements `demand`, one that compares
    units implements `demands`.

    Attributes:
        needs_spectrum: whether `Evidence.spectra` has to be there.
        needs_loss: whether `Evidence.loss` has to be there when ranks are chosen, that is once per ratio.
        measures: whether `measure` has to run while fitting, once for all ratios.
        needs_slopes: whether `Evidence.measured` has to hold the slope of each unit's components (`ranks.slopes`), by
            the unit's name, shape (k,); with ``measures``, and in place of what `measure` gives.
        version: raised with each change of ranks, see `Compressor.compress_versions`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    needs_spectrum: ClassVar[bool] = False
    needs_loss: ClassVar[bool] = False
    measures: ClassVar[bool] = False
    needs_slopes: ClassVar[bool] = False
    version: ClassVar[int] = 1

    def asks(self) -> Metric:
        """Return what the policy wants `Evidence.loss` to be made of: loss, 1 - accuracy, or divergence from dense."""
        return "loss"

    def check(self, units: Sequence[Unit]) -> None:
        """Raise a `UserError` when the options do not fit the units of a model; called before anything is computed."""

    def measure(self, units: Sequence[Unit], spectra: Mapping[str, Tensor], loss: Loss) -> dict[str, Tensor]:
        """Measure, once per fit, what does not depend on the ratio; the result comes back in `Evidence.measured`."""
        return {}

    def demands(self, evidence: Evidence) -> list[Demand]:
        """Return the rank that each unit wants as a function of the level, in the order of the units."""
        return [self.demand(unit, evidence.spectra.get(unit.name)) for unit in evidence.units]

    def demand(self, unit: Unit, spectrum: Tensor | None) -> Demand:
        """Return the rank wanted by ``unit`` as a function of the level.

        Args:
            unit: the unit.
            spectrum: importance of its components in descending order, shape (k,), or None.
        """
        raise TypeError(f"the policy {type(self).__name__} implements neither demand nor demands")


def parse_policy(text: str) -> Policy:
    """Build a policy from its name, or ``name(option=value;option=value)``.

    Raises:
        UserError: unknown policy, unknown option or unusable value, with what is allowed.
    """
    match = re.fullmatch(r"([^()]*)(?:\((.*)\))?", text.strip())
    if match is None:
        raise UserError(f"the policy '{text}' cannot be read; write name or name(option=value;option=value)")
    pairs = [part.partition("=") for part in (match[2] or "").split(";") if part.strip()]
    options = {key.strip(): yaml.safe_load(value) for key, _, value in pairs}
    policy: Policy = create_part(policies, Policy, match[1].strip(), options)
    return policy
