"""Cells of finished runs by name, ``RUN:LABEL@RATIO``: their records, stages and checkpoints."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..foundation.errors import UserError
from ..records.bos import without_bos_references
from ..records.files import read_records, to_records
from ..records.schema import STAGES, Record
from ..runners.config.methods import parse_method
from ..runners.store.folders import StageStore, verify_around
from ..runners.store.storage import check_url

if TYPE_CHECKING:
    import pandas as pd

_NAME = re.compile(r"(?P<run>.+?):(?P<label>.+)@(?P<ratio>[0-9.]+)x?(?:/(?P<steps>[0-9]+))?")


@dataclass(frozen=True)
class FoundCell:
    """One evaluation of a cell of a run.

    Attributes:
        record: its headline.
        stage: folder of the evaluate stage.
        storage: URL that its stages may be completed from; None: from nowhere.
    """

    record: Record
    stage: Path
    storage: str | None = None

    def store(self) -> StageStore:
        """Return the store of the run's stages."""
        if self.storage is None:
            return StageStore(self.stage.parent)
        from ..runners.store.shared import SharedStore

        return SharedStore(self.stage.parent, self.storage)

    def checkpoint(self) -> Path:
        """Return the folder of the evaluated weights.

        Raises:
            UserError: the stages of the run, or the weights in them, are no longer there.
        """
        stages = self.stage.parent
        store = self.store()
        record = store.record(self.stage.name)
        inside = stages / record.spec.inputs.model  # there where the whole runs folder was moved or copied
        key = record.spec.inputs.model.partition("/")[0]
        if store.path(key).is_dir():
            store.whole(key)
            store.verify(key)
        folder = inside if inside.is_dir() else Path(record.execution.model.location)
        if not (folder / "config.json").is_file():
            raise UserError(f"the checkpoint {folder} of {self.stage.name} is gone; run the sweep again to make it")
        return folder


def is_cell(name: str) -> bool:
    """Whether a name has the form ``RUN:LABEL@RATIO`` or ``RUN:LABEL@RATIO/STEPS``."""
    return _NAME.fullmatch(name) is not None


def split_cell(name: str) -> tuple[Path, str, float, str | None]:
    """Return run, label, target ratio and, where they are named, steps of a cell's name.

    Raises:
        UserError: it is no such name.
    """
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f"'{name}' names no cell of a run; write RUN:LABEL@RATIO such as runs/tiny-toy-math:svd@3")
    return Path(match["run"]), match["label"], _number(match["ratio"]), match["steps"]


def label_of(frame: pd.DataFrame, name: str) -> str:
    """Return the label in a run of a method that is named by its label, or in full as ``method:option=value``.

    Args:
        frame: records of the run.
        name: where no record has it as label, the method of the only label whose options agree; else it is returned.
    """
    if name in set(frame.label):
        return name
    try:
        spec = parse_method(name)
    except UserError:
        return name
    asked = json.loads(json.dumps(spec.options, default=str))
    methods = frame[frame.method == spec.name][["label", "options"]].drop_duplicates()
    labels = {
        label
        for label, options in zip(methods.label, methods.options, strict=True)
        if asked.items() <= json.loads(options).items()
    }
    return str(labels.pop()) if len(labels) == 1 else name


def no_cell(name: str, frame: pd.DataFrame) -> UserError:
    """Return the error for a name that no record of its run has.

    Args:
        name: ``RUN:LABEL@RATIO``.
        frame: records of the run.
    """
    run, label, ratio, _ = split_cell(name)
    cells = sorted({f"{label}@{ratio:g}" for label, ratio in zip(frame.label, frame.ratio_target, strict=True)})
    if not cells:
        return UserError(f"{run} has no records; name a run that has evaluated at least one model")
    return UserError(f"'{label}@{ratio:g}' is no cell of {run}; its cells: {', '.join(cells)}")


