"""Joining the records of a run with those of ``bench speed``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

BENCHMARK = "speed"
HEADLINE = "decode_tokens_per_second"
COLUMN = "tokens_per_second"


def speed_variants(speed: pd.DataFrame) -> list[str]:
    """Return the conditions under which decoding was timed, in order."""
    return sorted(set(_timed(speed)["variant"]))


def with_speed(frame: pd.DataFrame, speed: pd.DataFrame, variant: str) -> pd.DataFrame:
    """Return the records of a run with a column ``tokens_per_second``, NaN where it was not measured.

    Records belong together by the original model, the label and the ratio asked for; an uncompressed model by the
    original model alone, since finetuning does not change its speed. Several seeds are averaged.

    Args:
        frame: records of a run.
        speed: records of ``bench speed``.
        variant: one of `speed_variants`.
    """
    chosen = _timed(speed)
    chosen = chosen[chosen["variant"] == variant]
    speeds = chosen["value"].groupby(_keys(chosen)).mean()
    joined = frame[frame["benchmark"] != BENCHMARK].copy()
    joined[COLUMN] = _keys(joined).map(speeds).astype("float64")
    return joined


def _timed(speed: pd.DataFrame) -> pd.DataFrame:
    return speed[(speed["benchmark"] == BENCHMARK) & (speed["metric"] == HEADLINE)]


def _keys(frame: pd.DataFrame) -> Any:
    import pandas as pd

    labels = frame["label"].where(frame["method"] != "none", "")
    return pd.Series(
        [f"{a}/{b}/{c:g}" for a, b, c in zip(frame["model_sha256"], labels, frame["ratio_target"], strict=True)],
        index=frame.index,
    )
