"""Estimated against measured seconds and memory of the finished stages of a sweep.

    taskset -c 0 bench run … --workers 1 --out runs       # one core: CPU seconds are those of an idle machine
    python perf/estimates.py runs/SWEEP --data DATA --threads 1

SWEEP is the folder that has `sweep.yaml`. Seconds are estimated from the probe and counted operations alone, as if no
stage of the folder were finished. Measured are the CPU seconds of a stage and its engine divided by the threads, which
is the time on a machine with nothing else to do where the stage keeps all threads busy; with one thread it always is.
The wall-clock time is beside it. Memory is the peak of the resident set, of the stage or its engine.

The targets: every ratio of seconds and of memory lies between 1/1.5 and 1.5. Stages of less than ten seconds are left
out of the verdict on time: most of such a stage is opening files and importing.
"""

import argparse
import sys
from pathlib import Path

import yaml

from lowrank_bench.models.loading import DTYPES
from lowrank_bench.runners.config import make_config
from lowrank_bench.runners.estimates.arithmetic import Arithmetic
from lowrank_bench.runners.estimates.probe import probe_cpu, tokenizer_seconds
from lowrank_bench.runners.estimates.speeds import cpu_speeds
from lowrank_bench.runners.plan import make_plan

FACTOR, SHORT_SECONDS = 1.5, 10.0


def main() -> int:
    """Print the table; exit 1 if a ratio is out of its range."""
    parser = argparse.ArgumentParser(description="Estimated against measured seconds and memory.")
    parser.add_argument("sweep", type=Path, help="folder with sweep.yaml, inside the folder of the runs")
    parser.add_argument("--data", type=Path, help="folder with the datasets, as for bench run")
    parser.add_argument("--threads", type=int, required=True, help="CPU threads that the stages had")
    options = parser.parse_args()
    asked = yaml.safe_load((options.sweep / "sweep.yaml").read_text())
    execution = {"out": options.sweep.resolve().parent, "data": options.data, "device": "cpu"}
    plan = make_plan(make_config(asked | {"execution": execution}))
    layers, loading = int(plan.skeleton.config.get_text_config().num_hidden_layers), tokenizer_seconds(plan.source)
    speeds, arithmetic = cpu_speeds(DTYPES[plan.dtype], layers, options.threads, loading), Arithmetic(plan)
    print(f"{plan.source.name}, {plan.dtype}, {options.threads} threads; probe of one: {probe_cpu().sentence()};")
    print(f"{loading:.1f} s to load the tokenizer\n")
    print("| stage | s estimated | CPU s / threads | wall s | ratio | MB estimated | MB measured | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    good = True
    for key in plan.stages:
        if not plan.store.is_done(key):
            continue
        record = plan.store.read(key)
        seconds = speeds.seconds(arithmetic.work(key)) + speeds.start
        measured = record["cpu_seconds"] / options.threads
        ratio = seconds / measured
        good &= measured < SHORT_SECONDS or 1 / FACTOR <= ratio <= FACTOR
        memory, peak = record["result"].get("memory", {}).get("predicted_peak_bytes"), record["peak_memory_bytes"]
        sizes = f" | {peak / 1e6:,.0f} | "
        if memory:
            good &= 1 / FACTOR <= memory / peak <= FACTOR
            sizes = f"{memory / 1e6:,.0f} | {peak / 1e6:,.0f} | {memory / peak:.2f}"
        title = record["title"].removesuffix(", seed 42")
        print(f"| {title} | {seconds:.1f} | {measured:.1f} | {record['seconds']:.1f} | {ratio:.2f} | {sizes} |")
    print(f"\n{'all ratios lie' if good else 'MISSED: not all ratios lie'} between 1/{FACTOR} and {FACTOR}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
