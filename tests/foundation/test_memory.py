"""Memory as it is asked for before and after torch has used a GPU; the GPU is a stand-in, the calls are torch's own."""

import weakref

import pytest
import torch
from typed_stages import RESULTS, fit_stage

from lowrank_bench.foundation import memory
from lowrank_bench.runners.executors.local import do_stage
from lowrank_bench.runners.store.folders import StageStore


class Cycle:
    """What only the cyclic collection frees, as transformers' trainer and its model are."""

    def __init__(self):
        self.me = self


@pytest.fixture
def gpu(monkeypatch):
    """A visible GPU that has not been used yet: torch refuses every question about its statistics."""
    state = {"ready": False, "emptied": 0}

    def statistic(value):
        def ask(device=None):
            if not state["ready"]:
                raise ValueError("Invalid device argument")
            return value

        return ask

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: state["ready"])
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", statistic(None))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", statistic(5 << 40))
    monkeypatch.setattr(torch.cuda, "memory_reserved", statistic(30 << 30))
    monkeypatch.setattr(torch.cuda, "memory_allocated", statistic(10 << 30))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (40 << 30, 80 << 30))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: state.update(emptied=state["emptied"] + 1))
    return state


def test_a_gpu_that_nobody_used_is_not_asked(gpu):
    memory.reset_peak_memory()
    assert memory.peak_memory_bytes() < 1 << 40
    memory.release_memory()
    assert gpu["emptied"] == 0


def test_a_gpu_in_use_is_counted(gpu):
    gpu["ready"] = True
    memory.reset_peak_memory()
    assert memory.peak_memory_bytes() >= 5 << 40
    memory.release_memory()
    assert gpu["emptied"] == 1


def test_memory_that_torch_reserves_and_does_not_use_is_free(gpu):
    gpu["ready"] = True
    assert memory.free_memory("cuda") == 60 << 30


@pytest.mark.parametrize("fails", [False, True])
def test_a_worker_frees_the_model_of_a_stage_before_the_next_one(fails, tmp_path, monkeypatch):
    left = []

    def perform(stage, folder, progress):
        cycle = Cycle()
        left.append(weakref.ref(cycle))
        if fails:
            raise ValueError("no")
        return RESULTS["fit"]

    monkeypatch.setattr("lowrank_bench.runners.stages.perform.perform", perform)
    event = do_stage(fit_stage(), StageStore(tmp_path), lambda done, total, unit: None)
    assert event.kind == ("failed" if fails else "done"), event.text
    assert left[0]() is None
