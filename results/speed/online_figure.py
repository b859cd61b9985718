"""The figure of ``bench speed --online``: what a request waits for over how many there are."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...evals.speed.online_spec import Load
from ..plots.curves import finish_legend, new_figure, plain, save_figure, slug, style
from ..plots.looks import looks
from .online import OnlineSeries
from .online_records import objectives_name, online_variant

_TIMES = (
    ("first_token", "first token [ms]", 1000.0),
    ("per_token", "per output token [ms]", 1000.0),
    ("latency", "whole request [ms]", 1000.0),
)


def draw_online(series: Sequence[OnlineSeries], folder: Path) -> list[Path]:
    """Draw times and goodput over the request rate, and over concurrency, each as PNG and SVG.

    Lines are medians over rounds of a load's median, bars the least and the largest round. Loads with all requests at
    once have no place on the axis. A kind with fewer than two loads has no figure.

    Returns:
        The paths, PNG before SVG.
    """
    loads = series[0].spec.loads
    kinds = {
        "rate": ("requests per second, sent at random times", [load for load in loads if _has_rate(load)]),
        "concurrency": ("requests under way", [load for load in loads if load.concurrency]),
    }
    paths: list[Path] = []
    for kind, (label, chosen) in kinds.items():
        if len(chosen) > 1:
            folder.mkdir(parents=True, exist_ok=True)
            ordered = sorted(chosen, key=_position)
            conditions = online_variant(series[0], chosen[0]).replace(chosen[0].name, kind)
            stem = folder / slug(f"{series[0].subject.origin.model}-{conditions}")
            with style():
                paths += save_figure(_figure(series, ordered, label), stem)
    return paths


def _has_rate(load: Load) -> bool:
    return load.concurrency is None and math.isfinite(load.rate)


def _position(load: Load) -> float:
    return float(load.concurrency or load.rate)


def _figure(series: Sequence[OnlineSeries], loads: Sequence[Load], label: str) -> Any:
    figure, first = new_figure(6.6)
    first.remove()
    spec = series[0].spec
    fourth = (
        ("goodput", f"requests/s that met {objectives_name(series[0])}", 1.0)
        if spec.objectives
        else ("output_tokens_per_second", "output tokens/s", 1.0)
    )
    panels = figure.subplots(2, 2)
    lines = looks([entry.subject.origin.method for entry in series])
    handles: list[Any] = []
    for axes, (metric, title, scale) in zip(panels.flat, (*_TIMES, fourth), strict=True):
        handles = []
        for entry, look in zip(series, lines, strict=True):
            positions = [_position(load) for load in loads]
            rounds = [[value * scale for value in entry.values(metric, load)] for load in loads]
            middles = [statistics.median(values) for values in rounds]
            bars = [
                [middle - min(values) for middle, values in zip(middles, rounds, strict=True)],
                [max(values) - middle for middle, values in zip(middles, rounds, strict=True)],
            ]
            axes.errorbar(positions, middles, yerr=bars, fmt="none", ecolor=look.colour, capsize=3, alpha=0.55)
            line = {"color": look.colour, "linestyle": look.dashes, "marker": look.marker, "linewidth": 1.8}
            handles += axes.plot(positions, middles, markersize=6, markeredgecolor="white", **line)
        _set_axes(axes, loads, title)
    for axes in panels[1]:
        axes.set_xlabel(label)
    finish_legend(figure, handles, [plain(entry.subject.name) for entry in series])
    figure.suptitle(_title(series), fontsize=10.5)
    return figure


def _set_axes(axes: Any, loads: Sequence[Load], title: str) -> None:
    from matplotlib.ticker import NullLocator

    axes.set_xscale("log", base=2)
    axes.set_xticks([_position(load) for load in loads], [f"{_position(load):g}" for load in loads])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0, axes.dataLim.y1 * 1.08 or 1)
    axes.set_title(plain(title), fontsize=9.5, loc="left")
    axes.grid(True, color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)


def _title(series: Sequence[OnlineSeries]) -> str:
    spec = series[0].spec
    first = f"{series[0].subject.origin.model} · vllm serve {series[0].version} · {spec.dtype} · {spec.device}"
    count = len(series[0].rounds)
    rounds = f"medians of {count} rounds, bars: least and largest round" if count > 1 else "one round"
    second = f"{spec.requests} requests of {spec.prompt_tokens} + {spec.new_tokens} tokens a load; {rounds}"
    return f"{plain(first)}\n{plain(second)}"
