"""Trainer checkpoints of a training run that was cut off: sealed when whole, checked before they are used."""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..foundation.files import read_json, sha256_file, sync, write_json
from .provenance import versions

_SEAL = "seal.json"
_MADE = "made"
_NAME = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Resumable:
    """Where a training run keeps what it can go on from.

    Attributes:
        folder: outlives the run; made when the first checkpoint is written.
        minutes: least time between two checkpoints; 0 writes one after every update.
        made: where the run puts results while it trains; what is not hidden there belongs to its checkpoints.
    """

    folder: Path
    minutes: float
    made: Path | None = None

    def seal(self, checkpoint: Path, facts: dict[str, Any]) -> None:
        """Declare a checkpoint whole, with facts to find again and the checksums of its files; remove older ones."""
        shutil.rmtree(checkpoint / _MADE, ignore_errors=True)  # of an attempt that was cut off right here
        if self.made is not None:
            for path in self.made.iterdir():
                if not path.name.startswith("."):
                    shutil.copytree(path, checkpoint / _MADE / path.name, copy_function=_link)
        files = [file for file in sorted(checkpoint.rglob("*")) if file.is_file()]
        sums = {file.relative_to(checkpoint).as_posix(): sha256_file(file) for file in files}
        for path in [*checkpoint.rglob("*"), checkpoint]:
            sync(path)
        write_json(checkpoint / _SEAL, facts | {"versions": versions(), "sha256": sums})
        sync(self.folder)
        for other in self.folder.iterdir():
            if other != checkpoint:
                shutil.rmtree(other, ignore_errors=True)

    def put_back(self, checkpoint: Path) -> None:
        """Put the results that a run had made by the time of a checkpoint where they were."""
        if self.made is not None and (checkpoint / _MADE).is_dir():
            shutil.copytree(checkpoint / _MADE, self.made, copy_function=_link, dirs_exist_ok=True)

    def newest(self, layout: str, run: int = 0) -> tuple[Path, dict[str, Any]] | None:
        """Return the latest usable checkpoint and its facts; says on standard error why one is passed over.

        Args:
            layout: how tensors lie in it; one of another layout cannot be read.
            run: how many trainings came before it in the same folder; those of another are none of this one's.
        """
        if not self.folder.is_dir():
            return None
        found = {int(match[1]): path for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name))}
        for _, path in sorted(found.items(), reverse=True):
            facts, wrong = _check(path, layout)
            if not wrong:
                if facts.get("run", 0) == run:
                    return path, facts
                continue
            print(f"note: {path} is passed over ({wrong}); the training goes on from before it", file=sys.stderr)
        return None


def _link(source: str, target: str) -> None:
    """Let two folders have one file; results are written once, and never changed in place."""
    if os.path.exists(target):
        return
    try:
        os.link(source, target)
    except OSError:  # not every file system has links
        shutil.copy2(source, target)


def _check(path: Path, layout: str) -> tuple[dict[str, Any], str]:
    """Return the facts of a checkpoint and what is wrong with it, empty if nothing is."""
    try:
        facts: dict[str, Any] = read_json(path / _SEAL)
        if facts["layout"] != layout:
            return facts, f"it is of a training by {facts['layout']}, this one is by {layout}"
        if facts["versions"] != versions():
            return facts, "it was written by other versions of the libraries"
        for name, expected in facts["sha256"].items():
            if sha256_file(path / name) != expected:
                return facts, f"{name} is damaged"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {}, f"it is not whole: {type(error).__name__}"
    return facts, ""
