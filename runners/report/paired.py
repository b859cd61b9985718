"""Paired tests of every row against the leader at its ratio."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ...evals.compare import compare
from ...foundation.errors import UserError
from ...results.intervals import t_quantile, t_within
from ...results.report.data import Paired
from .answers import Answers

if TYPE_CHECKING:
    import pandas as pd


def paired_tests(frame: pd.DataFrame, answers: Mapping[str, Answers]) -> tuple[Paired, ...]:
    """Test the best compressed row of each table and ratio against each other row there.

    Args:
        frame: headline records with columns ``table``, its number, and ``shown``, the text of the row.
        answers: by evaluate key.

    Returns:
        Nothing for a table whose seeds were measured on different problems, or whose samples are not there.
    """
    found: list[Paired] = []
    for table, group in frame[frame.method != "none"].groupby("table"):
        if group.dataset_sha256.nunique() > 1 or group.prompt_sha256.nunique() > 1:
            continue
        better = -1 if group.higher_is_better.iloc[0] else 1
        for ratio, rows in group.groupby("ratio_target"):
            cells = [_Entry(str(label), part, answers) for label, part in rows.groupby("shown", sort=False)]
            cells.sort(key=lambda cell: better * cell.value)
            tests = [_test(cells[0], other) for other in cells[1:]]
            done = [replace(test, table=int(str(table)), ratio=float(str(ratio))) for test in tests if test is not None]
            found += holm(done)
    return tuple(found)


def holm(tests: Sequence[Paired]) -> list[Paired]:
    """Fill in p-values corrected for their number (Holm, 1979), in the order given."""
    order = sorted(range(len(tests)), key=lambda i: tests[i].p_value)
    corrected, least = {}, 0.0
    for place, index in enumerate(order):
        least = max(least, min(1.0, (len(tests) - place) * tests[index].p_value))
        corrected[index] = least
    return [replace(test, p_corrected=corrected[index]) for index, test in enumerate(tests)]


class _Entry:
    """A row at one ratio: its value, and what it answered by seed."""

    def __init__(self, label: str, rows: pd.DataFrame, answers: Mapping[str, Answers]) -> None:
        self.label, self.value = label, float(rows["value"].mean())
        self.seeds = {
            int(seed): answers[key] for seed, key in zip(rows.seed, rows.stage_key, strict=True) if key in answers
        }


def _test(leader: _Entry, other: _Entry) -> Paired | None:
    seeds = sorted(set(leader.seeds) & set(other.seeds))
    if not seeds:
        return None
    mine, theirs = [leader.seeds[s] for s in seeds], [other.seeds[s] for s in seeds]
    if all(part.windows for part in (*mine, *theirs)):
        return _windows(leader.label, other.label, mine, theirs)
    if not all(part.lines and part.graded for part in (*mine, *theirs)):
        return None
    try:
        whole = compare(*([line for part in parts for line in part.lines] for parts in (theirs, mine)))
        ahead = all(_share(a) > _share(b) for a, b in zip(mine, theirs, strict=True))
    except UserError:  # other problems or prompts: not a pair
        return None
    return Paired(
        *(0, 0.0, leader.label, other.label, whole.difference, whole.low, whole.high, whole.p_value, 1.0),
        *(whole.problems, len(seeds), ahead, whole.test),
    )


def _share(answers: Answers) -> float:
    return answers.counts["correct"] / answers.counts.total()


@dataclass(frozen=True)
class _Gain:
    """Windows of two models: sums of nll that the first is better by, and tokens."""

    gains: list[float]
    tokens: list[int]

    @property
    def mean(self) -> float:
        return math.fsum(self.gains) / sum(self.tokens)


def _windows(leader: str, label: str, mine: Sequence[Answers], theirs: Sequence[Answers]) -> Paired | None:
    """Test the difference in nats per token, windows as units: the linearised ratio of `intervals.perplexity_interval`."""
    if any(a.windows.keys() != mine[0].windows.keys() for a in (*mine, *theirs)):
        return None
    pairs = [_gain(a, b) for a, b in zip(mine, theirs, strict=True)]
    tokens = pairs[0].tokens
    if len(tokens) < 2 or any(pair.tokens != tokens for pair in pairs):
        return None
    all_seeds = _Gain([math.fsum(column) / len(pairs) for column in zip(*(p.gains for p in pairs), strict=True)], tokens)
    n, mean = len(tokens), all_seeds.mean
    if not math.isfinite(mean):
        return None
    squares = math.fsum((g - mean * t) ** 2 for g, t in zip(all_seeds.gains, tokens, strict=True))
    error = math.sqrt(n / (n - 1) * squares) / sum(tokens)
    half = t_quantile(0.95, n - 1) * error
    p_value = (1.0 if mean == 0 else 0.0) if error == 0 else 1 - t_within(abs(mean) / error, n - 1)
    ahead = all(pair.mean > 0 for pair in pairs)
    test = "t over windows"
    return Paired(0, 0.0, leader, label, mean, mean - half, mean + half, p_value, 1.0, n, len(pairs), ahead, test)


def _gain(mine: Answers, theirs: Answers) -> _Gain:
    order = sorted(mine.windows)
    gains = [theirs.windows[i][0] - mine.windows[i][0] for i in order]
    same = all(theirs.windows[i][1] == mine.windows[i][1] for i in order)
    return _Gain(gains, [mine.windows[i][1] if same else -1 for i in order])
