"""Products of a factorised layer in bfloat16, at the ranks of 2x, 4x and 7x and at those cut to multiples of 16.

A row of a bfloat16 factor (m, r) begins at an address that is a multiple of 16 bytes only where r is one of 8; the
fastest kernels want that, and tiles of tensor cores are 16 wide.
"""

import statistics
from collections.abc import Iterator

import torch
from gpu_sections.spectra import layer, rank_at
from gpu_sections.table import Context, Row

from lowrank_bench.models.layers import LowRankLinear

WIDTH, RATIOS, TOKENS, ROUNDS, REPEATS = 4096, (2.0, 4.0, 7.0), (1, 8, 4096), 5, 50
SMALL_WIDTH, SMALL_TOKENS, SMALL_ROUNDS, SMALL_REPEATS = 256, (1, 8), 1, 2
STEP = 16


def run(context: Context) -> Iterator[Row]:
    """Yield a row for every matrix, ratio and number of tokens: microseconds at both ranks, the median of rounds."""
    shapes = layer(SMALL_WIDTH if context.small else WIDTH)
    for name in ("q", "gate", "down"):
        for ratio in RATIOS:
            for tokens in SMALL_TOKENS if context.small else TOKENS:
                title = f"{name} {shapes[name][0]} x {shapes[name][1]} at {ratio:g}x, {tokens} tokens, bfloat16"
                if context.left <= 0:
                    yield Row(title, "not measured", note="the part's time was up")
                else:
                    yield _row(context, title, shapes[name], rank_at(shapes[name], ratio), tokens)


@torch.inference_mode()
def _row(context: Context, title: str, shape: tuple[int, int], rank: int, tokens: int) -> Row:
    aligned = max(rank // STEP * STEP, 1)
    x = torch.randn(tokens, shape[1], device=context.device, dtype=torch.bfloat16)
    layers = {r: _layer(shape, r, context.device) for r in dict.fromkeys((rank, aligned))}
    repeats = SMALL_REPEATS if context.small else REPEATS
    seconds_of: dict[int, list[float]] = {r: [] for r in layers}

    def work(linear: LowRankLinear) -> None:
        for _ in range(repeats):
            linear(x)

    for linear in layers.values():
        work(linear)  # loads the kernels; not measured
    for _ in range(SMALL_ROUNDS if context.small else ROUNDS):
        for r, linear in layers.items():
            seconds_of[r].append(context.timed(lambda linear=linear: work(linear)) / repeats)
    medians = {r: statistics.median(times) for r, times in seconds_of.items()}
    figure = f"rank {rank}: {1e6 * medians[rank]:.1f} us"
    if rank == aligned:
        return Row(title, figure, note=f"the rank is a multiple of {STEP} as it is")
    gain = medians[rank] / medians[aligned]
    note = f"without rounding, {rank / aligned:.3f} times the work"
    return Row(title, figure, f"rank {aligned}: {1e6 * medians[aligned]:.1f} us, {gain:.2f} x as fast", note=note)


def _layer(shape: tuple[int, int], rank: int, device: str) -> LowRankLinear:
    linear = LowRankLinear(shape[1], shape[0], rank, dtype=torch.bfloat16, device=device)
    for parameter in linear.parameters():
        parameter.normal_(std=0.02)
    return linear
