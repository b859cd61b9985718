"""Peak memory of compressing a sharded model: streamed layer by layer, and loaded whole, next to the formula.

    python perf/peak_memory.py                              # 1 GB in float32, svd: some minutes on one core
    python perf/peak_memory.py --methods magnitude,svd-llm  # other methods
    python perf/peak_memory.py --gb 0.3 --methods magnitude # a quick look

The model is a Llama with random weights in shards of 200 MB. Every line is a process of its own that runs what
`bench compress` runs; its peak is VmHWM, libraries included. The largest layer's working set is the memory of
decomposing the largest matrix, weight and statistics included, for methods that read data that of a block with its
statistics. The target: the streamed peak stays below 1.5 times that plus what does not depend on the model (libraries,
factors that wait to be written).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from lowrank_bench.foundation.memory import BASE_BYTES
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.fitted import BUFFER_BYTES
from lowrank_bench.methods.matrixwise import MatrixCompressor
from lowrank_bench.methods.memory import Calibration, compress_peak, fit_peak
from lowrank_bench.models.loading import load_skeleton, load_tokenizer
from lowrank_bench.models.presets import resolve_model
from lowrank_bench.models.shards import Promise, write_shards

TARGET = 1.5
TASK = "toy-math"
_CHILD = """
import json, sys
from pathlib import Path
from lowrank_bench.foundation.memory import peak_resident_bytes
from lowrank_bench.runners.config import parse_method
from lowrank_bench.runners.compressing import CompressRequest, compress
model, method, task, out, memory = sys.argv[1:]
compress(CompressRequest(model, parse_method(method), 2.0, Path(out), task or None, device="cpu", memory=memory))
print(json.dumps(peak_resident_bytes()))
"""


def write_model(folder: Path, width: int, layers: int, shard_bytes: int) -> int:
    """Write a Llama with random weights, one tensor in memory at a time; returns the bytes of its weights."""
    import transformers

    tokenizer = load_tokenizer(resolve_model("tiny").location)
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=len(tokenizer),
        max_position_embeddings=512,
        architectures=["LlamaForCausalLM"],
        dtype="float32",
    )
    config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with torch.device("meta"):
        skeleton = transformers.AutoModelForCausalLM.from_config(config)
    promises = [
        Promise(name, tuple(tensor.shape), torch.float32, lambda shape=tensor.shape: torch.randn(shape) * 0.02)
        for name, tensor in skeleton.state_dict().items()
    ]
    write_shards(promises, folder, shard_bytes)
    return sum(promise.bytes for promise in promises)


def measure(model: Path, method: str, memory: str) -> int:
    """Return the peak resident bytes of a process that compresses the model."""
    task = TASK if create_method(method).requirements.data_in_fit else ""
    with tempfile.TemporaryDirectory(dir=model.parent) as scratch:
        arguments = [str(model), method, task, f"{scratch}/out", memory]
        done = subprocess.run([sys.executable, "-c", _CHILD, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(json.loads(done.stdout.splitlines()[-1]))


def constants(method: MatrixCompressor, skeleton: Any) -> int:
    """Return what the peak has beside the largest layer: libraries, and factors that wait to be written."""
    groups = method.groups(skeleton)
    return BASE_BYTES + BUFFER_BYTES + max(4 * min(g.out_features, g.in_features) * g.in_features * 2 for g in groups)


def main() -> int:
    """Print the table; exit 1 if the streamed peak misses the target."""
    parser = argparse.ArgumentParser(description="Peak memory of streaming against loading whole.")
    parser.add_argument("--gb", type=float, default=1.0, help="size of the model in float32")
    parser.add_argument("--width", type=int, default=1024, help="hidden size, a multiple of 32")
    parser.add_argument("--methods", default="svd", help="with commas")
    options = parser.parse_args()
    a_layer = 4 * (4 * options.width**2 + 3 * options.width * (options.width * 11 // 4))
    layers = max(1, round(options.gb * 1e9 / a_layer))
    good = True
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        size = write_model(model, options.width, layers, 200 * 10**6)
        files = len(list(model.glob("*.safetensors")))
        print(f"{size / 1e6:,.0f} MB in {files} shards, {layers} layers {options.width} wide, one process a line; MB")
        print(f"{'method':12}{'load':10}{'layer':>8}{'formula':>9}{'measured':>10}{'target':>8}{'seconds':>9}")
        skeleton = load_skeleton(model)
        for name in options.methods.split(","):
            method = create_method(name)
            assert isinstance(method, MatrixCompressor)
            calibration = (
                Calibration(method.samples, method.batch_size, 96) if method.requirements.data_in_fit else None
            )  # type: ignore[attr-defined]
            for memory in ("layerwise", "whole"):
                streamed = memory == "layerwise"
                fit, compress = (
                    fit_peak(method, skeleton, streamed, "cpu", calibration),
                    compress_peak(method, skeleton, streamed, "cpu"),
                )
                constant = constants(method, skeleton)
                layer = fit_peak(method, skeleton, True, "cpu", calibration).host - constant
                target = TARGET * layer + constant
                clock = time.perf_counter()
                measured = measure(model, name, memory)
                seconds = time.perf_counter() - clock
                formula = max(fit.host, compress.host)
                numbers = (layer, formula, measured, target if streamed else float("nan"))
                cells = [f"{number / 1e6:,.0f}" if number == number else "" for number in numbers]
                print(
                    f"{name:12}{memory:7}{cells[0]:>8}{cells[1]:>9}{cells[2]:>10}{cells[3]:>8}{seconds:9.0f}",
                    flush=True,
                )
                good &= not streamed or measured <= target
    print(f"the streamed peak {'stays below' if good else 'MISSES'} {TARGET} times the largest layer plus the constant")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
