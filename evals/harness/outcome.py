"""What lm-evaluation-harness returns, as metrics with intervals and a line per problem.

Values are the harness's. Intervals are this package's: Wilson's where every problem is right or wrong, Student's of the
mean of other numbers, and for metrics that are no mean over problems (perplexities, BLEU) the normal interval of a
bootstrap over problems.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from statistics import NormalDist, stdev
from typing import Any

from ...foundation.errors import UserError
from ...foundation.files import digest
from ...records.intervals import mean_interval
from ...records.metrics import is_fraction
from ..base import Metric, Outcome
from ..grading.metrics import rate
from ..kinds.generative import storable
from ..kinds.harness import harness_version
from ..tasks.prompts import prompt_sha256
from .loading import Loaded

RESAMPLES = 200
"""Of a bootstrap: enough for a standard deviation."""

HEADLINES = {"acc_norm": 0, "acc": 1}
"""Metrics that are the headline where a task has them, the first one that it has; else its first metric is."""

PROMPT_CHARACTERS = 1000
"""So many of a prompt's last characters are in its line, for people; examples come before them."""

Key = tuple[str, str]
"""A metric and the filter of the harness that read the answer."""


def make_outcome(
    name: str,
    loaded: Loaded,
    results: Mapping[str, Any],
    notes: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]],
    fixed: Mapping[str, Any],
) -> Outcome:
    """Return the outcome of an evaluation.

    Args:
        name: of the task or group.
        loaded: what was evaluated.
        results: as the harness's ``evaluate`` returns them, with samples.
        notes: of `model.engine_model`.
        fixed: fields of every line: ``benchmark``, ``variant``, ``stage``.

    Raises:
        UserError: a task without a number, or whose numbers are no numbers.
    """
    tasks = loaded.tasks["tasks"]
    values = {task: _values(results["samples"][task]) for task in tasks}
    of_tasks = {task: _task_metrics(tasks[task], results["results"][task], values[task]) for task in tasks}
    group = loaded.tasks.get("groups", {}).get(name)
    metrics = of_tasks[name] if group is None else _group_metrics(group, results, values, of_tasks)
    headline = min(metrics, key=lambda key: HEADLINES.get(key[0], len(HEADLINES)), default=None)
    if headline is None:
        raise UserError(f"'{name}' gives no number; name another task of lm-evaluation-harness")
    names = _Scorers(values.values())
    lacking = [task for task in tasks if headline not in values[task]]
    if lacking:
        raise UserError(
            f"the members {', '.join(lacking[:5])} of '{name}' have no {headline[0]}, so that their problems have no "
            "verdict; name the members one by one"
        )
    shown = [names.named(metric, key, headline=key == headline) for key, metric in metrics.items()]
    if group is not None:
        for member, of_member in (of_tasks | _subgroups(group, results, values, of_tasks)).items():
            shown += [names.named(metric, key, f"/{member}") for key, metric in of_member.items() if key in metrics]
    lines = [line for task in tasks for line in _lines(task, results["samples"][task], notes, names, group is not None)]
    for line in lines:
        line |= {**fixed, "scorer": names.verdict(headline)}
    details: dict[str, Any] = {
        "lm_eval": harness_version(),
        "tasks": {
            task: {
                "version": str(tasks[task].VERSION),
                "shots": results["n-shot"].get(task, 0),
                "problems": len({sample["doc_id"] for sample in results["samples"][task]}),
                "output_type": tasks[task].OUTPUT_TYPE,
            }
            for task in tasks
        },
        "problems": len(lines),
        "problems_cut_to_context": sum(line["cut"] > 0 for line in lines),
    }
    if group is not None:
        details["weighting"] = {
            entry.metric: "by problems" if entry.weight_by_size else "every member alike"
            for entry in group.aggregate_metric_list
        }
    data = digest([line["problem_sha256"] for line in lines])
    return Outcome(shown, lines, data, digest([line["prompt_sha256"] for line in lines]), details, fixed["variant"])


