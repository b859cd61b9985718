"""From records to boards: one board for each set of conditions, a row for each method, a column for each ratio band."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ...foundation.errors import UserError
from ...foundation.files import digest
from ...records.bos import bos_sentence, differ, variant_without
from ...records.schema import KEY_COLUMNS
from ..tables.names import shorten
from ..tables.pivot import Cell, Pivot, has_ideal, pivot, with_too_long
from .bands import SHORTFALL, band_name, bands
from .provenance import Provenance, provenances
from .ranking import NO_SAMPLES, Contender, Scores, Standing, rank

if TYPE_CHECKING:
    import pandas as pd

ORIGIN = "origin"
"""Column of a leaderboard's frame: empty for what was measured here, else how a submission is called."""

Samples = Mapping[tuple[str, str, str], Scores | str]
"""Scores by stage key, metric and scorer, or why there are none."""

_STRICT = ["model_sha256", "confidence", "dataset_sha256", "prompt_sha256", "higher_is_better"]
_CONDITIONS = (
    *("model", "model_sha256", "task", "benchmark", "variant", "metric", "scorer", "n", "engine", "dtype"),
    *("confidence", "dataset_sha256", "prompt_sha256", "higher_is_better"),
)


@dataclass(frozen=True)
class Entry:
    """One row in one band.

    Attributes:
        id: unique in the leaderboard, the same for equal records.
        label: the row's name.
        origin: empty if measured here, else the submission's name.
        stage: of the evaluated model.
        target: the ratio asked for; ``band`` is the column it is in, NaN if uncompressed.
        cell: value, interval, sizes; see `pivot.Cell`.
        speeds: decoding speed in tokens per second by the conditions under which it was timed.
        standing: rank and test; None for uncompressed models.
        provenance: where the value comes from.
    """

    id: str
    label: str
    origin: str
    stage: str
    target: float
    band: float
    cell: Cell
    speeds: Mapping[str, float]
    standing: Standing | None
    provenance: Provenance

    @property
    def uncompressed(self) -> bool:
        """Whether this is a model before compression."""
        return self.standing is None


@dataclass(frozen=True)
class Board:
    """All entries that were measured under the same conditions.

    Attributes:
        id: hash of the conditions.
        table: the conditions in words; its rows are not used.
        data: start of the hashes of data and prompts where another board has the same title, else empty.
        bands: columns, ascending.
        entries: compressed models, by row and band.
        references: uncompressed models.
        elsewhere: uncompressed models under another variant of the benchmark, with that variant, for reference only.
        note: what a reader of the values should know; may be empty.
    """

    id: str
    table: Pivot
    dataset_sha256: str
    prompt_sha256: str
    model_sha256: str
    bands: tuple[float, ...]
    entries: tuple[Entry, ...]
    references: tuple[Entry, ...]
    elsewhere: tuple[tuple[str, Entry], ...] = ()
    data: str = ""
    note: str = ""

    @property
    def title(self) -> str:
        """Model, task and variant, without the rest of the conditions."""
        return " · ".join(shorten(name, 60) for name in (self.table.model, self.table.task, self.table.variant))

    @property
    def conditions(self) -> str:
        """What was measured and under which conditions, the title's parts left out."""
        table = self.table
        data = f", data {self.data}" if self.data else ""
        level = "" if table.confidence == 0.95 else f", {100 * table.confidence:g} % intervals"
        steps = f", {table.budget:,} steps after the first finetuning" if table.budget else ""
        engine = f"{shorten(table.engine, 40)}, {shorten(table.dtype, 40)}{level}{steps}{data}"
        return f"{self.measure}, n = {table.n} ({engine})"

    @property
    def measure(self) -> str:
        """The metric with its scorer and unit."""
        return shorten(self.table.measure, 60)

    def rows(self) -> list[tuple[str, dict[float, Entry]]]:
        """Return labels with their entries by band; best first in the first of the fullest bands, the others after."""
        entries: dict[str, dict[float, Entry]] = {}
        for entry in self.entries:
            entries.setdefault(entry.label, {})[entry.band] = entry
        if self.bands:
            lead = self.lead
            return sorted(
                entries.items(), key=lambda row: (lead not in row[1], -self.goodness(row[1].get(lead)), row[0])
            )
        return sorted(entries.items())

    @property
    def lead(self) -> float:
        """The band by which rows are ordered."""
        return max(self.bands, key=lambda band: (sum(entry.band == band for entry in self.entries), -band))

    def goodness(self, entry: Entry | None) -> float:
        """Return a number that is larger for a better entry."""
        if entry is None:
            return -math.inf
        return self.table.goodness(entry.cell)


