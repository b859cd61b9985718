"""From tidy records to tables: rows are labels, columns are ratios, and only like is put beside like."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...foundation.errors import UserError
from ...models.quantised.scheme import CONTROLS
from ...records.bos import bos_sentence, differ, variant_without
from ...records.intervals import across_seeds
from ...records.metrics import direction, format_value, goodness, has_ideal, is_fraction, is_perplexity, limits
from ...records.schema import BUDGET, KEY_COLUMNS
from .labels import shown_labels

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Cell",
    "Pivot",
    "Row",
    "direction",
    "format_cell",
    "format_value",
    "has_ideal",
    "is_fraction",
    "is_perplexity",
    "pivot",
    "same_but_budget",
]

TOO_LONG = "prompt_too_long"
"""A metric of generating benchmarks, and the column in which `with_too_long` puts its value beside all others."""

_CONDITIONS = ["model", "model_sha256", "task", "benchmark", "variant", "metric", "scorer", "n", "engine", "dtype"]
_DATA = ["dataset_sha256", "prompt_sha256"]
_SAME = ["stage_key", "label", "options", "stage", "ratio_target", "seed"]
_READ = [
    *(*_CONDITIONS, *_DATA, *_SAME, "sweep", "method", "higher_is_better", "confidence", "value", "low", "high"),
    *("ratio", "kept", "ratio_matrices", "params", "bytes", "runtime_bytes", BUDGET),
    *("steps_finetune", "tokens_compress", "tokens_recover", "tokens_per_second"),
    *("origin", TOO_LONG),
]
_EVALUATION = [*(c for c in KEY_COLUMNS if c not in ("metric", "scorer")), "stage_key"]
_Line = Mapping[Any, Any]


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
        params, bytes: size of the model, bytes on disk.
        runtime_bytes: of the weights in the engine's memory.
        tokens: training tokens after the first finetuning (compress + recover).
        tokens_per_second: decoding speed, where `speed.with_speed` joined one; else NaN.
        records: index of the records in the frame.
        too_long: share of the problems whose prompt did not fit the model's context; they count as not solved. Where it
            is 1, the value describes no completion at all.
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
    runtime_bytes: float
    tokens: float
    tokens_per_second: float = math.nan
    records: tuple[int, ...] = ()
    too_long: float = 0.0


@dataclass(frozen=True)
class Row:
    """One line of a table; an uncompressed model has a single cell, at ratio 1, and so has a control.

    Attributes:
        budgeted: whether the row depends on how many steps follow the first finetuning.
        bits: of rounded weights; None where they are not rounded.
    """

    label: str
    stage: str
    cells: Mapping[float, Cell]
    method: str = ""
    budgeted: bool = False
    bits: int | None = None

    @property
    def uncompressed(self) -> bool:
        """Whether the row is a model before compression."""
        return self.stage in ("pretrained", "finetuned")

    @property
    def control(self) -> bool:
        """Whether the row is a dense model that was only quantised."""
        return self.method in CONTROLS


@dataclass(frozen=True)
class Pivot:
    """All rows that were measured under the same conditions.

    Attributes:
        data: start of the dataset and prompt hashes where one title would stand for different data, else empty.
        ratios: target ratios, ascending; 1 is the column of the uncompressed rows.
        rows: uncompressed rows first.
        note: what a reader of the values should know; may be empty.
        budget: optimizer steps after the first finetuning, where records of several budgets are at hand; else 0.
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
    note: str = ""
    budget: int = 0

    def goodness(self, cell: Cell) -> float:
        """Return a number that is larger for a better cell and equal for cells that are equal but for rounding."""
        return goodness(self.metric, self.higher_is_better, cell.value)

    @property
    def controls(self) -> tuple[Row, ...]:
        """The rows of plain quantisation."""
        return tuple(row for row in self.rows if row.control)

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
        steps = f", {self.budget:,} steps" if self.budget else ""
        conditions = f"n = {self.n} ({self.engine}, {self.dtype}{data}{steps})"
        return f"{self.model} · {self.task} · {self.variant}: {self.measure}, {conditions}"


