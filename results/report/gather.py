"""A run as a report: records first, then whatever its stages add."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...records.files import read_records
from ..tables.pivot import pivot
from .answers import Answers, read_answers
from .asked import asked, origin
from .costs import costs, span
from .data import Report
from .failed import failed_stages
from .failures import failures
from .lineage import Lineage, Rows
from .paired import headline_scores, order_tests, paired_tests
from .ranks import rank_maps
from .spectra import spectra
from .words import with_budget

if TYPE_CHECKING:
    import pandas as pd


def gather(run: Path, data: Path | None = None) -> Report:
    """Read a run.

    Args:
        run: folder of a run, or its results.csv or .parquet; stages are looked for in ``stages/`` beside the folder.
        data: folder with local datasets, to show the prompts of examples; None takes where the run read them.

    Raises:
        UserError: there are no valid records. Missing stages are no error: the report says what it lacks.
    """
    frame = read_records(run)
    lineage = Lineage(run, (str(key) for key in frame.stage_key))
    rows = _shown_rows(frame)
    answers, scores = _answers(rows, lineage), headline_scores(rows, lineage)
    named = _named_rows(rows)
    parts = {
        "ranks": rank_maps(named, lineage),
        "spectra": spectra(named, lineage),
        "failures": failures(named, answers, lineage, data),
        "paired": paired_tests(rows, scores),
    }
    return Report(
        title=" and ".join(dict.fromkeys(str(name) for name in frame.sweep)),
        records=frame,
        asked=asked(run, frame, lineage),
        orders=order_tests(rows, scores),
        costs=costs(named, lineage),
        span=span(lineage),
        failed=failed_stages(lineage),
        origin=origin(frame, lineage),
        missing=_missing(rows, lineage, parts),
        **parts,  # type: ignore[arg-type]
    )


def _shown_rows(frame: pd.DataFrame) -> Rows:
    """Return the headline records as the tables show them."""
    records: list[dict[Any, Any]] = frame.to_dict("records")
    return [
        {**records[index], "index": index, "table": number, "budget": table.budget, "shown": row.label}
        for number, table in enumerate(pivot(frame))
        for row in table.rows
        for cell in row.cells.values()
        for index in cell.records
    ]


def _named_rows(rows: Rows) -> Rows:
    """Return each record once, where several budgets were measured with the budget in the text of its row."""
    named: dict[int, Mapping[str, Any]] = {}
    for row in rows:
        budget = row["budget"] if row["steps_budget"] else 0
        named.setdefault(row["index"], {**row, "shown": with_budget(row["shown"], budget)})
    return list(named.values())


def _answers(rows: Rows, lineage: Lineage) -> dict[str, Answers]:
    answers_of = {}
    for key in dict.fromkeys(row["stage_key"] for row in rows):
        if (folder := lineage.folder(key)) and (answers := read_answers(folder / "samples.jsonl")):
            answers_of[key] = answers
    return answers_of


def _missing(rows: Rows, lineage: Lineage, parts: dict[str, tuple[object, ...]]) -> dict[str, tuple[str, ...]]:
    missing: dict[str, tuple[str, ...]] = {}
    compressed = any(row["method"] != "none" for row in rows)
    gone, total = len(lineage.lost), len(lineage.evaluations)
    if gone == total:
        missing["stages"] = (
            "The stages of this run are not beside its records, so ranks, spectra, failures and paired tests are "
            "missing here.",
        )
    elif gone:
        missing["stages"] = (f"The stages of {gone} of {total} evaluations are missing or damaged; they are left out.",)
    if lineage.damaged:
        missing["stages"] = missing.get("stages", ()) + tuple(
            f"The stage {key} is damaged ({reason}) and left out; bench doctor --repair moves it aside, then bench run "
            "makes it again."
            for key, reason in sorted(lineage.damaged.items())
        )
    if not compressed:
        missing["compressed"] = ("No compressed model was evaluated.",)
        return missing
    texts = {
        "ranks": "No compress stage of this run can be read, so the ranks are not known here.",
        "spectra": "None of the fits of this run can be read or holds a spectrum.",
        "failures": "No samples with verdicts are there: this run measured none, or their stages are gone.",
        "paired": "No paired test was possible: the samples are not there, or only one method was measured.",
    }
    return missing | {name: (text,) for name, text in texts.items() if not parts[name]}
