"""The leaderboard of finished runs and submissions: gathering, ranking, writing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...foundation.errors import UserError
from ...foundation.files import write_atomic
from ...records.files import read_records
from ..cells import stage_folder
from ..samples.paired_scores import scores_of
from ..speed.joining import BENCHMARK, COLUMN, speed_variants, with_speed
from . import submissions, texts
from .boards import ORIGIN, Board, boards
from .page import to_html
from .ranking import Scores

if TYPE_CHECKING:
    import pandas as pd

SUBMISSIONS = Path("runs/submissions")


@dataclass(frozen=True)
class Leaderboard:
    """All boards, and where they came from.

    Attributes:
        boards: see `results.leaderboard.boards`.
        submissions: names of the submissions that are in it.
    """

    boards: Sequence[Board]
    submissions: Sequence[str]


def gather(
    runs: Sequence[Path],
    submitted: Path = SUBMISSIONS,
    speed: Path | None = None,
    headline: bool = True,
) -> Leaderboard:
    """Read runs and submissions and rank them.

    Args:
        runs: folders of runs, or files of records.
        submitted: folder of submissions; it may be missing.
        speed: where ``bench speed`` put its records; None takes ``speed/`` beside each run.
        headline: headline metrics only.

    Raises:
        UserError: there is nothing to rank, a file is not valid, or two records contradict each other.
    """
    import pandas as pd

    foreign = submissions.stored(submitted)
    if not runs and not foreign:
        raise UserError(
            f"there is nothing to rank: name a run such as runs/tiny-toy-math, or add records to {submitted}"
        )
    parts, requests, timed = [], [], []
    for run in dict.fromkeys(path.resolve() for path in runs):
        frame = read_records(run)
        parts.append(frame.assign(**{ORIGIN: ""}))
        stages = stage_folder(run, "x").parent
        rows = frame[frame["headline"]] if headline else frame
        keys = ("stage_key", "metric", "scorer", "value")
        requests += [(stages, *row) for row in zip(*(rows[key].tolist() for key in keys), strict=True)]
        beside = (run if run.is_dir() else run.parent).parent / "speed"
        if speed is None and (beside / "results.csv").is_file():
            timed.append(beside)
    parts += [frame.assign(**{ORIGIN: name}) for name, frame in foreign.items()]
    frame = pd.concat(parts, ignore_index=True)
    timed = [speed] if speed is not None else list(dict.fromkeys(timed))
    speeds = _speeds(frame, [read_records(folder) for folder in timed])
    scores: Mapping[tuple[str, str, str], Scores | str] = scores_of(requests)
    return Leaderboard(boards(frame, scores, speeds, headline), list(foreign))


def write(leaderboard: Leaderboard, folder: Path) -> list[Path]:
    """Write leaderboard.csv, .md, .tex and .html; equal leaderboards give equal bytes."""
    files = {
        "leaderboard.csv": texts.to_csv(leaderboard.boards),
        "leaderboard.md": texts.to_markdown(leaderboard.boards),
        "leaderboard.tex": texts.to_latex(leaderboard.boards),
        "leaderboard.html": to_html(leaderboard.boards, submissions=leaderboard.submissions),
    }
    for name, text in files.items():
        write_atomic(folder / name, text)
    return [folder / name for name in files]


def _speeds(frame: pd.DataFrame, timed: Sequence[pd.DataFrame]) -> dict[str, list[float]]:
    """Return speeds by condition, one for each record; a submission's speeds are its own, never ours."""
    import pandas as pd

    speed_of: dict[str, pd.Series[float]] = {}
    for origin, part in frame.groupby(ORIGIN):
        own = [part[part["benchmark"] == BENCHMARK], *(timed if origin == "" else [])]
        speeds = pd.concat(own, ignore_index=True)
        for variant in speed_variants(speeds):
            column = with_speed(part, speeds, variant)[COLUMN].reindex(frame.index)
            speed_of[variant] = speed_of[variant].combine_first(column) if variant in speed_of else column
    return {variant: column.tolist() for variant, column in speed_of.items()}
