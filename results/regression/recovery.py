"""Recovery of every cell of a run: compressed over uncompressed, with what is known of its standard error."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, variance
from typing import TYPE_CHECKING, Any, NamedTuple

from ...foundation.errors import UserError
from ...records.metrics import has_ideal

if TYPE_CHECKING:
    import pandas as pd

UNCOMPRESSED = ("pretrained", "finetuned")


class CellName(NamedTuple):
    """What a cell is called on both sides of a check; seeds and conditions are not part of it.

    The budget is, where a side has several; else it is 0, and a condition.
    """

    model: str
    task: str
    benchmark: str
    variant: str
    metric: str
    scorer: str
    label: str
    stage: str
    ratio_target: float
    steps_budget: int = 0

    @property
    def uncompressed(self) -> bool:
        """Whether this is a model before compression."""
        return self.stage in UNCOMPRESSED

    @property
    def row(self) -> str:
        """The cell within its measure, such as ``svd 3×``."""
        if self.uncompressed:
            return f"uncompressed ({self.stage})"
        steps = f", {self.steps_budget:,} steps" if self.steps_budget else ""
        return f"{self.label} {self.ratio_target:g}×{steps}{', not recovered' if self.stage == 'compressed' else ''}"

    @property
    def measure(self) -> str:
        """What was measured, such as ``tiny · toy-math · toy-math-250-0shot: accuracy (strict)``."""
        scorer = f" ({self.scorer})" if self.scorer else ""
        return f"{self.model} · {self.task} · {self.variant}: {self.metric}{scorer}"

    @property
    def reference(self) -> tuple[str, ...]:
        """What a cell shares with the uncompressed model that it is divided by."""
        return self[:6]


@dataclass(frozen=True)
class Estimate:
    """One cell of one side.

    Attributes:
        values: of each seed, in the order of ``seeds``: the recovery (a fraction); of an uncompressed model its gain
            (the metric itself, or 1 / metric where lower is better), which has no other scale than its own.
        errors: standard error of each value over problems, from the records' intervals.
        seeds: ascending.
        datasets: dataset hash of each seed.
        metric: mean of the metric itself, over seeds.
        ratio, bytes: achieved ratio and size of the weights, means over seeds.
        conditions: what must be equal on both sides, by column; each a sorted tuple of texts.
        options: the method's options.
        undefined: why there is no recovery, or no finite gain; empty where there is one.
    """

    values: tuple[float, ...]
    errors: tuple[float, ...]
    seeds: tuple[int, ...]
    datasets: tuple[str, ...]
    metric: float
    ratio: float
    bytes: float
    conditions: Mapping[str, tuple[str, ...]]
    options: Mapping[str, Any]
    undefined: str = ""

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return fmean(self.values)

    @property
    def problems(self) -> float:
        """Standard error of the mean over problems; seeds that share their problems share that error."""
        squares = fmean(error**2 for error in self.errors)
        return math.sqrt(squares / len(set(self.datasets)))

    @property
    def seed_variance(self) -> float:
        """Variance of single seeds; NaN for one seed."""
        return variance(self.values) if len(self.values) > 1 else math.nan


def has_budgets(frame: pd.DataFrame) -> bool:
    """Whether models of a frame were trained for several numbers of steps after the first finetuning."""
    return len(set(frame["steps_budget"]) - {0}) > 1


def estimates(frame: pd.DataFrame, budgets: bool | None = None) -> dict[CellName, Estimate]:
    """Return every cell of a frame of records, in its order.

    The uncompressed model of a cell is the finetuned one of the same model, task, variant, metric and scorer, with the
    same seed where there is one, else the mean over its seeds; the pretrained one where nothing was finetuned.
    Metrics whose ideal lies in the middle (measures of bias) have no recovery and are left out.

    Args:
        frame: records.
        budgets: whether cells are named by their budget; None where the frame has several.

    Raises:
        UserError: two records give one cell and seed.
    """
    groups: dict[CellName, dict[int, dict[str, Any]]] = {}
    rows: list[dict[str, Any]] = frame.to_dict("records")  # type: ignore[assignment]
    named = has_budgets(frame) if budgets is None else budgets
    for row in rows:
        if has_ideal(row["metric"]):
            continue
        name = CellName(**{field: row[field] for field in CellName._fields})
        if not named:
            name = name._replace(steps_budget=0)
        if name.uncompressed:
            name = name._replace(label="uncompressed", ratio_target=1.0)
        # Two sweeps may share an evaluate stage: the same stage and value twice are no contradiction.
        earlier = groups.setdefault(name, {}).setdefault(int(row["seed"]), row)
        if earlier is not row and (earlier["stage_key"], earlier["value"]) != (row["stage_key"], row["value"]):
            raise UserError(
                f"two records give {row['metric']} of {name.row} on {row['variant']} at seed {row['seed']}; "
                "keep one of them, such as with --where sweep=NAME"
            )
    references = _references(groups)
    return {name: _estimate(name, seeds, references.get(name.reference, {})) for name, seeds in groups.items()}


def with_references(frame: pd.DataFrame, chosen: pd.DataFrame) -> pd.DataFrame:
    """Return chosen records with the uncompressed models that their recoveries are divided by."""
    names = list(CellName._fields[:6])
    measures = set(chosen[names].itertuples(index=False, name=None))
    own = frame.index.isin(chosen.index)
    rows = zip(frame[names].itertuples(index=False, name=None), frame["stage"], own, strict=True)
    return frame[[its_own or (stage in UNCOMPRESSED and measure in measures) for measure, stage, its_own in rows]]


def gain(row: Mapping[Any, Any]) -> tuple[float, float]:
    """Return a record's gain, of which more is better, and its standard error.

    The gain is the metric, or 1 / metric where lower is better (perplexity). The standard error is the interval's width
    over twice the normal quantile of its confidence; for 1 / metric, on the logarithm of the metric. An end that bounds
    nothing leaves the other half; with neither, the error is 0, for nothing is known. Dividing t intervals by the
    normal quantile keeps the width that they have for few units.
    """
    value, low, high = float(row["value"]), float(row["low"]), float(row["high"])
    quantile = NormalDist().inv_cdf((1 + float(row["confidence"])) / 2)
    if row["higher_is_better"]:
        return value, _half_width(value, low, high) / quantile
    if value <= 0:
        return math.inf, 0.0
    if math.isinf(value):
        return 0.0, 0.0
    logs = (math.log(end) if end > 0 else -math.inf for end in (value, low, high))
    # To first order the error of 1 / v is that of log v times 1 / v.
    return 1 / value, _half_width(*logs) / quantile / value


def _half_width(value: float, low: float, high: float) -> float:
    if math.isfinite(low) and math.isfinite(high):
        return (high - low) / 2
    return next((abs(end - value) for end in (low, high) if math.isfinite(end)), 0.0)


def _references(
    groups: Mapping[CellName, Mapping[int, Mapping[str, Any]]],
) -> dict[tuple[str, ...], dict[int, tuple[float, float]]]:
    gains: dict[tuple[str, ...], dict[int, tuple[float, float]]] = {}
    for stage in UNCOMPRESSED:  # the finetuned model replaces the pretrained one
        for name, rows in groups.items():
            if name.stage == stage:
                gains[name.reference] = {seed: gain(row) for seed, row in rows.items()}
    return gains


def _estimate(
    name: CellName, rows: Mapping[int, Mapping[str, Any]], reference: Mapping[int, tuple[float, float]]
) -> Estimate:
    seeds = tuple(sorted(rows))
    ordered = [rows[seed] for seed in seeds]
    gains = [gain(row) for row in ordered]
    undefined = ""
    if name.uncompressed:
        values = gains
        if not all(math.isfinite(value) for value, _ in gains):
            undefined = f"{name.metric} has no finite gain"
    else:
        bases = [reference.get(seed) or _mean(reference.values()) for seed in seeds]
        undefined = _why_undefined(bases)
        values = [(math.nan, 0.0) if undefined else _ratio(g, b) for g, b in zip(gains, bases, strict=True)]
    return Estimate(
        values=tuple(value for value, _ in values),
        errors=tuple(error for _, error in values),
        seeds=seeds,
        datasets=tuple(str(row["dataset_sha256"]) for row in ordered),
        metric=fmean(float(row["value"]) for row in ordered),
        ratio=fmean(float(row["ratio"]) for row in ordered),
        bytes=fmean(float(row["bytes"]) for row in ordered),
        conditions=_conditions(ordered),
        options=json.loads(ordered[0]["options"]),
        undefined=undefined,
    )


def _mean(gains: Iterable[tuple[float, float]]) -> tuple[float, float] | None:
    known = list(gains)
    if not known:
        return None
    return fmean(value for value, _ in known), math.sqrt(fmean(error**2 for _, error in known))


def _why_undefined(bases: Sequence[tuple[float, float] | None]) -> str:
    if any(base is None for base in bases):
        return "the uncompressed model was not measured"
    if any(base is not None and not 0 < base[0] < math.inf for base in bases):
        return "the uncompressed model scores nothing that could be recovered"
    return ""


def _ratio(compressed: tuple[float, float], base: tuple[float, float] | None) -> tuple[float, float]:
    """Return the quotient and its standard error to first order, both errors taken as independent."""
    assert base is not None
    (value, error), (whole, whole_error) = compressed, base
    return value / whole, math.hypot(error / whole, value * whole_error / whole**2)


def _conditions(rows: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    plain = ("model_sha256", "n", "engine", "dtype", "steps_finetune")
    conditions = {column: tuple(sorted({str(row[column]) for row in rows})) for column in plain}
    after = {str(row["steps_compress"] + row["steps_recover"]) for row in rows}
    return conditions | {"steps after the first finetuning": tuple(sorted(after))}
