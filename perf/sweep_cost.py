"""What a sweep over eight ratios costs, next to one ratio, and next to decomposing again for every ratio.

    python perf/sweep_cost.py                          # 1024-wide Llama, 2 layers
    python perf/sweep_cost.py --width 256 --layers 1   # a quick look

The model has random weights. Every variant pays the same for what a stage pays: one copy of the model per ratio, and
the compressed model. The fit is written to disk once and read back for every ratio, as a sweep does. "Again" is what
the papers' code does: the statistics once, then `torch.linalg.svd` of every matrix for every ratio.

The target holds for matrices 1024 wide or wider; below that the fixed costs of a stage show.
Set OMP_NUM_THREADS to say how many cores to use.
"""

import argparse
import copy
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowrank_bench.methods.base import CalibrationData, create_method
from lowrank_bench.methods.fitted import Factors, Fitted
from lowrank_bench.methods.matrixwise import MatrixCompressor, install
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.methods.ranks.policies.base import policies

RATIOS = (1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 3.0, 3.4)
TARGET = 1.3


class Tokens:
    """Random sequences of 64 tokens."""

    def __init__(self, examples: int, vocabulary: int) -> None:
        self.ids = torch.randint(3, vocabulary, (examples, 64), generator=torch.Generator().manual_seed(0))

    def batches(self, samples: int | None, batch_size: int) -> Iterator[dict[str, Tensor]]:
        for ids in self.ids[:samples].split(batch_size):
            yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def random_llama(width: int, layers: int, vocabulary: int) -> Any:
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=width,
        intermediate_size=width * 11 // 4,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        vocab_size=vocabulary,
        tie_word_embeddings=False,
    )
    return transformers.LlamaForCausalLM(config).eval()


def seconds(work: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    begin = clock()
    work()
    return clock() - begin


def sweep(method: MatrixCompressor, model: nn.Module, data: CalibrationData, ratios: tuple[float, ...]) -> None:
    """Fit once, then compress one copy of the model per ratio."""
    with tempfile.TemporaryDirectory() as folder:
        method.fit(model, data).save(Path(folder))
        for ratio in ratios:
            method.compress(copy.deepcopy(model), Fitted.load(Path(folder)), Budget(ratio))


def decompose_each_time(
    method: MatrixCompressor, model: nn.Module, data: CalibrationData, ratios: tuple[float, ...]
) -> None:
    """Gather the statistics once, then decompose every matrix again for every ratio."""
    statistics = list(method.collect(model, data, method.groups(model)))
    shape = method.shape(model)
    for ratio in ratios:
        copied = copy.deepcopy(model)
        ranks = Budget(ratio).allocate(shape, policies.get("uniform")()).ranks
        for group, statistic in statistics:
            factors: Factors = method.decompose(group.weight(copied), statistic)
            if group.name in ranks:
                install(copied, group, factors, ranks[group.name])


def main() -> int:
    parser = argparse.ArgumentParser(description="Cost of a sweep over eight ratios against one ratio.")
    parser.add_argument("--width", type=int, default=1024, help="hidden size, a multiple of 16")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--vocabulary", type=int, default=None, help="twice the width by default")
    parser.add_argument("--repeats", type=int, default=2, help="measure one and eight ratios so often, keep the least")
    parser.add_argument("--examples", type=int, default=16, help="task examples of 64 tokens for the Fisher")
    parser.add_argument("--cpu", action="store_true", help="count CPU seconds, which other programs disturb less")
    options = parser.parse_args()
    options.vocabulary = options.vocabulary or 2 * options.width
    clock = time.process_time if options.cpu else time.perf_counter
    model = random_llama(options.width, options.layers, options.vocabulary)
    data = Tokens(options.examples, options.vocabulary)
    copying = len(RATIOS) * seconds(lambda: copy.deepcopy(model), clock)
    unit = "CPU" if options.cpu else "wall"
    print(f"width {options.width}, {options.layers} layers, {torch.get_num_threads()} threads, {unit} seconds")
    print(f"copying the model {len(RATIOS)} times takes {copying:.2f} s; every column contains its copies, one a ratio")
    print(f"{'method':8}{'1 ratio':>10}{'8 ratios':>10}{'again':>10}{'8 / 1':>8}{'again / 8':>10}")
    worst = 0.0
    for name in ("svd", "fwsvd"):
        method = create_method(name)
        assert isinstance(method, MatrixCompressor)
        one_ratio = eight_ratios = math.inf
        for _ in range(options.repeats):
            one_ratio = min(one_ratio, seconds(partial(sweep, method, model, data, RATIOS[3:4]), clock))
            eight_ratios = min(eight_ratios, seconds(partial(sweep, method, model, data, RATIOS), clock))
        papers = seconds(partial(decompose_each_time, method, model, data, RATIOS), clock)
        worst = max(worst, eight_ratios / one_ratio)
        factors = f"{eight_ratios / one_ratio:8.2f}{papers / eight_ratios:10.1f}"
        print(f"{name:8}{one_ratio:9.2f}s{eight_ratios:9.2f}s{papers:9.2f}s{factors}")
    print(f"eight ratios cost at most {worst:.2f} times one ratio (target {TARGET})")
    return 0 if worst <= TARGET or options.width < 1024 else 1


if __name__ == "__main__":
    sys.exit(main())
