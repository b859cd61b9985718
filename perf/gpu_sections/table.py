"""What a part hands back, how it is kept in a file, and how tables are printed."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        title: what was measured, with sizes.
        figure: the value with its unit.
        against: the same for what a user would otherwise run, or empty.
        target: what the figure has to be, or empty.
        met: whether it is; None where there is no target, or none at this size.
        note: what the figure does not say by itself, such as a part that was measured for the whole.
    """

    title: str
    figure: str
    against: str = ""
    target: str = ""
    met: bool | None = None
    note: str = ""


def failed(title: str, reason: BaseException | str) -> Row:
    """Return the row of something that failed; its exit code is 1."""
    if isinstance(reason, BaseException):
        lines = str(reason).strip().splitlines() or [""]
        reason = f"{type(reason).__name__}: {lines[0]}"
    return Row(title, "failed", met=False, note=reason[:160])


def attempts(work: Sequence[tuple[str, Callable[[], Sequence[Row]]]]) -> Iterator[Row]:
    """Yield the rows of each piece of work in turn; one that fails is a row by its name, and the next goes on."""
    for name, piece in work:
        try:
            yield from piece()
        except Exception as error:
            traceback.print_exc()
            yield failed(name, error)


@dataclass
class Context:
    """What a part runs on, and how long it may.

    Attributes:
        device: ``cuda`` or ``cpu``.
        small: sizes that a CPU does in seconds; targets then do not count.
        seconds: the part's share of the time; `left` says what is left of it.
        folder: where results of parts are kept.
        options: values of the script's own options.
    """

    device: str
    small: bool
    seconds: float
    begin: float = field(default_factory=time.perf_counter)
    folder: Path = Path()
    options: Mapping[str, str] = field(default_factory=dict)

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
            import torch

            torch.cuda.synchronize()

    def peak(self) -> str:
        """Return the largest memory that tensors took on the GPU since the start, or nothing on a CPU."""
        if self.device != "cuda":
            return ""
        import torch

        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"


@dataclass(frozen=True)
class Result:
    """The rows of a part and where they are from.

    Attributes:
        part: its name.
        facts: device, versions, commit, command, date, seconds.
        rows: in order.
    """

    part: str
    facts: dict[str, Any]
    rows: list[Row]

    def save(self, folder: Path) -> None:
        """Write PART.json."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{self.part}.json").write_text(json.dumps(asdict(self), indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, file: Path) -> Result:
        """Read what `save` wrote."""
        plain = json.loads(file.read_text())
        return cls(plain["part"], plain["facts"], [Row(**row) for row in plain["rows"]])

    def printed(self) -> str:
        """Return a line with the facts, and the table."""
        line = ", ".join(f"{value}" if name == "device" else f"{name} {value}" for name, value in self.facts.items())
        return f"{self.part}: {line}\n\n{printed([(self.part, row) for row in self.rows])}\n"


def printed(rows: Sequence[tuple[str, Row]]) -> str:
    """Return the table as text."""
    heads = ("part", "title", "figure", "against", "target", "met", "note")
    answer = {True: "yes", False: "NO", None: ""}
    cells = [(part, row.title, row.figure, row.against, row.target, answer[row.met], row.note) for part, row in rows]
    sizes = [max(len(line[index]) for line in [heads, *cells]) for index in range(len(heads))]
    lines = ["  ".join(cell.ljust(size) for cell, size in zip(line, sizes, strict=True)).rstrip() for line in cells]
    head = "  ".join(cell.ljust(size) for cell, size in zip(heads, sizes, strict=True)).rstrip()
    return "\n".join([head, "-" * len(head), *lines])
