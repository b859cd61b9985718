"""What a report says, as plain data: made by `results.report` from records and stages, rendered here without them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

Facts = tuple[tuple[str, str], ...]
"""Names and values in order."""


@dataclass(frozen=True)
class Asked:
    """What the run was to find out.

    Attributes:
        facts: model, task, ratios, seeds, benchmarks, training.
        methods: label, registered name and options of each method.
        config: the sweep's YAML without paths; empty where it is not there.
    """

    facts: Facts
    methods: tuple[tuple[str, str, str], ...]
    config: str = ""


@dataclass(frozen=True)
class Paired:
    """A paired test of one row against the leader of a table at one ratio, on the problems (or windows) that both have.

    Attributes:
        table: number of the table in `pivot.pivot` of the records.
        leader, label: rows; the leader has the better estimate.
        difference, low, high: by how much the leader is better, with its 95 % interval: share of right answers, or nats
            per token.
        p_value: two-sided; ``p_corrected`` is Holm's over all comparisons that the page shows together.
        units: how many ``unit`` (problems or windows) it is over.
        seeds: seeds that both have; their answers to a problem are averaged.
        every_seed: whether the leader is ahead in each of them.
        test: its name.
    """

    table: int
    ratio: float
    leader: str
    label: str
    difference: float
    low: float
    high: float
    p_value: float
    p_corrected: float
    units: int
    unit: str
    seeds: int
    every_seed: bool
    test: str


@dataclass(frozen=True)
class Cost:
    """One stage that was run once.

    Attributes:
        kind: ``finetune``, ``fit``, ``compress``, ``recover``, ``quantise`` or ``evaluate``.
        labels: rows that need it, more than one where it was shared; uncompressed rows are left out where others need
            it too.
        seconds: wall clock.
        steps, tokens: of training; 0 where nothing was trained.
    """

    kind: str
    labels: tuple[str, ...]
    seconds: float
    steps: int
    tokens: int


@dataclass(frozen=True)
class Rank:
    """What became of one matrix.

    Attributes:
        rank: None where it stayed dense.
        full: its full rank, min(m, n).
        share: stored parameters over those of the dense matrix (m·n); a shared factor counts where it is stored.
        shared: whether it uses the first factor of another matrix.
    """

    rank: int | None
    full: int
    share: float
    shared: bool = False


@dataclass(frozen=True)
class RankMap:
    """Ranks of a model at one ratio, layer by kind of matrix.

    Attributes:
        labels: rows of the tables whose models have exactly these ranks.
        ratio: target.
        seed: whose ranks these are.
        same: whether all seeds have them.
        layers: names of layers; ``""`` holds matrices outside of layers.
        kinds: short names of matrices, such as ``q_proj``.
        cells: by layer and kind; None where there is no such matrix.
    """

    labels: tuple[str, ...]
    ratio: float
    seed: int
    same: bool
    layers: tuple[str, ...]
    kinds: tuple[str, ...]
    cells: tuple[tuple[Rank | None, ...], ...]


@dataclass(frozen=True)
class Energy:
    """Cumulative energy of one kind of matrix over the layers.

    Attributes:
        kind: short name of the matrices.
        matrices: how many.
        full: largest full rank.
        shares: places on the axis, rank / full rank, ascending from 0 to 1.
        median, low, high: share of the squared spectrum in the first parts; median, least and most over the layers.
        rank90: share of the full rank that holds 90 % of the energy; median over the layers.
    """

    kind: str
    matrices: int
    full: int
    shares: tuple[float, ...]
    median: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    rank90: float


@dataclass(frozen=True)
class Spectra:
    """Spectra of one fit.

    Attributes:
        name: what was decomposed, as the fit calls it.
        labels: rows of the tables that start from it.
        seed: of the fit.
        kinds: one entry a kind of matrix.
    """

    name: str
    labels: tuple[str, ...]
    seed: int
    kinds: tuple[Energy, ...]


@dataclass(frozen=True)
class Counted:
    """Completions of one row at one ratio by what was wrong with them; all seeds together."""

    label: str
    ratio: float
    total: int
    counts: Mapping[str, int]


@dataclass(frozen=True)
class Example:
    """A completion that failed; long texts are shortened.

    Attributes:
        kind: of failure.
        prompt: empty where the data are not there to make it from.
        gold: right answer, empty where the samples do not hold it.
        answer: what the headline's scorer read in the completion.
        verdict: the scorer's, with the judge's detail of a program.
    """

    kind: str
    label: str
    ratio: float
    seed: int
    problem: str
    prompt: str
    completion: str
    gold: str
    answer: str
    verdict: str


@dataclass(frozen=True)
class Failures:
    """What went wrong in one benchmark's answers.

    Attributes:
        title: benchmark variant and scorer.
        kinds: kinds of failure that occur, the most frequent first.
    """

    title: str
    kinds: tuple[str, ...]
    counted: tuple[Counted, ...]
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class FailedStage:
    """A stage that ended with an error.

    Attributes:
        title: what it was.
        error: its last words, shortened.
        ended: when it failed.
        later: whether the same stage was done later.
    """

    title: str
    error: str
    ended: str
    later: bool


@dataclass(frozen=True)
class Report:
    """Everything on the page.

    Attributes:
        records: the run's, as `records.read_records` returns them.
        orders: where models were trained for several budgets, tests of every pair of rows at a ratio and budget, the
            one with the better estimate as leader, corrected for all pairs and budgets of the ratio.
        span: start and end of its stages, UTC; empty where they are not there.
        missing: why a section is empty or shows less than it could, one sentence each, by section.
    """

    title: str
    records: pd.DataFrame = field(compare=False)
    asked: Asked
    paired: tuple[Paired, ...] = ()
    orders: tuple[Paired, ...] = ()
    costs: tuple[Cost, ...] = ()
    span: tuple[str, ...] = ()
    ranks: tuple[RankMap, ...] = ()
    spectra: tuple[Spectra, ...] = ()
    failures: tuple[Failures, ...] = ()
    failed: tuple[FailedStage, ...] = ()
    origin: Facts = ()
    missing: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
