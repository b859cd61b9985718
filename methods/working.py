"""Upper bounds on the memory that decomposing one matrix takes, the matrix and its statistics left out.

Counted from the code of `linalg` and `whitening` and compared with the measured peak in the tests. P = mn,
k = min(m, n); syevd works on 2k² numbers. What an SVD takes is said in `linalg.choice`.
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


def left_bytes(m: int, n: int, regular: bool) -> int:
    """Return the bytes of `linalg.left_vectors` beside its matrix, float64.

    Args:
        m, n: shape of the matrix.
        regular: whether the eigenvectors of its smaller Gram matrix will do; else the SVD comes while they are there.
    """
    k = min(m, n)
    if not regular:
        return 8 * k * k + working_bytes(m, n, double=True)
    return 8 * max(4 * k * k, 2 * k * k + (m * n if m > n else 0))


def root_bytes(n: int, shrunk: bool = False) -> int:
    """Return the bytes of `whitening.root` of an (n, n) matrix: L, L Lᵀ and what tests their entries.

    Args:
        n: width of the inputs.
        shrunk: whether the matrix is one that was made for it, with more on its diagonal.
    """
    return (8 * (3 if shrunk else 2) + 11) * n * n


def whiten_bytes(m: int, n: int, output_side: bool, two_sided: bool = False, regular: bool = False) -> int:
    """Return the bytes of `whitening.root` and `whitening.whiten`, float64, one after the other.

    Beside W in float64: L and L Lᵀ of the inputs, and of two-sided problems of the gradients, with their shrunk
    moments and the weighted W; then W S with its singular vectors, or the factors and their balanced copies.

    Args:
        m, n: shape of the matrix.
        output_side: whether the m x m eigenproblem is solved; a wide spread of the inputs may make it the other side.
        two_sided: whether output gradients weigh too.
        regular: whether all moments have full rank and inputs no wide spread; else what is most is returned.
    """
    p, k = m * n, min(m, n)
    factors = 8 * 2 * k * (m + n)
    common = 8 * (p + 2 * n * n)
    first = root_bytes(n, two_sided)
    if two_sided:
        weighted = common + 8 * (p + 3 * m * m)
        gradients = common + 8 * m * m + root_bytes(m)
        return max(first, gradients, weighted + max(8 * p + left_bytes(m, n, regular), factors))
    output = common + 8 * max(p + m * m, 5 * m * m, 2 * p + 2 * m * m)
    inputs = common + max(8 * p + left_bytes(m, n, regular), factors)
    if regular:
        return max(first, output if output_side else inputs)
    return max(first, inputs, output if output_side else 0)
