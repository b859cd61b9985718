"""Strong truncation of few matrices, the rest left dense.

LASER (Sharma et al., ICLR 2024, arXiv 2312.13558; pratyushasharma/laser). The authors truncate one chosen matrix to a
share ρ of its rank, keep the product dense (no memory saved), and choose matrix and ρ on a validation split by the
task's accuracy; the best are MLP matrices of later layers. Here truncated matrices are stored as factors, and as many
are taken as the budget asks for, in the order of the loss that each causes alone: see the policy ``laser``.
"""

from ..base import methods
from ..requirements import Requirements
from .svd import SVD


@methods.register("laser")
class LASER(SVD):
    """SVD under the policy ``laser``."""

    requires = Requirements(
        measures=True,
        policy="laser",
        ranks="few matrices cut",
        paper="arXiv 2312.13558",
        status="adapted",
        note="an adaptation: factors are stored, the budget decides how many matrices are cut",
    )

    policy: str = "laser"
