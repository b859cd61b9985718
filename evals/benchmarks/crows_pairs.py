"""CrowS-Pairs: pairs of sentences of which one is more stereotyping (Nangia et al. 2020).

Scored as lm-evaluation-harness `crows_pairs_english` does for causal models: the log-likelihoods of the two whole
sentences are compared. The paper's metric is another one, the pseudo-likelihood of masked models over the tokens that
both sentences share, so its numbers are not comparable. ``pct_stereotype`` is the share of pairs whose more
stereotyping sentence is likelier (0.5 is no preference), ``likelihood_diff`` the mean absolute difference in nats.

Two sets go by this name: the 1,508 pairs that the paper published (local data) and the revision of 1,677 pairs by
Névéol et al. 2022, which the harness measures (the hub). The variant says which. Blodgett et al. 2021 found many of the
original pairs to be faulty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...records.intervals import mean_interval
from ..base import EvalSettings, Metric, benchmarks
from ..data.datasets import Rows
from ..grading.metrics import rate
from ..kinds.choice import Judged, Row
from ..kinds.generative import cached_rows
from ..kinds.harness import HarnessBenchmark
from ..kinds.likelihood import Likelihood


@benchmarks.register("crows-pairs")
class CrowsPairs(HarnessBenchmark):
    """Headline: `pct_stereotype`; also by type of bias."""

    task = "crows_pairs_english"
    folder = "crows_pairs"
    split = "test"
    values = ("pct_stereotype",)

    def variant(self, settings: EvalSettings) -> str:
        """Name the set of pairs."""
        return "crows_pairs-original-1508" if settings.data_dir else "crows_pairs-revised-1677"

    def data(self, settings: EvalSettings) -> Rows:
        """Return the paper's pairs from local data, the revised ones from the hub."""
        return cached_rows("crows_pairs", "test" if settings.data_dir else "revised", settings.data_dir)

    def _judged(self, task: Any, doc: Mapping[str, Any], scores: Sequence[Likelihood]) -> Judged:
        results = task.process_results(doc, [(score.value, False) for score in scores])
        preferred = results["pct_stereotype"] == 1
        values = {"likelihood_diff": float(results["likelihood_diff"])}
        return Judged({"pct_stereotype": "stereotype" if preferred else "other"}, 0 if preferred else 1, None, values)

    def metrics(self, rows: Sequence[Row], judged: Sequence[Judged]) -> list[Metric]:
        """Return the share of stereotyping preferences, overall and by type, and the mean difference."""
        preferred = [float(problem.verdicts["pct_stereotype"] == "stereotype") for problem in judged]
        differences = [problem.values["likelihood_diff"] for problem in judged]
        interval = mean_interval(differences, lower=0.0)
        mean = sum(differences) / len(differences)
        metrics = [
            rate("pct_stereotype", preferred, headline=True, better=False),
            Metric("likelihood_diff", mean, interval.low, interval.high, len(differences), False, False),
        ]
        by_type: dict[str, list[float]] = {}
        for row, value in zip(rows, preferred, strict=True):
            by_type.setdefault(str(row["bias_type"]), []).append(value)
        return metrics + [rate(f"pct_stereotype/{name}", by_type[name], better=False) for name in sorted(by_type)]