def boards(
    frame: pd.DataFrame,
    samples: Samples | None = None,
    speeds: Mapping[str, Sequence[float]] | None = None,
    headline: bool = True,
) -> list[Board]:
    """Group records into boards and rank each column; equal records in any order give equal boards.

    Args:
        frame: records with a column ``origin``; see `ORIGIN`.
        samples: per-problem scores; where they are missing there is no test.
        speeds: decoding speeds by condition, one for each record, NaN where it was not measured.
        headline: headline metrics only.

    Raises:
        UserError: there are no records, or two records of one measurement contradict each other.
    """
    # First of all: `prompt_too_long` is no headline metric, and the next filter would drop it.
    frame = _one_of_each(with_too_long(frame))
    if headline:
        frame = frame[frame["headline"]]
    # Decoding speeds come in by `speeds`, as a property of an entry; they are no board.
    frame = frame[frame["benchmark"] != "speed"]
    if frame.empty:
        raise UserError("there are no records to rank; name a run that has evaluated at least one model")
    columns = {str(name): frame[name].tolist() for name in frame.columns}
    positions = {index: i for i, index in enumerate(frame.index)}
    # `speeds` has a value for each row of the caller's frame, and sorting and dropping rows kept that frame's index.
    timed = {name: [values[index] for index in frame.index] for name, values in (speeds or {}).items()}
    results = []
    # Stricter than a table, which may pool seeds whose data differ: here entries are ranked against each other.
    for _, part in frame.groupby(_STRICT, sort=True):
        for table in pivot(part, headline=False):
            results.append(_board(table, columns, positions, samples or {}, timed))
    results.sort(key=lambda board: _order(board))
    return _distinguished(_with_references(_with_bos_notes(results)))


