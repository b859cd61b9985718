"""Comparing two sides cell by cell: what fell by more than chance explains, what is missing, what cheats its ratio."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ...foundation.errors import UserError
from ...records.intervals import t_quantile
from .recovery import CellName, Estimate, estimates, has_budgets

if TYPE_CHECKING:
    import pandas as pd

FALSE_ALARMS = 0.05
"""Largest probability that a check of an unchanged method fails, over all its cells together."""
_NOMINAL = 0.02
"""What the threshold is computed for; the rest covers that variances are estimated from few seeds (by simulation)."""
_MANY = 10**6
"""Degrees of freedom where only problems vary: the normal distribution."""
_EDGE = 0.02
"""A recovery this near to 0 or 1 is taken as this far from it, when its variance is judged by those of other cells."""
SIZE_TOLERANCE = 0.01
"""So much larger than in the baseline a model may be, in parameters and in bytes."""


@dataclass(frozen=True)
class Tolerance:
    """When a fall is an alarm: both have to be exceeded.

    Attributes:
        sigmas: standard errors of the difference; the correction for many cells may ask for more.
        min_drop: recovery, as a fraction.
    """

    sigmas: float = 3.0
    min_drop: float = 0.02

    def __post_init__(self) -> None:
        """Refuse what is no tolerance.

        Raises:
            UserError: a number is negative or not finite.
        """
        for name, value, example in (("--sigmas", self.sigmas, "3"), ("--min-drop", 100 * self.min_drop, "2")):
            if not (math.isfinite(value) and value >= 0):
                raise UserError(f"{name} is {value:g} and has to be 0 or more; the default is {example}")


@dataclass(frozen=True)
class Comparison:
    """One cell on both sides.

    Attributes:
        base, run: None where that side lacks the cell.
        before, after: recovery on each side, as fractions; of an uncompressed model the gain over the baseline's mean
            gain. NaN where undefined.
        error: standard error of ``after - before``.
        threshold: standard errors from which a fall or a rise is more than chance.
        verdict: ``same``, ``fell``, ``rose``, ``missing``, ``new``, ``other conditions`` or ``undefined``.
        faults: reasons for which the check fails; notes: what else there is to say; neither names the cell.
    """

    name: CellName
    base: Estimate | None
    run: Estimate | None
    verdict: str
    before: float = math.nan
    after: float = math.nan
    error: float = math.nan
    threshold: float = math.nan
    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def change(self) -> float:
        """Difference of the recoveries, as a fraction."""
        return self.after - self.before

    @property
    def sigmas(self) -> float:
        """The change in standard errors; infinite where nothing is known to vary."""
        if self.error > 0 or not self.change:
            return self.change / self.error if self.change else 0.0
        return math.copysign(math.inf, self.change) if math.isfinite(self.change) else math.nan


@dataclass(frozen=True)
class Check:
    """All cells of a check, the baseline's first."""

    cells: tuple[Comparison, ...]
    tolerance: Tolerance
    notes: tuple[str, ...] = field(default=())

    def sentences(self) -> tuple[list[str], list[str]]:
        """Return faults and notes with their cells before them; cells of a measure with one reason share a sentence."""
        faults, notes = (
            [(c.name, text) for c in self.cells for text in getattr(c, kind)] for kind in ("faults", "notes")
        )
        return _with_cells(faults), [*_with_cells(notes), *self.notes]

    @property
    def failed(self) -> tuple[Comparison, ...]:
        """Cells with a fault."""
        return tuple(cell for cell in self.cells if cell.faults)


def _with_cells(reasons: Sequence[tuple[CellName, str]]) -> list[str]:
    groups: dict[tuple[str, str], list[str]] = {}
    for name, reason in reasons:
        groups.setdefault((name.measure, reason), []).append(name.row)
    return [f"{', '.join(rows)} on {measure}: {reason}" for (measure, reason), rows in groups.items()]


def check_run(run: pd.DataFrame, baseline: pd.DataFrame, tolerance: Tolerance) -> Check:
    """Compare a run's records with a baseline's.

    Args:
        run: records, with every metric that the baseline has.
        baseline: records of the baseline.
        tolerance: when a fall is an alarm.

    Raises:
        UserError: the two have no cell in common, or one holds two records of a cell and seed.
    """
    for side, frame in (("run", run), ("baseline", baseline)):
        if frame.empty:
            raise UserError(f"the {side} has no records; name a run that has evaluated at least one model")
    # One decision for both sides: else the same cell has two names and counts as missing and as new.
    budgets = has_budgets(baseline) or has_budgets(run)
    bases, runs = estimates(baseline, budgets), estimates(run, budgets)
    measures = {name.reference for name in bases}
    # A row that the baseline lacks is reported as new; a whole measure that it lacks was never to be checked.
    runs = {name: estimate for name, estimate in runs.items() if name.reference in measures}
    if not bases.keys() & runs.keys():
        raise UserError(
            "the run and the baseline have no cell in common; compare runs of the same model, task and benchmarks, or "
            "make a baseline of this run with 'bench baseline update'"
        )
    comparable = {
        name: (bases[name], runs[name])
        for name in bases
        if name in runs
        and not _lacks_scale(name, bases[name])
        and not (_other_conditions(bases[name], runs[name]) or bases[name].undefined or runs[name].undefined)
    }
    scales = {name: base.mean if name.uncompressed else 1.0 for name, (base, _) in comparable.items()}
    pools = _pools(comparable, scales)
    cells = []
    for name in [*bases, *(name for name in runs if name not in bases)]:
        if name in comparable:
            base, other = comparable[name]
            cells.append(_compare(name, base, other, scales[name], pools[name.reference], len(comparable), tolerance))
        else:
            cells.append(_not_compared(name, bases.get(name), runs.get(name)))
    if not any(not name.uncompressed for name in comparable) and not any(cell.faults for cell in cells):
        raise UserError(
            "no compressed cell could be compared, since none has an uncompressed model beside it; make the baseline "
            "of a run that has one"
        )
    return Check(tuple(cells), tolerance, tuple(_general_notes(pools)))


