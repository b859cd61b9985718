"""Decomposing a decoder layer for eight ratios, next to `torch.linalg.svd` for every ratio.

    python perf/decompose.py                    # 1024 and 2048 wide, about six minutes on one core
    python perf/decompose.py --width 1024       # half a minute
    python perf/decompose.py --passes 1         # torch's eight passes counted as eight times the first

The layer has seven matrices: q, k, v, o (w x w), gate and up (2.75w x w), down (w x 2.75w), random with realistic
spectra (`gpu_sections/spectra.py`). Two ways to the same factors:

    per ratio   what the papers' code does: torch.linalg.svd(W, full_matrices=False) for every ratio, cut, √S into both
    one fit     what a sweep does: one full decomposition, cut for every ratio

Excess is the residual over the optimum by torch's singular
values, minus one, the worst of all matrices (and ratios); the promise is 1e-3. Seconds are the least of --repeats.
Set OMP_NUM_THREADS to say how many cores to use.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from gpu_sections.spectra import excess, layer, rank_at, realistic
from torch import Tensor

from lowrank_bench.methods.linalg import svd

RATIOS = (1.25, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0)
TOLERANCE = 1e-3

Pair = tuple[Tensor, Tensor]


def cut(u: Tensor, s: Tensor, vt: Tensor, rank: int) -> Pair:
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * vt[:rank]


def per_ratio(weights: list[Tensor], ratios: tuple[float, ...]) -> list[Tensor]:
    """Return the singular values too, which are the same each time."""
    singular = []
    for ratio in ratios:
        singular = []
        for weight in weights:
            u, s, vt = torch.linalg.svd(weight, full_matrices=False)
            cut(u, s, vt, rank_at(weight.shape, ratio))
            singular.append(s)
    return singular


def one_fit(weights: list[Tensor]) -> list[list[Pair]]:
    pairs = []
    for weight in weights:
        triplets = svd(weight)
        pairs.append([cut(*triplets, rank_at(weight.shape, ratio)) for ratio in RATIOS])
    return pairs


def measure(width: int, passes: int, repeats: int, clock: Callable[[], float]) -> list[tuple[str, ...]]:
    weights = [realistic(*shape, seed) for seed, shape in enumerate(layer(width).values())]

    def timed(work: Callable[[], Any]) -> tuple[float, Any]:
        begin = clock()
        result = work()
        return clock() - begin, result

    papers, truth = timed(lambda: per_ratio(weights, RATIOS[:passes]))
    papers *= len(RATIOS) / passes

    def worst(fits: list[list[Pair]], ratios: tuple[float, ...]) -> float:
        return max(
            excess(weight, b @ a, values, rank_at(weight.shape, ratio))
            for weight, values, pairs in zip(weights, truth, fits, strict=True)
            for (b, a), ratio in zip(pairs, ratios, strict=True)
        )

    fit, fitted = min((timed(lambda: one_fit(weights)) for _ in range(repeats)), key=lambda pair: pair[0])
    note = "" if passes == len(RATIOS) else f"from {passes} of 8 passes"
    rows = [
        ("torch per ratio, 8 ratios", papers, papers, 0.0, note),
        ("one fit, 8 ratios", fit, papers, worst(fitted, RATIOS), "LAPACK"),
    ]
    return [
        (f"{width}", title, f"{seconds:.2f}", f"{against / seconds:.2f}", f"{error:.1e}" if error else "-", note)
        for title, seconds, against, error, note in rows
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Decomposing a decoder layer for eight ratios.")
    parser.add_argument("--width", default="1024,2048", help="hidden sizes, with commas")
    parser.add_argument("--passes", type=int, default=len(RATIOS), help="how many of torch's eight passes really run")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--cpu", action="store_true", help="count CPU seconds, which other programs disturb less")
    options = parser.parse_args()
    clock = time.process_time if options.cpu else time.perf_counter
    passes = min(max(options.passes, 1), len(RATIOS))
    rows = []
    for width in (int(part) for part in options.width.split(",")):
        rows += measure(width, passes, options.repeats, clock)
    unit = "CPU" if options.cpu else "wall"
    print(f"seven matrices, {torch.get_num_threads()} threads, {unit} seconds, ratios {', '.join(map(str, RATIOS))}")
    heads = ("width", "way", "seconds", "times faster", "excess", "note")
    sizes = [max(len(row[index]) for row in [heads, *rows]) for index in range(len(heads))]
    for row in [heads, *rows]:
        print("  ".join(cell.ljust(size) for cell, size in zip(row, sizes, strict=True)).rstrip())
    largest = max(float(row[4]) if row[4] != "-" else -math.inf for row in rows)
    return 0 if largest <= TOLERANCE else 1


if __name__ == "__main__":
    sys.exit(main())
