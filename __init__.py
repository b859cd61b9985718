"""lowrank-bench: one protocol for every low-rank compression method of language models.

Importing it makes transformers load factorised checkpoints; vLLM loads them through an installed entry point.
"""

# Absolute, because pytest imports this file under the name of the folder that the repository was cloned into.
from lowrank_bench.models.autoload import install

__version__ = "0.1.0"

install()
