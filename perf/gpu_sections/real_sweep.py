"""The sweep of `perf/gpu_real.py`, as far as it gets in its time, and its results once it is complete."""

import csv
from collections.abc import Iterator
from pathlib import Path

from gpu_sections.sweeps import OutOfTime, bench, stages
from gpu_sections.table import Context, Row

NAME, METHODS = "real", ("svd", "fwsvd", "bs", "svd-llm")
# 63 % of Gemma 3 270M is its embedding, which all four leave as it is without embeddings=true: 1.59x is then the most.
RATIOS = ("1.2", "1.35", "1.5")
SMALL_METHODS, SMALL_RATIOS = ("svd", "bs:prunings=2"), ("3",)


def words(context: Context) -> list[str]:
    """Return the words of the sweep's command line."""
    options = context.options
    methods, ratios = (SMALL_METHODS, SMALL_RATIOS) if context.small else (METHODS, RATIOS)
    of_task = ["--train-set", "gsm8k", "--benchmarks", "gsm8k"] if options["task"] == "math" else []
    data = ["--data", options["data"]] if options["data"] else []
    few = ["--max-new-tokens", "4"] if context.small else []
    return [
        *("run", "--name", NAME, "--out", str(context.folder / "sweep"), "--device", context.device),
        *("--model", options["model"], "--task", options["task"], *of_task, *data, "--engine", "transformers"),
        *("--methods", ",".join(methods), "--ratios", ",".join(ratios), "--limit", options["limit"], *few),
        *("--finetune-steps", options["steps"], "--recover-steps", options["steps"], "--eval-batch-size", "256"),
        *("--checkpoint-minutes", "2", *(() if context.small else ("--workers", "4"))),
    ]


def run(context: Context) -> Iterator[Row]:
    """Yield one row that says how far it got, or the rows of all results."""
    folder = context.folder / "sweep"
    try:
        bench(words(context), context.left)
    except OutOfTime:
        done = len(stages(folder))
        yield Row(
            "sweep", f"{done} stages are done", target="complete", met=False, note="run this part again, it goes on"
        )
        return
    yield from results(folder / NAME / "results.csv")
    for record in stages(folder, "finetune").values():
        training = record["result"]["training"]
        speed = f"{training['steps'] / training['seconds']:.2f} updates/s"
        peak = f"{record['peak_memory_bytes'] / 2**30:.2f} GiB at the peak, host and GPU together"
        yield Row("finetuning", f"{speed}, {training['tokens'] / training['seconds']:,.0f} tokens/s", peak)


def results(file: Path) -> Iterator[Row]:
    """Yield a row for each headline value of a results.csv."""
    with file.open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["headline"] == "true"]
    for row in rows:
        value, low, high = (100 * float(row[name]) for name in ("value", "low", "high"))
        yield Row(
            f"{row['benchmark']}, {row['label']} at {float(row['ratio']):.2f}x, {row['stage']}",
            f"pass@1 {value:.1f} % [{low:.1f}, {high:.1f}], n = {row['n']}",
            note=", ".join(f"{kind} {float(row[f'seconds_{kind}']):.1f} s" for kind in ("fit", "compress", "evaluate")),
        )
