"""What arithmetic this machine's CPU does in hardware."""

from __future__ import annotations


def native_bfloat16() -> bool:
    """Whether the CPU multiplies bfloat16 itself: AVX512-BF16 or AMX-BF16, on Arm BF16.

    Others convert every number to float32 and back, which takes several times as long as float32.
    """
    import torch

    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
