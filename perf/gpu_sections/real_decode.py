"""Decoding speed of checkpoints of the sweep, by `bench speed` on the transformers engine."""

import csv
from collections.abc import Iterator
from pathlib import Path

from gpu_sections.real_sweep import NAME, SMALL_RATIOS
from gpu_sections.real_sweep import RATIOS as ALL_RATIOS
from gpu_sections.sweeps import bench
from gpu_sections.table import Context, Row

LABELS, SMALL_LABELS = ("svd", "bs"), ("svd",)


def run(context: Context) -> Iterator[Row]:
    """Yield a row for every checkpoint, engine and batch size."""
    labels, ratio = (SMALL_LABELS, SMALL_RATIOS[-1]) if context.small else (LABELS, ALL_RATIOS[-1])
    sweep_folder = context.folder / "sweep" / NAME
    if not (sweep_folder / "results.csv").is_file():
        yield Row("decoding", "not measured", met=False, note="the sweep is not complete; run the part sweep first")
        return
    batches, counts = ("1", "2") if context.small else ("1,16,64", "128")
    out = context.folder / "speed"
    bench(
        [
            *("speed", *(f"{sweep_folder}:{label}@{ratio}" for label in labels), "--engine", "transformers"),
            *("--device", context.device, "--batch-sizes", batches, "--new-tokens", counts, "--out", str(out)),
            *(("--repeats", "1", "--no-dense") if context.small else ("--repeats", "3")),
        ],
        context.left,
    )
    yield from speeds(out / "results.csv")


def speeds(file: Path) -> Iterator[Row]:
    """Yield a row for each checkpoint and batch size of a results.csv of `bench speed`."""
    with file.open() as lines:
        for row in csv.DictReader(lines):
            if row["metric"] == "decode_tokens_per_second":
                title = f"{row['label']} at {float(row['ratio']):.2f}x, {row['variant']}"
                figure = f"{float(row['value']):,.1f} tokens/s"
                between = f"{float(row['low']):,.1f} to {float(row['high']):,.1f}" if row["low"] else ""
                yield Row(title, figure, note=between)
