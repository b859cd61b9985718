"""lowrank-bench: one protocol for every low-rank compression method of language models.

Importing it makes transformers load factorised checkpoints; vLLM loads them through an installed entry point.
"""

from .models.autoload import install

__version__ = "0.1.0"

install()
