"""Multiple choice by likelihood, the seven tasks of the low-rank papers.

Local data have no training splits of these tasks, so that ARC's validation split serves there; a split that is
evaluated never does.
"""

from __future__ import annotations

from pathlib import Path

from ..base import Example, Task
from ..commonsense import arc_validation, mixture
from ..texts import c4, tinystories


def _sfsd_mixture(data_dir: Path | None, seed: int) -> tuple[list[Example], str]:
    texts, source = mixture(data_dir)
    return [Example("", text) for text in texts], source


def _arc_validation(data_dir: Path | None, seed: int) -> tuple[list[Example], str]:
    texts, source = arc_validation(data_dir)
    return [Example("", text) for text in texts], source


TASK = Task(
    "commonsense",
    "multiple choice by likelihood, the seven tasks of the low-rank papers",
    "language",
    ("piqa", "hellaswag", "winogrande", "arc-easy", "arc-challenge", "boolq", "openbookqa"),
    512,
    {"sfsd-mixture": _sfsd_mixture, "arc-validation": _arc_validation, "c4": c4, "tinystories": tinystories},
    local_source="arc-validation",
    pretrained_row=True,
)
