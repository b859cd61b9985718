"""Ranks within one column: the best, who is not shown to be worse, and why a test could not be made."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np

from ...records.paired import Floats, enough_flips, holm, mcnemar, sign_flips

LEVEL = 0.05
NO_SAMPLES = "no samples"
AHEAD = "ahead of the best on the problems and seeds that both have"
MCNEMAR, SIGN_FLIP = "McNemar, exact", "sign flips"


@dataclass(frozen=True)
class Scores:
    """How one evaluation did on each problem.

    Attributes:
        problems: identity of each problem, data and prompt included.
        values: a score for each; higher is better or lower, as the metric is.
        greedy: whether each problem has a single greedy sample that is right or wrong.
        tokens: of all windows of a perplexity, whose scores are nats; 0 for problems.
    """

    problems: tuple[str, ...]
    values: Floats
    greedy: bool
    tokens: int = 0


@dataclass(frozen=True)
class Contender:
    """An entry of a column.

    Attributes:
        goodness: more is better; the metric's value, its negative, or the negative distance to its ideal.
        scores: by seed, where samples are there.
        missing: why a seed's are not, in words.
        sign: 1 where larger scores are better, -1 where smaller ones are, 0 where the best is in the middle.
    """

    goodness: float
    scores: Mapping[int, Scores]
    missing: str = ""
    sign: int = 1


@dataclass(frozen=True)
class Standing:
    """The rank of an entry in its column.

    Attributes:
        rank: 1 for the best and for all tied with it, else one more than the number of better values; None where the
            entry is not ranked.
        best: whether its value is the best.
        tied: whether it is not significantly worse than the best; None where no test could be made.
        p_value: of the paired test against the best; NaN where there was none.
        p_adjusted: the same after Holm's correction for all pairs of the column.
        test: which test, over how many problems or windows and seeds.
        bound: whether both are upper bounds, because no random sign vector reached the difference.
        reason: why there is no test or no rank.
    """

    rank: int | None
    best: bool = False
    tied: bool | None = None
    p_value: float = float("nan")
    p_adjusted: float = float("nan")
    test: str = ""
    bound: bool = False
    reason: str = ""

    @property
    def mark(self) -> str:
        """The rank as a short text: ``1``, ``≈1`` (tied with the best), ``3``, ``3?`` (not tested)."""
        if self.rank is None:
            return "–"
        if self.best:
            return "1"
        return "≈1" if self.tied else f"{self.rank}{'?' if self.tied is None else ''}"


def rank(column: Sequence[Contender]) -> list[Standing]:
    """Rank a column.

    Each entry is tested against the best on the problems and seeds that both have; a problem's difference is averaged
    over the seeds. One common seed of greedy samples gives McNemar's exact test, anything else sign flips over
    problems. Which entry is best is itself read off the data, so the correction is for every pair of the column and not
    only for those with the best.
    """
    if not column:
        return []
    best = max(range(len(column)), key=lambda i: (column[i].goodness, -i))
    values = sorted(contender.goodness for contender in column)
    tests = _test(column)
    tested = [pair for pair, result in tests.items() if isinstance(result, Test)]
    adjusted = dict(zip(tested, holm([tests[pair].p_value for pair in tested]), strict=True))  # type: ignore[union-attr]
    standings = []
    for i, contender in enumerate(column):
        position = 1 + len(values) - bisect_right(values, contender.goodness)
        if i == best:
            standings.append(Standing(1, best=True, reason="the only entry" if len(column) == 1 else ""))
            continue
        pair = (min(i, best), max(i, best))
        result = tests.get(pair) or contender.missing or column[best].missing or NO_SAMPLES
        if isinstance(result, str):
            standings.append(Standing(position, reason=result))
            continue
        tied = adjusted[pair] >= LEVEL
        ahead = contender.sign * (result.ahead if i < best else -result.ahead)
        if not tied and ahead > 0:  # where they have not all seeds in common, the means of all may say otherwise
            standings.append(Standing(position, reason=AHEAD))
            continue
        standings.append(
            Standing(1 if tied else position, False, tied, result.p_value, adjusted[pair], result.name, result.bound)
        )
    return standings


class Test(NamedTuple):
    """A paired test of two entries.

    Attributes:
        p_value, name: two-sided, and which test.
        bound: whether the p-value is an upper bound.
        ahead: sum of the first entry's scores less the second's, on what both have.
    """

    p_value: float
    name: str
    bound: bool = False
    ahead: float = 0.0


def _test(column: Sequence[Contender]) -> dict[tuple[int, int], Test | str]:
    """Return the test of each pair of entries with samples, or why there is none."""
    results: dict[tuple[int, int], Test | str] = {}
    index: dict[str, int] = {}
    tested = [i for i, contender in enumerate(column) if contender.scores]
    for i in tested:
        for scores in column[i].scores.values():
            for problem in scores.problems:
                index.setdefault(problem, len(index))
    placed = {i: {seed: _placed(scores, index) for seed, scores in column[i].scores.items()} for i in tested}
    flipped, differences, names = [], [], []
    for pair in combinations(tested, 2):
        a, b = (column[i] for i in pair)
        seeds = sorted(set(a.scores) & set(b.scores))
        if not seeds:
            results[pair] = "no seed in common"
            continue
        apart = np.stack([placed[pair[0]][seed] - placed[pair[1]][seed] for seed in seeds])
        compared = ~np.isnan(apart)
        problems = int(compared.any(axis=0).sum())
        if problems == 0:
            results[pair] = "no problem in common"
            continue
        # Problems without a common seed become 0, which no flip and no count of McNemar's test sees.
        difference = np.where(compared, apart, 0).sum(axis=0) / np.maximum(compared.sum(axis=0), 1)
        size = f"{problems} problems or windows, {len(seeds)} seed{'s' * (len(seeds) > 1)}"
        # Averaged over several seeds a difference is no longer right or wrong, so that McNemar's test does not apply.
        if len(seeds) == 1 and a.scores[seeds[0]].greedy and b.scores[seeds[0]].greedy:
            p = mcnemar(int((difference > 0).sum()), int((difference < 0).sum()))
            results[pair] = Test(p, f"{MCNEMAR} ({size})", ahead=float(difference.sum()))
        else:
            flipped.append(pair)
            differences.append(difference)
            names.append(f"{SIGN_FLIP} ({size})")
    if flipped:
        # All pairs, McNemar's among them: Holm multiplies the least p-value by their number.
        flips = enough_flips(len(tested) * (len(tested) - 1) // 2)
        p_values = sign_flips(np.stack(differences, axis=1), flips)
        for pair, p, name, difference in zip(flipped, p_values, names, differences, strict=True):
            # The least p-value is 1 / (flips + 1) and the next 2 / (flips + 1): 1.5 separates them despite rounding.
            results[pair] = Test(float(p), name, bool(p < 1.5 / (flips + 1)), float(difference.sum()))
    return results


def _placed(scores: Scores, index: Mapping[str, int]) -> Floats:
    values = np.full(len(index), np.nan)
    values[[index[problem] for problem in scores.problems]] = scores.values
    return values
