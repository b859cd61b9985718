"""WinoGrande: 1,267 sentences with a blank that one of two names fits (Sakaguchi et al. 2020).

The validation split. As in lm-evaluation-harness `winogrande` the likelihood of what follows the blank is compared
after both names (partial evaluation, Trinh and Le 2018), so that lengths are equal and there is no `acc_norm`.
"""

from __future__ import annotations

from ..base import benchmarks
from ..kinds.harness import HarnessBenchmark


@benchmarks.register("winogrande")
class WinoGrande(HarnessBenchmark):
    """Headline: `acc`."""

    task = "winogrande"
    folder = "winogrande"
    split = "validation"
    values = ("acc",)
