"""HellaSwag: 10,042 situations with four ways to go on (Zellers et al. 2019).

The validation split; prompt and choices of lm-evaluation-harness `hellaswag`. Where a local folder holds only a random
1,000 of the items (``hellaswag/validation_1000``), those are measured under a name of their own that tables show: their
accuracy is not HellaSwag's.
"""

from __future__ import annotations

from ...foundation.errors import UserError
from ..base import EvalSettings, benchmarks
from ..data.datasets import Rows, find_file
from ..kinds.generative import cached_rows
from ..kinds.harness import HarnessBenchmark

SAMPLE = "validation_1000"


@benchmarks.register("hellaswag")
class HellaSwag(HarnessBenchmark):
    """Headline: `acc_norm`."""

    task = "hellaswag"
    folder = "hellaswag"
    split = "validation"

    def variant(self, settings: EvalSettings) -> str:
        """Say so where only a sample of the items is there."""
        if self._chosen(settings) == SAMPLE:
            return "hellaswag-1000of10042-local-0shot"
        return super().variant(settings)

    def data(self, settings: EvalSettings) -> Rows:
        """Return the whole split, or the local sample of it."""
        return cached_rows("hellaswag", self._chosen(settings), settings.data_dir)

    def _chosen(self, settings: EvalSettings) -> str:
        if settings.data_dir is None:
            return self.split
        try:
            find_file("hellaswag", self.split, settings.data_dir)
        except UserError:
            return SAMPLE
        return self.split
