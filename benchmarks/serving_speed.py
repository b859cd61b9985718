"""Tokens per second and memory of vLLM with a factorised model and with its dense form, in one run on one machine.

    OMP_NUM_THREADS=1 python benchmarks/serving_speed.py                    # 1024-wide Llama, 8 layers, ratio 4, float32
    OMP_NUM_THREADS=1 python benchmarks/serving_speed.py --dtype bfloat16 --ratio 2

The weights are random: speed does not depend on them. Both engines live in one process and take turns; the table has the
median of the rounds. Memory is the resident set of a process of its own after the engine has started.
"""

import argparse
import copy
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
CACHE_BYTES = 256 << 20
PROMPT, NEW = 16, 32


def make_models(folder: Path, width: int, layers: int, ratio: float, dtype: str) -> None:
    """Write ``dense`` and ``lowrank``: every matrix but embedding and head at the rank that makes it ratio times smaller."""
    import torch
    import transformers as tf

    from lowrank_bench.models.checkpoint import save_checkpoint
    from lowrank_bench.models.layers import LowRankLinear
    from lowrank_bench.models.matrices import matrices, replace_module

    config = tf.LlamaConfig(
        vocab_size=4096, hidden_size=width, intermediate_size=width * 11 // 4, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=width // 128, max_position_embeddings=512,
    )  # fmt: skip
    model = tf.AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    save_checkpoint(copy.deepcopy(model), None, folder / "dense")
    for matrix in matrices(model, head=False):
        rank = int(matrix.break_even / ratio)
        a = torch.randn(rank, matrix.in_features) * 0.02
        b = torch.randn(matrix.out_features, rank) * 0.02
        layer = LowRankLinear.from_factors(a.to(model.dtype), b.to(model.dtype))
        replace_module(model, matrix.name, layer)
    save_checkpoint(model, None, folder / "lowrank")


def engine(folder: Path, dtype: str, eager: bool) -> Any:
    """Start vLLM on a folder, with nothing said about its factors."""
    from vllm import LLM

    return LLM(
        str(folder), skip_tokenizer_init=True, dtype=dtype, enforce_eager=eager, max_model_len=512, max_num_seqs=64,
        kv_cache_memory_bytes=CACHE_BYTES, enable_prefix_caching=False,
    )  # fmt: skip


def seconds(llm: Any, batch: int, round_: int) -> float:
    """Time one greedy call of ``batch`` prompts."""
    from vllm import SamplingParams

    sampling = SamplingParams(temperature=0, max_tokens=NEW, ignore_eos=True, detokenize=False)
    prompts = [{"prompt_token_ids": [3 + (7 * i + 13 * j + round_) % 4000 for j in range(PROMPT)]} for i in range(batch)]
    start = time.perf_counter()
    llm.generate(prompts, sampling, use_tqdm=False)
    return time.perf_counter() - start


def main() -> None:
    """Make both models, take turns, print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--ratio", type=float, default=4.0)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--compile", action="store_true", help="leave torch.compile on")
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        import psutil

        kept = engine(args.memory_of, args.dtype, not args.compile)
        print(f"RSS {psutil.Process().memory_info().rss}")
        del kept
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_models(folder, args.width, args.layers, args.ratio, args.dtype)
        kinds = ("dense", "lowrank")
        sizes = {}
        for kind in kinds:
            command = [sys.executable, __file__, "--dtype", args.dtype, "--memory-of", str(folder / kind)]
            printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            sizes[kind] = int(printed.split("RSS ")[1]) / 2**20
        engines = {kind: engine(folder / kind, args.dtype, not args.compile) for kind in kinds}
        print(f"\n| {args.dtype}, ratio {args.ratio:g} | dense | factorised | factor |\n| --- | --- | --- | --- |")
        for batch in args.batches:
            for llm in engines.values():
                seconds(llm, batch, 0)
            times: dict[str, list[float]] = {kind: [] for kind in kinds}
            for round_ in range(1, args.rounds + 1):
                for kind in kinds:
                    times[kind].append(seconds(engines[kind], batch, round_))
            speed = {kind: batch * NEW / statistics.median(times[kind]) for kind in kinds}
            print(
                f"| tokens/s, batch {batch} | {speed['dense']:.0f} | {speed['lowrank']:.0f} | "
                f"{speed['lowrank'] / speed['dense']:.2f} |",
                flush=True,
            )
        print(f"| MiB resident | {sizes['dense']:.0f} | {sizes['lowrank']:.0f} | {sizes['lowrank'] / sizes['dense']:.2f} |")


if __name__ == "__main__":
    main()
