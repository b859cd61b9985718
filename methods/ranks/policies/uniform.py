"""Every matrix keeps the same share of its own parameters."""

from torch import Tensor

from ..units import Unit
from ._shares import by_share
from .base import Demand, Policy, policies


@policies.register("uniform")
class Uniform(Policy):
    """rank = q·mn/(m+n) with one q for all matrices (the rule of SVD, FWSVD and SVD-LLM)."""

    def demand(self, unit: Unit, spectrum: Tensor | None = None) -> Demand:
        """Return q·parameters/cost, q proportional to the level."""
        return by_share(unit, lambda share: share)
