"""Basis Selection: train the singular values, prune them gradually, merge with a few new vectors.

"Basel", arXiv 2405.15877 (TMLR 2025); authors' code: Iowa-State-University-AI-System-Group/Basel. `layer` holds the
layer during pruning, `pruning` the rules on tensors, `options` and `compressor` the method.
"""

from . import estimates
from .compressor import BasisSelection

__all__ = ["BasisSelection", "estimates"]
