"""A run as the files that lm-evaluation-harness writes, for programs that read those.

One folder a cell, with ``results_TIME.json`` and a ``samples_TASK_TIME.jsonl`` for each task, in the layout of
``lm_eval/loggers/evaluation_tracker.py`` (lm-eval 0.4.13). Numbers are those of the records. What a record or a line
of samples does not hold (the document, texts of choices that were not taken) is left out.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from ...evals.harness.names import PREFIX
from ...evals.harness.outcome import PROMPT_CHARACTERS
from ...evals.samples import Sample
from ...foundation.errors import UserError
from ...foundation.files import finite, new_folder
from ...foundation.plain import plain_number
from ...records.files import read_records
from ...runners.stage_records import EvaluateRecord
from ...runners.store.folders import StageStore
from ..cells import is_cell, label_of, no_cell, of_budget, split_cell, stage_folder

if TYPE_CHECKING:
    import pandas as pd

OURS = "lowrank-bench."
"""Begins the names of tasks that are this package's own, whose prompts and verdicts are not lm-eval's."""

_CELL = ["label", "ratio_target", "stage", "steps_budget", "seed"]
_FACTS = ("method", "label", "options", "stage", "ratio", "ratio_target", "seed", "bytes", "model", "task")
_UNSAFE = re.compile(r"[\"<>:/|\\?*\[\]\s]+")
_SCORES = {"correct": 1.0, "wrong": 0.0, "no-answer": 0.0, "timeout": 0.0}
_NOT_KNOWN = "N/A"
"""As lm-eval writes a standard error that it does not compute."""


def export_lm_eval(name: str, out: Path, seed: int | None = None) -> list[Path]:
    """Write the cells of a run in lm-eval's layout; returns the files of results.

    Args:
        name: folder of a run, or ``RUN:LABEL@RATIO`` for one cell.
        out: a new or empty folder.
        seed: only cells of this seed; None writes all.

    Raises:
        UserError: no such run or cell, or ``out`` holds something.
    """
    run, label, ratio, steps = split_cell(name) if is_cell(name) else (Path(name), "", 0.0, None)
    frame = read_records(run)
    if label:
        everything = frame
        frame = frame[(frame.label == label_of(frame, label)) & (frame.ratio_target == ratio)]
        if frame.empty:
            raise no_cell(name, everything)
        frame = of_budget(frame, name, steps)
    if seed is not None:
        seeds = ", ".join(map(str, sorted(set(frame.seed))))
        frame = frame[frame.seed == seed]
        if frame.empty:
            raise UserError(f"{name} has no seed {seed}; its seeds: {seeds}")
    cells = [rows for _, rows in frame.groupby(_CELL, sort=False)]
    budgets = set(frame.steps_budget) - {0}
    results = []
    with new_folder(out) as filled:
        for rows in cells:
            folder, files = _cell(rows, run, len(budgets) > 1)
            (filled / folder).mkdir()
            for file, text in files.items():
                (filled / folder / file).write_text(text, encoding="utf-8")
                results += [out / folder / file] if file.startswith("results_") else []
    return results


def _cell(rows: pd.DataFrame, run: Path, with_budget: bool) -> tuple[str, dict[str, str]]:
    """Return the folder of a cell and the texts of its files by name."""
    first = rows.iloc[0]
    budget = f"-{first.steps_budget}steps" if with_budget and first.steps_budget else ""
    model = f"{first['sweep']}/{first.label}@{first.ratio_target:g}x-{first.stage}{budget}-seed{first.seed}"
    ended = datetime.fromisoformat(max(rows.evaluated_at))
    time = ended.replace(tzinfo=None).isoformat().replace(":", "-")
    results: dict[str, Any] = {name: {} for name in ("results", "groups", "group_subtasks", "configs", "versions")}
    results |= {name: {} for name in ("n-shot", "higher_is_better", "n-samples", "task_hashes")}
    files = {}
    for key, evaluation in rows.groupby("stage_key", sort=False):
        lines, record = _evaluation_files(stage_folder(run, str(key)))
        for task, samples in _task_files(evaluation, lines, record, results).items():
            file = f"samples_{_UNSAFE.sub('__', task)}_{time}.jsonl"
            files[file] = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples)
    if not results["groups"]:
        del results["groups"]
    engines = sorted(set(rows.engine))
    results |= {
        "config": {
            "model": engines[0] if len(engines) == 1 else ",".join(engines),
            "model_args": {"pretrained": model},
            "model_num_parameters": int(first.params),
            "model_dtype": ",".join(sorted(set(rows.dtype))),
            "model_sha": first.model_sha256,
        },
        "git_hash": first.git_commit,
        "date": ended.timestamp(),
        "model_source": "lowrank-bench",
        "model_name": model,
        "model_name_sanitized": _UNSAFE.sub("__", model),
        "lowrank_bench": {
            "written_by": "bench export --format lm-eval",
            "note": f"tasks that begin with '{OURS}' are lowrank-bench's own; their verdicts are not lm-eval's",
            "intervals": _intervals(rows),
            **{name: plain_number(first[name]) for name in _FACTS},
        },
    }
    versions = json.loads(first.versions)
    results |= {f"{name}_version": versions[name] for name in ("lm_eval", "transformers") if name in versions}
    text = json.dumps(finite(results), indent=2, ensure_ascii=False)
    return results["model_name_sanitized"], {f"results_{time}.json": text, **files}


def _evaluation_files(stage: Path) -> tuple[list[Sample], EvaluateRecord]:
    if not stage.is_dir():
        raise UserError(f"the stage folder {stage} is gone; run the sweep again to make it")
    store = StageStore(stage.parent)
    store.verify(stage.name)
    record = store.record(stage.name)
    assert isinstance(record, EvaluateRecord)
    from ..samples.stored import load_samples

    return load_samples(stage / "samples.jsonl"), record


def _task_files(
    rows: pd.DataFrame, lines: Sequence[Sample], record: EvaluateRecord, results: dict[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Fill in the results of one evaluation; returns the lines of samples by task."""
    first, details = rows.iloc[0], record.result.details
    harness = first.benchmark.startswith(PREFIX)
    known: Mapping[str, Any] = details.get("tasks", {}) if harness else {}
    name = first.benchmark.removeprefix(PREFIX).partition(":")[0] if harness else f"{OURS}{first.variant}"
    grouped = harness and set(known) != {name}
    by_task = _by_task(lines, known) if grouped else {name: list(lines)}
    metrics: dict[str, list[tuple[str, dict[Any, Any]]]] = defaultdict(list)
    for row in rows.to_dict("records"):
        metric, _, member = row["metric"].partition("/") if grouped else (row["metric"], "", "")
        metrics[member or name].append((metric, row))
    samples = {}
    for task, entries in metrics.items():
        of_task = by_task.get(task, [])
        fact = known.get(task, {})
        if task in results["results"]:  # the same task with other shots
            task = f"{task}.{first.variant}"
        table: dict[str, Any] = {"name": task, "alias": task}
        scores: dict[tuple[str, str], list[float]] = {}
        for metric, row in entries:
            scorer = row["scorer"]
            entry = (scorer.partition(" ")[0] if harness else scorer) or "none"
            column = _scores(of_task, scorer or metric, row["value"])
            if column:
                scores[metric, entry] = column
            table[f"{metric},{entry}"] = row["value"]
            table[f"{metric}_stderr,{entry}"] = _standard_error(of_task, column)
        count = (
            fact.get("problems") or len({line["problem"] for line in of_task}) or max(row["n"] for _, row in entries)
        )
        results["results"][task] = table | {"sample_len": int(count)}
        results["higher_is_better"][task] = {metric: bool(row["higher_is_better"]) for metric, row in entries}
        if task == name and grouped:
            counts = {key: int(row["n"]) for key, row in zip(_value_names(table), (r for _, r in entries), strict=True)}
            results["results"][task]["sample_count"] = counts
            results["groups"][task] = dict(results["results"][task])
            results["group_subtasks"][task] = list(known)
            results["versions"][task] = _NOT_KNOWN
            continue
        results["group_subtasks"].setdefault(task, [])
        results["n-samples"][task] = {"effective": int(count)}
        results["versions"][task] = fact.get("version", _NOT_KNOWN)
        if "shots" in fact:
            results["n-shot"][task] = fact["shots"]
        kind = fact.get("output_type") or _output_type(of_task)
        config: dict[str, Any] = {"task": task, "output_type": kind} if kind else {"task": task}
        config["metric_list"] = [{"metric": metric} for metric in dict.fromkeys(metric for metric, _ in scores)]
        config["metadata"] = {"benchmark": first.benchmark, "variant": first.variant}
        config["metadata"] |= {} if harness else {"from": "lowrank-bench"}
        results["configs"][task] = config
        if kind and kind != "loglikelihood_rolling" and of_task:
            samples[task] = [s for i, line in enumerate(of_task) for s in _sample(i, line, scores, harness)]
            filters = [sample["filter"] for sample in samples[task]]
            samples[task].sort(key=lambda sample: filters.index(sample["filter"]))  # one after the other, as lm-eval
            hashes = [s.get(h, "") for s in samples[task] for h in ("doc_hash", "prompt_hash", "target_hash")]
            if all(hashes):
                results["task_hashes"][task] = _sha("".join(hashes))
    return samples


