"""Running stages side by side on this machine: a few worker processes that live as long as the sweep."""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait

from ...evals.hosting.host import EngineCrashed, cause_of_death
from ...foundation.errors import UserError
from ...foundation.fork_server import Child, ForkServer
from ...foundation.memory import release_memory
from ...foundation.process import die_with_parent, python_environment
from ...foundation.progress import Report, throttled
from ..specs import Stage
from ..store.folders import StageStore
from ..training.recipes import SMALL_MODEL_PARAMETERS
from .parallel.launch import ProcessesCrashed


@dataclass(frozen=True)
class Event:
    """News from a worker about a stage: ``progress`` (done, total, unit), ``done``, or ``failed`` (text)."""

    key: str
    kind: str
    done: int = 0
    total: int = 0
    text: str = ""
    expected: bool = False
    unit: str = ""


def _start_work(pipe: Connection, store: StageStore, threads: int, parent: int) -> None:
    # A sweep that is killed must not leave workers behind that write stages nobody waits for.
    die_with_parent(parent)
    _work(pipe, store, threads)


def _forked_work(handle: int, store: StageStore, threads: int) -> None:
    _work(Connection(handle), store, threads)


def _work(pipe: Connection, store: StageStore, threads: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent decides, also where the whole group gets a signal
        signal.signal(number, signal.SIG_IGN)
    prepare(threads)
    while (stage := pipe.recv()) is not None:
        key = stage.key

        def report(done: int, total: int, unit: str, key: str = key) -> None:
            pipe.send(Event(key, "progress", done, total, unit=unit))

        pipe.send(do_stage(stage, store, throttled(report)))


def prepare(threads: int) -> None:
    """Make this process a worker: so many CPU threads, no progress bars."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if find_spec("datasets"):  # only data from the hub needs it
        from datasets.utils.logging import disable_progress_bar

        disable_progress_bar()


def do_stage(stage: Stage, store: StageStore, report: Report) -> Event:
    """Do a stage in this process; returns ``done`` or ``failed`` and raises nothing."""
    from ..stages.perform import perform

    try:
        here = store.ready(stage)
        store.run(here, lambda folder: perform(here, folder, report))
        return Event(stage.key, "done")
    except UserError as error:
        return Event(stage.key, "failed", text=str(error), expected=True)
    except (EngineCrashed, ProcessesCrashed) as crash:
        return Event(stage.key, "failed", text=str(crash))
    except Exception:
        return Event(stage.key, "failed", text=traceback.format_exc())
    finally:
        # transformers' trainer and its model refer to each other; the next stage asks how much memory is free.
        release_memory()


class _Worker:
    def __init__(self, store: StageStore, threads: int, forks: bool) -> None:
        self.stage: Stage | None = None
        self.process: Child | mp.process.BaseProcess
        context = mp.get_context("spawn")
        self.pipe, far = context.Pipe()
        if forks:
            self.process = ForkServer.get_or_start(threads).start(_forked_work, store, threads, files=[far.fileno()])
            # Here and below: a far end that stays open in this process would hide the end of the worker.
            far.close()
            return
        self.process = context.Process(target=_start_work, args=(far, store, threads, os.getpid()), daemon=True)
        # multiprocessing has no argument for the environment: a process takes that of its parent at the start.
        before = dict(os.environ)
        os.environ.update(python_environment({"OMP_NUM_THREADS": str(threads)}))
        try:
            self.process.start()
        finally:
            os.environ.clear()
            os.environ.update(before)
        far.close()


class StageCrashed(Exception):
    """A stage ended through a fault of ours or of the machine; the text has its last words."""


def run_stages(
    stages: Mapping[str, Stage],
    needs: Mapping[str, tuple[str, ...]],
    store: StageStore,
    workers: int,
    threads: int,
    on_event: Callable[[Event, Stage], None],
    on_start: Callable[[Stage], None],
) -> dict[str, Event]:
    """Run stages as soon as what they need is complete.

    Args:
        stages: those to run, by key; needed ones that are missing here are complete.
        needs: keys that each stage needs.
        store: where they are written.
        workers: processes side by side.
        threads: CPU threads of each.
        on_event, on_start: called with what happens.

    Returns:
        The evaluations that failed, by key, with what they said. Nothing needs them, so all other stages are run.

    Raises:
        UserError: the first other stage that failed for a reason the user can mend; running stages are ended.
        StageCrashed: another stage failed otherwise, or a stage's process died.
    """
    waiting = dict(stages)
    done: set[str] = set()
    failed: dict[str, Event] = {}
    # What has touched a GPU cannot be forked, and whether importing does is not known for every machine with one.
    forks = ForkServer.available() and all(stage.execution.device == "cpu" for stage in stages.values())
    pool = [_Worker(store, threads, forks) for _ in range(min(workers, len(waiting)))]
    try:
        while waiting or any(worker.stage for worker in pool):
            for worker in pool:
                if worker.stage is None:
                    ready = next((k for k in waiting if all(n in done or n not in stages for n in needs[k])), None)
                    if ready is not None:
                        worker.stage = waiting.pop(ready)
                        on_start(worker.stage)
                        worker.pipe.send(worker.stage)
            busy = {worker.pipe: worker for worker in pool if worker.stage}
            for pipe in wait(list(busy)):
                worker = busy[pipe]  # type: ignore[index]
                stage = worker.stage
                assert stage is not None
                try:
                    event: Event = worker.pipe.recv()
                except (EOFError, ConnectionError):
                    worker.process.join(5)  # the pipe may close before the exit code is known
                    raise StageCrashed(_epitaph(worker.process.exitcode, stage)) from None
                on_event(event, stage)
                if event.kind == "done":
                    done.add(event.key)
                    worker.stage = None
                elif event.kind == "failed":
                    failed[event.key] = failed_evaluation(event, stage)
                    worker.stage = None
    finally:
        for worker in pool:
            worker.process.kill()
        for worker in pool:
            worker.process.join()
    return failed


def failed_evaluation(event: Event, stage: Stage) -> Event:
    """Return the event of an evaluation that failed.

    Raises:
        UserError: it is of another stage, which failed for a reason the user can mend.
        StageCrashed: it is of another stage, which failed otherwise.
    """
    if stage.kind == "evaluate":
        return event
    if event.expected:
        raise UserError(event.text)
    raise StageCrashed(f"{stage.title} failed:\n{event.text}")


def raise_failures(stages: Mapping[str, Stage], failed: Mapping[str, Event]) -> None:
    """Raise for the evaluations that failed, each named with its reason; do nothing where there are none.

    Raises:
        UserError: all of them failed for reasons that the user can mend.
        StageCrashed: one failed otherwise.
    """
    if not failed:
        return
    by_reason: dict[str, list[str]] = {}
    for key, event in failed.items():
        by_reason.setdefault(event.text, []).append(stages[key].title or key)
    reasons = [f"{' and '.join(titles)}: {text}" for text, titles in by_reason.items()]
    count = f"{len(failed)} evaluation{'s' if len(failed) > 1 else ''}"
    if all(event.expected for event in failed.values()):
        raise UserError(f"{count} failed, all other results are kept; {'; '.join(reasons)}")
    raise StageCrashed("\n".join([f"{count} failed, all other results are kept:", *reasons]))


def _epitaph(code: int | None, stage: Stage) -> str:
    return (
        f"the process of '{stage.title}' died ({cause_of_death(code)}); use fewer --workers or a smaller "
        "batch, then run the same command again: finished stages are kept"
    )


def divide_cores(config_workers: int | None, device: str, parameters: int, stages: int) -> tuple[int, int]:
    """Divide the cores among stages: return (worker processes, CPU threads of each).

    Small models do not fill several cores, so each core gets its own stage; large models and GPUs run one at a time.

    Args:
        config_workers: what the user asked for, or None.
        device: torch device of the stages.
        parameters: size of the uncompressed model.
        stages: how many are to run.
    """
    cores = len(os.sched_getaffinity(0))
    small = device == "cpu" and parameters < SMALL_MODEL_PARAMETERS
    asked = config_workers or (cores if small else 1)
    # The number of threads must not depend on how much is left to do: it can change the last digits of a result. Small
    # models gain nothing from a second thread and lose tenfold where another process wants the core.
    threads = 1 if small else max(1, cores // asked)
    return max(1, min(asked, stages)), threads
