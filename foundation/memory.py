"""How much memory a process took, and how much is left to take."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import resource
import sys
from pathlib import Path

import psutil

_CGROUP = Path("/sys/fs/cgroup")

BASE_BYTES = 600 << 20
"""Resident memory of a process that has imported torch, transformers and this package, and done its first products.

It is a bound.
"""

FORKED_BYTES, STARTED_BYTES = 400 << 20, 487 << 20
"""What such a process has been measured to take, forked from the fork server and started afresh (28 November 2026)."""


def usual_bytes(device: str = "cpu") -> int:
    """Return what such a process usually takes for a stage on a device; those on a CPU are forked where that works."""
    from .fork_server import ForkServer

    return FORKED_BYTES if device == "cpu" and ForkServer.available() else STARTED_BYTES


def reset_peak_memory() -> None:
    """Start a new peak for `peak_memory_bytes`: one process runs many stages."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():  # before that there is nothing to reset, and asking is an error
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)


def peak_memory_bytes() -> int:
    """Return the largest resident set since the reset plus the most GPU memory held, in bytes."""
    torch = sys.modules.get("torch")  # who never imported it holds no GPU memory
    if not torch or not torch.cuda.is_initialized():
        return peak_resident_bytes()
    return peak_resident_bytes() + sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))


def peak_resident_bytes() -> int:
    """Return the largest resident set since the reset, in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def trim_memory() -> None:
    """Give freed memory back to the system, where glibc would keep it for later (holes of up to 32 MiB each)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def release_memory() -> None:
    """Free what only cycles of references still hold, such as a trained model and its optimizer, GPU memory included.

    Python collects cycles some time later, but what comes next reads how much memory is free now.
    """
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    trim_memory()


def free_share(device: str) -> float:
    """Return the share of a GPU's memory that is free, less a twentieth of it for what comes and goes meanwhile."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return 0.95 * free / total


def free_memory(device: str = "cpu") -> int:
    """Return the bytes that a process may still take on a torch device, a container's limit included."""
    if device.startswith("cuda"):
        import torch

        # What torch has reserved and does not use is free for it, though the driver counts it as taken.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no limit reads "max"
        return free
    # Pages of files that nobody uses count as used by the container and are given up when memory is asked for.
    return max(0, min(free, limit - used + int(stat.get("inactive_file", 0))))
