"""An engine in a process of its own: memory comes back when it ends, and a crash ends nothing else."""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing as mp
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ...foundation.environment import one_gpu
from ...foundation.errors import UserError
from ...foundation.fork_server import Child, ForkServer
from ...foundation.process import cpu_seconds, python_command, python_environment
from ...models.configs import load_config
from ...models.footprint import context_length
from ...models.headers import weight_files
from ...models.loading import load_tokenizer
from ..engines.base import Completion, Engine, Progress, Sampling, Scored, engines
from .child import Opening, serve

REUSE_BYTES = 256 << 20
"""A process that held a model up to this size waits for the next one: importing takes longer than such a model."""

_LAST_LINES = 25
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from lowrank_bench.evals.hosting.child import main; main(int(sys.argv[2]), int(sys.argv[3]))"
)
_DEATHS = {-9: "killed, most likely because memory ran out", -11: "a segmentation fault", -15: "terminated"}


class EngineCrashed(Exception):
    """An engine's process died or failed through no fault of the input; the text has its last output."""


def cause_of_death(code: int | None) -> str:
    """Say what an exit code of a process means."""
    return _DEATHS.get(code or 0, f"exit code {code}")


class HostedEngine(Engine):
    """Any engine, run in a process of its own.

    Args:
        engine: registered name.
        checkpoint: folder or hub id.
        dtype: ``float32``, ``bfloat16`` or ``auto`` (the checkpoint's own).
        device: a torch device such as ``cpu`` or ``cuda``.
        revision: commit of a hub id.
        threads: CPU threads of the process; None takes one per core.
        keep: whether the process waits for the next engine after `close`; None decides by the model's size.
        longest: called with the tokenizer and the model's context, returns the most tokens of a sequence that will be
            asked for (see `Benchmark.longest_sequence`); memory for more is neither asked for nor reserved. None takes
            the context.
        tokenizer: the model's, where it has been loaded already: a large one takes seconds. None loads it.

    Attributes:
        process_id: of the process.
        peak_memory_bytes: the most memory that it held for this model; known after `close`.
        cpu_seconds: of the process and those that it started, for this model; known after `close`.

    Raises:
        UserError: what the engine refuses.
        EngineCrashed: it died or failed while loading.
    """

    name = "hosted"

    def __init__(
        self,
        engine: str,
        checkpoint: str | Path,
        dtype: str = "auto",
        device: str = "cpu",
        revision: str | None = None,
        threads: int | None = None,
        keep: bool | None = None,
        longest: Callable[[Any, int], int] | None = None,
        tokenizer: Any = None,
    ) -> None:
        self.engine, self.peak_memory_bytes, self.cpu_seconds = engine, 0, 0.0
        self.tokenizer = load_tokenizer(checkpoint, revision or "") if tokenizer is None else tokenizer
        self._keep = _is_small(checkpoint) if keep is None else keep
        count = threads or len(os.sched_getaffinity(0))
        module = engines.module_of(engine)
        most = longest(self.tokenizer, context_length(load_config(checkpoint, revision or ""))) if longest else None
        # The process sees one GPU alone (`_Process`).
        opening = Opening(engine, module, str(checkpoint), dtype, one_gpu(device)[0], revision, count, most)
        self._process: _Process | None = _take(engine, opening.module, device, count)
        self.process_id = self._process.id
        # A process that is used again has spent time on earlier models.
        self._cpu_before = cpu_seconds(self.process_id)
        try:
            self.context_length = self._ask(None, "open", opening)
        except UserError:
            self._drop()
            raise

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, batch_size: int, progress: Progress | None = None
    ) -> list[Completion]:
        """Continue each prompt; see the engine itself."""
        done: list[Completion] = self._ask(progress, "generate", [list(ids) for ids in prompts], sampling, batch_size)
        return done

    def logprobs(
        self, sequences: Sequence[Sequence[int]], batch_size: int, progress: Progress | None = None
    ) -> list[list[float]]:
        """Score sequences; see the engine itself."""
        scored: list[list[float]] = self._ask(progress, "logprobs", [list(ids) for ids in sequences], batch_size)
        return scored

    def continuation_logprobs(
        self,
        sequences: Sequence[Sequence[int]],
        starts: Sequence[int],
        batch_size: int,
        progress: Progress | None = None,
    ) -> list[list[float]]:
        """Score the last ids of sequences; see the engine itself."""
        ids = [list(sequence) for sequence in sequences]
        scored: list[list[float]] = self._ask(progress, "continuation_logprobs", ids, list(starts), batch_size)
        return scored

    @property
    def unread(self) -> int:  # type: ignore[override]
        """As of the engine itself."""
        return engines.get(self.engine).unread

    def score_continuations(
        self,
        sequences: Sequence[Sequence[int]],
        starts: Sequence[int],
        batch_size: int,
        progress: Progress | None = None,
    ) -> list[Scored]:
        """Score the last ids of sequences; see the engine itself."""
        ids = [list(sequence) for sequence in sequences]
        scored: list[Scored] = self._ask(progress, "score_continuations", ids, list(starts), batch_size)
        return scored

    def close(self) -> None:
        """Free the model; the process ends, or waits for the next model where this one was small."""
        if self._process is None:
            return
        self.cpu_seconds = max(cpu_seconds(self.process_id) - self._cpu_before, 0.0)
        try:
            self.peak_memory_bytes = self._ask(None, "close")  # every answer has been given: a crash here loses none
        except EngineCrashed:
            return
        process, self._process = self._process, None
        _give_back(process) if self._keep else process.end()

    def _ask(self, progress: Progress | None, verb: str, *arguments: Any) -> Any:
        if self._process is None:
            raise RuntimeError("the engine is closed")
        try:
            return self._process.ask(progress, verb, *arguments)
        except UserError:
            raise
        except BaseException:
            self._drop()  # whatever it does now, nobody waits for its answer
            raise

    def _drop(self) -> None:
        if self._process is not None:
            self._process.end()
            self._process = None


