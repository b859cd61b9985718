"""Ranks within one column: the best, who is not shown to be worse, and why a test could not be made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..paired import Floats, enough_flips, holm, mcnemar, sign_flips

LEVEL = 0.05
NO_SAMPLES = "no samples"
MCNEMAR, SIGN_FLIP = "McNemar, exact", "sign flips over problems"


@dataclass(frozen=True)
class Scores:
    """How one evaluation did on each problem.

    Attributes:
        problems: identity of each problem, data and prompt included.
        values: a score for each; higher is better or lower, as the metric is.
        greedy: whether each problem has a single greedy sample that is right or wrong.
    """

    problems: tuple[str, ...]
    values: Floats
    greedy: bool


@dataclass(frozen=True)
class Contender:
    """An entry of a column.

    Attributes:
        goodness: more is better; the metric's value, its negative, or the negative distance to its ideal.
        scores: by seed, where samples are there.
        missing: why a seed's are not, in words.
    """

    goodness: float
    scores: Mapping[int, Scores]
    missing: str = ""


@dataclass(frozen=True)
class Standing:
    """Where an entry stands in its column.

    Attributes:
        rank: 1 for the best and for all tied with it, else one more than the number of better values; None where the
            entry is not ranked.
        best: whether its value is the best.
        tied: whether it is not significantly worse than the best; None where no test could be made.
        p_value: of the paired test against the best; NaN where there was none.
        p_adjusted: the same after Holm's correction for all pairs of the column.
        test: which test, over how many problems and seeds.
        reason: why there is no test or no rank.
    """

    rank: int | None
    best: bool = False
    tied: bool | None = None
    p_value: float = float("nan")
    p_adjusted: float = float("nan")
    test: str = ""
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
    pairs = list(combinations(range(len(column)), 2))
    tests = _test(column, pairs)
    made = [pair for pair in pairs if isinstance(tests[pair], tuple)]
    adjusted = dict(zip(made, holm([tests[pair][0] for pair in made]), strict=True))  # type: ignore[misc]
    standings = []
    for i, one in enumerate(column):
        place = 1 + sum(other.goodness > one.goodness for other in column)
        if i == best:
            standings.append(Standing(1, best=True, reason="the only entry" if len(column) == 1 else ""))
            continue
        pair = (min(i, best), max(i, best))
        found = tests[pair]
        if isinstance(found, str):
            standings.append(Standing(place, reason=found))
            continue
        tied = adjusted[pair] >= LEVEL
        standings.append(Standing(1 if tied else place, False, tied, found[0], adjusted[pair], found[1]))
    return standings


def _test(
    column: Sequence[Contender], pairs: Sequence[tuple[int, int]]
) -> dict[tuple[int, int], tuple[float, str] | str]:
    """Return a p-value and the test's name for each pair, or why there is none."""
    found: dict[tuple[int, int], tuple[float, str] | str] = {}
    index: dict[str, int] = {}
    for one in column:
        for scores in one.scores.values():
            for problem in scores.problems:
                index.setdefault(problem, len(index))
    placed = [{seed: _placed(scores, index) for seed, scores in one.scores.items()} for one in column]
    flipped, differences, names = [], [], []
    for pair in pairs:
        a, b = (column[i] for i in pair)
        if not a.scores or not b.scores:
            found[pair] = a.missing or b.missing or NO_SAMPLES
            continue
        seeds = sorted(set(a.scores) & set(b.scores))
        if not seeds:
            found[pair] = "no seed in common"
            continue
        apart = np.stack([placed[pair[0]][seed] - placed[pair[1]][seed] for seed in seeds])
        there = ~np.isnan(apart)
        problems = int(there.any(axis=0).sum())
        if problems == 0:
            found[pair] = "no problem in common"
            continue
        difference = np.where(there, apart, 0).sum(axis=0) / np.maximum(there.sum(axis=0), 1)
        size = f"{problems} problems, {len(seeds)} seed{'s' * (len(seeds) > 1)}"
        if len(seeds) == 1 and a.scores[seeds[0]].greedy and b.scores[seeds[0]].greedy:
            p = mcnemar(int((difference > 0).sum()), int((difference < 0).sum()))
            found[pair] = (p, f"{MCNEMAR} ({size})")
        else:
            flipped.append(pair)
            differences.append(difference)
            names.append(f"{SIGN_FLIP} ({size})")
    if flipped:
        p_values = sign_flips(np.stack(differences, axis=1), enough_flips(len(pairs)))
        found |= {pair: (float(p), name) for pair, p, name in zip(flipped, p_values, names, strict=True)}
    return found


def _placed(scores: Scores, index: Mapping[str, int]) -> Floats:
    values = np.full(len(index), np.nan)
    values[[index[problem] for problem in scores.problems]] = scores.values
    return values