@dataclass(frozen=True)
class _Pool:
    """What all cells of a measure say about the variance between seeds.

    Cells on the slope of a curve vary most, those near full recovery and near none hardly: the variance is taken as
    proportional to m (1 - m) of the mean recovery m, as that of a share is, and the factor is common to the measure.

    Attributes:
        factor: variance of a single seed over m (1 - m); NaN if unknown.
        degrees: effective degrees of freedom; 0 if unknown.
    """

    factor: float
    degrees: int

    def variance(self, recovery: float) -> float:
        """Return the variance of a single seed at a mean recovery."""
        return self.factor * _shape(recovery) if self.degrees else 0.0


def _shape(recovery: float) -> float:
    inside = min(max(recovery, _EDGE), 1 - _EDGE)
    return inside * (1 - inside)


def _pools(
    pairs: Mapping[CellName, tuple[Estimate, Estimate]], scales: Mapping[CellName, float]
) -> dict[tuple[str, ...], _Pool]:
    variances: dict[tuple[str, ...], list[tuple[float, int]]] = {}
    for name, (base, run) in pairs.items():
        own, degrees = _own_variance(base, run, scales[name])
        share = own / _shape((base.mean + run.mean) / 2 / scales[name])
        variances.setdefault(name.reference, []).append((share, degrees))
    return {reference: _pool([(v, d) for v, d in own if d]) for reference, own in variances.items()}


def _pool(own: Sequence[tuple[float, int]]) -> _Pool:
    degrees = sum(d for _, d in own)
    if not degrees:
        return _Pool(math.nan, 0)
    shares = [factor * d for factor, d in own]
    if not sum(shares):
        return _Pool(0.0, degrees)
    # Satterthwaite: cells that hardly vary say nothing about those that do.
    effective = sum(shares) ** 2 / sum(share**2 / d for share, (_, d) in zip(shares, own, strict=True))
    return _Pool(sum(shares) / degrees, max(1, round(effective)))


def _own_variance(base: Estimate, run: Estimate, scale: float) -> tuple[float, int]:
    """Return the variance of single seeds of both sides together, and its degrees of freedom."""
    sides = [(side.seed_variance / scale**2, len(side.seeds) - 1) for side in (base, run) if len(side.seeds) > 1]
    degrees = sum(d for _, d in sides)
    return (sum(v * d for v, d in sides) / degrees if degrees else math.nan), degrees


def _compare(
    name: CellName, base: Estimate, run: Estimate, scale: float, pool: _Pool, cells: int, tolerance: Tolerance
) -> Comparison:
    before, after = base.mean / scale, run.mean / scale
    own, degrees = _own_variance(base, run, scale)
    # The larger of two estimates: a few seeds lie close together by chance, and their own variance is then too small.
    between = max(own if degrees else 0.0, pool.variance((before + after) / 2))
    seeds = between * (1 / len(base.seeds) + 1 / len(run.seeds))
    problems = (base.problems**2 + run.problems**2) / scale**2
    # Not the sum: where problems differ between seeds, the spread of seeds contains them; where they are the same,
    # they cancel.
    error = math.sqrt(max(seeds, problems))
    # Bonferroni over the cells, and one-sided, since only a fall fails; t_quantile is two-sided, hence the 2.
    threshold = max(tolerance.sigmas, t_quantile(1 - 2 * _NOMINAL / cells, pool.degrees or _MANY))
    result = Comparison(name, base, run, "same", before, after, error, threshold)
    beyond = abs(result.sigmas) > threshold and abs(result.change) > tolerance.min_drop
    verdict = ("rose" if result.change > 0 else "fell") if beyond else "same"
    faults = [_moved(result, "fell", tolerance)] if verdict == "fell" else []
    notes = [_moved(result, "rose", tolerance)] if verdict == "rose" else []
    faults += _size_faults(base, run)
    notes += _size_notes(base, run) + _option_notes(base, run)
    return Comparison(
        name, base, run, verdict, before, after, error, threshold, faults=tuple(faults), notes=tuple(notes)
    )


