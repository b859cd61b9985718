"""What the tool itself costs: starting `bench --help`, and a stage of a sweep beyond the work in it.

    python perf/overhead.py              # 40 stages, five starts
    python perf/overhead.py --stages 8 --starts 1

The stages are real ones: a sweep of the built-in model without any training, one ratio after the other, by the local
executor with one worker. The overhead of a stage is all time between the first stage's start and the last one's end
that is not the work recorded in its `stage.json`, divided by their number: planning, passing on, provenance, checksums,
flushing to disk, renaming. The largest part of that time is not the tool's but the disk's; it is measured as well.
Printed beside it: what a script for every step would pay, as the papers' code does (a new process that imports torch
and transformers), and what a sweep pays for each of its own processes on CPUs, forked from one that has imported them.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from lowrank_bench.foundation.fork_server import MODULES, run_apart
from lowrank_bench.runners.config import make_config
from lowrank_bench.runners.executors.local import Event, run_stages
from lowrank_bench.runners.graph import Plan
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.specs import Stage

TARGET = 0.1
"""Seconds of overhead per stage."""


def start_seconds(words: Sequence[str], times: int) -> float:
    """Return the median wall seconds of starting a Python process."""
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def fork_seconds(times: int) -> float:
    """Return the median wall seconds of a worker process that a sweep forks, from asking for it to its end."""
    run_apart(gc.collect)  # the fork server itself starts once a sweep
    seconds = []
    for _ in range(times):
        begin = time.perf_counter()
        run_apart(gc.collect)
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)


def sweep_overhead(stages: int, folder: Path) -> tuple[int, float, float, float]:
    """Run a sweep of about so many stages.

    Returns:
        Stages, seconds of work in all, seconds of overhead per stage, and how many of these went to flushing.
    """
    count = max(1, (stages - 2) // 2)
    config = make_config(
        {
            "model": "tiny",
            "task": "toy-math",
            "methods": ["svd"],
            "ratios": [round(1.5 + 0.05 * index, 2) for index in range(count)],
            "training": {"training_free": True},
            "evaluation": {"limit": 1, "max_new_tokens": 1},
            "execution": {"out": folder, "device": "cpu"},
        }
    )
    plan = make_plan(config)
    todo = {key: plan.stages[key] for key in plan.pending()}
    events: list[float] = []

    def on_event(event: Event, _: Stage) -> None:
        if event.kind == "done":
            events.append(time.perf_counter())

    run_stages(todo, plan.needs, plan.store, 1, 1, on_event, lambda _: None)
    # The first stage waits for its worker's imports, so the clock starts at its end.
    order = sorted(todo, key=lambda key: os.stat(plan.store.path(key) / "stage.json").st_mtime_ns)[1:]
    seconds = [json.loads((plan.store.path(key) / "stage.json").read_text())["seconds"] for key in order]
    overhead = (events[-1] - events[0] - sum(seconds)) / len(order)
    return len(order), sum(seconds), overhead, flush_seconds(plan, order, folder)


def flush_seconds(plan: Plan, keys: Sequence[str], folder: Path) -> float:
    """Return the seconds a stage that writing and flushing files of the same sizes takes on this disk."""
    total, probe = 0.0, folder / "probe"
    for key in keys:
        for file in plan.store.path(key).rglob("*"):
            if file.is_file():
                raw = file.read_bytes()
                with open(probe, "wb") as out:
                    out.write(raw)
                    out.flush()
                    begin = time.perf_counter()
                    os.fsync(out.fileno())
                    total += time.perf_counter() - begin
                probe.unlink()
    return total / len(keys)


def main() -> int:
    parser = argparse.ArgumentParser(description="Start-up of bench --help and overhead per stage of a sweep.")
    parser.add_argument("--stages", type=int, default=40)
    parser.add_argument("--starts", type=int, default=5, help="processes started of each kind; the median counts")
    options = parser.parse_args()
    bare = start_seconds(["-c", "pass"], options.starts)
    print(f"{'start of a process':44}{'seconds':>10}{'ratio':>8}")
    imports = "import torch, transformers; transformers.AutoModelForCausalLM"
    afresh = start_seconds(["-c", imports], options.starts)
    for title, seconds in (
        ("python -c pass", bare),
        ("bench --help", start_seconds(["-m", "lowrank_bench.cli", "--help"], options.starts)),
        ("import torch, transformers", afresh),
        ("a worker with all imports, afresh", start_seconds(["-c", f"import {', '.join(MODULES)}"], options.starts)),
        ("a worker with all imports, forked", fork_seconds(options.starts)),
    ):
        print(f"{title:44}{seconds:10.2f}{seconds / bare:8.1f}")
    with tempfile.TemporaryDirectory() as folder:
        number, work, overhead, flush = sweep_overhead(options.stages, Path(folder))
    print(f"\n{number} stages, {work / number:.2f} s of work each")
    print(
        f"overhead {overhead * 1000:.0f} ms a stage (target {TARGET * 1000:.0f}), {flush * 1000:.0f} of them flushing"
    )
    print(f"a process of its own for every stage would cost {afresh / overhead:.0f} times as much")
    return 0 if overhead <= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
