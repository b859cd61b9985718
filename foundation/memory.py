"""How much memory this process uses."""

import resource
from pathlib import Path


def peak_resident_bytes() -> int:
    """Return the largest resident set of this process since it began (or since VmHWM was reset), in bytes."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
