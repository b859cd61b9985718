"""From tidy records to tables: rows are labels, columns are ratios, and only like is put beside like."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..foundation.errors import UserError
from .intervals import across_seeds

if TYPE_CHECKING:
    import pandas as pd

_CONDITIONS = ["model", "model_sha256", "task", "benchmark", "variant", "metric", "scorer", "n", "engine", "dtype"]
_DATA = ["dataset_sha256", "prompt_sha256"]
_FRACTIONS = {
    *("accuracy", "acc", "acc_norm", "exact_match", "maj@k"),
    *("pct_stereotype", "stereotype_score", "language_score", "icat"),
}

_IDEALS = {
    "pct_stereotype": "50 is no preference",
    "stereotype_score": "50 is no preference",
    "accuracy_gap": "0 is no gap",
}


@dataclass(frozen=True)
class Cell:
    """One row at one ratio: a metric and what it cost; numbers other than the interval are means over seeds.

    Attributes:
        value, low, high: estimate and interval in the metric's own unit. One seed: the interval over problems that its
            record carries. Several: the mean and the t interval across seeds; where all seeds gave the same value,
            such as before any training, the interval over problems again.
        seeds: the seeds, ascending.
        across_seeds: whether the interval is the one across seeds.
        ratio, kept, ratio_matrices: achieved ratios.
        params, bytes: size of the model.
        tokens: training tokens after the first finetuning (compress + recover).
        tokens_per_second: decoding speed, where `speed.with_speed` joined one; else NaN.
    """

    value: float
    low: float
    high: float
    seeds: tuple[int, ...]
    across_seeds: bool
    ratio: float
    kept: float
    ratio_matrices: float
    params: float
    bytes: float
    tokens: float
    tokens_per_second: float = math.nan


@dataclass(frozen=True)
class Row:
    """One line of a table; an uncompressed model has a single cell, at ratio 1."""

    label: str
    stage: str
    cells: Mapping[float, Cell]

    @property
    def uncompressed(self) -> bool:
        """Whether the row is a model before compression."""
        return self.stage in ("pretrained", "finetuned")


@dataclass(frozen=True)
class Table:
    """All rows that were measured under the same conditions.

    Attributes:
        data: start of the dataset and prompt hashes where one title would stand for different data, else empty.
        ratios: target ratios, ascending; 1 is the column of the uncompressed rows.
        rows: uncompressed rows first.
    """

    model: str
    task: str
    benchmark: str
    variant: str
    metric: str
    scorer: str
    n: int
    engine: str
    dtype: str
    data: str
    higher_is_better: bool
    confidence: float
    ratios: tuple[float, ...]
    rows: tuple[Row, ...]

    @property
    def compressed(self) -> bool:
        """Whether any row is a compressed model."""
        return not all(row.uncompressed for row in self.rows)

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds in the table, ascending."""
        return tuple(sorted({s for row in self.rows for cell in row.cells.values() for s in cell.seeds}))

    @property
    def measure(self) -> str:
        """The metric with its scorer and unit: ``accuracy (strict), %``."""
        scorer = f" ({self.scorer})" if self.scorer else ""
        return f"{self.metric}{scorer}{', %' if is_fraction(self.metric) else ''}"

    @property
    def title(self) -> str:
        """What was measured, on what, under which conditions."""
        data = f", data {self.data}" if self.data else ""
        conditions = f"n = {self.n} ({self.engine}, {self.dtype}{data})"
        return f"{self.model} · {self.task} · {self.variant}: {self.measure}, {conditions}"


def pivot(frame: pd.DataFrame, headline: bool = True) -> list[Table]:
    """Group records into tables.

    Records share a table only if model, task, benchmark variant, metric, scorer, number of problems, engine and number
    format are the same, and the data too (data generated from the training seed may differ between seeds). Within a
    table, rows that one label would merge are told apart by their options or by their sweep.

    Args:
        frame: records as `records.read_records` returns them.
        headline: take headline metrics only.

    Raises:
        UserError: there are no records, or two of them contradict each other.
    """
    chosen = frame[frame["headline"]] if headline else frame
    if chosen.empty:
        raise UserError("there are no records to show; name a run that has evaluated at least one model")
    # Two sweeps in one frame may share an evaluate stage.
    chosen = chosen.drop_duplicates(
        subset=[*_CONDITIONS, "stage_key", "label", "options", "stage", "ratio_target", "seed"]
    )
    tables = []
    for _, group in chosen.groupby(_CONDITIONS, sort=False):
        if group.groupby(["seed"])[_DATA].nunique().to_numpy().max() > 1:
            for hashes, part in group.groupby(_DATA, sort=False):
                tables.append(_table(part, " ".join(str(h)[:8] for h in hashes if h)))
        else:
            tables.append(_table(group, ""))
    order = {key: i for i, key in enumerate(dict.fromkeys((t.model, t.task) for t in tables))}
    return sorted(tables, key=lambda t: (order[t.model, t.task], t.benchmark, not t.compressed, t.metric, t.scorer))


