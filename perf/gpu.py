"""What needs a GPU, in parts of at most nine minutes: at the size of Llama-2-7B with random weights, a table each.

    python perf/gpu.py --parts correctness          # one part; the next ones in the order below
    python perf/gpu.py                              # all parts, one after the other
    python perf/gpu.py --table                      # the tables of all parts that have run
    python perf/gpu.py --device cpu --small         # the same code in a minute, as the tests run it

It runs from a checkout, where lowrank_bench is not installed, without a network. Beside Python 3.12, torch 2.11 and
transformers 5.17 with accelerate, peft, pandas, pyarrow, matplotlib, typer, rich, and what these require, it needs four
wheels, 3 MB together. Fetch them where there is a network and unpack them into a folder on PYTHONPATH:

    pip download pydantic --dest wheels --only-binary=:all: --python-version 3.12 --implementation cp \\
        --platform manylinux_2_17_x86_64
    for wheel in wheels/*.whl; do python -m zipfile -e $wheel site; done    # on the GPU machine
    PYTHONPATH=site python perf/gpu.py

These are pydantic, pydantic-core (the only one that is compiled), annotated-types and typing-inspection; a newer
typing-extensions, which pip also fetches, does no harm. 5.19 of transformers and 2.13 of torch will do as well.

A part runs in a process of its own, so that one that runs out of memory leaves nothing behind. Where its time is up it
stops, and its rows say from how much they are. What fails is a row, the rest goes on, and the exit code is 1, as it is
where a target is missed. Every part's rows are kept in a file in --out. Rows with "of assumptions.py" say what the
assumptions behind the estimates of `bench reproduce` would be; see docs/gpu.md.
Not run on a GPU yet.
"""

import sys
from pathlib import Path

from gpu_sections.frame import Part, main

PARTS = {
    "correctness": Part("correctness", 480.0),
    "memory": Part("memory", 480.0, ("device", "host-moments", "8-bit")),
    "ranks": Part("ranks", 120.0),
    "decomposition": Part("decomposition", 240.0),
    "training": Part("training", 300.0),
    "decode": Part("decode", 300.0),
    "calibration": Part("calibration", 180.0),
    "fisher": Part("fisher", 120.0),
}
"""What is measured, in the order in which it is most wanted, with the seconds that it may take."""

if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve(), "What needs a GPU, at the size of Llama-2-7B.", PARTS, "runs/gpu"))
