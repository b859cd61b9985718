"""The leaderboard as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ..pages.parts import Figure
from ..pages.shell import render_page
from ..tables.names import shorten, shorten_all
from ..tables.pivot import direction, format_cell
from ..tables.table import Cell, Column, Field, Table, number_columns, text_columns
from .bands import band_name
from .boards import Board, Entry
from .figures import figures
from .texts import LEGEND, board_note, p_text, standing_text

_TEMPLATES = Path(__file__).parent / "templates"
_LABEL, _TEXT = 60, 400
_OPEN_FIGURES = 4
"""Up to so many boards show their pictures at once; of more, a reader opens those wanted."""

_NAMES = {
    "seeds": "seeds", "options": "options", "tokens": "training tokens: finetune + compress + recover",
    "steps": "optimizer steps: finetune + compress + recover", "hardware": "hardware", "versions": "versions",
    "commit": "commit of lowrank_bench", "isolation": "isolation of executed code", "evaluated_at": "evaluated at",
    "stage_keys": "evaluate stages", "run": "run",
}  # fmt: skip


@dataclass(frozen=True)
class _Shown:
    """A board, ready for the template."""

    board: Board
    bands: str
    direction: str
    ranks: Table | None
    references: list[Field]
    note: str
    common: list[tuple[str, str]]
    options: list[tuple[str, str]]
    details: Table
    figures: list[Figure]


def to_html(boards: Sequence[Board], title: str = "Leaderboard", submissions: Sequence[str] = ()) -> str:
    """Return the page; equal boards give equal bytes.

    Args:
        boards: see `boards.boards`.
        title: heading of the page.
        submissions: names of the submissions that are in it.
    """
    entries = [entry for board in boards for entry in board.entries]
    bands = sorted({entry.band for entry in entries})
    choices = {
        "model": list(shorten_all(sorted({board.table.model for board in boards})).items()),
        "task": list(shorten_all(sorted({board.table.task for board in boards})).items()),
        "band": [(_band_id(band), band_name(band)) for band in bands],
    }
    style, script = ((_TEMPLATES / f"leaderboard.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return render_page(
        _TEMPLATES,
        "leaderboard.html",
        style=style,
        script=script,
        title=title,
        legend=LEGEND,
        boards=[_board_view(board) for board in boards],
        choices=choices,
        entries=len(entries),
        submitted=sum(bool(entry.origin) for entry in entries),
        submissions=submissions,
        open_figures=len(boards) <= _OPEN_FIGURES,
    )


def _band_id(band: float) -> str:
    return f"{band:.6g}"


def _board_view(board: Board) -> _Shown:
    entries = [entry for _, row in board.rows() for entry in row.values()]
    rows = [*board.references, *(entry for _, entry in board.elsewhere), *entries]
    options = _options(rows)
    common, details = _details(board, rows, apart={"options"} if options else set())
    return _Shown(
        board=board,
        bands=" ".join(map(_band_id, board.bands)),
        direction=direction(board.table.metric, board.table.higher_is_better),
        ranks=_ranks(board) if entries else None,
        references=_references(board),
        note=board_note(board),
        common=common,
        options=options,
        details=details,
        figures=figures(board) if entries else [],
    )


def _ranks(board: Board) -> Table:
    first: Literal["ascending", "descending"] = "descending" if board.table.higher_is_better else "ascending"
    columns = [Column("method")] + [
        Column(
            band_name(band), "number", help=f"{board.measure} in the band {band_name(band)}",
            group=_band_id(band), first=first, sorted=first if band == board.lead and _plain(board) else "",
        )
        for band in board.bands
    ]  # fmt: skip
    names = shorten_all([label for label, _ in board.rows()], _LABEL)
    rows = [
        [Field(names[label], kind="submitted" if any(e.origin for e in row.values()) else "")]
        + [_rank_field(board, row.get(band)) for band in board.bands]
        for label, row in board.rows()
    ]
    caption = f"{board.conditions}; {direction(board.table.metric, board.table.higher_is_better)}."
    return Table(caption, columns, rows, f"{board.id}-ranks")


def _plain(board: Board) -> bool:
    """Whether sorting by value is ranking: not where the ideal is in the middle."""
    return "is better" in direction(board.table.metric, board.table.higher_is_better)


def _rank_field(board: Board, entry: Entry | None) -> Field:
    if entry is None or entry.standing is None:
        return Field("")
    standing = entry.standing
    value, interval = format_cell(board.table.metric, entry.cell)
    test = ""
    if standing.tied is not None:
        test = " " + p_text(standing.p_adjusted, standing.bound).replace(" ", "")  # in one piece on a phone
    kind = "best" if standing.best else "tied" if standing.tied else ""
    return Field(value, entry.cell.value, interval + test, standing.mark, entry.id, kind)


def _references(board: Board) -> list[Field]:
    references = [(entry.label, entry) for entry in board.references]
    references += [(f"{entry.label}, {variant}", entry) for variant, entry in board.elsewhere]
    short = shorten_all([name for name, _ in references], _LABEL)
    return [
        Field(value, detail=interval, mark=short[name], to=entry.id)
        for name, entry in references
        for value, interval in [format_cell(board.table.metric, entry.cell)]
    ]


def _options(rows: Sequence[Entry]) -> list[tuple[str, str]]:
    """Return the options by row, or nothing where they differ within one."""
    options_of: dict[str, set[str]] = {}
    for entry in rows:
        options_of.setdefault(entry.label, set()).add(entry.provenance.options)
    if any(len(texts) > 1 for texts in options_of.values()):
        return []
    names = shorten_all(options_of, _LABEL)
    return [(names[label], next(iter(texts))) for label, texts in options_of.items() if texts != {"defaults"}]


def _details(board: Board, rows: Sequence[Entry], apart: set[str]) -> tuple[list[tuple[str, str]], Table]:
    """Return what is the same for all entries, and a table of what differs; columns ``apart`` are shown elsewhere."""
    known = [asdict(entry.provenance) for entry in rows]
    names = [name for name in _NAMES if name not in apart]
    same = {name for name in names if len({values[name] for values in known}) == 1} - (
        {"stage_keys"} if rows[1:] else set()
    )
    common = [(_NAMES[name], shorten(known[0][name], _TEXT)) for name in names if name in same and known[0][name]]
    common.append(("problems, sha256", board.dataset_sha256))
    common += [("prompts, sha256", board.prompt_sha256)] if board.prompt_sha256 else []
    common.append(("model, sha256", board.model_sha256))
    speeds = sorted({name for entry in rows for name in entry.speeds})
    varying = [name for name in names if name not in same]
    columns = [
        *(*text_columns("entry", "against the best"), *number_columns("achieved ratio", format="{:.4g}×")),
        *number_columns("parameters", "bytes", format="{:,.0f}"),
        *number_columns(*(f"tokens/s, {name}" for name in speeds), format="{:,.4g}"),
        *text_columns(*(_NAMES[name] for name in varying)),
    ]
    labels = shorten_all(map(_name, rows), _LABEL)
    columns_short = [shorten_all((values[name] for values in known), _TEXT) for name in varying]
    lines = [
        _detail(
            entry,
            labels[_name(entry)],
            speeds,
            [short[values[name]] for name, short in zip(varying, columns_short, strict=True)],
        )
        for entry, values in zip(rows, known, strict=True)
    ]
    caption = f"{board.title}: all entries with sizes and provenance"
    return common, Table(caption, columns, lines, f"{board.id}-details", [entry.id for entry in rows])


def _name(entry: Entry) -> str:
    return entry.label if entry.uncompressed else f"{entry.label} {band_name(entry.target)}"


def _detail(entry: Entry, name: str, speeds: Sequence[str], differing: Sequence[str]) -> list[Cell]:
    cell = entry.cell
    return [
        *(name, standing_text(entry), cell.ratio, cell.params, cell.bytes),
        *(entry.speeds.get(speed) for speed in speeds),
        *differing,
    ]
