"""Paired tests of every row against the leader at its ratio."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from ...records.intervals import mean_interval
from ...records.metrics import goodness, has_ideal
from ...records.paired import enough_flips, holm, mcnemar, paired_interval, sign_flips
from ..leaderboard.ranking import Scores
from ..samples.paired_scores import scores_of
from .data import Paired
from .lineage import Lineage, Rows

_MEASURE = ("model", "task", "variant", "metric", "scorer", "engine", "dtype", "n")
Floats = np.ndarray[Any, np.dtype[np.float64]]
_ROUNDING = 1e-12
"""Gains whose sum is so much less than that of their sizes add up to nothing."""
ScoresOf = Mapping[tuple[str, str, str], Scores]
"""Scores by evaluate key, metric and scorer."""


def headline_scores(rows: Rows, lineage: Lineage) -> ScoresOf:
    """Return the scores of each headline; those that are not the record's very number are left out.

    Args:
        rows: headline records.
        lineage: whose stages have the samples.
    """
    requests = [
        (lineage.root, row["stage_key"], row["metric"], row["scorer"], row["value"])
        for row in rows
        if lineage.folder(row["stage_key"])
    ]
    return {name: scores for name, scores in scores_of(requests).items() if isinstance(scores, Scores)}


def paired_tests(rows: Rows, scores: ScoresOf) -> tuple[Paired, ...]:
    """Test the best compressed row of each table and ratio against each other row there.

    Units are the problems (windows of a perplexity), on which the seeds that both rows have are averaged: McNemar's
    exact test for one greedy sample each, else the sign-flip test. p-values are corrected for all rows at the ratio.

    Args:
        rows: headline records.
        scores: see `headline_scores`.

    Returns:
        Nothing for a table whose seeds were measured on different problems, or whose samples are not there.
    """
    tests: list[Paired] = []
    for (table, ratio), entries in _entries(rows, scores).items():
        pairs = [pair for other in entries[1:] if (pair := _pair(entries[0], other)) is not None]
        tests += _tested([(table, ratio, entries[0].label, pair) for pair in pairs])
    return tuple(tests)


def order_tests(rows: Rows, scores: ScoresOf) -> tuple[Paired, ...]:
    """Test every pair of compressed rows at each ratio and budget; nothing where there are no several budgets.

    p-values are corrected for all pairs and budgets of one measure at one ratio.

    Args:
        rows: headline records.
        scores: see `headline_scores`.
    """
    measures = {row["table"]: tuple(row[c] for c in _MEASURE) for row in rows if row["budget"]}
    groups: dict[tuple[Any, ...], list[tuple[int, float, str, _Pair]]] = {}
    for (table, ratio), entries in _entries([row for row in rows if row["budget"]], scores).items():
        group = groups.setdefault((*measures[table], ratio), [])
        for ahead, behind in combinations(entries, 2):
            if (pair := _pair(ahead, behind)) is not None:
                group.append((table, ratio, ahead.label, pair))
    return tuple(test for group in groups.values() for test in _tested(group))


def _entries(rows: Rows, scores: ScoresOf) -> dict[tuple[int, float], list[_Entry]]:
    """Return the compressed rows of each table and ratio, the best estimate first."""
    cells: dict[tuple[int, float], dict[str, list[Mapping[str, Any]]]] = {}
    data: dict[int, set[tuple[str, str]]] = {}
    for row in rows:
        if row["method"] != "none" and not has_ideal(row["metric"]):  # of those none is best
            data.setdefault(row["table"], set()).add((row["dataset_sha256"], row["prompt_sha256"]))
            by_label = cells.setdefault((row["table"], row["ratio_target"]), {})
            by_label.setdefault(row["shown"], []).append(row)
    ranked = {}
    for (table, ratio), by_label in sorted(cells.items()):
        if len(data[table]) > 1:
            continue
        entries = [_Entry(label, part, scores) for label, part in by_label.items()]
        entries.sort(key=lambda entry: -entry.goodness)
        ranked[table, ratio] = entries
    return ranked


class _Entry:
    """A row at one ratio: how good its value is, and its scores by seed."""

    def __init__(self, label: str, rows: Rows, scores: ScoresOf) -> None:
        self.label, self.higher_is_better = label, bool(rows[0]["higher_is_better"])
        value = sum(row["value"] for row in rows) / len(rows)
        self.goodness = goodness(rows[0]["metric"], self.higher_is_better, value)
        names = {row["seed"]: (row["stage_key"], row["metric"], row["scorer"]) for row in rows}
        self.seeds = {seed: scores[name] for seed, name in names.items() if name in scores}


@dataclass(frozen=True)
class _Pair:
    """What the leader does better than another row.

    Attributes:
        gains: by problem, or nats by window, mean of the seeds.
        scale: divides the sum of the gains: the number of problems, or of tokens.
        greedy: whether each gain is one greedy sample's, so that McNemar's test applies.
    """

    label: str
    gains: Floats
    scale: float
    seeds: int
    every_seed: bool
    greedy: bool
    units: str


def _pair(leader: _Entry, other: _Entry) -> _Pair | None:
    """Return the gains of the leader; None where both have no seed in common, or other problems or prompts."""
    seeds = sorted(set(leader.seeds) & set(other.seeds))
    if not seeds:
        return None
    mine, theirs = [leader.seeds[s] for s in seeds], [other.seeds[s] for s in seeds]
    everyone, first = [*mine, *theirs], mine[0]
    order = {problem: number for number, problem in enumerate(first.problems)}
    if any(part.tokens != first.tokens or set(part.problems) != set(order) for part in everyone):
        return None
    sign = 1.0 if leader.higher_is_better else -1.0
    columns = np.stack([sign * (_ordered(a, order) - _ordered(b, order)) for a, b in zip(mine, theirs, strict=True)], 1)
    # The loss of a model that diverged may be infinite, and the difference of two such losses is NaN.
    if not np.isfinite(columns).all():
        return None
    ahead = bool((columns.sum(axis=0) > _ROUNDING * np.abs(columns).sum(axis=0)).all())
    greedy = len(seeds) == 1 and all(part.greedy for part in everyone)
    scale, units = (float(first.tokens), "windows") if first.tokens else (float(len(order)), "problems")
    return _Pair(other.label, columns.mean(axis=1), scale, len(seeds), ahead, greedy, units)


def _ordered(scores: Scores, order: Mapping[str, int]) -> Floats:
    values = np.empty(len(order))
    values[[order[problem] for problem in scores.problems]] = scores.values
    return values


def _tested(pairs: Sequence[tuple[int, float, str, _Pair]]) -> list[Paired]:
    """Test pairs, each with its table, ratio and leader; p-values are corrected for all of them."""
    if not pairs:
        return []
    flips = enough_flips(len(pairs))
    results = []
    for *_, pair in pairs:
        n = len(pair.gains)
        ahead, behind = int((pair.gains > 0).sum()), int((pair.gains < 0).sum())
        if pair.greedy:
            p_value, test = mcnemar(behind, ahead), "McNemar, exact"
            low, high = paired_interval(behind, ahead, n)
        else:
            p_value, test = float(sign_flips(pair.gains[:, None], flips)[0]), f"sign flips of {pair.units}"
            # The interval is of the mean per unit; n / scale makes it one per token, as the difference is.
            low, high = (end * n / pair.scale for end in mean_interval(pair.gains.tolist()))
        results.append((float(pair.gains.sum()) / pair.scale, low, high, p_value, test))
    corrected = holm([p_value for *_, p_value, _ in results])
    return [
        Paired(
            *(table, ratio, leader, pair.label, difference, low, high, p_value, p_corrected),
            *(len(pair.gains), pair.units, pair.seeds, pair.every_seed, test),
        )
        for (table, ratio, leader, pair), (difference, low, high, p_value, test), p_corrected in zip(
            pairs, results, corrected, strict=True
        )
    ]
