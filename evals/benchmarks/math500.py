"""MATH-500: the 500 MATH test problems of Lightman et al. 2023, another set than `math`.

Prompts and scorers are those of `math`.
"""

from __future__ import annotations

from ..base import EvalSettings, benchmarks
from ..data.datasets import Rows
from ..kinds.generative import cached_rows
from ..kinds.math import MathBenchmark


@benchmarks.register("math500")
class Math500(MathBenchmark):
    """The 500 problems."""

    def data(self, settings: EvalSettings) -> Rows:
        """Return the problems."""
        return cached_rows("math500", "test", settings.data_dir)
