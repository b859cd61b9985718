"""Decompositions: the one place that calls an SVD."""

from .choice import Driver, choose, working_bytes
from .decompose import svd
from .exact import left_vectors
from .product import merge

__all__ = ["Driver", "choose", "left_vectors", "merge", "svd", "working_bytes"]
