"""How fast this machine's CPU is: a few short measurements, remembered for each machine and version of torch.

One thread is measured, by its own CPU time: on a busy machine two threads wait for each other, and an SVD of 256 rows
was seen to take a hundred times longer; the CPU time of one thread hardly changes.
"""

from __future__ import annotations

import math
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ...foundation.checksums import cache_folder
from ...foundation.files import digest
from ...foundation.remembered import remembered
from ...models.presets import ModelSource
from ..provenance import processor
from ..threads import cpu_threads
from ..tokenizers import PlanTokenizer

_BUSY = "busy"
_VERSION = 4  # raised where something is measured in another way
_SECONDS, _LEAST = 0.15, 3  # of a measurement, repeated at least so often
_ROWS, _SIDE = 512, 1024  # of the products, as (rows, side) x (side, side)
_DECOMPOSED = 256  # side of the decomposed matrices
_MOVED_BYTES, _WRITTEN_BYTES = 32 << 20, 16 << 20
_CALLS = 200


@dataclass(frozen=True)
class Probe:
    """What one thread was measured to do, each the best of several repetitions.

    Attributes:
        float32, bfloat16, float64: operations a second of a product with 512 rows.
        svd: operations a second of a float32 SVD, counted as `svd_operations`.
        eigen: the same of a float64 eigendecomposition, counted as `eigen_operations`.
        memory: bytes a second, read and written.
        disk: bytes a second, written and flushed.
        call: seconds of a small operation.
    """

    float32: float
    bfloat16: float
    float64: float
    svd: float
    eigen: float
    memory: float
    disk: float
    call: float

    def sentence(self) -> str:
        """Return the figures for people."""
        return (
            f"products {self.float32 / 1e9:.0f} GFLOP/s in float32, {self.bfloat16 / 1e9:.0f} in bfloat16, "
            f"{self.float64 / 1e9:.0f} in float64; SVD {self.svd / 1e9:.1f}, eigenvectors {self.eigen / 1e9:.1f}; "
            f"memory {self.memory / 1e9:.1f} GB/s, disk {self.disk / 1e9:.2f} GB/s; {1e6 * self.call:.1f} µs a call"
        )


def svd_operations(m: int, n: int) -> float:
    """Return about how many operations a thin SVD of an (m, n) matrix with its vectors takes."""
    side, longer = min(m, n), max(m, n)
    return 6.0 * longer * side**2 + 20.0 * side**3  # R-SVD, Golub and Van Loan, Matrix Computations, 8.6.3


def eigen_operations(side: int) -> float:
    """Return about how many operations a symmetric eigendecomposition with its vectors takes."""
    return 9.0 * side**3


def probe_cpu() -> Probe:
    """Return the speed of one thread of this machine: remembered, or measured in about two seconds.

    What was measured while others used the processor counts only until that is over: threads of one core share its
    caches, and parsing JSON was seen to take five times longer.
    """
    # The argument only keys the cache of this process: another folder has a probe of its own.
    return _probe(str(cache_folder()))


def tokenizer_seconds(source: ModelSource) -> float:
    """Return the CPU seconds of loading a model's tokenizer on this machine: remembered as a probe is, or measured."""
    key = digest(["tokenizer", _VERSION, version("transformers"), version("tokenizers"), *_machine(), source.sha256])
    plain = remembered(
        key,
        lambda: {_BUSY: _is_busy(), "seconds": PlanTokenizer(source).load_seconds()},
        lambda plain: isinstance(plain, dict) and _is_speed(plain.get("seconds")) and _is_current(plain),
    )
    return float(plain["seconds"])


@cache
def _probe(_: str) -> Probe:
    key = digest(["probe", _VERSION, *_machine()])
    probe = _parse(remembered(key, lambda: {_BUSY: _is_busy()} | asdict(_measure()), _counts))
    assert probe is not None
    return probe


def _machine() -> list[Any]:
    return [platform.node(), processor(), os.cpu_count(), torch.__version__]


def _is_busy() -> bool:
    """Whether others keep more than half of the processors at work."""
    return os.getloadavg()[0] > (os.cpu_count() or 1) / 2


def _counts(plain: Any) -> bool:
    """Whether a probe from the cache counts."""
    return _parse(plain) is not None and _is_current(plain)


def _is_current(plain: Mapping[str, Any]) -> bool:
    """Whether the machine is still as busy as it was when something was measured, or was idle then."""
    return not plain.get(_BUSY) or _is_busy()


def _is_speed(figure: Any) -> bool:
    return type(figure) is float and math.isfinite(figure) and figure > 0


def _parse(plain: Any) -> Probe | None:
    """Return a probe from the cache, None where it is no such thing."""
    with suppress(TypeError, ValueError, AttributeError):
        probe = Probe(**{name: value for name, value in plain.items() if name != _BUSY})
        if all(map(_is_speed, asdict(probe).values())):
            return probe
    return None


def _measure() -> Probe:
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator).to(dtype)

    def product(dtype: torch.dtype) -> float:
        x, weight = matrix(_ROWS, _SIDE, dtype), matrix(_SIDE, _SIDE, dtype)
        return 2.0 * _ROWS * _SIDE**2 / _best(lambda: torch.nn.functional.linear(x, weight))

    with torch.inference_mode(), cpu_threads(1):
        # The names are without "torch.", as the fields of `Probe` are.
        speeds = {str(dtype)[6:]: product(dtype) for dtype in (torch.float32, torch.bfloat16, torch.float64)}
        square = matrix(_DECOMPOSED, _DECOMPOSED)
        svd = _best(lambda: torch.linalg.svd(square, full_matrices=False))
        gram = square.double() @ square.double().T
        eigen = _best(lambda: torch.linalg.eigh(gram))
        source = torch.zeros(_MOVED_BYTES // 4)
        target = torch.empty_like(source)
        moved = _best(lambda: target.copy_(source))
        small = torch.zeros(16)
        call = _best(lambda: [small + 1.0 for _ in range(_CALLS)]) / _CALLS
    return Probe(
        **speeds,
        svd=svd_operations(_DECOMPOSED, _DECOMPOSED) / svd,
        eigen=eigen_operations(_DECOMPOSED) / eigen,
        memory=2.0 * _MOVED_BYTES / moved,
        disk=_WRITTEN_BYTES / _written(),
        call=call,
    )


def _written() -> float:
    """Return the seconds in which a file is written and flushed, in the cache's folder or the one for such files."""
    folder = cache_folder()
    data = os.urandom(1 << 20) * (_WRITTEN_BYTES >> 20)

    def write(folder: Path | None) -> float:
        with tempfile.TemporaryFile(dir=folder) as file:

            def once() -> None:
                file.seek(0)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

            return _best(once, time.perf_counter)

    try:
        return write(folder if folder.is_dir() else None)
    except OSError:  # a full or read-only disk stops nobody from planning
        return _WRITTEN_BYTES / 1e9


def _best(run: Callable[[], Any], clock: Callable[[], float] = time.thread_time) -> float:
    """Return the seconds of one call by a clock, the best of several."""
    run()
    # The call above is a warm-up and is not measured.
    best, count, begin = math.inf, 0, clock()
    while count < _LEAST or clock() - begin < _SECONDS:
        start = clock()
        run()
        best, count = min(best, clock() - start), count + 1
        if clock() - begin > 2 * _SECONDS:  # slow: this has to do
            break
    return max(best, 1e-9)
