"""``python -m lowrank_bench.papers.published`` writes docs/published.md to standard output."""

import sys

from .document import document

sys.stdout.write(document())
