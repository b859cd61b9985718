"""All 224 matrices of Llama-2-7B, with `torch.linalg.svd` on a sample beside.

Whitened methods decompose in float64; so one square matrix is, by `svd`, by torch and by the eigenvectors of its Gram
matrix. In small the algorithms are those that a GPU takes at full size.
"""

from functools import partial

import torch
from gpu_sections.fitting import share_row
from gpu_sections.spectra import excess, layer, rank_at, realistic
from gpu_sections.table import Row, Where, attempts

from lowrank_bench.methods.linalg import choose, svd

WIDTH, MLP, LAYERS = 4096, 11008 / 4096, 32
SMALL_WIDTH, SMALL_LAYERS = 64, 2
RATIO = 7.0
FULL_SECONDS, TOLERANCE = 120.0, 1e-3
SAMPLE = ("q", "gate", "down")
_DRIVER = choose((WIDTH, WIDTH), "cuda", torch.float32)
_FOR_SAMPLE = 0.35
"""Share of the time that is kept for the sample."""


def run(where: Where) -> list[Row]:
    """Return the rows of the section."""
    shapes = layer(SMALL_WIDTH if where.small else WIDTH, MLP)
    matrices = [shape for _ in range(SMALL_LAYERS if where.small else LAYERS) for shape in shapes.values()]
    warm = realistic(*shapes["q"], seed=0, device=where.device)
    svd(warm, driver=_DRIVER)  # loads the libraries; not measured
    full, full_done = _all(where, matrices, _FOR_SAMPLE * where.seconds)
    rows = [_total(where, f"full spectra, {_DRIVER}", full, full_done, len(matrices), FULL_SECONDS)]
    if full_done:
        operations = 20 * shapes["q"][1] * sum(m * n for m, n in matrices[:full_done])  # as arithmetic.py counts them
        rows.append(share_row("DECOMPOSITION_SHARE", operations, full, "full spectra"))
    rows += attempts([(f"{name}, sample", partial(_sample, where, name, shapes[name])) for name in SAMPLE])
    rows += attempts([("q in float64", partial(_double, where, shapes["q"]))])
    if where.peak():
        rows.append(Row("peak memory of tensors", where.peak()))
    return rows


def _all(where: Where, shapes: list[tuple[int, int]], keep: float) -> tuple[float, int]:
    """Decompose until the time is up; return the seconds without those of making the matrices, and how many it were."""
    took, done = 0.0, 0
    share, begin = where.left - keep, where.left
    for seed, shape in enumerate(shapes):
        if begin - where.left > share:
            break
        weight = realistic(*shape, seed, where.device)
        took += where.timed(lambda weight=weight: svd(weight, driver=_DRIVER))
        done += 1
    return took, done


def _total(where: Where, what: str, took: float, done: int, count: int, target: float) -> Row:
    whole = took * count / max(done, 1)
    note = "" if done == count else f"from {done} of {count} matrices, in proportion"
    met = None if where.small else whole <= target
    return Row(f"{count} matrices, {what}", f"{whole:.2f} s", target=f"< {target:g} s", met=met, note=note)


def _sample(where: Where, name: str, shape: tuple[int, int]) -> list[Row]:
    """Return how far the residuals are from the best, and the time of one matrix, beside torch's own."""
    size = f"{name} {shape[0]} x {shape[1]}"
    if where.left <= 0:
        return [Row(size, "not measured", note="the section's time was up")]
    weight, rank = realistic(*shape, seed=1, device=where.device), rank_at(shape, RATIO)
    found: dict[str, tuple[torch.Tensor, ...]] = {}
    theirs = where.timed(lambda: found.update(torch=torch.linalg.svd(weight, full_matrices=False)))
    ours = where.timed(lambda: found.update(full=svd(weight, driver=_DRIVER)))
    u, s, vt = found["full"]
    error = excess(weight, (u[:, :rank] * s[:rank]) @ vt[:rank], found["torch"][1], rank)
    figure = f"{ours:.3f} s, residual at rank {rank} {error:+.1e}"
    against, target = f"{theirs:.3f} s by torch.linalg.svd", f"residual < {TOLERANCE:g}"
    return [Row(f"{size}, full", figure, against, target, error <= TOLERANCE)]


def _double(where: Where, shape: tuple[int, int]) -> list[Row]:
    """Return the times of one matrix in float64, and how far U S Vᵀ is from it."""
    size = f"q {shape[0]} x {shape[1]}, float64"
    if where.left <= 0:
        return [Row(size, "not measured", note="the part's time was up")]
    weight = realistic(*shape, seed=1, device=where.device).double()
    driver = choose(shape, where.device, torch.float64)
    found: dict[str, tuple[torch.Tensor, ...]] = {}
    eigen = where.timed(lambda: found.update(eigen=torch.linalg.eigh(weight @ weight.T)))
    ours = where.timed(lambda: found.update(ours=svd(weight)))
    theirs, against = ours, "is torch.linalg.svd"
    if driver != "lapack":
        theirs = where.timed(lambda: torch.linalg.svd(weight, full_matrices=False))
        against = f"{theirs:.3f} s by torch.linalg.svd"
    u, s, vt = found["ours"]
    away = float(((u * s) @ vt - weight).norm() / weight.norm())
    figure, target = f"{ours:.3f} s, residual {away:.1e}", "residual < 1e-12"
    lost = float((found["eigen"][0].clamp_min(0).sqrt().flip(0) - s).abs().max() / s[0])
    return [
        Row(f"{size}, full, {driver}", figure, against, target, away < 1e-12),
        Row(
            f"{size}, eigenvectors of W Wᵀ",
            f"{eigen:.3f} s",
            f"{theirs / eigen:.1f} x as fast as torch.linalg.svd",
            note=f"singular values by it differ by {lost:.1e} of the largest",
        ),
    ]
