"""One of the processes that train together; started by accelerate with the folder that `launch.train_together` made."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

from ....foundation.errors import UserError
from ....foundation.files import read_json, write_atomic, write_json
from ....foundation.process import die_with_parent
from ...process_setup import Strategy
from .launch import ERROR, PROGRESS, RESULT, STAGE
from .launcher import LAUNCHER

# Rank 0 may write for long while the others wait; a process that died is noticed by the launcher, not by this.
_PATIENCE = timedelta(hours=6)


def main(desk: Path) -> int:
    """Do this process's share of the stage; returns the exit code."""
    try:
        _train(desk)
        return 0
    except UserError as error:
        text, expected = str(error), True
    except Exception:
        text, expected = traceback.format_exc(), False
    write_json(desk / ERROR.format(os.environ["RANK"]), {"text": text, "expected": expected})
    return 1


def strategy_for(stage: Mapping[str, Any], wanted: Strategy) -> Strategy:
    """Return how a stage is spread: as wanted, but by DDP where a method needs all of its parameters on the way.

    Args:
        stage: ``kind`` and ``config`` of a `stages.Stage`.
        wanted: what the configuration file asks for.
    """
    from ....methods.base import create_method

    config = stage["config"]
    if stage["kind"] != "compress":
        return wanted
    needs = create_method(config["method"], config["options"]).requirements
    return wanted if needs.trains_sharded else "ddp"


def _train(desk: Path) -> None:
    import accelerate
    import torch
    from accelerate.utils import gather_object

    from ....foundation.memory import peak_memory_bytes
    from ...store.folders import Stage
    from ...work import perform
    from ..local import prepare

    asked = read_json(desk / STAGE)
    setup = asked["runtime"].pop("accelerate")
    folder, threads = Path(asked.pop("folder")), asked.pop("threads")
    prepare(threads)
    strategy = strategy_for(asked, setup["strategy"])
    if strategy == "ddp":
        os.environ["ACCELERATE_USE_FSDP"] = "false"
    else:
        asked["runtime"]["place"] = "cpu"  # accelerate moves each process's share to its device
    state = accelerate.PartialState(cpu=asked["runtime"]["device"] == "cpu", timeout=_PATIENCE)

    def progress(done: int, total: int) -> None:
        write_atomic(desk / PROGRESS, f"{done} {total}")

    result = dict(perform(Stage(**asked), folder, progress if state.is_main_process else None))
    before = result.get("training", {}).get("resumed_peak_memory_bytes", 0)
    result["processes"] = {
        "count": state.num_processes,
        "strategy": strategy,
        "accelerate": accelerate.__version__,
        "peak_memory_bytes": max(*gather_object([peak_memory_bytes()]), before),
    }
    if state.is_main_process:
        write_json(desk / RESULT, result)
    state.wait_for_everyone()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    die_with_parent(int(os.environ[LAUNCHER]))
    code = main(Path(sys.argv[1]))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # others may be waiting for this process in a collective; leaving in good order would wait for them
