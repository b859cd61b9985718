"""Training sets of plain texts, which several tasks read."""

from __future__ import annotations

from pathlib import Path

from ..data.datasets import load_rows
from .base import Example

TINYSTORIES_TEST = 40
"""The first stories of `tinystories/train_head` are the benchmark, the rest is for training."""

C4_TEST = 200
"""The first documents of `c4/train_head` are the benchmark, the rest is for training and calibration."""


def tinystories(data_dir: Path | None, seed: int) -> tuple[list[Example], str]:
    """Return the stories that are not the benchmark's."""
    data = load_rows("tinystories", "train_head", data_dir)
    return [Example("", r["text"]) for r in data.rows[TINYSTORIES_TEST:]], data.source


def wikitext2(data_dir: Path | None, seed: int) -> tuple[list[Example], str]:
    """Return the training split."""
    data = load_rows("wikitext2", "train", data_dir)
    return [Example("", r["text"]) for r in data.rows], data.source


def c4(data_dir: Path | None, seed: int) -> tuple[list[Example], str]:
    """Return the documents that are not the benchmark's."""
    data = load_rows("c4", "train_head", data_dir)
    return [Example("", r["text"]) for r in data.rows[C4_TEST:]], data.source
