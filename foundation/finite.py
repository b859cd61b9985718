"""Whether a tensor holds numbers only, without copies of it."""

import torch
from torch import Tensor


def all_finite(tensor: Tensor) -> bool:
    """Tell whether no entry is NaN or infinite.

    `torch.isfinite` takes five to seven bytes for each entry; of a factorised token embedding that is more than the
    whole model. The least and the largest entry take none, and are NaN where any entry is.

    Args:
        tensor: of any shape and floating-point dtype.
    """
    return not tensor.numel() or all(bool(bound.isfinite()) for bound in torch.aminmax(tensor))
