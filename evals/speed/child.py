"""The process that measures one checkpoint: ``python -m lowrank_bench.evals.speed.child SPEC RESULT PARENT_ID``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from ...foundation.errors import UserError
from ...foundation.files import write_json
from ...foundation.memory import peak_resident_bytes
from ...foundation.process import end_with
from .spec import Measured, SpeedSpec


def measure(spec: SpeedSpec) -> Measured:
    """Load a checkpoint and time every batch size, in this process."""
    import torch

    torch.set_num_threads(spec.threads)
    make: Any
    if spec.engine == "vllm":
        from .on_vllm import VllmRun as make
        from .on_vllm import prepare
    else:
        from .on_transformers import TransformersRun as make
        from .on_transformers import prepare

    prepare(spec)
    gpu = spec.device.startswith("cuda")
    started = time.perf_counter()
    run = make(spec)
    loaded = time.perf_counter()
    timings = []
    for batch in spec.batch_sizes:
        run.warm_up(batch)
        timings.append(run.time(batch))
    return Measured(
        loaded - started,
        torch.cuda.max_memory_allocated(spec.device) if gpu else peak_resident_bytes(),
        tuple(timings),
        time.perf_counter() - started,
        torch.cuda.get_device_name(spec.device) if gpu else "",
        torch.get_num_threads(),
        run.version,
    )


def main() -> None:
    """Measure what the first argument says, write the result to the second, and end with the process of the third."""
    end_with(int(sys.argv[3]))
    try:
        result = measure(SpeedSpec.read(json.loads(sys.argv[1]))).to_dict()
    except UserError as error:
        result = {"error": str(error)}
    write_json(Path(sys.argv[2]), result)


if __name__ == "__main__":
    main()
