"""Input- and output-whitened SVD with one global pool of components.

After KFAC-SVD (ICML 2026, lems-svd/lems, no licence: facts only) and IO-SVD (arXiv 2605.15626): tr(R (W - BA) G
(W - BA)ᵀ) with R the second moments of the output gradients is a Kronecker-factored quadratic model of the task loss,
so the squared singular values of R^½ W G^½ are comparable across matrices; the pool keeps those of most loss per stored
parameter. Gradients are those of the task loss, per token over all target tokens, shrunk as KFAC-SVD's code does; its
clipping and trimming are the options ``clip=10`` and ``trim=0.125``. IO-SVD announces code that we have not seen; by
what is known of it second-hand, its R is a KL curvature over the top K tokens and it ranks components by |g σ|. Neither
is done here.
"""

from typing import ClassVar

from pydantic import Field

from ..base import methods
from ..calibration.moments import GradientRule
from ..requirements import Requirements
from .svd_llm import Whitened


@methods.register("io-svd")
class IOSVD(Whitened):
    """R^½ W G^½ truncated; components of all matrices compete by σ² per parameter.

    Args:
        clip: c; each token's output gradient gets a norm within [1/c, c] times its example's mean (KFAC-SVD: 10); 0 for
            no clipping.
        trim: share of an example's tokens left out at its start, and at its end (KFAC-SVD: 0.125).
    """

    requires = Requirements(
        statistics=True,
        gradients=True,
        policy="greedy(normalise=none)",
        ranks="global pool",
        embeddings=True,
        paper="arXiv 2605.15626",
        status="described",
        note="KFAC-SVD's objective, IO-SVD's pool; IO-SVD's own KL curvature and |gσ| order are not in it; no 7B run",
    )

    later_options: ClassVar[frozenset[str]] = Whitened.later_options | {"clip", "trim"}

    two_sided: bool = True
    policy: str = "greedy(normalise=none)"
    clip: float = Field(default=0.0, ge=0)
    trim: float = Field(default=0.0, ge=0, lt=0.5)

    @property
    def gradient_rule(self) -> GradientRule:
        """Return the clipping and trimming asked for."""
        return GradientRule(self.clip, self.trim)
