"""The machine that a plan is made for: the one at hand, or one that the user names (``--assume h100:8``)."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import dataclass
from functools import cache

from ...foundation.errors import UserError, did_you_mean
from ...foundation.memory import free_memory
from ...foundation.process import python_command, python_environment
from .assumptions import PRODUCT_SHARE

_GIB = 2**30


@dataclass(frozen=True)
class Card:
    """A GPU by its data sheet.

    Attributes:
        memory: bytes that a process may take, of an otherwise empty card: the nominal size less what driver and
            context hold.
        flops: dense bfloat16 operations a second, without sparsity.
        host: host memory in bytes that is assumed for each card, as rented machines have it.
    """

    memory: int
    flops: float
    host: int


CARDS: dict[str, Card] = {
    "h100": Card(int(78.5 * _GIB), 989e12, 120 * _GIB),
    "h200": Card(int(138.5 * _GIB), 989e12, 160 * _GIB),
    "a100": Card(int(78.5 * _GIB), 312e12, 120 * _GIB),
    "rtx4090": Card(int(23.2 * _GIB), 165e12, 64 * _GIB),
}


_PROBE = """
import json, sys, time
import torch
device = sys.argv[1]
names = [device] if ":" in device else [f"cuda:{index}" for index in range(torch.cuda.device_count())]
a = torch.rand(4096, 4096, dtype=torch.bfloat16, device=names[0])
for _ in range(3):
    a @ a
torch.cuda.synchronize(names[0])
begin = time.perf_counter()
for _ in range(20):
    b = a @ a
torch.cuda.synchronize(names[0])
speed = 20 * 2 * 4096**3 / (time.perf_counter() - begin)
del a, b
torch.cuda.empty_cache()
free = [torch.cuda.mem_get_info(name)[0] for name in names]
print(json.dumps({"name": torch.cuda.get_device_name(names[0]), "free": free, "product": speed}))
"""


@dataclass(frozen=True)
class Machine:
    """What stages may use.

    Attributes:
        name: for messages, such as ``1 h100 (assumed)`` or ``cpu``.
        device: torch device type, ``cpu`` or ``cuda``.
        count: GPUs; 1 for a CPU.
        device_bytes: free bytes of one GPU; of the host for a CPU.
        host_bytes: free bytes of the host.
        flops: dense bfloat16 operations a second of one GPU at its peak; None for a CPU.
        assumed: whether the user named it; then nothing can run, only a plan can be made.
    """

    name: str
    device: str
    count: int
    device_bytes: int
    host_bytes: int
    flops: float | None = None
    assumed: bool = False


@dataclass(frozen=True)
class ProbedGpus:
    """Name of the GPUs, free bytes of each, and the operations a second of a bfloat16 product on the first."""

    name: str
    free: list[int]
    product: float


def measure_machine(device: str) -> Machine:
    """Read what is free here.

    Args:
        device: torch device of the sweep; ``cuda:1`` is one GPU, ``cuda`` all that are visible.

    Raises:
        UserError: the GPUs cannot be used.
    """
    host = free_memory("cpu")
    if device == "cpu":
        return Machine("cpu", "cpu", 1, host, host)
    gpus = probe_gpus(device)
    count = len(gpus.free)
    return Machine(f"{count} {gpus.name}", "cuda", count, min(gpus.free), host, gpus.product / PRODUCT_SHARE)


@cache
def probe_gpus(device: str) -> ProbedGpus:
    """Measure the GPUs that a sweep may use.

    A process of its own asks: asking keeps some hundred MB of each GPU until the process that asked ends.

    Raises:
        UserError: the GPUs cannot be used.
    """
    done = subprocess.run(
        python_command("-c", _PROBE, device),
        env=python_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise UserError(f"the GPU cannot be used ({reason}); see bench doctor, or use --device cpu")
    return ProbedGpus(**json.loads(done.stdout.splitlines()[-1]))


def assume_machine(text: str) -> Machine:
    """Return the machine that ``--assume`` names.

    Args:
        text: ``CARD:COUNT``, such as ``h100:8``; a count of 1 may be left out.

    Raises:
        UserError: an unknown card, or a count that is none.
    """
    name, _, number = text.partition(":")
    if name not in CARDS:
        raise UserError(
            f"unknown card '{name}'{did_you_mean(name, CARDS) or ';'} allowed: {', '.join(CARDS)}, with their number "
            "behind a colon, such as --assume h100:8"
        )
    if not re.fullmatch("[1-9][0-9]{0,2}", number or "1"):
        raise UserError(f"'{text}' names no number of cards; write {name}:COUNT with 1 to 999, such as {name}:8")
    card, count = CARDS[name], int(number or 1)
    return Machine(f"{count} {name} (assumed)", "cuda", count, card.memory, card.host * count, card.flops, assumed=True)
