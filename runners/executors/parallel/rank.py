"""One of the processes that train together; started by accelerate with the folder that `launch.train_together` made."""

from __future__ import annotations

import os
import sys
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

from ....foundation.errors import UserError
from ....foundation.files import write_atomic, write_json
from ....foundation.process import die_with_parent
from ....foundation.progress import throttled
from ...process_setup import Strategy
from ...specs import CompressSpec, Stage, parse_stage
from ...stage_results import RecordedProcesses
from ...training.divergence import Diverged
from .launch import ERROR, PROGRESS, RESULT, STAGE
from .launcher import LAUNCHER

# Rank 0 may write for long while the others wait; a process that died is noticed by the launcher, not by this.
_PATIENCE = timedelta(hours=6)


def main(desk: Path, folder: Path, threads: int) -> int:
    """Do this process's share of the stage; returns the exit code."""
    try:
        _train(desk, folder, threads)
        return 0
    except Diverged as error:
        failure = {"text": str(error), "expected": True, "diverged": [error.steps, error.tokens]}
    except UserError as error:
        failure = {"text": str(error), "expected": True}
    except Exception:
        failure = {"text": traceback.format_exc(), "expected": False}
    write_json(desk / ERROR.format(os.environ["RANK"]), failure)
    return 1


def strategy_for(stage: Stage, asked: Strategy) -> Strategy:
    """Return how a stage is spread: as asked for, but by DDP where a method needs all of its parameters on the way.

    Args:
        stage: a training.
        asked: by the configuration file.
    """
    from ....methods.base import create_method

    spec = stage.spec
    if isinstance(spec, CompressSpec) and not create_method(spec.method, spec.options).requirements.trains_sharded:
        return "ddp"
    return asked


def _train(desk: Path, folder: Path, threads: int) -> None:
    import accelerate
    import torch
    from accelerate.utils import gather_object

    from ....foundation.memory import peak_memory_bytes
    from ...stages.perform import perform_here
    from ..local import prepare

    stage = parse_stage((desk / STAGE).read_text(encoding="utf-8"))
    setup = stage.accelerate
    assert setup is not None
    prepare(threads)
    strategy = strategy_for(stage, setup.strategy)
    alone: dict[str, Any] = {"accelerate": None}
    if strategy == "ddp":
        # accelerate and `shards` read this, which the launcher has set where the configuration file asks for FSDP.
        os.environ["ACCELERATE_USE_FSDP"] = "false"
    else:
        alone["load_device"] = "cpu"  # accelerate moves each process's share to its device
    state = accelerate.PartialState(cpu=stage.execution.device == "cpu", timeout=_PATIENCE)

    def report(done: int, total: int, unit: str) -> None:
        write_atomic(desk / PROGRESS, f"{done} {total} {unit}")

    stage = stage.model_copy(update={"execution": stage.execution.model_copy(update=alone)})
    result = perform_here(stage, folder, throttled(report) if state.is_main_process else None)
    before = result.training.resumed_peak_memory_bytes if result.training else 0
    processes = RecordedProcesses(
        count=state.num_processes,
        strategy=strategy,
        accelerate=accelerate.__version__,
        peak_memory_bytes=max(*gather_object([peak_memory_bytes()]), before),
    )
    if state.is_main_process:
        write_json(desk / RESULT, result.model_copy(update={"processes": processes}).plain())
    state.wait_for_everyone()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    die_with_parent(int(os.environ[LAUNCHER]))
    code = main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # others may be waiting for this process in a collective; leaving in good order would wait for them
