"""Data-aware low-rank approximation with one error threshold for all matrices.

DRONE (Chen et al., NeurIPS 2021): min ‖W X - W M X‖_F over rank-r M, in closed form from the SVDs of W and X. The
product is SVD-LLM's (tested); what differs is how ranks are chosen: the paper raises each rank until an error threshold
is met, tied to the module's share of the inference time. Here the threshold on the relative squared error is common to
all matrices and set by the budget; the paper's weighting by time is left out, since it depends on the machine.
"""

from ..base import methods
from ..requirements import Requirements
from .svd_llm import Whitened


@methods.register("drone")
class Drone(Whitened):
    """The whitened factors, every matrix to the same relative squared error."""

    requires = Requirements(
        statistics=True,
        policy="energy(power=2)",
        ranks="one relative error for all",
        paper="Chen et al., NeurIPS 2021",
        status="formula",
        note="product equals the theorem's; ranks without the paper's weighting by time",
    )

    policy: str = "energy(power=2)"
