"""Estimated against measured peak memory of every kind of stage, each in a process of its own, on the CPU.

    python perf/estimated_memory.py                                   # three sizes: an hour or more
    python perf/estimated_memory.py --sizes 50 --optimizers sgd       # a quick look
    python perf/estimated_memory.py --kinds finetune --checkpointing no   # all optimizers, without the other stages
    python perf/estimated_memory.py --model FOLDER --methods svd      # another model

Models are Llamas, and one Gemma 3 with a tied head, with random weights and the built-in tokenizer; a stage is done as
`bench run` does it, with two updates. The measured peak is VmHWM, libraries included, of the stage's record; for
evaluations of the engine's process.
The target: every ratio lies between 0.8 and 1.2.
"""

import argparse
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lowrank_bench.foundation.fork_server import run_apart
from lowrank_bench.models.loading import load_tokenizer
from lowrank_bench.models.presets import resolve_model
from lowrank_bench.models.shards import Promise, write_shards
from lowrank_bench.runners.config import make_config
from lowrank_bench.runners.config.methods import split_methods
from lowrank_bench.runners.executors.local import do_stage
from lowrank_bench.runners.graph import Plan
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.specs import FitStage, Stage

LEAST, MOST = 0.8, 1.2
SIZES = {"50": ("llama", 512, 13, 4096), "120": ("gemma3", 640, 12, 65536), "270": ("llama", 1024, 15, 32768)}
"""Millions of parameters: architecture, width, layers, vocabulary."""
KINDS = ("finetune", "fit", "compress", "recover", "quantise", "evaluate")
OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "sgd", "adafactor", "adagrad", "rmsprop")
METHODS = "svd,fwsvd:samples=16,svd-llm:samples=16,bs:prunings=2,aa:samples=16,io-svd:samples=16,head=false"
# glibc keeps freed memory in one arena for each thread, and raises the size from which it asks the system for pages.
_QUIET = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"}
_CHILD = """
import sys
from pathlib import Path
from lowrank_bench.foundation.memory import reset_peak_memory
from lowrank_bench.runners.specs import parse_stage
from lowrank_bench.runners.stages.perform import perform
from lowrank_bench.runners.store.folders import StageStore
stage = parse_stage(sys.stdin.read())
StageStore(Path(sys.argv[1])).run(stage, lambda folder: perform(stage, folder))
"""


