"""Decompositions: the one place that calls an SVD."""

from .choice import Driver, choose, working_bytes
from .decompose import svd
from .product import merge

__all__ = ["Driver", "choose", "merge", "svd", "working_bytes"]