def _standard_error(lines: Sequence[Sample], column: Sequence[float]) -> float | str:
    """Return the standard error of a mean over problems, whose samples are no problems of their own."""
    problems: dict[str, list[float]] = defaultdict(list)
    for line, score in zip(lines, column, strict=False):
        problems[str(line["problem"])].append(score)
    means = [fmean(scores) for scores in problems.values()]
    return stdev(means) / math.sqrt(len(means)) if len(means) > 1 else _NOT_KNOWN


def _value_names(table: Mapping[str, Any]) -> list[str]:
    """Return the keys of a task's values, in order: those with a filter, without standard errors."""
    return [key for key in table if "," in key and "_stderr," not in key]


def _by_task(lines: Iterable[Sample], known: Mapping[str, Any]) -> dict[str, list[Sample]]:
    by_task: dict[str, list[Sample]] = {task: [] for task in known}
    for line in lines:
        by_task[line["problem"].rpartition("/")[0]].append(line)
    return by_task


def _scores(lines: Sequence[Sample], scorer: str, value: float) -> list[float]:
    """Return the score of each line where their mean is the value of the metric, else nothing."""
    column = []
    for line in lines:
        score = line.get("values", {}).get(scorer, _SCORES.get(line.get("verdicts", {}).get(scorer, "")))
        if not isinstance(score, int | float):
            return []
        column.append(float(score))
    return column if column and math.isclose(fmean(column), value, rel_tol=1e-9, abs_tol=1e-12) else []


