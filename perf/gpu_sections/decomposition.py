"""All 224 matrices of Llama-2-7B, with `torch.linalg.svd` on a sample beside.

Whitened methods decompose in float64; so one square matrix is, by `svd`, by torch and by the eigenvectors of its Gram
matrix. In small the algorithms are those that a GPU takes at full size.
"""

from functools import partial

import torch
from gpu_sections.fitting import share_row
from gpu_sections.spectra import excess, layer, rank_at, realistic
from gpu_sections.table import Context, Row, attempts

from lowrank_bench.methods.linalg import choose, svd

WIDTH, MLP, LAYERS = 4096, 11008 / 4096, 32
SMALL_WIDTH, SMALL_LAYERS = 64, 2
RATIO = 7.0
FULL_SECONDS, TOLERANCE = 120.0, 1e-3
SAMPLE = ("q", "gate", "down")
_DRIVER = choose((WIDTH, WIDTH), "cuda", torch.float32)
_FOR_SAMPLE = 0.35
"""Share of the time that is kept for the sample."""


def run(context: Context) -> list[Row]:
    """Return the rows of the section."""
    shapes = layer(SMALL_WIDTH if context.small else WIDTH, MLP)
    matrices = [shape for _ in range(SMALL_LAYERS if context.small else LAYERS) for shape in shapes.values()]
    warm = realistic(*shapes["q"], seed=0, device=context.device)
    svd(warm, driver=_DRIVER)  # loads the libraries; not measured
    full, full_done = _all(context, matrices, _FOR_SAMPLE * context.seconds)
    rows = [_total(context, f"full spectra, {_DRIVER}", full, full_done, len(matrices), FULL_SECONDS)]
    if full_done:
        operations = 20 * shapes["q"][1] * sum(m * n for m, n in matrices[:full_done])  # as arithmetic.py counts them
        rows.append(share_row("DECOMPOSITION_SHARE", operations, full, "full spectra"))
    rows += attempts([(f"{name}, sample", partial(_sample, context, name, shapes[name])) for name in SAMPLE])
    rows += attempts([("q in float64", partial(_double, context, shapes["q"]))])
    if context.peak():
        rows.append(Row("peak memory of tensors", context.peak()))
    return rows


def _all(context: Context, shapes: list[tuple[int, int]], keep: float) -> tuple[float, int]:
    """Decompose until the time is up; return the seconds without those of making the matrices, and how many it were."""
    seconds, done = 0.0, 0
    share, begin = context.left - keep, context.left
    for seed, shape in enumerate(shapes):
        if begin - context.left > share:
            break
        weight = realistic(*shape, seed, context.device)
        seconds += context.timed(lambda weight=weight: svd(weight, driver=_DRIVER))
        done += 1
    return seconds, done


def _total(context: Context, title: str, seconds: float, done: int, count: int, target: float) -> Row:
    whole = seconds * count / max(done, 1)
    note = "" if done == count else f"from {done} of {count} matrices, in proportion"
    met = None if context.small else whole <= target
    return Row(f"{count} matrices, {title}", f"{whole:.2f} s", target=f"< {target:g} s", met=met, note=note)


def _sample(context: Context, name: str, shape: tuple[int, int]) -> list[Row]:
    """Return how far the residuals are from the best, and the time of one matrix, beside torch's own."""
    size = f"{name} {shape[0]} x {shape[1]}"
    if context.left <= 0:
        return [Row(size, "not measured", note="the section's time was up")]
    weight, rank = realistic(*shape, seed=1, device=context.device), rank_at(shape, RATIO)
    results: dict[str, tuple[torch.Tensor, ...]] = {}
    theirs = context.timed(lambda: results.update(torch=torch.linalg.svd(weight, full_matrices=False)))
    ours = context.timed(lambda: results.update(full=svd(weight, driver=_DRIVER)))
    u, s, vt = results["full"]
    error = excess(weight, (u[:, :rank] * s[:rank]) @ vt[:rank], results["torch"][1], rank)
    figure = f"{ours:.3f} s, residual at rank {rank} {error:+.1e}"
    against, target = f"{theirs:.3f} s by torch.linalg.svd", f"residual < {TOLERANCE:g}"
    return [Row(f"{size}, full", figure, against, target, error <= TOLERANCE)]


def _double(context: Context, shape: tuple[int, int]) -> list[Row]:
    """Return the times of one matrix in float64, and how far U S Vᵀ is from it."""
    size = f"q {shape[0]} x {shape[1]}, float64"
    if context.left <= 0:
        return [Row(size, "not measured", note="the part's time was up")]
    weight = realistic(*shape, seed=1, device=context.device).double()
    driver = choose(shape, context.device, torch.float64)
    results: dict[str, tuple[torch.Tensor, ...]] = {}
    eigen = context.timed(lambda: results.update(eigen=torch.linalg.eigh(weight @ weight.T)))
    ours = context.timed(lambda: results.update(ours=svd(weight)))
    theirs, against = ours, "is torch.linalg.svd"
    if driver != "lapack":
        theirs = context.timed(lambda: torch.linalg.svd(weight, full_matrices=False))
        against = f"{theirs:.3f} s by torch.linalg.svd"
    u, s, vt = results["ours"]
    residual = float(((u * s) @ vt - weight).norm() / weight.norm())
    figure, target = f"{ours:.3f} s, residual {residual:.1e}", "residual < 1e-12"
    lost = float((results["eigen"][0].clamp_min(0).sqrt().flip(0) - s).abs().max() / s[0])
    return [
        Row(f"{size}, full, {driver}", figure, against, target, residual < 1e-12),
        Row(
            f"{size}, eigenvectors of W Wᵀ",
            f"{eigen:.3f} s",
            f"{theirs / eigen:.1f} x as fast as torch.linalg.svd",
            note=f"singular values by it differ by {lost:.1e} of the largest",
        ),
    ]
