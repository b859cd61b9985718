"""The parts of a report about what is inside the compressed models: ranks and spectra."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import fmean

from ..tables.names import shorten
from ..tables.table import Cell, Column, Field, Table, number_columns
from .blocks import Block, Fold, Picture
from .data import Energy, Rank, RankMap, Report
from .figures import MOST_BANDS, rank_figure, spectra_figure
from .words import and_list

MOST_RANKS = 8000
"""Single ranks in tables that a page holds at most; pictures and means are always there."""


def rank_blocks(report: Report) -> list[Block]:
    """Return a figure for each ratio, the means by kind of matrix, and the single ranks."""
    if not report.ranks:
        return []
    blocks: list[Block] = [
        "The rank of every factorised matrix, as the compressed model has it. Methods with the very same ranks share a "
        "panel."
    ]
    if not all(rank_map.same for rank_map in report.ranks):
        differ = list(
            dict.fromkeys(label for rank_map in report.ranks if not rank_map.same for label in rank_map.labels)
        )
        blocks.append(f"Ranks differ between seeds for {and_list(differ)}; shown are those of the smallest seed.")
    count = 0
    for ratio in sorted({rank_map.ratio for rank_map in report.ranks}):
        maps = sorted((rank_map for rank_map in report.ranks if rank_map.ratio == ratio), key=_uniform_first)
        name = f"ranks-{ratio:g}".replace(".", "-")
        caption = (
            f"Ranks at {ratio:g}×: layers down, kinds of matrices across. Darker: more of the matrix's parameters are "
            "stored. D: stayed dense. s: uses the first factor of another matrix."
        )
        alt = f"Heat maps of ranks at {ratio:g}×; mean ranks by kind of matrix: " + "; ".join(map(_summary, maps))
        table = _means(name, ratio, maps)
        blocks.append(Picture(name, shorten(alt, 1200), caption, partial(rank_figure, maps), table))
        single: list[Block] = []
        for i, rank_map in enumerate(maps):
            count += len(rank_map.layers) * len(rank_map.kinds)
            if count <= MOST_RANKS:
                single.append(_single(f"{name}-{i}", rank_map))
        if len(single) < len(maps):
            single.append(f"{len(maps) - len(single)} tables are left out to keep the page small.")
        blocks.append(Fold(f"Every rank at {ratio:g}×", single, long=True))
    return blocks


def _uniform_first(rank_map: RankMap) -> tuple[int, tuple[str, ...]]:
    return -len(rank_map.labels), rank_map.labels


def _labels(rank_map: RankMap) -> str:
    return ", ".join(rank_map.labels)


def _column(rank_map: RankMap, kind: str) -> list[Rank]:
    if kind not in rank_map.kinds:
        return []
    index = rank_map.kinds.index(kind)
    return [row[index] for row in rank_map.cells if row[index] is not None]  # type: ignore[misc]


def _summary(rank_map: RankMap) -> str:
    parts = []
    for kind in rank_map.kinds:
        ranks = [cell.rank for cell in _column(rank_map, kind) if cell.rank is not None]
        parts.append(f"{kind} {fmean(ranks):.0f}" if ranks else f"{kind} dense")
    return f"{_labels(rank_map)}: {', '.join(parts)}"


def _means(name: str, ratio: float, maps: Sequence[RankMap]) -> Table:
    kinds = list(dict.fromkeys(kind for rank_map in maps for kind in rank_map.kinds))
    rows: list[list[Cell]] = [
        [_labels(rank_map), *(_mean(_column(rank_map, kind)) for kind in kinds)] for rank_map in maps
    ]
    note = "Mean rank, [least, most] over the layers and the mean share of the matrix's parameters that is stored."
    columns = [Column("method"), *number_columns(*kinds)]
    return Table(f"Ranks at {ratio:g}× by kind of matrix", columns, rows, f"{name}-means", notes=[note])


def _mean(cells: Sequence[Rank]) -> Field:
    if not cells:
        return Field("")
    share = f"{100 * fmean(cell.share for cell in cells):.0f} %"
    ranks = [cell.rank for cell in cells if cell.rank is not None]
    dense = len(cells) - len(ranks)
    more = f", {dense} dense" if dense and ranks else ""
    if not ranks:
        return Field("dense", None, share)
    return Field(f"{fmean(ranks):.1f}", fmean(ranks), f"[{min(ranks)}, {max(ranks)}]{more}, {share}")


def _single(name: str, rank_map: RankMap) -> Table:
    rows: list[list[Cell]] = [
        [layer or "outside layers", *map(_cell, row)]
        for layer, row in zip(rank_map.layers, rank_map.cells, strict=True)
    ]
    columns = [Column("layer", sortable=False), *(Column(kind, "number", sortable=False) for kind in rank_map.kinds)]
    return Table(f"{_labels(rank_map)} at {rank_map.ratio:g}×, seed {rank_map.seed}", columns, rows, name)


def _cell(cell: Rank | None) -> Field:
    if cell is None:
        return Field("")
    if cell.rank is None:
        return Field("dense")
    shared = ", shares a factor" if cell.shared else ""
    return Field(f"{cell.rank}", cell.rank, f"{100 * cell.share:.0f} %{shared}")


def spectra_blocks(report: Report) -> list[Block]:
    """Return the energy curves, and how much of the rank holds 90 % of the energy."""
    if not report.spectra:
        return []
    kinds = list(dict.fromkeys(energy.kind for fit in report.spectra for energy in fit.kinds))
    rows = []
    for fit in report.spectra:
        by_kind = {energy.kind: energy for energy in fit.kinds}
        rows.append([Field(fit.name or "fit", detail=", ".join(fit.labels)), *(_ninety(by_kind.get(k)) for k in kinds)])
    columns = [Column("decomposition"), *number_columns(*kinds)]
    note = "Share of the full rank whose parts hold 90 % of the energy; median over the layers."
    table = Table("Rank for 90 % of the energy", columns, rows, "spectra-90", notes=[note])
    alt = "Curves of energy over rank. Share of the full rank for 90 % of the energy: " + "; ".join(
        f"{fit.name or 'fit'} " + ", ".join(f"{e.kind} {100 * e.rank90:.0f} %" for e in fit.kinds)
        for fit in report.spectra
    )
    bands = "; bands: least to most" if len(report.spectra) <= MOST_BANDS else ""
    caption = (
        "Energy (sum of squares) in the first parts of each decomposition, as the fits found it before any "
        f"compression, seed {report.spectra[0].seed}. "
        f"Lines: median over the layers{bands}. The thin line is 90 %."
    )
    return [
        "A spectrum is in its method's own metric: its squares are what the method's objective loses when parts are "
        "dropped. Curves of different methods therefore say where each sees its energy, not which one is better.",
        Picture("spectra", shorten(alt, 1200), caption, partial(spectra_figure, report.spectra), table),
    ]


def _ninety(energy: Energy | None) -> Field:
    return Field("") if energy is None else Field(f"{100 * energy.rank90:.0f} %", energy.rank90)
