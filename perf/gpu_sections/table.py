"""What a section hands back, and how the table at the end is printed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: what was measured, with sizes.
        figure: the value with its unit.
        against: the same for what a user would otherwise run, or empty.
        target: what the figure has to be, or empty.
        met: whether it is; None where there is no target, or none at this size.
        note: what the figure does not say by itself, such as a part that was measured for the whole.
    """

    what: str
    figure: str
    against: str = ""
    target: str = ""
    met: bool | None = None
    note: str = ""


@dataclass
class Where:
    """What a section runs on, and how long it may.

    Attributes:
        device: ``cuda`` or ``cpu``.
        small: sizes that a CPU does in seconds; targets then do not count.
        seconds: the section's share of the time; `left` says what is left of it.
    """

    device: str
    small: bool
    seconds: float
    begin: float = field(default_factory=time.perf_counter)

    @property
    def left(self) -> float:
        return self.seconds - (time.perf_counter() - self.begin)

    def timed(self, work: Callable[[], object]) -> float:
        """Return the seconds that the work takes, on the device too."""
        self.wait()
        begin = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - begin

    def wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def peak(self) -> str:
        """Return the largest memory that tensors took on the GPU since the start, or nothing on a CPU."""
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if self.device == "cuda" else ""


def printed(rows: Sequence[tuple[str, Row]]) -> str:
    """Return the table as text."""
    heads = ("section", "what", "figure", "against", "target", "met", "note")
    answer = {True: "yes", False: "NO", None: ""}
    cells = [
        (section, row.what, row.figure, row.against, row.target, answer[row.met], row.note) for section, row in rows
    ]
    sizes = [max(len(line[index]) for line in [heads, *cells]) for index in range(len(heads))]
    lines = ["  ".join(cell.ljust(size) for cell, size in zip(line, sizes, strict=True)).rstrip() for line in cells]
    head = "  ".join(cell.ljust(size) for cell, size in zip(heads, sizes, strict=True)).rstrip()
    return "\n".join([head, "-" * len(head), *lines])
