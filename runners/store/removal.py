"""Removing weights that no later stage of a sweep reads (``--keep needed``).

A stage keeps its record and its other files; ``.removed.json`` lists what went, and is on disk before the first file
goes, so that a removal that is cut off leaves a stage without weights, never a damaged one. Of each file a small part
stays for reports: the spectra of a fit, the names and shapes of a checkpoint.

While a sweep runs, a file ``.reader-ID.json`` names the stages that it is going to read, for as long as it holds the
lock of that name; no other sweep removes those.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import save_file

from ...foundation.errors import UserError
from ...foundation.files import read_json, sync, write_json
from ..executors.local import Event
from ..graph import Plan
from ..specs import Stage
from ..stage_records import StageRecord
from .files import KEPT, REMOVED, stage_around
from .folders import MODEL_FOLDER, StageStore
from .locks import lock_file

LARGE_PARAMETERS = 1_000_000_000
"""From this size on ``--keep auto`` keeps what is needed."""

_GATE = "removal"  # the lock between "who reads this?" and the answer


def keeps_all(plan: Plan, keep: str | None = None) -> bool:
    """Return whether a sweep keeps all weights and factors.

    Args:
        plan: of the sweep.
        keep: instead of what its configuration says.
    """
    keep = keep or plan.config.execution.keep
    if keep == "auto":
        return plan.parameters < LARGE_PARAMETERS or plan.config.execution.storage is not None
    return keep == "all"


def readers_of_inputs(plan: Plan) -> dict[str, list[str]]:
    """Return the stages from which others of the plan are made, each with all stages that read it, or may read it.

    Checkpoints that are only evaluated, the last ones of each line, are not among them. Those of a grid's learning
    rates that were not chosen are, with no readers.
    """
    readers: dict[str, list[str]] = {}
    for key in plan.needs:
        for input_key in plan.reads(key):
            readers.setdefault(input_key, []).append(key)
    not_chosen: dict[str, list[str]] = {}
    if not plan.provisional:
        not_chosen = {key: [] for key in plan.grid if key not in readers}
    return not_chosen | {
        key: stages
        for key, stages in readers.items()
        if any(plan.stages[reader].kind != "evaluate" for reader in stages)
    }


def by_fit(plan: Plan, keys: Sequence[str]) -> list[str]:
    """Return stages in an order in which all that use one fit come one after the other, so that it goes early.

    Args:
        plan: of the sweep.
        keys: in an order in which they can run.
    """
    # A compression takes the position of its fit, and what is made of it takes the compression's. A finetuning gives
    # none: all share it. The sort is stable, so that stages of one position keep their order.
    position: dict[str, int] = {}
    for index, (key, needs) in enumerate(plan.needs.items()):
        fits = [position[need] for need in needs if not need.startswith(("finetune-", "fit-"))]
        fits += [position[need] for need in needs if need.startswith("fit-")]
        position[key] = fits[0] if fits else index
    return sorted(keys, key=position.__getitem__)


def weight_files(record: StageRecord) -> list[str]:
    """Return the files of a stage that are weights or factors, from its record."""
    fit = record.kind == "fit"
    paths = [PurePosixPath(name) for name in record.files]
    return [str(p) for p in paths if p.suffix == ".safetensors" and (fit or p.parent.name == MODEL_FOLDER)]


def remove_weights(store: StageStore, key: str) -> int:
    """Remove the weights of a finished stage, or what an interrupted removal left of them.

    Returns:
        Bytes that were freed: 0 where another process works on that stage.
    """
    folder, freed = store.path(key), 0
    try:
        with FileLock(lock_file(store.root, key)).acquire(blocking=False):
            record = store.record(key)
            names = weight_files(record)
            if names and not store.removed(key):
                for name in names:
                    _keep_small_part(folder / name, record.kind == "fit")
                write_json(folder / REMOVED, {"files": names})
            for name in names:
                if (folder / name).exists():
                    (folder / name).unlink()
                    freed += record.files[name]
    except Timeout:
        pass
    return freed


def _keep_small_part(file: Path, fit: bool) -> None:
    small = file.with_name(KEPT + file.name)
    if fit:
        with safe_open(file, framework="pt") as tensors:
            save_file({key: tensors.get_tensor(key) for key in tensors.keys() if key.endswith(".spectrum")}, small)  # noqa: SIM118
    else:
        with open(file, "rb") as source:
            # A safetensors file begins with the length of its header in 8 bytes, and the header: names and shapes.
            size = source.read(8)
            small.write_bytes(size + source.read(int.from_bytes(size, "little")))
    sync(small)


class Removal:
    """Removes the weights of a sweep's stages when all stages of its plan that read them are done.

    Args:
        plan: of the sweep; nothing is removed where it keeps all.
        pending: keys of the stages to do.

    Attributes:
        freed: bytes removed so far.
    """

    def __init__(self, plan: Plan, pending: Sequence[str]) -> None:
        self.store, self.plan = plan.store, plan
        self.readers = {} if keeps_all(plan) else readers_of_inputs(plan)
        self.freed = 0
        self._left, self._claim = set(pending), ""

    @contextmanager
    def claim(self) -> Iterator[list[str]]:
        """Yield the keys of the stages to do, and keep other sweeps from removing what they read until the end."""
        root = self.store.root
        root.mkdir(parents=True, exist_ok=True)
        self._claim = f"reader-{uuid.uuid4().hex}"
        file = root / f".{self._claim}.json"
        try:
            with FileLock(lock_file(root, self._claim)):
                with FileLock(lock_file(root, _GATE)):
                    # Under the gate: what is found done here cannot be removed before the claim says that it is read.
                    pending = self.plan.pending()
                    reads = {input_key for key in pending for input_key in self.plan.reads(key)}
                    around = stage_around(Path(self.plan.source.location))
                    if around and around.parent == root:
                        reads.add(around.name)
                    write_json(file, {"reads": sorted(reads)})
                self._left = set(pending)
                yield pending
        finally:
            file.unlink(missing_ok=True)
            lock_file(root, self._claim).unlink(missing_ok=True)
            _remove_unused(root)

    def after(self, on_event: Callable[[Event, Stage], None]) -> Callable[[Event, Stage], None]:
        """Return what passes an event of a stage on and, where the stage is done, removes what it read last."""

        def pass_on(event: Event, stage: Stage) -> None:
            on_event(event, stage)
            if event.kind == "done":
                self._left.discard(event.key)
                self._remove(self.plan.reads(event.key))

        return pass_on

    def remove_all(self) -> None:
        """Remove the weights of every stage whose readers are done: of earlier runs and cut-off removals too."""
        self._remove(self.readers)

    def _remove(self, keys: Iterable[str]) -> None:
        idle = [
            key
            for key in keys
            if key in self.readers and not self._left.intersection([key, *self.readers[key]]) and self._has_weights(key)
        ]
        if idle:
            with FileLock(lock_file(self.store.root, _GATE)):
                others = _claimed(self.store.root, self._claim)
                # What this plan never reads may be the last checkpoint of another sweep.
                if unread := {key for key in idle if not self.readers[key]}:
                    others |= unread & _measured(self.store)
                self.freed += sum(remove_weights(self.store, key) for key in idle if key not in others)

    def _has_weights(self, key: str) -> bool:
        folder = self.store.path(key)
        if not folder.is_dir():
            return False
        names = self.store.removed(key)
        return not names or any((folder / name).exists() for name in names)


def _measured(store: StageStore) -> set[str]:
    """Return the keys of the stages whose models finished evaluations and roundings read, of whichever sweep."""
    keys = set()
    for key in store.keys():  # noqa: SIM118
        if key.startswith(("evaluate-", "quantise-")):
            with suppress(UserError):  # damaged: the doctor says so
                keys.add(store.record(key).spec.inputs.model.partition("/")[0])
    return keys


def _remove_unused(root: Path) -> None:
    """Remove a folder of stages in which nothing was ever written, such as one of a cluster that did not answer."""
    if {path.name for path in root.iterdir()} <= {lock_file(root, _GATE).name}:
        with suppress(OSError):  # somebody else's first file came in between
            lock_file(root, _GATE).unlink(missing_ok=True)
            root.rmdir()


def _claimed(root: Path, own: str) -> set[str]:
    """Return the keys of the stages that running sweeps are going to read; clears what killed ones left.

    The gate is held. The claim named ``own`` does not count.
    """
    keys = set()
    for claim in root.glob(".reader-*.json"):
        name = claim.name.removeprefix(".").removesuffix(".json")
        if name == own:
            continue
        try:
            with FileLock(lock_file(root, name)).acquire(blocking=False):
                claim.unlink(missing_ok=True)
            lock_file(root, name).unlink(missing_ok=True)
        except Timeout:
            keys |= set(read_json(claim)["reads"])
    return keys