def _forks(key: tuple[str, str, str, int]) -> bool:
    """Whether an engine's process can be forked: it needs no GPU, and no more than a fork server has imported."""
    engine, _, device, _ = key
    return engine == "transformers" and device == "cpu"


class _Started:
    """A process started afresh, with the interface of `Child`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process, self.pid = process, process.pid

    @property
    def exitcode(self) -> int | None:
        return self._process.poll()

    def join(self, timeout: float | None = None) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        return self._process.returncode

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)


class _Process:
    """A running child process and the pipe to it."""

    def __init__(self, engine: str, key: tuple[str, str, str, int], threads: int) -> None:
        self.engine, self.key, self.owner = engine, key, os.getpid()
        self._pipe, child_end = mp.Pipe()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        environment = {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
        environment |= one_gpu(key[2])[1]
        # One process alone is not worth a fork server; a sweep's worker comes from one.
        fork_server = ForkServer.running(threads) if _forks(key) else None
        self._process: Child | _Started
        if fork_server is not None:
            self._process = fork_server.start(
                serve, files=[child_end.fileno()], output=self._log.fileno(), environment=environment, session=True
            )
        else:
            self._process = self._started(child_end, environment)
        # While this process holds that end too, the pipe does not close when the child dies.
        child_end.close()

    def _started(self, child_end: Connection, environment: dict[str, str]) -> _Started:
        arguments = [json.dumps(sys.path), str(child_end.fileno()), str(os.getpid())]
        process = subprocess.Popen(
            python_command("-c", _START, *arguments),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            pass_fds=[child_end.fileno()],
            start_new_session=True,
            env=python_environment(environment),
        )
        return _Started(process)

    @property
    def id(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.exitcode is None

    def ask(self, progress: Progress | None, verb: str, *arguments: Any) -> Any:
        try:
            self._pipe.send((verb, *arguments))
            while True:
                kind, value = self._pipe.recv()
                if kind != "progress":
                    break
                if progress:
                    progress(*value)
        except (EOFError, ConnectionError):
            # The pipe closes a moment before the process can be waited for.
            code = self._process.join(10)
            raise EngineCrashed(
                f"the engine '{self.engine}' died ({cause_of_death(code)}) at '{verb}'; its last "
                f"output:\n{self._last_output()}\nTry a smaller batch (--eval-batch-size in bench run, --batch-size in "
                "bench eval) or fewer --workers; the same command goes on where it was, finished stages are kept."
            ) from None
        if kind == "refused":
            raise UserError(value)
        if kind == "failed":
            raise EngineCrashed(f"the engine '{self.engine}' failed at '{verb}':\n{value.strip()}")
        return value

    def _last_output(self) -> str:
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - 20_000))
        lines = self._log.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()
        return "\n".join([line for line in lines if line.strip()][-_LAST_LINES:]) or "(none)"

    def end(self) -> None:
        """Kill the process with all that it started."""
        self._process.kill()
        self._process.join()
        self._pipe.close()
        self._log.close()


_idle: list[_Process] = []


def _take(engine: str, module: str, device: str, threads: int) -> _Process:
    key = (engine, module, device, threads)
    matching = [process for process in _idle if process.key == key and process.alive]
    for process in _idle:
        if process not in matching[:1]:
            process.end()  # it waits for a kind of engine that is not asked for now, and only takes memory
    _idle.clear()
    return matching[0] if matching else _Process(engine, key, threads)


def _give_back(process: _Process) -> None:
    _idle.append(process)


@atexit.register
def end_idle() -> None:
    """End the processes that wait for a next engine."""
    while _idle:
        process = _idle.pop()
        if process.owner == os.getpid():  # not in a fork of the process that started it
            process.end()


def _is_small(checkpoint: str | Path) -> bool:
    folder = Path(checkpoint)
    return folder.is_dir() and sum(file.stat().st_size for file in weight_files(folder)) <= REUSE_BYTES
