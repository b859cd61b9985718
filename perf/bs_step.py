"""One training step of Basis Selection, next to what one would otherwise run, with peak memory.

    python perf/bs_step.py                                  # 1024-wide Llama, 2 layers, on the CPU
    python perf/bs_step.py --width 256 --rounds 1          # a quick look
    python perf/bs_step.py --device cuda --width 4096 --inner 11008 --layers 8 --heads 32 \\
        --vocabulary 32000 --batch 8 --length 512 --autocast --checkpointing

Every variant trains the same random Llama on the same random tokens: forward, backward, gradient clipping, AdamW. Each
runs in a process of its own, so that its peak memory is its own.

    bs         ours, with all bases and with a half and an eighth of them, after pruning with a running optimizer
    rebuild    the same training as straightforward code does it, the Basis Selection authors' among it: U and V stay
               whole, pruning is a mask, and every step builds W = U diag(w² · mask) Vᵀ + Ũ Ṽ; so its cost is the same
               from the first step to the last
    full       full finetuning
    lora       LoRA of rank 32 on every linear layer (peft), everything else frozen

Time does not depend on the values of the weights, so bases are random and no SVD is done. Time is the least of the
rounds and memory the peak over steps, less what the process held before it made the model, libraries that is.
Set OMP_NUM_THREADS to say how many cores to use.
"""

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_bench.foundation.memory import peak_resident_bytes, reset_peak_memory
from lowrank_bench.methods.fitted import Factors
from lowrank_bench.methods.library.bs.layer import BasisLinear
from lowrank_bench.methods.shrinking import shrink_parameter
from lowrank_bench.models.matrices import get_linear, matrices, replace_module

VARIANTS = ("bs 100 %", "bs 50 %", "bs 12 %", "rebuild", "full", "lora")


@dataclass(frozen=True)
class Setup:
    """What all variants share.

    Attributes:
        autocast: to bfloat16, over weights of ``dtype``.
        checkpointing: of gradients.
        compile: every decoder layer.
        bases: dtype of our frozen bases, that of the weights by default.
        cpu: count CPU seconds, which other programs disturb less.
    """

    width: int = 1024
    inner: int = 2816
    layers: int = 2
    heads: int = 8
    vocabulary: int = 4096
    batch: int = 4
    length: int = 256
    extra: int = 32
    rounds: int = 3
    device: str = "cpu"
    dtype: str = "float32"
    autocast: bool = False
    checkpointing: bool = False
    compile: bool = False
    bases: str = ""
    cpu: bool = False


@dataclass(frozen=True)
class Measured:
    """What one variant took: seconds and bytes of a step, and how many parameters it trains."""

    variant: str
    seconds: float
    tokens: float
    bytes: int
    trained: int


class RebuildingLinear(nn.Module):
    """The layer of Basis Selection in the straightforward form, which builds the dense weight in every forward pass."""

    mask: Tensor

    def __init__(self, layer: BasisLinear) -> None:
        super().__init__()
        self.weight_root, self.extra_left, self.extra_right = layer.weight_root, layer.extra_left, layer.extra_right
        self.bias = layer.bias
        self.register_buffer("left", layer.left)
        self.register_buffer("right", layer.right)
        self.register_buffer("mask", torch.ones_like(layer.weight_root))

    def forward(self, x: Tensor) -> Tensor:
        weight = (self.left * (self.weight_root**2 * self.mask)) @ self.right + self.extra_left @ self.extra_right
        return nn.functional.linear(x, weight, self.bias)


def llama(setup: Setup) -> Any:
    """Build a random Llama of the setup's shapes on its device."""
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=setup.width,
        intermediate_size=setup.inner,
        num_hidden_layers=setup.layers,
        num_attention_heads=setup.heads,
        num_key_value_heads=setup.heads,
        vocab_size=setup.vocabulary,
        tie_word_embeddings=False,
        use_cache=False,
    )
    with torch.device(setup.device):
        model = transformers.LlamaForCausalLM(config).to(getattr(torch, setup.dtype))
    if setup.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model.train()


def random_bases(linear: nn.Linear, extra: int, dtype: str = "") -> BasisLinear:
    """Return a basis layer of full rank in the shape of a linear one, with random bases in place of its SVD."""
    weight = linear.weight
    m, n = weight.shape
    k = min(m, n)
    spectrum = torch.linspace(2, 0.1, k, device=weight.device)
    left = torch.randn(m, k, device=weight.device) / m**0.5 * spectrum.sqrt()
    right = torch.randn(k, n, device=weight.device) / n**0.5 * spectrum.sqrt()[:, None]
    bias = None if linear.bias is None else linear.bias
    narrow = getattr(torch, dtype) if dtype else None
    return BasisLinear(Factors(left, right, spectrum), bias, extra, "zero", 0, weight.dtype, narrow)


