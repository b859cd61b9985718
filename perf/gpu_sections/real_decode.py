"""Decoding speed of checkpoints of the sweep, by `bench speed` on the transformers engine."""

import csv
from collections.abc import Iterator
from pathlib import Path

from gpu_sections.real_sweep import NAME, SMALL_RATIOS
from gpu_sections.real_sweep import RATIOS as ALL_RATIOS
from gpu_sections.sweeps import bench
from gpu_sections.table import Row, Where

LABELS, SMALL_LABELS = ("svd", "bs"), ("svd",)


def run(where: Where) -> Iterator[Row]:
    """Yield a row for every checkpoint, engine and batch size."""
    labels, ratio = (SMALL_LABELS, SMALL_RATIOS[-1]) if where.small else (LABELS, ALL_RATIOS[-1])
    place = where.folder / "sweep" / NAME
    if not (place / "results.csv").is_file():
        yield Row("decoding", "not measured", met=False, note="the sweep is not complete; run the part sweep first")
        return
    batches, counts = ("1", "2") if where.small else ("1,16,64", "128")
    out = where.folder / "speed"
    bench(
        [
            *("speed", *(f"{place}:{label}@{ratio}" for label in labels), "--engine", "transformers"),
            *("--device", where.device, "--batch-sizes", batches, "--new-tokens", counts, "--out", str(out)),
            *(("--repeats", "1", "--no-dense") if where.small else ("--repeats", "3")),
        ],
        where.left,
    )
    yield from speeds(out / "results.csv")


def speeds(file: Path) -> Iterator[Row]:
    """Yield a row for each checkpoint and batch size of a results.csv of `bench speed`."""
    with file.open() as lines:
        for row in csv.DictReader(lines):
            if row["metric"] == "decode_tokens_per_second":
                what = f"{row['label']} at {float(row['ratio']):.2f}x, {row['variant']}"
                figure = f"{float(row['value']):,.1f} tokens/s"
                between = f"{float(row['low']):,.1f} to {float(row['high']):,.1f}" if row["low"] else ""
                yield Row(what, figure, note=between)