def pivot(frame: pd.DataFrame, headline: bool = True) -> list[Pivot]:
    """Group records into tables.

    Records share a table only if model, task, benchmark variant, metric, scorer, number of problems, engine and number
    format are the same, and the data too (data generated from the training seed may differ between seeds). Different
    models of one name are called by their hash as well. Where
    models were trained for several numbers of steps after the first finetuning (`Pivot.budget`), each has a table;
    models that were trained for none, such as uncompressed ones, are in all of them. Within a table, rows that one
    label would merge are distinguished by their options or by their sweep. A table of uncompressed models alone without
    BOS is left out if their values with BOS differ little; else both have a note.

    Args:
        frame: records as `records.read_records` returns them; with a column ``origin``, rows of another origin are
            other rows.
        headline: take headline metrics only.

    Raises:
        UserError: there are no records, or two of them contradict each other.
    """
    frame = with_model_names(with_too_long(frame))
    chosen = frame[frame["headline"]] if headline else frame
    if chosen.empty:
        raise UserError("there are no records to show; name a run that has evaluated at least one model")
    groups: dict[tuple[Any, ...], list[_Line]] = {}
    seen: set[tuple[Any, ...]] = set()
    # Plain rows: a frame cut into thousands of cells costs a millisecond a cell and column.
    lines: list[_Line] = chosen[[c for c in _READ if c in chosen]].to_dict("records")  # type: ignore[assignment]
    for index, line in zip(chosen.index, lines, strict=True):
        line = {**line, "index": index}
        conditions = tuple(line[c] for c in _CONDITIONS)
        same = (*conditions, *(line[c] for c in _SAME), line["value"])
        if same not in seen:  # two sweeps in one frame may share an evaluate stage
            seen.add(same)
            groups.setdefault(conditions, []).append(line)
    tables = []
    for group in groups.values():
        data: dict[Any, set[tuple[str, ...]]] = {}
        parts: dict[tuple[str, ...], list[_Line]] = {}
        for line in group:
            hashes = tuple(line[c] for c in _DATA)
            data.setdefault(line["seed"], set()).add(hashes)
            parts.setdefault(hashes, []).append(line)
        # Data may be drawn from the training seed and then differ between seeds; two sets under one seed are different
        # problems or prompts, whose values do not belong in one table.
        if max(map(len, data.values())) > 1:
            for hashes, part in parts.items():
                tables += _by_budget(part, " ".join(h[:8] for h in hashes if h))
        else:
            tables += _by_budget(group, "")
    tables = _with_bos_notes(tables)
    order = {key: i for i, key in enumerate(dict.fromkeys((t.model, t.task) for t in tables))}
    return sorted(
        tables, key=lambda t: (order[t.model, t.task], t.benchmark, not t.compressed, t.metric, t.scorer, t.budget)
    )


def _by_budget(group: Sequence[_Line], data: str) -> list[Pivot]:
    """Return a table for each budget; models that depend on none are in all of them."""
    budgets = sorted({int(line[BUDGET]) for line in group} - {0})
    if len(budgets) < 2:
        return [_table(group, data)]
    parts = {budget: [line for line in group if line[BUDGET] in (0, budget)] for budget in budgets}
    return [replace(_table(part, data), budget=budget) for budget, part in parts.items()]


def same_but_budget(tables: Sequence[Pivot]) -> list[list[Pivot]]:
    """Return the tables in groups that differ in nothing but the budget, ascending in it."""
    groups: dict[str, list[Pivot]] = {}
    for table in tables:
        # The id keeps each table without a budget in a group of its own.
        groups.setdefault(replace(table, budget=0).title if table.budget else f"{id(table)}", []).append(table)
    return list(groups.values())


def _with_bos_notes(tables: Sequence[Pivot]) -> list[Pivot]:
    """Return the tables with a note where those with and without BOS differ, and without those that say nothing new."""

    def conditions(table: Pivot, variant: str) -> tuple[str, ...]:
        names = ("model", "task", "benchmark", "metric", "scorer", "engine", "dtype", "budget")
        return variant, *(getattr(table, name) for name in names)  # n may differ: a BOS takes a token's place

    shown = list(tables)
    for with_bos in tables:
        without_bos = conditions(with_bos, variant_without(with_bos.variant))
        for without in [table for table in tables if conditions(table, table.variant) == without_bos]:
            sentence = _bos_note(with_bos, without)
            if sentence:
                for table in (with_bos, without):
                    # A table that has a note already is a copy, and `rows` is the object that it shares.
                    shown = [replace(t, note=sentence) if t.rows is table.rows else t for t in shown]
            elif not without.compressed:
                shown = [t for t in shown if t.rows is not without.rows]
    return shown


def _bos_note(with_bos: Pivot, without: Pivot) -> str:
    """Return the sentence about the last uncompressed model that both tables have, or nothing where they agree."""
    values = [
        {row.label: cell.value for row in table.rows if row.uncompressed for cell in row.cells.values()}
        for table in (with_bos, without)
    ]
    for label in reversed([label for label in values[0] if label in values[1]]):
        pair = values[0][label], values[1][label]
        if differ(with_bos.metric, *pair):
            return bos_sentence(with_bos.variant, with_bos.metric, *pair)
    return ""


