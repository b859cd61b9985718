"""The SVD of a product that is never formed when it is thin."""

import torch
from torch import Tensor

from .decompose import svd


def merge(left: Tensor, right: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the thin SVD of ``left @ right`` cut to ``rank``, without ever forming the product when it is thin.

    Args:
        left: (m, k). right: (k, n). rank: at most min(m, n).

    Returns:
        U (m, rank), s (rank,), Vᵀ (rank, n); components beyond the product's own rank are zero.
    """
    left, right = left.detach().double(), right.detach().double()
    if left.shape[1] >= min(left.shape[0], right.shape[1]):
        u, s, vt = svd(left @ right)
    else:
        # left = Q_l R_l and rightᵀ = Q_r R_r: the SVD of the k x k core R_l R_rᵀ gives that of the product.
        q_left, r_left = torch.linalg.qr(left)
        q_right, r_right = torch.linalg.qr(right.T)
        core_u, s, core_vt = svd(r_left @ r_right.T)
        u, vt = q_left @ core_u, core_vt @ q_right.T
    missing = rank - len(s)
    if missing > 0:
        u = torch.nn.functional.pad(u, (0, missing))
        vt = torch.nn.functional.pad(vt, (0, 0, 0, missing))
        s = torch.nn.functional.pad(s, (0, missing))
    return u[:, :rank], s[:rank], vt[:rank]