def _moved(cell: Comparison, word: str, tolerance: Tolerance) -> str:
    assert cell.base is not None
    assert cell.run is not None
    measure = "score (baseline = 100)" if cell.name.uncompressed else "recovery"
    return (
        f"{measure} {word} from {_percent(cell.before)} to {_percent(cell.after)} "
        f"by {abs(100 * cell.change):.1f} points, {abs(cell.sigmas):.1f} standard errors "
        f"(alarm from {cell.threshold:.1f} and {100 * tolerance.min_drop:g} points); {cell.name.metric} "
        f"{cell.base.metric:.4g} over {_seeds(cell.base)} before, {cell.run.metric:.4g} over {_seeds(cell.run)} now"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _seeds(side: Estimate) -> str:
    return f"{len(side.seeds)} seed{'s' if len(side.seeds) > 1 else ''}"


def _size_faults(base: Estimate, run: Estimate) -> list[str]:
    faults = []
    if run.ratio < base.ratio / (1 + SIZE_TOLERANCE):
        faults.append(
            f"the achieved ratio fell from {base.ratio:.3f}× to {run.ratio:.3f}×; "
            f"a larger model is not compared as if it were as small (tolerance {100 * SIZE_TOLERANCE:g} %)"
        )
    # Only at an equal ratio: more parameters are more bytes, and that would be the same fault twice.
    elif base.bytes and run.bytes > base.bytes * (1 + SIZE_TOLERANCE):
        faults.append(
            f"the weights grew from {base.bytes:,.0f} to {run.bytes:,.0f} bytes "
            f"at the same count of parameters (tolerance {100 * SIZE_TOLERANCE:g} %)"
        )
    return faults


def _size_notes(base: Estimate, run: Estimate) -> list[str]:
    if run.ratio > base.ratio * (1 + SIZE_TOLERANCE):
        return [f"the achieved ratio rose from {base.ratio:.3f}× to {run.ratio:.3f}×"]
    return []


def _option_notes(base: Estimate, run: Estimate) -> list[str]:
    changed = sorted(base.options.keys() ^ run.options.keys())
    return [f"options that only one side has: {', '.join(changed)}"] if changed else []


def _not_compared(name: CellName, base: Estimate | None, run: Estimate | None) -> Comparison:
    if run is None:
        fault = "missing in the run; run it, or take it out of the baseline with 'bench baseline update'"
        before = math.nan if base is None or base.undefined else 1.0 if name.uncompressed else base.mean
        return Comparison(name, base, run, "missing", before=before, faults=(fault,))
    if base is None:
        after = math.nan if run.undefined or name.uncompressed else run.mean
        return Comparison(name, base, run, "new", after=after, notes=("new, not in the baseline",))
    if differing := _other_conditions(base, run):
        fault = f"measured under other conditions, so nothing can be said: {'; '.join(differing)}"
        return Comparison(name, base, run, "other conditions", faults=(fault,))
    if _lacks_scale(name, base):
        note = f"not checked; {name.metric} is 0 in the baseline, so no change can be given relative to it"
        return Comparison(name, base, run, "undefined", notes=(note,))
    if base.undefined:
        return Comparison(name, base, run, "undefined", notes=(f"not checked; in the baseline {base.undefined}",))
    return Comparison(name, base, run, "undefined", faults=(f"no recovery; in the run {run.undefined}",))


def _lacks_scale(name: CellName, base: Estimate) -> bool:
    """Whether nothing can be said relative to an uncompressed model of the baseline, since its gain is 0."""
    return name.uncompressed and not base.undefined and not base.mean


def _other_conditions(base: Estimate, run: Estimate) -> list[str]:
    differing = [
        f"{column} is {' and '.join(base.conditions[column])} in the baseline, {' and '.join(values)} in the run"
        for column, values in run.conditions.items()
        if base.conditions[column] != values
    ]
    # An option of one side alone is a note (`_option_notes`): a method that got a new option is still comparable.
    differing += [
        f"option {option} is {value!r} in the baseline, {run.options[option]!r} in the run"
        for option, value in base.options.items()
        if option in run.options and run.options[option] != value
    ]
    data = dict(zip(base.seeds, base.datasets, strict=True))
    fixed = len(set(base.datasets)) == 1 and len(base.datasets) > 1  # else the data may be drawn from the seed
    for seed, dataset in zip(run.seeds, run.datasets, strict=True):
        expected = data.get(seed, base.datasets[0] if fixed else dataset)
        if dataset != expected:
            differing.append(
                f"the problems of seed {seed} are others (dataset_sha256 {expected[:8]} and {dataset[:8]})"
            )
    return differing


def _general_notes(pools: Mapping[tuple[str, ...], _Pool]) -> list[str]:
    if all(pool.degrees for pool in pools.values()):
        return []
    return [
        "neither side has two seeds of a cell, so differences between seeds are unknown and may raise an alarm; "
        "make the baseline with several, such as --seeds 1,2,3"
    ]
