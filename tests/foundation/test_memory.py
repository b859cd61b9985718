"""Memory readings where a GPU is visible, by a stand-in: this machine has none."""

import pytest
import torch

from lowrank_bench.foundation.memory import peak_memory_bytes, peak_resident_bytes, reset_peak_memory


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two GPUs that refuse statistics until CUDA is initialised, as torch's do; returns the calls they got."""
    calls: list[str] = []

    def reset(index: int) -> None:
        if not torch.cuda.is_initialized():
            raise RuntimeError("Invalid device argument")
        calls.append(f"reset {index}")

    def most(index: int) -> int:
        if not torch.cuda.is_initialized():
            raise RuntimeError("Invalid device argument")
        calls.append(f"read {index}")
        return 1 << 40

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", most)
    return calls


def test_a_gpu_that_nothing_has_used_is_left_alone(gpus: list[str]) -> None:
    reset_peak_memory()
    assert peak_memory_bytes() < 1 << 40
    assert not gpus


def test_gpus_in_use_are_reset_and_added(gpus: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    reset_peak_memory()
    assert peak_memory_bytes() - (2 << 40) in range(peak_resident_bytes() + 1)
    assert gpus == ["reset 0", "reset 1", "read 0", "read 1"]