def install(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> None:
    """Replace every matrix that Basis Selection replaces."""
    for matrix in matrices(model):
        linear = get_linear(model, matrix.name)
        replace_module(model, matrix.name, make(linear))


def with_lora(model: Any, rank: int = 32) -> Any:
    import peft

    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", exclude_modules=["lm_head"], task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, config)


def build(setup: Setup, variant: str) -> Any:
    """Build the model that a variant trains; pruning comes later, with a running optimizer."""
    model = llama(setup)
    if variant.startswith("bs"):
        install(model, partial(random_bases, extra=setup.extra, dtype=setup.bases))
    elif variant == "rebuild":
        install(model, lambda linear: RebuildingLinear(random_bases(linear, setup.extra)))
    elif variant == "lora":
        model = with_lora(model)
    elif variant != "full":
        raise ValueError(f"no variant '{variant}'; there are {', '.join(VARIANTS)}")
    if setup.compile:
        torch._dynamo.config.force_parameter_static_shapes = False  # as `bs.fusing.fused`: ranks are no constants
        for layer in (model.base_model.model if variant == "lora" else model).model.layers:
            layer.compile()
    return model


class Training:
    """A model with its optimizer and its one batch."""

    def __init__(self, setup: Setup, model: Any) -> None:
        self.setup, self.model = setup, model
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        fused = setup.device.startswith("cuda") or None  # as the recipes do there
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5, weight_decay=0.0, fused=fused)
        generator = torch.Generator().manual_seed(1)
        ids = torch.randint(3, setup.vocabulary, (setup.batch, setup.length), generator=generator)
        self.ids = ids.to(setup.device)

    def step(self) -> None:
        """Do one training step, the GPU's part included."""
        kind, keep = self.setup.device.split(":")[0], not self.setup.checkpointing  # as `runners.training.trainer` does
        with torch.autocast(kind, torch.bfloat16, enabled=self.setup.autocast, cache_enabled=keep):
            loss = self.model(input_ids=self.ids, labels=self.ids).loss
        loss.backward()
        nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        loss.item()

    def prune(self, share: float) -> None:
        """Keep that share of every layer's bases, the strongest, and the optimizer's state of those."""
        for layer in self.model.modules():
            if isinstance(layer, BasisLinear):
                remaining = max(1, round(share * layer.bases))
                layer.prune(torch.arange(len(layer.kept), device=layer.kept.device) < remaining)
                layer.shrink(lambda parameter, index: shrink_parameter(parameter, index, self.optimizer))


def memory_in_use(device: str) -> int:
    """Return the bytes held at the most since the last reset."""
    return torch.cuda.max_memory_allocated(device) if device.startswith("cuda") else peak_resident_bytes()


def reset(device: str) -> int:
    """Give back what is free, start a new peak and return the bytes held."""
    gc.collect()
    if device == "cpu" and sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)  # else the peak is that of all earlier steps
    reset_peak_memory()
    return memory_in_use(device)


def warm_up(setup: Setup, variant: str) -> None:
    """Do a step of a tiny model, which imports and loads all that a step needs."""
    tiny = replace(setup, width=64, inner=64, layers=1, heads=2, vocabulary=64, batch=1, length=8, compile=False)
    Training(tiny, build(tiny, variant)).step()


def measure(setup: Setup, variant: str) -> Measured:
    """Train a variant for some steps in this process and measure the least time and the peak memory of a step."""
    clock = time.process_time if setup.cpu else time.perf_counter
    warm_up(setup, variant)
    before = reset(setup.device)
    training = Training(setup, build(setup, variant))
    if variant.startswith("bs"):
        training.step()
        training.prune(float(variant.split()[1]) / 100)
    training.step()
    reset(setup.device)
    times = []
    for _ in range(setup.rounds):
        begin = clock()
        training.step()
        if setup.device.startswith("cuda"):
            torch.cuda.synchronize(setup.device)
        times.append(clock() - begin)
    trained = sum(parameter.numel() for parameter in training.trained)
    tokens = setup.batch * setup.length
    return Measured(variant, min(times), tokens / min(times), memory_in_use(setup.device) - before, trained)


def measure_apart(setup: Setup, variant: str) -> Measured:
    """Measure a variant in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--one", variant, "--setup", json.dumps(asdict(setup))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{variant} failed:\n{done.stderr[-2000:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def table(measured: list[Measured]) -> str:
    """Return the table: what each took, and as multiples of our step with all bases and with the fewest."""
    ours = [entry for entry in measured if entry.variant.startswith("bs")] or measured[:1]
    first, last = ours[0], ours[-1]
    heads = ["step", "seconds", "tokens/s", "memory MB", "trained M"]
    heads += [
        f"{quantity} / {entry.variant}" for entry in dict.fromkeys((first, last)) for quantity in ("time", "memory")
    ]
    lines = [heads]
    for entry in measured:
        line = [entry.variant, f"{entry.seconds:.3f}", f"{entry.tokens:,.0f}", f"{entry.bytes / 1e6:,.0f}"]
        line.append(f"{entry.trained / 1e6:.2f}")
        for base in dict.fromkeys((first, last)):
            line += [f"{entry.seconds / base.seconds:.2f}", f"{entry.bytes / base.bytes:.2f}"]
        lines.append(line)
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)


def main() -> int:
    parser = argparse.ArgumentParser(description="One Basis Selection step against the alternatives.")
    for field in fields(Setup):
        if field.type is bool:
            parser.add_argument(f"--{field.name}", action="store_true")
        elif field.name != "inner":
            parser.add_argument(f"--{field.name}", type=field.type, default=field.default)
    parser.add_argument("--inner", type=int, default=None, help="width inside the MLP; 11/4 of the width by default")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="which, separated by commas")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--setup", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(asdict(measure(Setup(**json.loads(options.setup)), options.one))))
        return 0
    options.inner = options.inner or options.width * 11 // 4
    setup = Setup(**{field.name: getattr(options, field.name) for field in fields(Setup)})
    print(", ".join(f"{name} {value}" for name, value in asdict(setup).items()), f"threads {torch.get_num_threads()}")
    measured = []
    for variant in options.variants.split(","):
        measured.append(measure_apart(setup, variant))
        print(f"{variant}: {measured[-1].seconds:.3f} s", flush=True)
    print(table(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())
