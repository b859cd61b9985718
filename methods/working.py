"""Upper bounds on the memory that decomposing one matrix takes, the matrix and its statistics left out.

Counted from the code of `linalg` and `whitening` and compared with the measured peak in the tests. P = mn,
k = min(m, n), F = k(m + n); LAPACK's gesdd copies its argument and works on about 4k² numbers, syevd on 2n².
"""

from __future__ import annotations


def svd_bytes(m: int, n: int, itemsize: int = 4) -> int:
    """Return the bytes of `linalg.svd` and of the balanced factors made of its result."""
    p, k = m * n, min(m, n)
    factors = k * (m + n)
    return itemsize * max((p if m >= n else 2 * p) + factors + 4 * k * k, 2 * factors)


def whiten_bytes(m: int, n: int, output_side: bool, two_sided: bool = False) -> int:
    """Return the bytes of `whitening.whiten`, float64.

    Args:
        m, n: shape of the matrix.
        output_side: whether the m x m eigenproblem is solved.
        two_sided: whether output gradients weigh too.
    """
    p, k = m * n, min(m, n)
    factors = k * (m + n)
    if output_side and not two_sided:
        return 8 * max(p + 4 * n * n, 2 * p + n * n + 3 * m * m, p + m * m + 3 * factors)
    sides = 3 * n * n + (3 * m * m if two_sided else 0)
    return max(8 * (2 * p + sides) + svd_bytes(m, n, 8), 8 * (2 * p + sides) + 20 * factors, 8 * (p + 4 * n * n))