def _one_of_each(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame in a fixed order, each measurement once; the index stays that of each row.

    Two runs may share an evaluate stage; a measurement from here goes before the same one in a submission.
    """
    frame = frame.sort_values([ORIGIN, *KEY_COLUMNS, "value", "evaluated_at", "stage_key"], kind="stable")
    same = [c for c in KEY_COLUMNS if c != "sweep"]
    # With the value in the subset, contradicting records both stay, and `pivot` refuses them instead of one being lost.
    return frame.drop_duplicates(subset=[*same, ORIGIN, "stage_key", "value"])


def _order(board: Board) -> tuple[Any, ...]:
    t = board.table
    words = (t.model, t.task, t.benchmark, t.variant, t.metric, t.scorer, t.engine, t.dtype)
    return (*words[:3], not board.entries, *words[3:], t.n, t.budget, board.id)


def _board(
    table: Pivot,
    columns: Mapping[str, list[Any]],
    positions: Mapping[int, int],
    samples: Samples,
    speeds: Mapping[str, list[float]],
) -> Board:
    compressed = [row for row in table.rows if not row.uncompressed]
    bands_of = bands({f"{row.label}/{row.stage}": row.cells for row in compressed})
    entries: list[Entry] = []
    references: list[Entry] = []
    first = next(positions[cell.records[0]] for row in table.rows for cell in row.cells.values())
    conditions = [columns[name][first] for name in _CONDITIONS]
    conditions += [table.budget] if table.budget else []
    board_id = digest([str(value) for value in conditions])[:10]
    for row in table.rows:
        for target, cell in row.cells.items():
            rows = [positions[index] for index in cell.records]
            origin = columns[ORIGIN][rows[0]]
            key = digest([board_id, row.label, row.stage, target])[:10]
            times = {name: _mean([values[i] for i in rows]) for name, values in speeds.items()}
            times = {name: value for name, value in times.items() if math.isfinite(value)}
            source = provenances(columns, rows)
            band = math.nan if row.uncompressed else bands_of[target]
            entry = Entry(f"e{key}", row.label, origin, row.stage, target, band, cell, times, None, source)
            (references if row.uncompressed else entries).append(entry)
    ranked = _ranked(entries, table, columns, positions, samples)
    return Board(
        id=f"b{board_id}",
        table=table,
        dataset_sha256=columns["dataset_sha256"][first],
        prompt_sha256=columns["prompt_sha256"][first],
        model_sha256=columns["model_sha256"][first],
        bands=tuple(sorted({entry.band for entry in ranked})),
        entries=tuple(sorted(ranked, key=lambda entry: (entry.label, entry.stage, entry.band))),
        references=tuple(references),
    )


def _ranked(
    entries: Iterable[Entry],
    table: Pivot,
    columns: Mapping[str, list[Any]],
    positions: Mapping[int, int],
    samples: Samples,
) -> list[Entry]:
    by_band: dict[float, list[Entry]] = {}
    for entry in entries:
        by_band.setdefault(entry.band, []).append(entry)
    ranked = []
    for band, column in by_band.items():
        left_out = {entry.id: reason for entry in column if (reason := _not_ranked(entry.cell, band))}
        fit = [entry for entry in column if entry.id not in left_out]
        # Of equal values `rank` takes the first as the best, which must not depend on the order of the records.
        fit.sort(key=lambda entry: entry.label)
        contenders = [_contender(entry, table, columns, positions, samples) for entry in fit]
        standings = {entry.id: standing for entry, standing in zip(fit, rank(contenders), strict=True)}
        for entry in column:
            standing = standings.get(entry.id) or Standing(None, reason=left_out[entry.id])
            ranked.append(replace(entry, standing=standing))
    return ranked


def _not_ranked(cell: Cell, band: float) -> str:
    """Return why a cell has no rank in a band, or the empty string."""
    if cell.too_long == 1:
        return "no prompt fits the model's context, so it was not measured and is not ranked"
    # Only a shortfall counts: a model that is smaller than its band has no advantage from that.
    if cell.ratio < band * (1 - SHORTFALL):
        return f"its achieved ratio is {cell.ratio:.3g}×, so it is not ranked at {band_name(band)}"
    return ""


def _contender(
    entry: Entry,
    table: Pivot,
    columns: Mapping[str, list[Any]],
    positions: Mapping[int, int],
    samples: Samples,
) -> Contender:
    better = table.goodness(entry.cell)
    # Not looked up: a submission may name the key of a stage here, whose samples would not be its own.
    if entry.origin:
        return Contender(better, {}, NO_SAMPLES)
    scores: dict[int, Scores] = {}
    missing = ""
    for index in entry.cell.records:
        i = positions[index]
        sample_scores = samples.get((columns["stage_key"][i], table.metric, table.scorer), NO_SAMPLES)
        if isinstance(sample_scores, str):
            missing = missing or sample_scores
        else:
            scores[columns["seed"][i]] = sample_scores
    sign = 0 if has_ideal(table.metric) else 1 if table.higher_is_better else -1
    return Contender(better, scores, missing, sign)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _with_bos_notes(boards: Sequence[Board]) -> list[Board]:
    """Put values without BOS of uncompressed models beside those with one, or leave them out if they differ little."""

    def conditions(board: Board, variant: str) -> tuple[str, ...]:
        t = board.table
        words = (t.model, board.model_sha256, t.task, t.benchmark, t.metric, t.scorer, t.engine, t.dtype)
        return (variant, *words, str(t.budget))

    without = {conditions(board, board.table.variant): board for board in boards}
    changed: dict[str, Board | None] = {}
    for board in boards:
        other = without.get(conditions(board, variant_without(board.table.variant)))
        if other is None:
            continue
        same = {(entry.stage, entry.origin): entry for entry in other.references}
        pairs = [(e, same[e.stage, e.origin]) for e in board.references if (e.stage, e.origin) in same]
        apart = [pair for pair in pairs if differ(board.table.metric, *(entry.cell.value for entry in pair))]
        beside = bool(board.entries) and not other.entries
        if not apart:
            changed[other.id] = other if other.entries else None
            continue
        values = (entry.cell.value for entry in apart[-1])
        note = bos_sentence(board.table.variant, board.table.metric, *values)
        references = tuple((other.table.variant, entry) for entry in other.references)
        changed[board.id] = replace(board, note=note, elsewhere=references if beside else ())
        changed[other.id] = None if beside else replace(other, note=note)
    return [left for board in boards if (left := changed.get(board.id, board)) is not None]


def _with_references(boards: Sequence[Board]) -> list[Board]:
    """Move uncompressed models that stand alone (pretrained, few-shot) to the boards of their benchmark."""

    def sort_key(board: Board) -> tuple[str, ...]:
        t = board.table
        words = (t.model, board.model_sha256, t.task, t.benchmark, t.metric, t.scorer, t.engine, t.dtype)
        return (*words, str(t.n), board.dataset_sha256)

    alone: dict[tuple[str, ...], list[Board]] = {}
    for board in boards:
        if not board.entries:
            alone.setdefault(sort_key(board), []).append(board)
    homes = {sort_key(board) for board in boards if board.entries}
    shown_boards = []
    for board in boards:
        if board.entries:
            stages = {(entry.stage, entry.origin) for entry in board.references}
            others = [
                (other.table.variant, entry)
                for other in alone.get(sort_key(board), [])
                for entry in other.references
                if (entry.stage, entry.origin) not in stages
            ]
            shown_boards.append(replace(board, elsewhere=(*board.elsewhere, *others)))
        elif sort_key(board) not in homes:
            shown_boards.append(board)
    return shown_boards


def _distinguished(boards: list[Board]) -> list[Board]:
    """Name data, prompts and model by their hashes where titles alone would stand for several boards."""
    titles = [(board.title, board.conditions) for board in boards]
    return [
        replace(board, data=_hashes(board)) if titles.count((board.title, board.conditions)) > 1 else board
        for board in boards
    ]


def _hashes(board: Board) -> str:
    return " ".join(
        [*(h[:8] for h in (board.dataset_sha256, board.prompt_sha256, board.model_sha256) if h), board.id[1:5]]
    )
