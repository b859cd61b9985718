"""Which learning rates held-out training examples chose, and what the choice cost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .pivot import with_model_names
from .table import Cell, Column, Field, Table, by_label, number_columns

if TYPE_CHECKING:
    import pandas as pd

_CELL = ["model", "task", "label", "stage", "ratio_target", "steps_budget", "seed", "tuned"]


def tuning(frame: pd.DataFrame, model: str, task: str) -> Table | None:
    """Return a line for each tuned model: the loss at each learning rate, the chosen one, the tokens of the grid.

    None where nothing of the model and task was tuned.
    """
    if "tuned" not in frame:
        return None
    frame = with_model_names(frame)
    own = frame[(frame["model"] == model) & (frame["task"] == task) & (frame["tuned"] != "{}")]
    lines: list[tuple[Any, dict[str, Any]]] = [
        (line, json.loads(str(line.tuned))) for line in own[_CELL].drop_duplicates().itertuples()
    ]
    if not lines:
        return None
    grid = sorted({rate for _, tuned in lines for rate in tuned["grid"]})
    budgets = len({line.steps_budget for line, _ in lines}) > 1
    seeds = len({line.seed for line, _ in lines}) > 1
    rows: list[list[Cell]] = []
    for line, tuned in sorted(lines, key=lambda pair: tuple(pair[0][3:8])):
        losses = dict(zip(tuned["grid"], tuned["losses"], strict=True))
        shown = line.label if line.stage == "recovered" else f"{line.label}, not recovered"
        more = [*([f"{line.steps_budget:,}"] if budgets else []), *([str(line.seed)] if seeds else [])]
        cells = [_loss(losses[rate]) if rate in losses else None for rate in grid]
        rows.append([shown, f"{line.ratio_target:g}×", *more, *cells, f"{tuned['lr']:g}", f"{tuned['tokens']:,}"])
    names = [*(["steps"] if budgets else []), *(["seed"] if seeds else [])]
    columns = ["target", *names, *(f"loss at {rate:g}" for rate in grid), "chosen", "tokens of the grid"]
    shares = ", ".join(f"{share:.0%}" for share in sorted({tuned["held_out"] for _, tuned in lines}))
    note = f"loss: mean over target tokens, in nats, on {shares} of the training examples, which nothing was trained on"
    return by_label(
        Table(f"{model} · {task}: learning rates", [Column(""), *number_columns(*columns)], rows, notes=[note])
    )


def _loss(value: float | None) -> Field:
    return Field("not finite") if value is None else Field(f"{value:.4f}", value)