def is_fraction(metric: str) -> bool:
    """Return whether a metric is a share in 0..1, shown in percent."""
    return (
        metric.partition("/")[0] in _FRACTIONS or metric.startswith("pass@") or metric.endswith(("accuracy", "_rate"))
    )


def direction(metric: str, higher_is_better: bool) -> str:
    """Return in words which values are good; measures of bias have their ideal in the middle."""
    name = metric.partition("/")[0]
    if name in _IDEALS:
        return _IDEALS[name]
    return f"{'higher' if higher_is_better else 'lower'} is better"


def has_ideal(metric: str) -> bool:
    """Return whether a metric is best somewhere in the middle, so that neither more nor less is better."""
    return metric.partition("/")[0] in _IDEALS


def is_perplexity(metric: str) -> bool:
    """Return whether a metric is a perplexity, drawn on a logarithmic axis."""
    return "perplexity" in metric


def format_value(metric: str, value: float) -> str:
    """Return a metric's value as text: shares in percent with one decimal, others with about four digits."""
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if is_fraction(metric):
        return f"{100 * value:.1f}"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}" if size < 1e7 else f"{value:.3g}"
    return f"{value:.{3 if size < 10 else 2 if size < 100 else 1}f}"


def format_cell(metric: str, cell: Cell) -> tuple[str, str]:
    """Return a cell as two texts, the value and the interval; the second ends in ``(3)`` for a mean of three seeds."""
    count = f" ({len(cell.seeds)})" if cell.across_seeds else ""
    return format_value(metric, cell.value), (
        f"[{format_value(metric, cell.low)}, {format_value(metric, cell.high)}]{count}"
    )


def _table(group: pd.DataFrame, data: str) -> Table:
    first = group.iloc[0]
    group = group.assign(shown=_shown_labels(group), place=group["ratio_target"].where(group["method"] != "none", 1.0))
    rows = []
    for (label, stage), part in group.groupby(["shown", "stage"], sort=False):
        cells = {float(cell["place"].iloc[0]): _cell(str(label), cell) for _, cell in part.groupby("place")}
        rows.append(Row(str(label), str(stage), cells))
    rank = {"pretrained": 0, "finetuned": 1}
    rows.sort(key=lambda row: rank.get(row.stage, 2))
    return Table(
        **{c: str(first[c]) for c in ("model", "task", "benchmark", "variant", "metric", "scorer", "engine", "dtype")},
        n=int(first["n"]),
        data=data,
        higher_is_better=bool(first["higher_is_better"]),
        confidence=float(first["confidence"]),
        ratios=tuple(sorted({ratio for row in rows for ratio in row.cells})),
        rows=tuple(rows),
    )


def _shown_labels(group: pd.DataFrame) -> list[str]:
    recovered = set(group["label"][group["stage"] == "recovered"])
    labels = [
        f"uncompressed ({stage})"
        if method == "none"
        else f"{label}, not recovered"
        if stage == "compressed" and label in recovered
        else label
        for label, method, stage in zip(group["label"], group["method"], group["stage"], strict=True)
    ]
    options: dict[str, set[str]] = {}
    for label, text in zip(labels, group["options"], strict=True):
        options.setdefault(label, set()).add(text)
    labels = [
        f"{label} ({_pairs(text)})" if len(options[label]) > 1 else label
        for label, text in zip(labels, group["options"], strict=True)
    ]
    places = list(zip(labels, group["ratio_target"], group["seed"], strict=True))
    if len(set(places)) < len(places):
        labels = [f"{label} ({sweep})" for label, sweep in zip(labels, group["sweep"], strict=True)]
    return labels


def _pairs(options: str) -> str:
    return ", ".join(f"{k}={v}" for k, v in json.loads(options).items()) or "default options"


def _cell(label: str, rows: pd.DataFrame) -> Cell:
    seeds = tuple(sorted(int(s) for s in rows["seed"]))
    first = rows.iloc[0]
    if len(set(seeds)) < len(seeds):
        raise UserError(
            f"two records give {first['metric']} of '{label}' on {first['variant']} at ratio {first['ratio_target']:g} "
            f"and seed {first['seed']}; leave one of them out"
        )
    value, low, high = float(rows["value"].mean()), float(first["low"]), float(first["high"])
    spread = rows["value"].nunique() > 1 and math.isfinite(value)
    if spread:
        lower, upper = (0.0, 1.0) if is_fraction(first["metric"]) else (-math.inf, math.inf)
        lower = 1.0 if is_perplexity(first["metric"]) else lower
        low, high = across_seeds(rows["value"].tolist(), float(first["confidence"]), lower, upper)
    names = ("ratio", "kept", "ratio_matrices", "params", "bytes")
    means = {name: float(rows[name].mean()) for name in names}
    tokens = float((rows["tokens_compress"] + rows["tokens_recover"]).mean())
    speed = float(rows["tokens_per_second"].mean()) if "tokens_per_second" in rows else math.nan
    return Cell(value, low, high, seeds, spread, **means, tokens=tokens, tokens_per_second=speed)
