"""Environment variables that change numbers: ignored, part of a stage's identity, or recorded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

_LAUNCHER_PREFIXES = (
    *("ACCELERATE_", "FSDP_", "DEEPSPEED_", "MEGATRON_LM_", "PARALLELISM_CONFIG_", "XLA_", "SMDATAPARALLEL_", "SM_"),
    *("TORCHELASTIC_", "PMI_", "OMPI_COMM_", "MV2_COMM_"),
)
_LAUNCHER_NAMES = frozenset(
    {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "MASTER_ADDR", "MASTER_PORT"}
)

FORMAT_VARIABLES = (
    "NVIDIA_TF32_OVERRIDE",  # cuBLAS and cuDNN: float32 products in TF32, or never
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",  # PyTorch: float32 products in TF32, on CPUs in bfloat16 where they have it
    *("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE"),  # oneDNN: float32 products in bfloat16 or TF32
    "VLLM_FLOAT32_MATMUL_PRECISION",
)
"""Libraries read these once and then compute float32 products with fewer bits, without a word in any configuration."""

KERNEL_VARIABLES = (
    *("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS"),
    *("MKL_DISABLE_FAST_MM", "TORCH_MKLDNN_MATMUL_MIN_DIM", "TORCH_MKLDNN_MATMUL_MIN_SIZE", "TORCH_LINEAR_FLATTEN_3D"),
    *("CUBLAS_WORKSPACE_CONFIG", "TORCH_BLAS_PREFER_CUBLASLT", "TORCH_LINALG_PREFER_CUSOLVER"),
    *("TORCH_CUDNN_USE_HEURISTIC_MODE_B", "TORCH_CUDNN_V8_API_DISABLED", "FLASH_ATTENTION_DETERMINISTIC"),
    *("TORCHDYNAMO_DISABLE", "TORCH_COMPILE_DISABLE", "TORCHINDUCTOR_USE_FAST_MATH", "TORCHINDUCTOR_MAX_AUTOTUNE"),
    *("VLLM_BATCH_INVARIANT", "VLLM_ROCM_USE_AITER"),
)
"""These choose kernels and so the order of sums: they change last digits, as another processor does."""

READ_ONCE = ("HF_", "TRANSFORMERS_", "TORCH", "PYTORCH_", *FORMAT_VARIABLES, *KERNEL_VARIABLES)
"""Beginnings of the names that libraries read once, when they are imported or first used."""


def without_launcher(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what launchers of distributed trainings (accelerate, torchrun, MPI) leave there."""
    return {
        name: value
        for name, value in environment.items()
        if name not in _LAUNCHER_NAMES and not name.startswith(_LAUNCHER_PREFIXES)
    }


@contextmanager
def launcher_ignored() -> Iterator[None]:
    """Take what launchers leave out of this process's environment, and put it back at the end.

    accelerate reads its settings from there, wherever they came from: ``ACCELERATE_MIXED_PRECISION=bf16`` trains in
    bfloat16, ``LOCAL_RANK=0`` waits for other processes.
    """
    environment = without_launcher(os.environ)
    removed = {name: os.environ.pop(name) for name in [*os.environ] if name not in environment}
    try:
        yield
    finally:
        os.environ.update(removed)


def one_gpu(device: str) -> tuple[str, dict[str, str]]:
    """Return a device's name in a new process that sees its GPU alone, and the variables that make it so.

    Libraries that get no index, or ignore it, then take the right one; ``cpu`` stays as it is.

    Args:
        device: ``cpu``, ``cuda`` (the first GPU) or ``cuda:INDEX``, as this process counts.
    """
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return device, {}
    # Where the variable is set already, this process counts the GPUs of its list.
    names = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    number = int(index or 0)
    return kind, {"CUDA_VISIBLE_DEVICES": names[number].strip() if names else str(number)}


def number_formats() -> dict[str, str]:
    """Return the `FORMAT_VARIABLES` that are set in this process; they are part of a stage's key."""
    return {name: os.environ[name] for name in FORMAT_VARIABLES if os.environ.get(name)}


def kernel_choices() -> dict[str, str]:
    """Return the `KERNEL_VARIABLES` that are set in this process; records name them beside the processor."""
    return {name: os.environ[name] for name in KERNEL_VARIABLES if os.environ.get(name)}
