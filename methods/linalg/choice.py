"""Which algorithm decomposes a matrix, and what memory it needs beside the matrix."""

from collections.abc import Sequence
from typing import Literal

import torch

Driver = Literal["lapack", "eigen", "subspace"]

DEEP = {"cpu": (1536, 8), "cuda": (1024, 4)}
"""By device: from which min(m, n) the leading triplets are found apart, and how many times the rank must fit in it.
The CPU's is measured (docs/decomposition.md), the GPU's is not."""

EIGEN_FROM = 64
"""min(m, n) from which full spectra on a GPU, and whitened matrices anywhere, go through the Gram matrix; not measured
on a GPU."""


def choose(shape: Sequence[int], rank: int | None, device: torch.device | str, dtype: torch.dtype) -> Driver:
    """Say how a matrix is decomposed.

    - ``lapack``: `torch.linalg.svd`. Everything on a CPU that is small or wanted in full: the eigen form gains too
      little there to give up the digits that a Gram matrix loses. Whatever is wanted in float64.
    - ``eigen``: eigenvectors of the Gram matrix of the shorter side in float64. Full spectra on a GPU, where the
      bidiagonal form is slow and products are fast.
    - ``subspace``: randomised subspace iteration with a certificate. Few leading triplets of a large matrix.

    Args:
        shape: (…, m, n).
        rank: how many triplets are wanted; None for all.
        device: where the matrix lies.
        dtype: of the result, float32 or float64.
    """
    side, kind = min(shape[-2:]), torch.device(device).type
    least, times = DEEP["cpu" if kind == "cpu" else "cuda"]
    if dtype == torch.float64:
        return "lapack"
    if rank is not None and side >= least and rank * times <= side:
        return "subspace"
    return "eigen" if kind != "cpu" and side >= EIGEN_FROM else "lapack"


def working_bytes(rows: int, columns: int, *, double: bool = False, device: torch.device | str = "cpu") -> int:
    """Return the most bytes that `svd` holds beside the weight while it decomposes it, results included.

    With few triplets it holds less, unless it falls back to all of them.

    Args:
        rows, columns: m and n.
        double: whether the weight comes in float64 (else it comes in float32).
        device: where it is decomposed.
    """
    side, area = min(rows, columns), rows * columns
    factors = side * (rows + columns) + side
    # LAPACK's gesdd: two copies of the matrix, the factors, 4k² + 7k of work space, 3k² more where a QR comes first.
    exact = (8 if double else 4) * (2 * area + factors + 7 * side * side + 7 * side)
    if double:
        return exact
    if torch.device(device).type == "cpu":
        # Subspace iteration: the matrix, its Gram matrix, the certificate and bases of up to k/8 columns in float64.
        return max(exact, 8 * (area + 6 * side * side)) if side >= DEEP["cpu"][0] else exact
    # Eigen form: the matrix, its projection, Gram matrix, eigenvectors and syevd's work space, all in float64.
    return 8 * (4 * area + 6 * side * side) + 4 * factors
