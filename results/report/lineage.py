"""The stages behind records, read leniently: what is gone or damaged is left out and named."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ...foundation.errors import UserError
from ...runners.stage_records import StageRecord, read_stage
from ...runners.store.files import KEY, reason_of
from ...runners.store.folders import StageStore
from ..cells import stage_folder

Rows = Sequence[Mapping[str, Any]]
"""Headline records by column, with ``table``, the number of their table, and ``shown``, the text of their row in it."""


class Lineage:
    """The stages of a run.

    Args:
        run: folder of the run, or its file of records.
        evaluations: keys of its evaluate stages.

    Attributes:
        damaged: what is wrong with stages that are not as they were written, by key; known once they were asked for.
    """

    def __init__(self, run: Path, evaluations: Iterable[str]) -> None:
        self.root = stage_folder(run, "")
        self.evaluations = list(dict.fromkeys(evaluations))
        self._records: dict[str, StageRecord | None] = {}
        self.damaged: dict[str, str] = {}

    def stage(self, key: str) -> StageRecord | None:
        """Return a stage's record, be its files damaged or not; None where it is not there or cannot be read."""
        if key not in self._records:
            # Keys come from a file of records: what has not the form of one could be a path out of the stages.
            self._records[key] = self._load(key) if KEY.fullmatch(key) else None
        return self._records[key]

    def _load(self, key: str) -> StageRecord | None:
        folder = self.root / key
        if not folder.is_dir():
            return None
        record = None
        try:
            record = read_stage(folder)
            # Last: a damaged stage keeps its record, which has the ranks for one; `folder` withholds its files.
            StageStore(self.root).verify(key)
        except UserError as error:
            self.damaged[key] = reason_of(error)
        return record

    @cached_property
    def paths(self) -> dict[str, dict[str, str]]:
        """Keys of the stages behind each evaluation, by kind, the evaluation's own among them."""
        return {key: self._path(key) for key in self.evaluations}

    def _path(self, key: str) -> dict[str, str]:
        paths: dict[str, str] = {}
        todo = [key]
        while todo:
            key = todo.pop()
            record = self.stage(key)
            if record is None or record.kind in paths:
                continue
            paths[record.kind] = key
            todo += [str(value).partition("/")[0] for _, value in sorted(record.spec.inputs)]
        return paths

    @cached_property
    def keys(self) -> set[str]:
        """Keys of all stages of the run that can be read."""
        return {key for path in self.paths.values() for key in path.values()}

    @property
    def lost(self) -> list[str]:
        """Evaluations whose stage cannot be read."""
        return [key for key in self.evaluations if not self.paths[key]]

    def folder(self, key: str) -> Path | None:
        """Return the folder of a stage, or None where its files are not those that were written."""
        return self.root / key if self.stage(key) and key not in self.damaged else None