def _output_type(lines: Sequence[Sample]) -> str:
    if lines and "loglikelihoods" in lines[0]:
        return "multiple_choice"
    return "generate_until" if lines and "completion" in lines[0] else ""


def _sample(
    number: int, line: Sample, scores: Mapping[tuple[str, str], list[float]], harness: bool
) -> Iterable[dict[str, Any]]:
    """Yield what lm-eval writes of one problem, once for each filter."""
    last = str(line["problem"]).rpartition("/")[2]
    prompt = line.get("prompt")
    # Lines keep the last PROMPT_CHARACTERS of a prompt: at that length it may be cut, and its hash not lm-eval's.
    whole = prompt is not None and (not harness or len(prompt) < PROMPT_CHARACTERS)
    common: dict[str, Any] = {
        "doc_id": int(last) if harness and last.isdecimal() else number,
        "doc": {"problem": line["problem"]},
        "target": str(line.get("gold", "")),
    }
    if prompt is not None:
        common |= {"arguments": {"gen_args_0": {"arg_0": prompt}}} | ({} if whole else {"prompt_is_cut": True})
    if harness:
        common |= {"doc_hash": line["problem_sha256"], "target_hash": _sha(str(line["gold"]))}
        common |= {"prompt_hash": _sha(line["prompt"])} if whole else {}
    if "loglikelihoods" in line:
        greedy = line.get("greedy")
        # Texts, as lm-eval's own files have them.
        pairs = [
            [str(value), str(greedy[i])] if greedy else [str(value)] for i, value in enumerate(line["loglikelihoods"])
        ]
        common |= {"resps": [[pair] for pair in pairs]}
    else:
        common |= {"resps": [[line["completion"]]]}
    for entry in dict.fromkeys(entry for _, entry in scores) or ("none",):
        columns = {metric: column for (metric, other), column in scores.items() if other == entry}
        if "loglikelihoods" in line:
            answers: list[Any] = pairs
        else:
            answer = line.get("answers", {}).get(entry, line["completion"] if entry == "none" else None)
            answers = ["" if answer is None else answer]
        yield {
            **common,
            "filtered_resps": answers,
            "filter": entry,
            "metrics": list(columns),
            **{metric: column[number] for metric, column in columns.items()},
        }


def _intervals(rows: pd.DataFrame) -> list[dict[str, Any]]:
    fields = ["variant", "metric", "scorer", "value", "low", "high", "n", "confidence"]
    return [{str(name): plain_number(value) for name, value in row.items()} for row in rows[fields].to_dict("records")]


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
