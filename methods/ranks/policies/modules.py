"""Kept shares in the proportion of weights given by hand for each type of matrix."""

from collections.abc import Sequence
from typing import Annotated

from pydantic import ConfigDict, Field

from ....foundation.errors import UserError
from ..units import Unit
from ._shares import in_proportion
from .base import Demand, Evidence, Policy, policies

Weight = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@policies.register("modules")
class Modules(Policy):
    """share_i = min(1, t·weight_i), t common to all: ``modules(q_proj=0.8;v_proj=1.5)``.

    An option's name is the end of a module's dotted name (``v_proj``, ``mlp.down_proj``, ``layers.0.mlp.down_proj``);
    the longest one that fits decides. Hand-made profiles of this kind are published as findings rather than as methods:
    Bolaco (arXiv 2405.10616) finds queries and keys robust and values sensitive.

    Args:
        default: weight of all that no option names.
    """

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Weight] = Field(init=False)

    default: Weight = 1.0

    def check(self, units: Sequence[Unit]) -> None:
        """Refuse names that fit no unit.

        Raises:
            UserError: a name that fits none, with the types that exist.
        """
        for option in self.__pydantic_extra__:
            if not any(_fits(option, unit) for unit in units):
                types = sorted({unit.name.rpartition(".")[2] for unit in units})
                raise UserError(
                    f"policy 'modules': no matrix of this model is called '{option}'; there are {', '.join(types)}, "
                    "and longer ends of dotted names such as mlp.down_proj work too"
                )

    def weight(self, unit: Unit) -> float:
        """Return the weight of a unit: that of the longest name that fits, or the default."""
        fitting = [option for option in self.__pydantic_extra__ if _fits(option, unit)]
        return self.__pydantic_extra__[max(fitting, key=len)] if fitting else self.default

    def demands(self, evidence: Evidence) -> list[Demand]:
        """Return kept shares in the proportion of the weights."""
        self.check(evidence.units)
        return in_proportion(evidence.units, [self.weight(unit) for unit in evidence.units])


def _fits(option: str, unit: Unit) -> bool:
    return f".{unit.name}".endswith(f".{option}")
