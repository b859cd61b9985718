"""MATH: 5,000 competition problems in seven subjects and five levels (Hendrycks et al. 2021).

Before finetuning the model gets the four training problems of the Minerva prompt, in lm-evaluation-harness
`minerva_math`'s format; after it the finetuning prompt. The headline is the mean over problems, not over subjects.
"""

from __future__ import annotations

from ..base import EvalSettings, benchmarks
from ..data.datasets import Rows
from ..kinds.generative import cached_rows
from ..kinds.math import MathBenchmark


@benchmarks.register("math")
class Math(MathBenchmark):
    """The whole test split."""

    def data(self, settings: EvalSettings) -> Rows:
        """Return the test split."""
        return cached_rows("math", "test", settings.data_dir)