class _Scorers:
    """Names of scorers: the filter of an answer, and the metric with it where a filter's answers have several.

    Args:
        values: of all tasks, as `_values` returns them.
    """

    def __init__(self, values: Any) -> None:
        keys = {key for of_task in values for key in of_task}
        self._count = Counter(entry for _, entry in keys)

    def scorer(self, key: Key) -> str:
        metric, filtered = key
        if filtered == "none":
            return ""
        return filtered if self._count[filtered] == 1 else f"{filtered} {metric}"

    def verdict(self, key: Key) -> str:
        """Return the name under which a line has the verdict."""
        return self.scorer(key) or key[0]

    def named(self, metric: Metric, key: Key, suffix: str = "", headline: bool = False) -> Metric:
        return Metric(
            f"{key[0]}{suffix}",
            metric.value,
            metric.low,
            metric.high,
            metric.n,
            headline,
            metric.higher_is_better,
            self.scorer(key),
        )


def _values(samples: Sequence[Mapping[str, Any]]) -> dict[Key, list[Any]]:
    """Return each metric's value of every problem."""
    values: dict[Key, list[Any]] = defaultdict(list)
    for sample in samples:
        for metric in sample["metrics"]:
            values[metric, sample["filter"]].append(sample[metric])
    return dict(values)


def _task_metrics(task: Any, result: Mapping[str, Any], values: Mapping[Key, list[Any]]) -> dict[Key, Metric]:
    better = task.higher_is_better()
    metrics = {}
    for (metric, filtered), items in values.items():
        value = result.get(f"{metric},{filtered}")
        if not isinstance(value, int | float) or math.isnan(value):
            continue
        metrics[metric, filtered] = _with_interval(
            metric, float(value), items, better.get(metric) is not False, task.aggregation().get(metric)
        )
    return metrics


def _with_interval(metric: str, value: float, items: Sequence[Any], better: bool, aggregate: Any) -> Metric:
    scale = _scale(metric, value, aggregate)
    value /= scale
    numbers = [number / scale for number in _numbers(items)]
    # Only where the harness's value is the mean over problems do the problems' own values give its interval.
    if numbers and math.isclose(math.fsum(numbers) / len(numbers), value, rel_tol=1e-9, abs_tol=1e-12):
        if all(number in (0, 1) for number in numbers):
            return rate(metric, numbers, better=better)
        ends = (0.0, 1.0) if is_fraction(metric) else (-math.inf, math.inf)
        interval = mean_interval(numbers, lower=ends[0], upper=ends[1])
        return Metric(metric, math.fsum(numbers) / len(numbers), *interval, len(numbers), False, better)
    return _normal(metric, value, _bootstrap(items, aggregate) / scale, len(items), better)


def _scale(metric: str, value: float, aggregate: Any) -> float:
    """Return what a harness's value is divided by: BLEU and SQuAD's F1 are in 0..100 there, shares in 0..1 here."""
    from lm_eval.api.metrics import bleu

    return 100.0 if is_fraction(metric) and (value > 1 or aggregate is bleu) else 1.0


def _normal(metric: str, value: float, error: float, n: int, better: bool) -> Metric:
    """Return a metric with the normal interval of a standard error; infinity bounds nothing."""
    least, most = (0.0, 1.0) if is_fraction(metric) else (-math.inf, math.inf)
    half = NormalDist().inv_cdf(0.975) * error
    value = min(max(value, least), most)  # a perfect BLEU is a last bit above
    return Metric(metric, value, max(least, value - half), min(most, value + half), n, False, better)


def _bootstrap(items: Sequence[Any], aggregate: Any) -> float:
    """Return the standard error of a metric that is no mean over problems; infinite for one problem."""
    if len(items) < 2 or aggregate is None:
        return math.inf
    draw = random.Random(0)
    values = [float(aggregate(draw.choices(items, k=len(items)))) for _ in range(RESAMPLES)]
    return stdev(values) if all(map(math.isfinite, values)) else math.inf


def _numbers(items: Sequence[Any]) -> list[float]:
    """Return values as numbers, or nothing where some are none."""
    try:
        return [float(item) for item in items]
    except (TypeError, ValueError):
        return []


