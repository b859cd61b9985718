"""``python -m lowrank_bench.cli`` is the command ``bench``."""

from . import main

main()
