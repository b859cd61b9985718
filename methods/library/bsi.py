"""Importance-Guided Basis Selection: bases ranked by the loss that dropping them would cause, to second order.

"BSI", arXiv 2605.01627, the successor of Basis Selection in the same frame: ΔL_i ≈ -g_i s_i + ½ H_ii s_i². We know its
abstract only; the estimator is in `bs.curvature`, with what was chosen where the source is silent. Everything
else (schedule, cumulative rule per matrix, new vectors, recovery) is Basis Selection's, which is a choice too: so is
that negative estimates count as zero, and that probes run on training data before each pruning.
"""

from typing import Literal

from ..base import methods
from ..requirements import Requirements
from .bs import BasisSelection


@methods.register("bsi")
class ImportanceGuidedBasisSelection(BasisSelection):
    """Basis Selection with ``criterion=hessian``; all its options work here too."""

    requires = Requirements(
        searches=True,
        trains=True,
        embeddings=True,
        policy="energy",
        ranks="one share of each sum of ΔL",
        paper="arXiv 2605.01627",
        status="described",
        note="from its abstract, estimator tested on a known Hessian; not verified at 7B",
    )

    criterion: Literal["s", "s2", "taylor", "hessian"] = "hessian"