def _group_metrics(
    group: Any,
    results: Mapping[str, Any],
    values: Mapping[str, Mapping[Key, list[Any]]],
    of_tasks: Mapping[str, Mapping[Key, Metric]],
) -> dict[Key, Metric]:
    """Return what the harness aggregates over the members of a group."""
    members = [task.task_name for task in group.get_all_tasks()]
    result, metrics = results["groups"][group.name], {}
    for entry in group.aggregate_metric_list or ():
        filters = dict.fromkeys(key[1] for member in members for key in of_tasks[member] if key[0] == entry.metric)
        for filtered in filters:
            key = (entry.metric, filtered)
            value = result.get(f"{entry.metric},{filtered}")
            parts = [of_tasks[member][key] for member in members if key in of_tasks[member]]
            if not parts or not isinstance(value, int | float):
                continue
            value, better = float(value) / _scale(entry.metric, float(value), None), parts[0].higher_is_better
            sizes = [part.n for part in parts]
            if entry.weight_by_size:
                pooled = [item for member in members for item in values[member].get(key, ())]
                metrics[key] = _with_interval(entry.metric, float(value), pooled, better, None)
                if math.isfinite(metrics[key].high - metrics[key].low):
                    continue
            weights = sizes if entry.weight_by_size else [1] * len(parts)
            # Half-widths back to standard errors, and those of independent members to that of their weighted mean.
            errors = [(part.high - part.low) / 2 / NormalDist().inv_cdf(0.975) for part in parts]
            error = math.hypot(*(w * e for w, e in zip(weights, errors, strict=True))) / sum(weights)
            metrics[key] = _normal(entry.metric, float(value), error, sum(sizes), better)
    return metrics


def _subgroups(group: Any, results: Mapping[str, Any], values: Any, of_tasks: Any) -> dict[str, dict[Key, Metric]]:
    return {
        inner.name: _group_metrics(inner, results, values, of_tasks)
        for inner in group.get_all_groups()
        if inner.has_aggregation
    }


def _lines(
    task: str,
    samples: Sequence[Mapping[str, Any]],
    notes: Mapping[tuple[str, int], Sequence[Mapping[str, Any]]],
    names: _Scorers,
    in_group: bool,
) -> list[dict[str, Any]]:
    """Return one line per problem, whatever number of filters read it; fields as in `evals.samples`."""
    lines: dict[int, dict[str, Any]] = {}
    for sample in samples:
        number = sample["doc_id"]
        line = lines.setdefault(
            number, _line(f"{task}/{number}" if in_group else str(number), sample, notes[task, number])
        )
        for metric in sample["metrics"]:
            name = names.verdict((metric, sample["filter"]))
            (score,) = _numbers([sample[metric]]) or (None,)
            if score in (0, 1):
                line["verdicts"][name] = "correct" if score == 1 else "wrong"
            else:
                line["values"][name] = _storable(sample[metric])
        if line["finish_reason"] != "scored":
            line["answers"][sample["filter"]] = storable(str(sample["filtered_resps"][0]))
    return list(lines.values())


def _line(problem: str, sample: Mapping[str, Any], notes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    arguments, answers = sample["arguments"], [replies[0] for replies in sample["resps"]]
    texts = [text for request in arguments for text in request if isinstance(text, str)]
    line: dict[str, Any] = {
        "temperature": 0.0,
        "problem": problem,
        "problem_sha256": sample["doc_hash"],
        "sample": 0,
        "prompt": storable(texts[0][-PROMPT_CHARACTERS:] if texts else ""),
        "prompt_sha256": prompt_sha256(texts),
        "finish_reason": notes[0]["finish_reason"],
        "cut": sum(note["cut"] for note in notes),
        "gold": storable(str(sample["target"])),
        "answers": {},
        "verdicts": {},
        "values": {},
    }
    if isinstance(answers[0], str):
        return line | {"completion": storable(answers[0]), "tokens": notes[0]["tokens"]}
    if isinstance(answers[0], int | float):  # of a whole text
        return line | {"completion": "", "tokens": notes[0]["tokens"], "loglikelihoods": [float(answers[0])]}
    scores = [float(value) for value, _ in answers]
    best = max(range(len(scores)), key=scores.__getitem__)
    return line | {
        "completion": storable(str(arguments[best][1])),
        "tokens": notes[best]["tokens"],
        "loglikelihoods": scores,
        "greedy": [bool(greedy) for _, greedy in answers],
    }


def _storable(value: Any) -> Any:
    """Return a problem's value as plain data: a number, or numbers that the harness aggregates."""
    if isinstance(value, list | tuple):
        return [_storable(part) for part in value]
    numbers = _numbers([value])
    return numbers[0] if numbers and math.isfinite(numbers[0]) else storable(str(value))
