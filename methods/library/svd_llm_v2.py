"""SVD-LLM's factors with ranks by each matrix's own loss.

SVD-LLM V2 (Wang et al., NAACL 2025, arXiv 2503.12340), Algorithm 1 (allocation) and Theorem 3.1 (truncation; the
printed Algorithm 2 drops a factor). The code of the allocation is not released; see the policy ``loss`` for what is
open in it.
"""

from ..base import methods
from ..requirements import Requirements
from .svd_llm import Whitened


@methods.register("svd-llm-v2")
class SVDLLMV2(Whitened):
    """The whitened factors under the policy ``loss``."""

    requires = Requirements(
        statistics=True,
        policy="loss",
        ranks="by loss within a kind",
        paper="arXiv 2503.12340",
        status="formula",
        note="allocation from the printed algorithm, no code released; not verified at 7B",
    )

    policy: str = "loss"
