"""Surgical feature-space decomposition: principal components of the outputs, ranks searched from last layer to first.

SFSD (Chavan et al., ACL 2024, arXiv 2405.13039; nyunAI/SFSD-LLM). Factors as in ``afm``; the released code's bias is
zero by mistake, here it is the one that restores the mean output. The search is the policy ``surgical``, on training
data: the released code searches on the evaluation split. Padding is left out of the statistics, which the released code
counts in.
Covariances are the dense model's; the released code takes them while earlier layers already run at break-even rank.
"""

from pydantic import Field

from ..base import methods
from ..requirements import Requirements
from .afm import FeatureSpace


@methods.register("sfsd")
class SFSD(FeatureSpace):
    """PCA of the outputs under the policy ``surgical``; calibrated on 512 examples of at most 128 tokens, as
    published.
    """

    requires = Requirements(
        statistics=True,
        searches=True,
        affine=True,
        policy="surgical",
        calibration_length=128,
        ranks="searched, last to first",
        paper="arXiv 2405.13039",
        status="code",
        note="with the bias that the released code loses; searched on training data; not verified at 7B",
    )

    samples: int | None = Field(default=512, ge=1)
    length: int | None = Field(default=128, ge=8)
    policy: str = "surgical"
