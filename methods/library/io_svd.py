"""Input- and output-whitened SVD with one global pool of components.

After IO-SVD (arXiv 2605.15626) and KFAC-SVD (ICML 2026, lems-svd/lems): tr(R (W - BA) G (W - BA)ᵀ) with R the second
moments of the output gradients is a Kronecker-factored quadratic model of the task loss, so the squared singular
values of R^½ W G^½ are comparable across matrices; the pool keeps those of most loss per stored parameter. The papers
are known here by description, not by their code: gradients are those of the task loss (not a KL curvature), taken per
token over all target tokens, and shrunk as KFAC-SVD's code does. Its clipping and its dropping of early and late tokens
are left out.
"""

from ..base import methods
from ..requirements import Requirements
from .svd_llm import Whitened


@methods.register("io-svd")
class IOSVD(Whitened):
    """R^½ W G^½ truncated; components of all matrices compete by σ² per parameter."""

    requires = Requirements(
        statistics=True,
        gradients=True,
        policy="greedy(normalise=none)",
        ranks="global pool",
        paper="arXiv 2605.15626",
        status="described",
        note="from a description, no code seen; not verified at 7B",
    )

    two_sided: bool = True
    policy: str = "greedy(normalise=none)"
