"""Surgical weight-space decomposition: truncated SVD, ranks searched from last layer to first.

The twin of ``sfsd`` in its paper (arXiv 2405.13039, ``algo=svd``): the same search, the weight's own SVD, no
statistics.
"""

from ..base import methods
from .svd import SVD


@methods.register("swsd")
class SWSD(SVD):
    """SVD under the policy ``surgical``."""

    policy: str = "surgical"
