"""Stages of a run that ended with an error, from what the store keeps of them."""

from __future__ import annotations

import re
from typing import Any

from ...foundation.files import read_json
from .data import FailedStage
from .lineage import Lineage

LONGEST = 600
"""Characters of an error on the page."""


def failed_stages(lineage: Lineage) -> tuple[FailedStage, ...]:
    """Return the failures of stages that the run has, or that read something of it; oldest first.

    A stage that failed does not say which sweep wanted it.
    """
    stages = []
    for path in sorted((lineage.root / "failed").glob("*.json")):
        try:
            record: dict[str, Any] = read_json(path)
            key, title, error = str(record["key"]), str(record.get("title", "")), str(record["error"])
            inputs = {str(value).partition("/")[0] for value in record["inputs"].values()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if key in lineage.keys or inputs & lineage.keys:
            stamp = re.search(r"(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)$", path.stem)
            ended = "{}-{}-{} {}:{}:{}".format(*stamp.groups()) if stamp else ""
            stages.append(FailedStage(title or key, error[:LONGEST], ended, key in lineage.keys))
    return tuple(sorted(stages, key=lambda stage: (stage.ended, stage.title)))
