"""How far a compressed model is above a share of the uncompressed one's accuracy, from the same problems."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from ...records.intervals import mean_interval

CONFIDENCE = 0.95
"""Of a single comparison, two-sided: a model that is just too bad is called good in 2.5 % of cases."""
_CELLS = tuple((small, large) for small in (0, 1) for large in (0, 1))
_MOST_PROBLEMS = 100_000


@dataclass(frozen=True)
class Margin:
    """The accuracy less the share that has to be kept, as a difference over paired problems.

    Attributes:
        accuracy, uncompressed: means over the problems.
        value: ``accuracy - share * uncompressed``.
        low, high: ends of its two-sided interval.
        n: problems.
        confidence: of the interval.
    """

    accuracy: float
    uncompressed: float
    value: float
    low: float
    high: float
    n: int
    confidence: float = CONFIDENCE

    @property
    def holds(self) -> bool:
        """Whether the share is kept with this confidence: the whole interval is at or above 0."""
        return self.low >= 0

    @property
    def right_or_wrong(self) -> bool:
        """Whether both accuracies are of whole problems, as where each is right or wrong."""
        return all(abs(x * self.n - round(x * self.n)) < 1e-6 for x in (self.accuracy, self.uncompressed))

    @property
    def undecided(self) -> bool:
        """Whether the problems show neither that the share is kept nor that it is lost."""
        return self.low < 0 <= self.high

    def problems_to_decide(self) -> int | None:
        """Return so many problems that would decide it if the difference stayed as it is; None where none would."""
        if not self.undecided or not self.value:
            return None
        # The width of an interval falls with the root of the number of problems.
        half = (self.high - self.low) / 2
        return math.ceil(self.n * (half / self.value) ** 2)


def confirmation_confidence(number: int) -> float:
    """Return the confidence of a search's confirmations, so that all together err as seldom as one comparison.

    Each takes half of the error that is left (Bonferroni's inequality with unequal parts): 97.5 % for the first,
    98.75 % for the second. However many there are, and whatever the models have in common, one that is too bad is
    accepted in at most 2.5 % of searches.

    Args:
        number: 0 for the first confirmation.
    """
    return 1 - (1 - CONFIDENCE) / 2 ** (number + 1)


def margin(
    compressed: Sequence[float], uncompressed: Sequence[float], share: float, confidence: float = CONFIDENCE
) -> Margin:
    """Return the margin over a share.

    Where each problem is right or wrong, the interval is that of Agresti and Min (2005) for paired proportions with the
    weight ``share`` on the second one: half an observation is added to each of the four cells, so that no problem on
    which the models differ does not mean certainty. Else it is Student's of the mean difference.

    Args:
        compressed, uncompressed: score of each problem in 0..1, in the same order.
        share: that has to be kept, such as 0.95.
        confidence: of the two-sided interval.
    """
    n = len(compressed)
    accuracy, whole = math.fsum(compressed) / n, math.fsum(uncompressed) / n
    pairs = list(zip(compressed, uncompressed, strict=True))
    value = accuracy - share * whole
    if any(score not in (0, 1) for pair in pairs for score in pair):
        interval = mean_interval([small - share * large for small, large in pairs], confidence)
        return Margin(accuracy, whole, value, interval.low, interval.high, n, confidence)
    low, high = _agresti_min({cell: pairs.count(cell) for cell in _CELLS}, share, confidence)
    return Margin(accuracy, whole, value, low, high, n, confidence)


def problems_for_equal_answers(accuracy: float, share: float) -> int | None:
    """Return from how many problems on a model with the very answers of the uncompressed one keeps a share for sure.

    With fewer no model does that is not better than the uncompressed one.

    Args:
        accuracy: of the uncompressed model.
        share: that has to be kept.

    Returns:
        The number; None for a share of 1, where none would do, and where it is above 100,000.
    """
    if share >= 1:
        return None

    def holds(n: int) -> bool:
        right = round(accuracy * n)
        return _agresti_min({(1, 1): right, (0, 0): n - right}, share, CONFIDENCE)[0] >= 0

    return next((n for n in range(1, _MOST_PROBLEMS) if holds(n)), None)


def _agresti_min(counts: Mapping[tuple[int, int], int], share: float, confidence: float) -> tuple[float, float]:
    """Return the interval from how many problems each of the four pairs of scores has."""
    cells = {cell: counts.get(cell, 0) + 0.5 for cell in _CELLS}
    total = math.fsum(cells.values())
    centre = math.fsum(count * (small - share * large) for (small, large), count in cells.items()) / total
    squares = math.fsum(count * (small - share * large) ** 2 for (small, large), count in cells.items()) / total
    half = NormalDist().inv_cdf((1 + confidence) / 2) * math.sqrt((squares - centre**2) / total)
    return centre - half, centre + half
