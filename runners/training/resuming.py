"""Trainer checkpoints of a training run that was cut off: sealed when whole, checked before they are used."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ...foundation.files import read_json, sha256_file, sync, write_json
from ..provenance import versions

_SEAL = "seal.json"
_MADE = "made"
_NAME = re.compile(r"checkpoint-(\d+)")
_OTHER = {
    "layout": "it is of a training by {found}, this one is by {wanted}",
    "versions": "it was written by other versions of the libraries",
    "code": "it was written by other code",
    "inputs": "what the training starts from is another since",
    "stateful": "it is of a training by another method",
}
"""What it says of a checkpoint that one of its facts is not the wanted one."""


@dataclass(frozen=True)
class RunFacts:
    """What a checkpoint has in common with the run that goes on from it.

    Attributes:
        layout: how its tensors lie.
        stateful: whether it has the state of a method.
    """

    layout: str
    stateful: bool


@dataclass(frozen=True)
class RunUse:
    """What a run has used by the time of a checkpoint: tokens without padding, seconds, and the most memory."""

    tokens: int
    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class RunOrigin:
    """What a run is of: a digest of the code, and digests of its inputs by role."""

    code: str = ""
    inputs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Resumable:
    """Where a training run keeps what it can go on from.

    Attributes:
        folder: outlives the run; made when the first checkpoint is written.
        minutes: least time between two checkpoints; 0 writes one after every update.
        results: where the run puts results while it trains; what is not hidden there belongs to its checkpoints.
        origin: what a checkpoint must have in common with the run that goes on from it, for it leaves out what can be
            read from there.
    """

    folder: Path
    minutes: float
    results: Path | None = None
    origin: RunOrigin = RunOrigin()

    def of_run(self, number: int) -> Resumable:
        """Return the same for one of several trainings of a stage: what ends does not take another's checkpoints."""
        return replace(self, folder=self.folder / f"run-{number}")

    def checkpoint_folder(self, step: int) -> Path:
        """Return the folder of the checkpoint after a number of updates."""
        return self.folder / f"checkpoint-{step}"

    def seal(self, checkpoint: Path, facts: RunFacts, used: RunUse) -> None:
        """Declare a checkpoint whole, with facts to find again and the checksums of its files; remove older ones."""
        if self.results is not None:
            for path in self.results.iterdir():
                if not path.name.startswith("."):
                    shutil.copytree(path, checkpoint / _MADE / path.name, copy_function=_link)
        # The seal comes last, when all that it vouches for is on disk, and only then may older checkpoints go.
        files = [file for file in sorted(checkpoint.rglob("*")) if file.is_file()]
        sums = {file.relative_to(checkpoint).as_posix(): sha256_file(file) for file in files}
        for path in [*checkpoint.rglob("*"), checkpoint]:
            sync(path)
        write_json(checkpoint / _SEAL, self._required(facts) | asdict(used) | {"sha256": sums})
        sync(self.folder)
        self.clear(checkpoint)

    def clear(self, spared: Path | None) -> None:
        """Remove all checkpoints but one, or without one those that were never whole."""
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path != spared and (spared or not (path / _SEAL).exists()):
                shutil.rmtree(path, ignore_errors=True)

    def put_back(self, checkpoint: Path) -> None:
        """Put the results that a run had made by the time of a checkpoint where they were."""
        if self.results is not None and (checkpoint / _MADE).is_dir():
            shutil.copytree(checkpoint / _MADE, self.results, copy_function=_link, dirs_exist_ok=True)

    def newest(self, facts: RunFacts) -> tuple[Path, RunUse] | None:
        """Return the latest usable checkpoint and what it used; says on standard error why one is passed over.

        Args:
            facts: what it must have been sealed with, beside the origin and the versions of the libraries.
        """
        required = self._required(facts)
        if not self.folder.is_dir():
            return None
        checkpoints = {int(match[1]): path for path in self.folder.iterdir() if (match := _NAME.fullmatch(path.name))}
        for _, path in sorted(checkpoints.items(), reverse=True):
            used, wrong = _check(path, required)
            if used is not None:
                return path, used
            print(f"note: {path} is passed over ({wrong}); the training goes on from before it", file=sys.stderr)
        return None

    def _required(self, facts: RunFacts) -> dict[str, Any]:
        return asdict(self.origin) | asdict(facts) | {"versions": versions()}


def _link(source: str, target: str) -> None:
    """Let two folders have one file; results are written once, and never changed in place."""
    if os.path.exists(target):
        return
    try:
        os.link(source, target)
    except OSError:  # not every file system has links
        shutil.copy2(source, target)


def _check(path: Path, required: Mapping[str, Any]) -> tuple[RunUse | None, str]:
    """Return what a checkpoint used, or None and what is wrong with it."""
    try:
        facts = read_json(path / _SEAL)
        for name, value in required.items():
            if facts[name] != value:
                return None, _OTHER[name].format(found=facts[name], wanted=value)
        # After the facts, for this reads every byte of the checkpoint.
        for name, expected in facts["sha256"].items():
            if sha256_file(path / name) != expected:
                return None, f"{name} is damaged"
        return RunUse(**{part.name: facts[part.name] for part in fields(RunUse)}), ""
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return None, f"it is not whole: {type(error).__name__}"
