"""Losses of examples and their gradients at a large vocabulary: CPU time by rows beside the form for three dimensions.

python perf/example_losses.py --tokens 512 --vocabulary 262144

Prints one thread's CPU seconds of both forms for the same logits, their ratio, and the error of both against float64.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lowrank_bench.methods.calibration.statistics import example_losses


def strided_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """Return what `example_losses` does, with the vocabulary as the second of three dimensions."""
    targets = labels[:, 1:]
    losses = nn.functional.cross_entropy(
        logits[:, :-1].float().transpose(1, 2), targets, ignore_index=-100, reduction="none"
    )
    return losses.sum(1) / (targets != -100).sum(1).clamp_min(1)


def measure(compute: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """Return the CPU seconds of a loss and its gradient, and the losses."""
    leaf = logits.detach().requires_grad_(True)
    begin = time.process_time()
    losses = compute(leaf, labels)
    torch.autograd.grad(losses.sum(), leaf)
    return time.process_time() - begin, losses.detach()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=512, help="of the one example")
    parser.add_argument("--vocabulary", type=int, default=262_144)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    logits = torch.randn(1, asked.tokens, asked.vocabulary)
    labels = torch.randint(asked.vocabulary, (1, asked.tokens))
    exact = nn.functional.cross_entropy(logits[0, :-1].double(), labels[0, 1:])
    seconds = {}
    for name, compute in (("strided", strided_losses), ("rows", example_losses)):
        seconds[name], losses = measure(compute, logits, labels)
        error = abs(float(losses[0].double() - exact)) / float(exact)
        print(f"{name:8} {seconds[name]:8.3f} CPU seconds, relative error {error:.1e}")
    print(f"strided ÷ rows {seconds['strided'] / seconds['rows']:.2f}")


if __name__ == "__main__":
    main()
