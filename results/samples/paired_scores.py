"""Scores per problem from the samples of finished evaluations, for paired tests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...evals.grading.metrics import pass_at_k
from ...evals.samples import Sample, Window, read_samples
from ...foundation.errors import UserError
from ...foundation.files import digest
from ...runners.store.folders import StageStore
from ..leaderboard.ranking import NO_SAMPLES, Scores

_NOT_PER_PROBLEM = "no paired test for this metric"
_DAMAGED = "samples cannot be read"
_CHANGED = "the stage with the samples is damaged"


def stage_scores(stage: Path, values: Mapping[tuple[str, str], float]) -> dict[tuple[str, str], Scores | str]:
    """Return the scores of one evaluation's problems, or why there are none.

    Scores are used only if they sum up to the value of the record: a test is about the very number in the table.

    Args:
        stage: folder of the evaluate stage.
        values: the record's value by metric and scorer.
    """
    lines = _lines(stage)
    if isinstance(lines, str):
        return dict.fromkeys(values, lines)
    scores: dict[tuple[str, str], Scores | str] = {}
    for (metric, scorer), value in values.items():
        try:
            scores[metric, scorer] = _scores(lines, metric, scorer, value)
        except (KeyError, TypeError, ValueError, AttributeError):  # samples of another version or kind
            scores[metric, scorer] = _DAMAGED
    return scores


def _lines(stage: Path) -> list[Sample | Window] | str:
    if not (stage / "samples.jsonl").exists():
        return NO_SAMPLES
    try:
        StageStore(stage.parent).verify(stage.name)
        lines = list(read_samples(stage / "samples.jsonl"))
    except UserError:
        return _CHANGED
    except (OSError, ValueError):
        return _DAMAGED
    return lines or NO_SAMPLES


def _scores(stored: Sequence[Sample | Window], metric: str, scorer: str, value: float) -> Scores | str:
    if metric in ("perplexity", "nats_per_token"):
        windows = [line for line in stored if "nll" in line]
        return _likelihoods(windows, metric, value) if len(windows) == len(stored) else _DAMAGED
    lines = [line for line in stored if "nll" not in line]
    if len(lines) < len(stored) or "verdicts" not in lines[0]:
        return _NOT_PER_PROBLEM
    if metric in lines[0].get("scores", {}):
        return _graded(lines, metric, value)
    right: dict[str, list[bool]] = {}
    name = scorer if scorer in lines[0]["verdicts"] else metric
    if name not in lines[0]["verdicts"]:
        return _NOT_PER_PROBLEM
    for line in lines:
        problem = f"{line['problem']} {line['problem_sha256'][:16]} {line['prompt_sha256'][:16]}"
        right.setdefault(problem, []).append(line["verdicts"][name] == "correct")
    _, at, k = metric.rpartition("pass@")
    if at and k.isdigit() and int(k) > 1:
        values = [pass_at_k(len(hits), sum(hits), int(k)) for hits in right.values()]
    else:
        values = [sum(hits) / len(hits) for hits in right.values()]
    if not math.isclose(math.fsum(values) / len(values), value, abs_tol=1e-9):
        return _NOT_PER_PROBLEM
    greedy = all(len(hits) == 1 for hits in right.values()) and all(line["temperature"] == 0 for line in lines)
    return Scores(tuple(right), np.array(values), greedy)


def _graded(lines: Sequence[Sample], metric: str, value: float) -> Scores | str:
    """Return scores that are no verdicts, such as F1: each problem's mean over its samples."""
    scores: dict[str, list[float]] = {}
    for line in lines:
        problem = f"{line['problem']} {line['problem_sha256'][:16]} {line['prompt_sha256'][:16]}"
        scores.setdefault(problem, []).append(float(line["scores"][metric]))
    values = [math.fsum(row) / len(row) for row in scores.values()]
    if not math.isclose(math.fsum(values) / len(values), value, abs_tol=1e-9):
        return _NOT_PER_PROBLEM
    # Not greedy even for a single sample: these scores are not right or wrong, so McNemar's test does not apply.
    return Scores(tuple(scores), np.array(values), False)


def _likelihoods(lines: Sequence[Window], metric: str, value: float) -> Scores | str:
    """Return negative log-likelihoods of windows: their sum decides the perplexity, tokens being equal."""
    sums, counts = [float(line["nll"]) for line in lines], [int(line["tokens"]) for line in lines]
    mean = math.fsum(sums) / sum(counts)
    # math.exp raises an OverflowError from about 710 on.
    printed = mean if metric == "nats_per_token" else math.exp(mean) if mean < 700 else math.inf
    if not math.isclose(printed, value, rel_tol=1e-9):
        return _NOT_PER_PROBLEM
    return Scores(tuple(f"{line['index']} {line['tokens']}" for line in lines), np.array(sums), False, sum(counts))


def scores_of(
    rows: Iterable[tuple[Path, str, str, str, float]],
) -> dict[tuple[str, str, str], Scores | str]:
    """Return scores by stage key, metric and scorer; each samples file is read once, and equal ones kept once.

    Args:
        rows: folder with the stages, stage key, metric, scorer, value of the record.
    """
    values: dict[tuple[Path, str], dict[tuple[str, str], float]] = {}
    for stages, key, metric, scorer, value in rows:
        values.setdefault((stages, key), {})[metric, scorer] = value
    results: dict[tuple[str, str, str], Scores | str] = {}
    names: dict[str, tuple[str, ...]] = {}
    for (stages, key), metrics in values.items():
        known = Path(key).name == key  # a key is a folder's name; a path would lead out of the stages
        scores = stage_scores(stages / key, metrics) if known else dict.fromkeys(metrics, NO_SAMPLES)
        for (metric, scorer), entry in scores.items():
            if isinstance(entry, Scores):
                problems = names.setdefault(digest(entry.problems), entry.problems)
                entry = replace(entry, problems=problems)
            # Folders of stages may share a key: one without the samples does not replace those of another.
            if isinstance(entry, Scores) or not isinstance(results.get((key, metric, scorer)), Scores):
                results[key, metric, scorer] = entry
    return results
