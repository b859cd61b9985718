"""The sweep of `perf/gpu_real.py`, as far as it gets in its time, and its results once it is complete."""

import csv
from collections.abc import Iterator
from pathlib import Path

from gpu_sections.sweeps import OutOfTime, bench, stages
from gpu_sections.table import Row, Where

NAME, METHODS, RATIOS = "real", ("svd", "fwsvd", "bs", "svd-llm"), ("1.5", "2", "3")
SMALL_METHODS, SMALL_RATIOS = ("svd", "bs:prunings=2"), ("3",)


def words(where: Where) -> list[str]:
    """Return the words of the sweep's command line."""
    given = where.given
    methods, ratios = (SMALL_METHODS, SMALL_RATIOS) if where.small else (METHODS, RATIOS)
    of_task = ["--train-set", "gsm8k", "--benchmarks", "gsm8k"] if given["task"] == "math" else []
    data = ["--data", given["data"]] if given["data"] else []
    few = ["--max-new-tokens", "4"] if where.small else []
    return [
        *("run", "--name", NAME, "--out", str(where.folder / "sweep"), "--device", where.device),
        *("--model", given["model"], "--task", given["task"], *of_task, *data, "--engine", "transformers"),
        *("--methods", ",".join(methods), "--ratios", ",".join(ratios), "--limit", given["limit"], *few),
        *("--finetune-steps", given["steps"], "--recover-steps", given["steps"], "--eval-batch-size", "64"),
        *("--checkpoint-minutes", "2"),
    ]


def run(where: Where) -> Iterator[Row]:
    """Yield one row that says how far it got, or the rows of all results."""
    folder = where.folder / "sweep"
    try:
        bench(words(where), where.left)
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
