"""The other side of `host`: a process that loads one model after the other and does what it is asked.

A request is a tuple whose first item is one of ``open``, ``generate``, ``logprobs``, ``continuation_logprobs``,
``score_continuations``, ``close``. Each is answered by any number of ``("progress", (done, total))`` and then one of
``("done", value)``, ``("refused", sentence)``, ``("failed", traceback)``.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import traceback
from dataclasses import dataclass
from importlib import import_module
from multiprocessing.connection import Connection
from typing import Any

from ...foundation.errors import UserError
from ...foundation.memory import peak_memory_bytes, reset_peak_memory
from ...foundation.process import end_with
from ..engines.base import Engine, engines


@dataclass(frozen=True)
class Opening:
    """What is to be loaded.

    ``module`` is where an engine that no package publishes registers itself, ``longest`` the most tokens of a sequence
    that will be asked for (None: the model's context).
    """

    engine: str
    module: str
    checkpoint: str
    dtype: str
    device: str
    revision: str | None
    threads: int
    longest: int | None = None


def main(handle: int, parent: int) -> None:
    """Serve requests from the pipe with this file descriptor until it is closed or the parent process is gone."""
    # The pipe alone would not do: a request may take hours, and other processes may hold the pipe's far end too.
    end_with(parent, group=True)
    serve(handle)


def serve(handle: int) -> None:
    """Serve requests from the pipe with this file descriptor until it is closed."""
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interrupt means
    pipe = Connection(handle)
    engine: Engine | None = None
    while True:
        try:
            verb, *arguments = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)

        def progress(done: int, total: int) -> None:
            pipe.send(("progress", (done, total)))

        answer: tuple[str, Any]
        try:
            if verb == "open":
                engine = _open(*arguments)
                answer = ("done", engine.context_length)
            elif verb == "close":
                answer = ("done", _close(engine))
                engine = None
            else:
                assert engine is not None
                answer = ("done", getattr(engine, verb)(*arguments, progress))
        except UserError as error:
            answer = ("refused", str(error))
        except Exception:
            answer = ("failed", traceback.format_exc())
        try:
            pipe.send(answer)
        except OSError:
            os._exit(0)


def _open(opening: Opening) -> Engine:
    reset_peak_memory()
    if opening.module:
        import_module(opening.module)
    engine_class: Any = engines.get(opening.engine)
    if engine_class.__module__.startswith(engines.package):
        from ...models.footprint import check_model, footprint

        needs = footprint(opening.checkpoint, opening.revision or "", opening.dtype, opening.longest)
        check_model(needs, opening.checkpoint, opening.device)
        _prepare(opening.threads)
    options = {"longest": opening.longest} if engine_class.reserves else {}
    engine: Engine = engine_class(opening.checkpoint, opening.dtype, opening.device, opening.revision, **options)
    return engine


def _prepare(threads: int) -> None:
    import torch
    import transformers

    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _close(engine: Engine | None) -> int:
    """Free the model; return the most memory that was held since it was opened."""
    peak = peak_memory_bytes()
    if engine is not None:
        engine.close()
    return peak
