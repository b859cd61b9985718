"""Stereotypes in what a model finds likely (CrowS-Pairs, StereoSet, WinoBias)."""

from __future__ import annotations

from ..base import Task
from ..texts import c4, tinystories, wikitext2

TASK = Task(
    "bias",
    "stereotypes in what a model finds likely (CrowS-Pairs, StereoSet, WinoBias)",
    "language",
    ("crows-pairs", "stereoset", "winobias"),
    512,
    {"c4": c4, "tinystories": tinystories, "wikitext2": wikitext2},
    pretrained_row=True,
)