def find_cell(
    name: str,
    benchmark: str | None = None,
    seed: int | None = None,
    any_benchmark: bool = False,
    storage: str | None = None,
) -> FoundCell:
    """Find a cell of a run.

    Args:
        name: ``RUN:LABEL@RATIO``, such as ``runs/tiny-toy-math:svd@3``; ``finetuned@1`` is the uncompressed model.
            Where the run has several budgets ``svd@3/200`` is the model with 200 steps after the first finetuning.
        benchmark, seed: which evaluation, where a cell has several; a variant's name says which.
        any_benchmark: whether the first benchmark does, for those who ask for the weights alone.
        storage: URL from which files are brought that are not here; nothing but what the user named.

    Raises:
        UserError: no such cell, or more than one evaluation of it.
    """
    if storage is not None:
        try:
            check_url(storage)
        except ValueError as error:
            raise UserError(str(error)) from error
    run, label, ratio, steps = split_cell(name)
    frame = read_records(run)
    if benchmark not in set(frame.variant):
        frame = without_bos_references(frame)
    label = label_of(frame, label)
    rows = frame[frame.headline & (frame.label == label) & (frame.ratio_target == ratio)]
    rows = of_budget(rows, name, steps)
    several = rows.variant.nunique() > rows.benchmark.nunique()
    seeds = (
        ""
        if rows.empty
        else "; ".join(
            f"{word} {', '.join(map(str, sorted(set(rows[column]))))}"
            for column, word in (("seed", "seeds"), ("variant" if several else "benchmark", "benchmarks"))
        )
    )
    if benchmark is not None:
        rows = rows[(rows.benchmark == benchmark) | (rows.variant == benchmark)]
    if seed is not None:
        rows = rows[rows.seed == seed]
    if any_benchmark and not rows.empty:
        last = max(rows.stage, key=STAGES.index)  # a method may have been evaluated before its recovery too
        rows = rows[(rows.variant == rows.variant.iloc[0]) & (rows.stage == last)]
    keys = sorted(set(rows.stage_key))
    if len(keys) != 1:
        differing = [
            flag
            for flag, column in (("--benchmark", "variant"), ("--seed", "seed"))
            if rows[column].nunique() > 1 and not (any_benchmark and column == "variant")
        ]
        options = " or ".join(differing or ["--seed" if any_benchmark else "--benchmark"])
        cell = f"'{label}@{ratio:g}'"
        if seeds and not keys:
            lacks = " and ".join(f"{k} {v}" for k, v in (("benchmark", benchmark), ("seed", seed)) if v is not None)
            raise UserError(f"{cell} of {run} has no {lacks}; there are the {seeds}")
        if keys:
            raise UserError(f"{cell} of {run} names several evaluations; add {options} (there are the {seeds})")
        raise no_cell(name, frame)
    return FoundCell(to_records(rows)[0], stage_folder(run, keys[0]), storage)


def of_budget(rows: pd.DataFrame, name: str, steps: str | None) -> pd.DataFrame:
    """Return the rows of one budget, and those that depend on none.

    Raises:
        UserError: there are several and none is named, or the named one is not there.
    """
    budgets = sorted(set(rows.steps_budget) - {0})
    if steps is None and len(budgets) < 2:
        return rows
    cell = name.removesuffix(f"/{steps}")
    if not budgets:
        raise UserError(f"'{name}' names steps and that model depends on none; write {cell}")
    if steps is None or int(steps) not in budgets:
        listed = ", ".join(map(str, budgets))
        raise UserError(f"{cell} was trained for {listed} steps after the first finetuning; write {cell}/{budgets[0]}")
    return rows[rows.steps_budget == int(steps)]


def stage_folder(run: Path, key: str) -> Path:
    """Return the folder of a stage of a run."""
    folder = run if run.is_dir() else run.parent
    return folder.resolve().parent / "stages" / key


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"the ratio '{text}' is not a number; write RUN:LABEL@RATIO such as runs/tiny-toy-math:svd@3"
        ) from None


def checkpoint_folder(name: str, seed: int | None = None, storage: str | None = None) -> Path:
    """Return the folder behind a checkpoint's name: the folder itself, or a cell's as `find_cell` takes it.

    Raises:
        UserError: there is none.
    """
    if Path(name).is_dir():
        verify_around(Path(name))
        return Path(name)
    if not is_cell(name):
        raise UserError(
            f"the folder {name} does not exist; name a checkpoint, or a cell of a run such as runs/tiny-toy-math:svd@3"
        )
    return find_cell(name, seed=seed, any_benchmark=True, storage=storage).checkpoint()