def write_model(folder: Path, architecture: str, width: int, layers: int, vocabulary: int) -> int:
    """Write a model with random weights in bfloat16; returns its parameters.

    Args:
        folder: where to.
        architecture: ``llama``, or ``gemma3``: tied head, sliding windows, four heads that share keys and values.
        width, layers, vocabulary: of the model.
    """
    import torch
    import transformers

    load_tokenizer(resolve_model("tiny").location).save_pretrained(folder)
    common: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "vocab_size": vocabulary,
        "max_position_embeddings": 512,
        "dtype": "bfloat16",
    }
    if architecture == "gemma3":
        heads = {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": width // 4}
        windows = {"sliding_window": 128, "intermediate_size": 5 * width, "tie_word_embeddings": True}
        config: Any = transformers.Gemma3TextConfig(**common, **heads, **windows, architectures=["Gemma3ForCausalLM"])
    else:
        heads = {"num_attention_heads": 8, "num_key_value_heads": 8}
        sizes = {"intermediate_size": width * 11 // 4, "tie_word_embeddings": False}
        config = transformers.LlamaConfig(**common, **heads, **sizes, architectures=["LlamaForCausalLM"])
    config.save_pretrained(folder)
    with torch.device("meta"):
        skeleton = transformers.AutoModelForCausalLM.from_config(config)
    tensors = {
        name: tuple(tensor.shape) for name, tensor in skeleton.named_parameters()
    }  # a tied head is no second one
    promises = [
        Promise(name, shape, torch.bfloat16, lambda shape=shape: torch.randn(shape).bfloat16() / 50)
        for name, shape in tensors.items()
    ]
    write_shards(promises, folder, 10**10)
    return sum(math.prod(shape) for shape in tensors.values())


def plan_for(
    model: Path,
    out: Path,
    optimizer: str,
    checkpointing: bool,
    methods: Sequence[str],
    recover: bool = True,
    bits: Sequence[int] = (16,),
) -> Plan:
    """Return a sweep of two updates a training, recovery left out or not, one ratio, and factors in some bits."""
    train = {
        "steps": 2,
        "batch_size": 8,
        "micro_batch_size": 4,
        "optimizer": optimizer,
        "gradient_checkpointing": checkpointing,
        "precision": "float32",
    }
    return make_plan(
        make_config(
            {
                "model": str(model),
                "task": "toy-math",
                "methods": list(methods),
                "ratios": [1.5],
                "bits": list(bits),
                "training": {"finetune": train, "recover": train | {"steps": 4 if recover else 0}},
                "evaluation": {"limit": 4, "max_new_tokens": 8, "dtype": "float32", "engine": "transformers"},
                "execution": {"eval_batch_size": 4, "device": "cpu", "out": out},
            }
        )
    )


def measure(plan: Plan, kinds: Sequence[str], forked: bool = False) -> Iterator[tuple[Stage, int, int]]:
    """Do the stages of some kinds and what they start from; yield those with their estimated and measured bytes.

    Args:
        plan: of `plan_for`.
        kinds: of the stages that are measured.
        forked: from a process that has imported the libraries, as `bench run` does on a CPU; else started afresh, which
            takes some 90 MB and ten seconds more.
    """
    last = max(KINDS.index(kind) for kind in kinds)
    for key, stage in plan.stages.items():
        if KINDS.index(stage.kind) > last:
            continue
        ready = plan.store.ready(stage)
        if forked:
            code, printed = run_apart(do_stage, ready, plan.store, print)
        else:
            done = subprocess.run(
                [sys.executable, "-c", _CHILD, str(plan.store.root)],
                input=ready.model_dump_json(),
                env=os.environ | _QUIET,
                capture_output=True,
                text=True,
                check=False,
            )
            code, printed = done.returncode, done.stderr
        if code or not plan.store.is_done(key):
            raise SystemExit(printed or f"{stage.title} failed")
        if stage.kind not in kinds:
            continue
        record = plan.store.read(key)
        measured = record["result"].get("engine", {}).get("peak_memory_bytes") or record["peak_memory_bytes"]
        yield stage, record["result"]["memory"]["predicted_peak_bytes"], measured


def measure_model(
    model: Path,
    out: Path,
    optimizers: Sequence[str],
    methods: Sequence[str],
    kinds: Sequence[str],
    checkpointed: Sequence[str],
    forked: bool,
) -> dict[str, tuple[float, int]]:
    """Print the lines of a model: all stages with the first settings, finetuning with all.

    Returns:
        Ratio and measured bytes by the line's name, in the order of the lines.
    """
    lines: dict[str, tuple[float, int]] = {}
    for optimizer in optimizers:
        for checkpointing in [text == "yes" for text in checkpointed]:
            folder = out / f"{optimizer}-{checkpointing}"
            bits = (16, 8) if "quantise" in kinds else (16,)
            plan = plan_for(model, folder, optimizer, checkpointing, methods, bits=bits)
            first = optimizer == optimizers[0] and checkpointed[0] == ("yes" if checkpointing else "no")
            asked = kinds if first else ["finetune"]
            for stage, estimated, measured in measure(plan, asked, forked):
                ratio = estimated / measured
                settings = f", {optimizer}{', checkpointing' if checkpointing else ''}" if stage.train else ""
                sizes = f"{ratio:6.2f}{estimated / 1e6:10,.0f}{measured / 1e6:10,.0f}"
                name = (stage.title or stage.kind).partition(",")[0]
                if isinstance(stage, FitStage):  # several methods may have factors of one name
                    name = f"fit {stage.execution.method}"
                elif stage.kind == "finetune":
                    name = stage.kind
                lines[f"{name}{settings}"] = ratio, measured
                print(f"{sizes}  {name}{settings}", flush=True)
            shutil.rmtree(folder)
    return lines


def markdown(models: Mapping[str, Mapping[str, tuple[float, int]]]) -> str:
    """Return a table of the lines of several models, ratios and measured MB; those out of range are bold.

    Args:
        models: the lines that `measure_model` returned, by the model's name.
    """
    rows = [["stage, estimated ÷ measured (MB)", *models], ["---"] * (len(models) + 1)]
    for name in dict.fromkeys(name for lines in models.values() for name in lines):
        cells = [name]
        for lines in models.values():
            ratio, measured = lines.get(name, (math.nan, 0))
            mark = "" if LEAST <= ratio <= MOST else "**"
            cells.append(f"{mark}{ratio:.2f}{mark} ({measured / 1e6:,.0f})" if name in lines else "–")
        rows.append(cells)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    """Print the table; exit 1 if a ratio is out of its range."""
    parser = argparse.ArgumentParser(description="Estimated against measured peak memory.")
    parser.add_argument("--sizes", default=",".join(SIZES), help="millions of parameters, with commas")
    parser.add_argument("--model", type=Path, help="a folder instead of random models")
    parser.add_argument("--optimizers", default=",".join(OPTIMIZERS), help="with commas")
    parser.add_argument("--methods", default=METHODS, help="with commas, as for bench run")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of stages, with commas")
    parser.add_argument("--checkpointing", default="no,yes", choices=("no", "yes", "no,yes"), help="of activations")
    parser.add_argument("--forked", action="store_true", help="stages in forked processes, as bench run does on a CPU")
    parser.add_argument("--markdown", action="store_true", help="print the table of all models at the end")
    options = parser.parse_args()
    os.environ |= _QUIET
    kinds, checkpointing = options.kinds.split(","), options.checkpointing.split(",")
    asked = options.optimizers.split(","), split_methods(options.methods), kinds, checkpointing
    models: dict[str, dict[str, tuple[float, int]]] = {}
    print(f"{'ratio':>6}{'estimated':>10}{'measured':>10}  MB, stage", flush=True)
    for size in ["given"] if options.model else options.sizes.split(","):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            name = str(options.model)
            if not options.model:
                name = f"{write_model(folder / 'model', *SIZES[size]) / 1e6:.0f} M"
                print(f"{name} parameters", flush=True)
            models[name] = measure_model(options.model or folder / "model", folder / "out", *asked, options.forked)
    if options.markdown:
        print(markdown(models))
    good = all(LEAST <= ratio <= MOST for lines in models.values() for ratio, _ in lines.values())
    print(f"{'all ratios lie' if good else 'MISSED: not all ratios lie'} between {LEAST} and {MOST}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
