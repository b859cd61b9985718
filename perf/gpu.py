"""What needs a GPU, in one script: at the size of Llama-2-7B with random weights, under eight minutes, a table last.

    python perf/gpu.py                              # on the GPU
    python perf/gpu.py --device cpu --small         # the same code in seconds, as the tests run it
    python perf/gpu.py --sections decomposition     # one part

A section has a share of the time. Where it is up, the section stops, and its rows say from how much they are. A section
that fails is a row too, the others go on, and the exit code is 1, as it is where a target is missed. Rows with "of
assumptions.py" say what the assumptions behind the estimates of `bench reproduce` would be; see docs/gpu.md.
Not run on a GPU yet.
"""

import argparse
import gc
import platform
import sys
import time
import traceback
from importlib import import_module

import torch
from gpu_sections.table import Row, Where, printed

SECTIONS = {"decomposition": 210.0, "fisher": 70.0, "training": 100.0, "decode": 70.0}
"""What is measured, each by the module of that name, and the seconds it may take; together at most 450."""


def main() -> int:
    parser = argparse.ArgumentParser(description="What needs a GPU, at the size of Llama-2-7B.")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--small", action="store_true", help="sizes for a CPU; targets of time do not count")
    parser.add_argument("--sections", default=",".join(SECTIONS), help="which, with commas")
    options = parser.parse_args()
    chosen = options.sections.split(",")
    if unknown := [name for name in chosen if name not in SECTIONS]:
        parser.error(f"there is no section {', '.join(unknown)}; there are: {', '.join(SECTIONS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; use --device cpu --small")
    if options.device == "cpu" and not options.small:
        parser.error("7B sizes take hours on a CPU; add --small")
    device = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    rows: list[tuple[str, Row]] = []
    begin = time.perf_counter()
    for name in chosen:
        gc.collect()
        if options.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        print(f"{name} …", flush=True)
        try:
            run = import_module(f"gpu_sections.{name}").run
            rows += [(name, row) for row in run(Where(options.device, options.small, SECTIONS[name]))]
        except Exception as error:
            traceback.print_exc()
            rows.append((name, Row("failed", type(error).__name__, met=False, note=str(error).split("\n")[0][:80])))
    print(f"\n{device}, torch {torch.__version__}, {time.perf_counter() - begin:.0f} s{', small' * options.small}\n")
    print(printed(rows))
    return 1 if any(row.met is False for _, row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
