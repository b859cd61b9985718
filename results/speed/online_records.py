"""From timed loads to records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ...evals.speed.online_spec import Load
from ...foundation.files import digest
from ...records.files import Record
from ...runners.provenance import processor
from .online import OnlineSeries
from .records import Conditions, add_records, machine_name, median_of_rounds, speed_record

BENCHMARK = "online"
HEADLINE = "request_latency_seconds"
METRICS = {
    "time_to_first_token_seconds": "first_token",
    "time_to_first_token_p99_seconds": "first_token_p99",
    "time_per_output_token_seconds": "per_token",
    "time_per_output_token_p99_seconds": "per_token_p99",
    "inter_token_latency_seconds": "between_tokens",
    "inter_token_latency_p99_seconds": "between_tokens_p99",
    "request_latency_seconds": "latency",
    "request_latency_p99_seconds": "latency_p99",
    "requests_per_second": "requests_per_second",
    "output_tokens_per_second": "output_tokens_per_second",
}
"""Names of metrics and the fields of a timing that they come from."""
GOODPUT = "goodput_requests_per_second"


def online_records(series: Sequence[OnlineSeries]) -> list[Record]:
    """Return one record per checkpoint, load and metric: the median over rounds with the least and the largest round.

    The scorer of goodput is its objectives, such as ``tpot:50,ttft:200`` (milliseconds).
    """
    rows = []
    for entry in series:
        metrics = METRICS | ({GOODPUT: "goodput"} if entry.spec.objectives else {})
        for load in entry.spec.loads:
            conditions = _conditions(entry, load)
            rows += [
                speed_record(
                    entry.subject,
                    entry.size,
                    entry.version,
                    conditions,
                    metric,
                    median_of_rounds(entry.values(field, load)),
                    entry.spec.requests,
                    headline=metric == HEADLINE,
                    higher_is_better=metric.endswith("_per_second"),
                    scorer=objectives_name(entry) if metric == GOODPUT else "",
                )
                for metric, field in metrics.items()
            ]
    return rows


def objectives_name(entry: OnlineSeries) -> str:
    """Return the objectives as the command line takes them."""
    return ",".join(f"{name}:{milliseconds:g}" for name, milliseconds in entry.spec.objectives.items())


def save_online(folder: Path, series: Sequence[OnlineSeries]) -> Path:
    """Add records to a folder's, as `save_speed` does, and keep every round.

    Returns:
        The path of ``results.csv``.

    Raises:
        UserError: the folder holds results that cannot be read.
    """
    rounds = [
        {
            "name": entry.subject.name,
            "records": [_stage_key(entry, load) for load in entry.spec.loads],
            "rounds": [[asdict(timing) for timing in timings] for timings in entry.rounds],
        }
        for entry in series
    ]
    return add_records(folder, online_records(series), rounds)


def online_variant(entry: OnlineSeries, load: Load) -> str:
    """Return the name of the conditions: engine, load, requests, lengths, number format, device and threads."""
    spec, machine = entry.spec, machine_name(entry.spec.device, entry.spec.threads)
    lengths = f"prompt{spec.prompt_tokens}-new{spec.new_tokens}"
    return f"online-vllm-{load.name}-requests{spec.requests}-{lengths}-{spec.dtype}-{machine}"


def _stage_key(entry: OnlineSeries, load: Load) -> str:
    return f"{BENCHMARK}-{digest([entry.subject.origin.columns(), online_variant(entry, load)])[:16]}"


def _conditions(entry: OnlineSeries, load: Load) -> Conditions:
    spec = entry.spec
    problems = ["vllm bench serve: timed_trace", spec.prompt_tokens, spec.new_tokens, spec.requests, len(entry.rounds)]
    return Conditions(
        BENCHMARK,
        online_variant(entry, load),
        "vllm",
        spec.dtype,
        device_name(spec.device),
        spec.threads,
        sum(entry.values("seconds", load)),
        0,
        digest(problems),
        _stage_key(entry, load),
    )


def device_name(device: str) -> str:
    """Return the name of a processor or GPU."""
    if device == "cpu":
        return processor()
    import torch

    return str(torch.cuda.get_device_name(device))
