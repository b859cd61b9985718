"""Upper bounds on the memory that decomposing one matrix takes, the matrix and its statistics left out.

Counted from the code of `linalg` and `whitening` and compared with the measured peak in the tests. P = mn,
k = min(m, n), F = k(m + n); syevd works on 2n² numbers. What an SVD takes is said in `linalg.choice`.
"""

from __future__ import annotations

from .linalg import working_bytes


def svd_bytes(m: int, n: int, itemsize: int = 4, device: str = "cpu") -> int:
    """Return the bytes of `linalg.svd` and of the balanced factors made of its result.

    Args:
        m, n: shape of the matrix.
        itemsize: 4 or 8, of float32 or float64.
        device: where it is decomposed.
    """
    return max(working_bytes(m, n, double=itemsize == 8, device=device), 2 * itemsize * min(m, n) * (m + n))


def rows_bytes(m: int, n: int) -> int:
    """Return the bytes of `rows.factor_rows` for an (m, n) embedding: B in float32, and (n, n) matrices in float64.

    The rows that are in float64 at a time, and the eigenvectors' work space, are counted as ten such matrices.
    """
    return 4 * m * n + 8 * 10 * max(n * n, 8192 * n // 5)


def whiten_bytes(m: int, n: int, output_side: bool, two_sided: bool = False) -> int:
    """Return the bytes of `whitening.whiten`, float64.

    Args:
        m, n: shape of the matrix.
        output_side: whether the m x m eigenproblem is solved; a wide spread of the inputs may make it the other side.
        two_sided: whether output gradients weigh too.
    """
    p, k = m * n, min(m, n)
    factors = k * (m + n)
    if output_side and not two_sided:
        # The root and what it gives back stay for the next matrix with the same input.
        return 8 * max(p + 4 * n * n, 2 * p + 2 * n * n + 3 * m * m, p + m * m + 2 * n * n + 3 * factors)
    sides = 3 * n * n + (3 * m * m if two_sided else 0)
    return max(8 * (2 * p + sides) + svd_bytes(m, n, 8), 8 * (2 * p + sides) + 20 * factors, 8 * (p + 4 * n * n))


def whiten_regular_bytes(m: int, n: int, output_side: bool, two_sided: bool = False) -> int:
    """Return the bytes of `whitening.whiten`, float64, where `left_vectors` goes through the smaller Gram matrix.

    Beside W in float64: L and L Lᵀ of the inputs, and of two-sided problems of the gradients with the shrunk moments
    and a transposed copy; then W S with eigenvectors and their work space, or the factors and their balanced copies.

    Args:
        m, n, output_side, two_sided: as in `whiten_bytes`.
    """
    p, k = m * n, min(m, n)
    if output_side and not two_sided:
        return whiten_bytes(m, n, output_side)
    sides = 2 * n * n + (4 * m * m + n * n if two_sided else 0)
    return 8 * (p + sides + max(p + 5 * k * k, 2 * k * (m + n)))
