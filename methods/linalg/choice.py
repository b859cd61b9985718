"""Which algorithm decomposes a matrix, and what memory it needs beside the matrix."""

from collections.abc import Sequence
from typing import Literal

import torch

Driver = Literal["lapack", "eigen"]

EIGEN_FROM = 64
"""min(m, n) from which full spectra on a GPU, and whitened matrices anywhere, go through the Gram matrix; not measured
on a GPU."""


def choose(shape: Sequence[int], device: torch.device | str, dtype: torch.dtype) -> Driver:
    """Say how a matrix is decomposed.

    - ``lapack``: `torch.linalg.svd`. Everything on a CPU, where the eigen form gains too little to give up the digits
      that a Gram matrix loses; whatever is small, or wanted in float64.
    - ``eigen``: eigenvectors of the Gram matrix of the shorter side in float64. On a GPU, where the bidiagonal form is
      slow and products are fast.

    Args:
        shape: (…, m, n).
        device: where the matrix lies.
        dtype: of the result, float32 or float64.
    """
    on_gpu = torch.device(device).type != "cpu"
    return "eigen" if on_gpu and dtype != torch.float64 and min(shape[-2:]) >= EIGEN_FROM else "lapack"


def working_bytes(rows: int, columns: int, *, double: bool = False, device: torch.device | str = "cpu") -> int:
    """Return the most bytes that `svd` holds beside the weight while it decomposes it, results included.

    Args:
        rows, columns: m and n.
        double: whether the weight comes in float64 (else it comes in float32).
        device: where it is decomposed.
    """
    side, area = min(rows, columns), rows * columns
    factors = side * (rows + columns) + side
    # LAPACK's gesdd: a copy of the matrix, the factors, and 4k² + 7k of work space (k² of it where a QR comes first).
    exact = (8 if double else 4) * (area + factors + 4 * side * side + 7 * side)
    if double or torch.device(device).type == "cpu":
        return exact
    # Eigen form: the matrix, its projection, Gram matrix, eigenvectors and syevd's work space, all in float64.
    return 8 * (4 * area + 6 * side * side) + 4 * factors
