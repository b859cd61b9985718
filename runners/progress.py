"""What a person sees while stages run: what runs, how far it is, how long it will still take; also in a log file."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from ..foundation.progress import Report
from .executors.local import Event

LOG_FILE = "run.log"
"""In the folder of a run: one line with the local time for every start, minute and end of a stage."""
QUIET_SECONDS = 10.0
"""A stage that takes no longer has two lines where output is no terminal: that it starts and that it is done."""
PLANNING_QUIET = 5.0
"""What is read before the first stage is silent for so long."""
LINE_SECONDS = 50.0
"""A longer one has a line this often: one a minute at least, whatever the delay."""


class Titled(Protocol):
    """What can be shown: a stage, or another piece of work."""

    @property
    def key(self) -> str:
        """Its name among others."""

    @property
    def title(self) -> str:
        """Its name for people."""


@dataclass(frozen=True)
class _Work:
    key: str
    title: str


@dataclass
class _Running:
    """A stage that runs.

    Attributes:
        title: for people.
        started: time of its start.
        expected: seconds that it is expected to take; 0 where nobody knows.
        done, total, unit: the latest count that it reported and of what; a total of 0 says that it has not.
        first: the first time and count that it reported, by total and unit: a fit counts batches, then matrices.
        printed: time of its last line; 0 before the first.
    """

    title: str
    started: float
    expected: float
    done: int = 0
    total: int = 0
    unit: str = ""
    first: dict[tuple[int, str], tuple[float, int]] = field(default_factory=dict)
    printed: float = 0.0

    def count(self, done: int, total: int, unit: str) -> None:
        if self.unit == unit and self.total == total and done < self.done:  # another pass over the same data
            self.first.pop((total, unit), None)
        self.done, self.total, self.unit = done, total, unit
        self.first.setdefault((total, unit), (time.perf_counter(), done))

    def seconds_left(self) -> float | None:
        """Return the seconds until this count is complete, by its own rate; None before it has one."""
        if not self.total:
            return None
        # From the first report on: loading a model before it says nothing about the rate of its batches.
        began, before = self.first[self.total, self.unit]
        rate = (self.done - before) / max(time.perf_counter() - began, 1e-9)
        return (self.total - self.done) / rate if rate > 0 else None

    def line(self) -> str:
        """Return how far it is: ``fit svd: running 4 min, 12 of 126, about 3 min left``."""
        took = time.perf_counter() - self.started
        parts = [f"running {duration(took)}"]
        left = self.seconds_left()
        if self.total:
            parts.append(f"{self.done} of {self.total} {self.unit}".rstrip())
        if left is None and self.expected > took:
            left = self.expected - took
        if left is not None:
            parts.append(f"about {duration(left)} left")
        return f"{self.title}: {', '.join(parts)}"


class StageProgress:
    """A live display on a terminal; elsewhere lines, at least one a minute for each stage that runs.

    Args:
        console: where to write.
        stages: those that will run, by key.
        seconds: what each is expected to take; corrected by what the finished ones took.
        workers: how many run side by side.
        log: file that gets every line with its time, too. None writes no file.
        makes_folder: whether the log's folder is made; else lines wait until somebody else has made it.
    """

    def __init__(
        self,
        console: Console,
        stages: Mapping[str, Titled],
        seconds: Mapping[str, float],
        workers: int,
        log: Path | None = None,
        makes_folder: bool = True,
    ) -> None:
        self.console, self.stages, self.workers, self.log = console, stages, workers, log
        self.makes_folder, self._waiting_lines, self._started = makes_folder, list[str](), 0
        self.expected = dict(seconds)
        self.running: dict[str, _Running] = {}
        self.done: list[str] = []
        self.taken = 0.0
        self.live = console.is_terminal and not console.quiet
        counts = (BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self.display = Progress(TextColumn("{task.description}"), *counts, console=console, transient=True)
        self.rows: dict[str, TaskID] = {}
        self.overall = self.display.add_task("stages", total=len(stages))
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True, name="progress lines")

    def __enter__(self) -> StageProgress:
        if self.live:
            self.display.start()
        self._write_log(f"{len(self.stages)} stages to do, {self.workers} side by side")
        self._ticker.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._ticker.join()
        if self.live:
            self.display.stop()
        if kind is not None:
            reason = "interrupted" if issubclass(kind, KeyboardInterrupt) else f"ended by an error: {error}"
            self._write_log(f"{reason}; {len(self.done)} of {len(self.stages)} stages are done and kept")

    def start(self, stage: Titled) -> None:
        """A stage begins."""
        expected = self.expected.get(stage.key, 0.0) * self._slowness()
        with self._lock:
            self.running[stage.key] = _Running(stage.title, time.perf_counter(), expected)
            self._started += 1
        about = f", expected to take {duration(expected)}" if expected else ""
        self._print(f"{stage.title}: started, stage {self._started} of {len(self.stages)}{about}", also_live=False)
        if self.live:
            self.rows[stage.key] = self.display.add_task(stage.title, total=None)

    def event(self, event: Event, stage: Titled) -> None:
        """A worker reports."""
        if event.kind == "progress":
            with self._lock:
                self.running[event.key].count(event.done, event.total, event.unit)
            if self.live:
                shown = f"{stage.title}, {event.unit}" if event.unit else stage.title
                row = self.rows[event.key]
                self.display.update(row, completed=event.done, total=event.total, description=shown)
            return
        with self._lock:
            took = time.perf_counter() - self.running.pop(event.key).started
        if self.live:
            self.display.remove_task(self.rows.pop(event.key))
        if event.kind != "done":
            self._write_log(f"{stage.title}: failed after {duration(took)}: {event.text}")
            return
        self.done.append(event.key)
        self.taken += took
        left = self.seconds_left()
        if self.live:
            self.display.update(self.overall, advance=1, description=f"stages, about {duration(left)} left")
        count = f"[{len(self.done)}/{len(self.stages)}]"
        known = any(self.expected.get(key) for key in self.stages if key not in self.done)
        tail = f", about {duration(left)} left" if known else ""
        self._print(f"{count} {stage.title}: {duration(took)}{tail}")

    def reporter(self, stage: Titled, progress: Callable[[int, int], None] | None = None) -> Report:
        """Return a report of one stage's counts, which are passed on to ``progress`` too."""

        def report(done: int, total: int, unit: str = "") -> None:
            self.event(Event(stage.key, "progress", done, total, unit=unit), stage)
            if progress:
                progress(done, total)

        return report

    def seconds_left(self) -> float:
        """Return the expected wall-clock seconds for the stages that are not done, in the light of those that are."""
        left = 0.0
        now = time.perf_counter()
        for key in self.stages:
            if key in self.done:
                continue
            need = self.expected.get(key, 0.0) * self._slowness()
            with self._lock:
                spent = now - self.running[key].started if key in self.running else 0.0
            left += max(need - spent, 0.0)
        return left / self.workers

    def _slowness(self) -> float:
        """Return how much longer the finished stages took than expected."""
        expected_done = sum(self.expected.get(key, 0.0) for key in self.done)
        return self.taken / expected_done if expected_done > 0 else 1.0

    def _tick(self) -> None:
        """Print a line for every stage that has had none for a while, until the end."""
        while not self._ended.wait(min(1.0, QUIET_SECONDS / 4)):
            now = time.perf_counter()
            with self._lock:
                lines = [running.line() for running in self.running.values() if _due(running, now)]
            for line in lines:
                self._print(f"[{len(self.done)}/{len(self.stages)}] {line}", also_live=False)

    def _print(self, line: str, also_live: bool = True) -> None:
        if also_live or not self.live:
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._write_log(line)

    def _write_log(self, line: str) -> None:
        """Add a line to the log file; a disk that takes none must not end the work."""
        if self.log is None:
            return
        now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        self._waiting_lines.append(f"{now}  {line}\n")
        with suppress(OSError):
            if self.makes_folder:
                self.log.parent.mkdir(parents=True, exist_ok=True)
            if self.log.parent.is_dir():
                lines, self._waiting_lines = self._waiting_lines, []
                with self.log.open("a", encoding="utf-8", errors="backslashreplace") as file:
                    file.writelines(lines)


def _due(running: _Running, now: float) -> bool:
    """Tell whether a stage has been silent for long enough, and note that it is going to have a line."""
    due = now - (running.printed or running.started) >= (LINE_SECONDS if running.printed else QUIET_SECONDS)
    if due:
        running.printed = now
    return due


@contextmanager
def show_progress(console: Console, title: str, after: float = 0.0) -> Iterator[Callable[..., None]]:
    """Show how far one piece of work is, as a `StageProgress` of one stage does; give a `Report`.

    Lines begin with the first report: what is refused before it is one sentence alone.

    Args:
        console: where.
        title: of the work, for people.
        after: seconds; reports before are passed over, so that quick work says nothing.
    """
    work, began = _Work("work", title), time.monotonic()
    with StageProgress(console, {work.key: work}, {}, 1) as shown:
        if shown.live and not after:
            shown.start(work)
        count = shown.reporter(work)

        def report(done: int, total: int, unit: str = "") -> None:
            if work.key not in shown.running:
                if time.monotonic() - began < after:
                    return
                shown.start(work)
            count(done, total, unit)

        yield report


def duration(seconds: float) -> str:
    """Format seconds for people: ``8 s``, ``3 min``, ``2.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
