"""Variables of the environment that change numbers or choose a GPU."""

import pytest

from lowrank_bench.foundation.environment import one_gpu, without_launcher


@pytest.mark.parametrize(
    ("visible", "device", "expected"),
    [
        (None, "cpu", ("cpu", {})),
        (None, "cuda", ("cuda", {"CUDA_VISIBLE_DEVICES": "0"})),
        (None, "cuda:1", ("cuda", {"CUDA_VISIBLE_DEVICES": "1"})),
        ("4,6", "cuda", ("cuda", {"CUDA_VISIBLE_DEVICES": "4"})),
        ("4,6", "cuda:1", ("cuda", {"CUDA_VISIBLE_DEVICES": "6"})),
        ("GPU-a, GPU-b", "cuda:1", ("cuda", {"CUDA_VISIBLE_DEVICES": "GPU-b"})),
    ],
)
def test_a_new_process_sees_one_gpu(monkeypatch, visible, device, expected) -> None:
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert one_gpu(device) == expected


def test_what_launchers_leave_is_recognised() -> None:
    left = dict.fromkeys(["ACCELERATE_USE_FSDP", "FSDP_VERSION", "RANK", "OMPI_COMM_WORLD_SIZE", "TORCHELASTIC_RUN_ID"])
    others = dict.fromkeys(["PATH", "HF_HOME", "RANKING", "CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID"])
    assert without_launcher(left | others) == others
