"""Surgical weight-space decomposition: truncated SVD, ranks searched from last layer to first.

The twin of ``sfsd`` in its paper (arXiv 2405.13039, ``algo=svd``): the same search, the weight's own SVD, no
statistics.
"""

from ..base import methods
from .svd import SVD

FACTS = {
    "data": "search",
    "gradients": "no",
    "training": "no",
    "shares": "no",
    "ranks": "searched, last to first",
    "storage": "r(m+n)",
    "paper": "arXiv 2405.13039",
    "status": "searched on training data; not verified at 7B",
}


@methods.register("swsd")
class SWSD(SVD):
    """SVD under the policy ``surgical``."""

    policy: str = "surgical"
