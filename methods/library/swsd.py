"""Surgical weight-space decomposition: truncated SVD, ranks searched from last layer to first.

The twin of ``sfsd`` in its paper (arXiv 2405.13039, ``algo=svd``): the same search, the weight's own SVD, no
statistics.
"""

from ..base import methods
from ..requirements import Requirements
from .svd import SVD


@methods.register("swsd")
class SWSD(SVD):
    """SVD under the policy ``surgical``."""

    requires = Requirements(
        searches=True,
        policy="surgical",
        ranks="searched, last to first",
        paper="arXiv 2405.13039",
        status="code",
        note="searched on training data; not verified at 7B",
    )

    policy: str = "surgical"
