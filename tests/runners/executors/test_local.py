"""What a worker does with a stage."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from typed_stages import RESULTS, finetune_stage

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.foundation.memory import free_memory
from lowrank_bench.runners.executors.local import do_stage
from lowrank_bench.runners.specs import FinetuneStage
from lowrank_bench.runners.stage_results import StageResult
from lowrank_bench.runners.stages import perform as module
from lowrank_bench.runners.store.folders import StageStore


class Trained:
    """A model and its optimizer, which know each other."""

    def __init__(self) -> None:
        self.optimizer = self


@pytest.mark.parametrize(("ending", "kind"), [(None, "done"), (UserError, "failed"), (RuntimeError, "failed")])
def test_no_stage_leaves_its_model_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: type[Exception] | None, kind: str
) -> None:
    left: list[weakref.ref[Trained]] = []

    def perform(stage: FinetuneStage, folder: Path, progress: Any) -> StageResult:
        trained = Trained()
        left.append(weakref.ref(trained))
        if ending is not None:
            raise ending("out of memory")
        return RESULTS["finetune"]

    monkeypatch.setattr(module, "perform", perform)
    gc.disable()  # a collection by chance would hide one that is missing
    try:
        event = do_stage(finetune_stage(), StageStore(tmp_path), lambda done, total, unit: None)
        assert event.kind == kind
        assert left[0]() is None
    finally:
        gc.enable()


def test_what_torch_keeps_for_later_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 70 << 30)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 8 << 30)
    assert free_memory("cuda") == 67 << 30
