"""BoolQ: 3,270 yes/no questions about a passage (Clark et al. 2019).

The validation split; prompt of lm-evaluation-harness `boolq` (from SuperGLUE), where the answers are compared without
regard to length, so that there is no `acc_norm`. Passages that do not fit a short context are cut from the left.
"""

from __future__ import annotations

from ..base import benchmarks
from ..kinds.harness import HarnessBenchmark


@benchmarks.register("boolq")
class BoolQ(HarnessBenchmark):
    """Headline: `acc`."""

    task = "boolq"
    folder = "super_glue/boolq"
    split = "validation"
    values = ("acc",)