def with_model_names(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame in which models of one name but different hashes have the start of the hash in their name."""
    hashes = frame.groupby("model")["model_sha256"].nunique()
    if (hashes < 2).all():
        return frame
    several = frame["model"].map(hashes) > 1
    longer = frame["model"] + " (" + frame["model_sha256"].str[:8] + ")"
    return frame.assign(model=frame["model"].where(~several, longer))


def with_too_long(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with a column `TOO_LONG`: the share of prompts that did not fit, 0 where none was recorded."""
    if TOO_LONG in frame:
        return frame
    shares = frame.loc[frame["metric"] == TOO_LONG]
    if shares.empty:
        return frame.assign(**{TOO_LONG: 0.0})
    keys = [*_EVALUATION, *(["origin"] if "origin" in frame else [])]
    shares_by_row = dict(zip(shares[keys].itertuples(index=False, name=None), shares["value"], strict=True))
    return frame.assign(
        **{TOO_LONG: [shares_by_row.get(key, 0.0) for key in frame[keys].itertuples(index=False, name=None)]}
    )


def format_cell(metric: str, cell: Cell) -> tuple[str, str]:
    """Return a cell as two texts, the value and the interval; the second ends in ``(3)`` for a mean of three seeds.

    A value that includes prompts which did not fit the model ends in ``†``; where none did, there is no value.
    """
    if cell.too_long == 1:
        return "–", "no prompt fits"
    count = f" ({len(cell.seeds)})" if cell.across_seeds else ""
    mark = "†" if cell.too_long else ""
    return format_value(metric, cell.value) + mark, (
        f"[{format_value(metric, cell.low)}, {format_value(metric, cell.high)}]{count}"
    )


def _table(group: Sequence[_Line], data: str) -> Pivot:
    first = group[0]
    parts: dict[tuple[str, str], dict[float, list[_Line]]] = {}
    methods: dict[str, str] = {}
    bits: dict[str, int | None] = {}
    for label, line in zip(shown_labels(group), group, strict=True):
        ratio = 1.0 if line["method"] == "none" else float(line["ratio_target"])
        parts.setdefault((label, line["stage"]), {}).setdefault(ratio, []).append(line)
        methods.setdefault(label, line["method"])
        bits.setdefault(label, json.loads(line["options"]).get("bits"))
    rows = [
        Row(
            label,
            stage,
            {ratio: _cell(label, cells[ratio]) for ratio in sorted(cells)},
            methods[label],
            any(line[BUDGET] for part in cells.values() for line in part),
            bits[label],
        )
        for (label, stage), cells in parts.items()
    ]
    rank = {"pretrained": 0, "finetuned": 1}
    # The sort is stable: compressed rows keep the order of the records.
    rows.sort(key=lambda row: rank.get(row.stage, 2))
    names = ("model", "task", "benchmark", "variant", "metric", "scorer", "engine", "dtype")
    conditions: dict[str, Any] = {name: str(first[name]) for name in names}
    return Pivot(
        **conditions,
        n=int(first["n"]),
        data=data,
        higher_is_better=bool(first["higher_is_better"]),
        confidence=float(first["confidence"]),
        ratios=tuple(sorted({ratio for row in rows for ratio in row.cells})),
        rows=tuple(rows),
    )


def _cell(label: str, lines: Sequence[_Line]) -> Cell:
    seeds = tuple(sorted(int(line["seed"]) for line in lines))
    first = lines[0]
    if len(set(seeds)) < len(seeds):
        raise UserError(
            f"two records give {first['metric']} of '{label}' on {first['variant']} at ratio {first['ratio_target']:g} "
            f"and seed {first['seed']}; leave one of them out"
        )
    values = [float(line["value"]) for line in lines]
    value, low, high = mean(values), float(first["low"]), float(first["high"])
    # An infinite mean (a perplexity that overflowed) has no interval across seeds.
    spread = len(set(values)) > 1 and math.isfinite(value)
    if spread:
        low, high = across_seeds(values, float(first["confidence"]), *limits(first["metric"]))
    names = ("ratio", "kept", "ratio_matrices", "params", "bytes", "runtime_bytes")
    means = {name: mean([line[name] for line in lines]) for name in names}
    tokens = mean([line["tokens_compress"] + line["tokens_recover"] for line in lines])
    speeds = [float(line.get("tokens_per_second", math.nan)) for line in lines]
    speed = mean([speed for speed in speeds if not math.isnan(speed)])
    records = tuple(line["index"] for line in lines)
    too_long = mean([line[TOO_LONG] for line in lines])
    measured = {"tokens": tokens, "tokens_per_second": speed, "too_long": too_long}
    return Cell(value, low, high, seeds, spread, **means, **measured, records=records)


def mean(values: Sequence[float]) -> float:
    """Return the mean of numbers, summed as pandas does; NaN of none."""
    import numpy as np

    return float(np.asarray(values, dtype="float64").sum()) / len(values) if values else math.nan
