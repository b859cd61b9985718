"""Calibration next to the forward pass that it hooks into, and `fit svd` next to LAPACK, as ratios of CPU time.

    OMP_NUM_THREADS=1 python perf/calibration.py FOLDER               # minutes for Gemma 3 270M on one core
    OMP_NUM_THREADS=1 python perf/calibration.py FOLDER --layers 2    # the first two layers alone

Rows of the table:

    forward          the blocks alone on the same batches, without the output head, in float32
    calibration      the same with all second moments gathered (`moments.input_moments`)
    Gram matrices    the difference; at most 1.5 forward passes is the aim
    fit svd          `fit` of the method svd, factors written to disk
    LAPACK           torch.linalg.svd of the same matrices
    whitened         svd-llm's decomposition of the same matrices, given the moments
    float64 SVDs     a Cholesky factor and torch.linalg.svd(W L) in float64 for every matrix

CPU time is the process's, user and system; a busy machine changes it little. Token ids are random: times do not depend
on them. One run of each.
"""

import argparse
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.calibration.collection import input_moments
from lowrank_bench.methods.linalg.whitening import root
from lowrank_bench.models.loading import load_model
from lowrank_bench.models.streamed import weight_of


class RandomTexts:
    """Calibration data of random token ids, all of one length."""

    def __init__(self, vocabulary: int, examples: int, length: int) -> None:
        self.ids = torch.randint(vocabulary, (examples, length), generator=torch.Generator().manual_seed(0))

    def batches(self, samples: int | None, batch_size: int) -> Iterator[dict[str, Tensor]]:
        for ids in self.ids[:samples].split(batch_size):
            yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU time of a call, of all threads of this process, and its result."""
    before = resource.getrusage(resource.RUSAGE_SELF)
    result = work()
    after = resource.getrusage(resource.RUSAGE_SELF)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, result


def forward(model: Any, data: RandomTexts, batch_size: int) -> None:
    with torch.no_grad():
        for batch in data.batches(None, batch_size):
            model.base_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)


def measure(folder: str, layers: int | None, examples: int, length: int, batch_size: int) -> dict[str, float]:
    """Return CPU seconds by row."""
    model = load_model(folder, "", "float32", "cpu")
    if layers is not None:
        model.base_model.layers = model.base_model.layers[:layers]
        model.config.num_hidden_layers = layers
    data = RandomTexts(model.config.vocab_size, examples, length)
    svd, whitened = create_method("svd", {"head": False}), create_method("svd-llm", {"head": False})
    groups = whitened.groups(model)  # type: ignore[attr-defined]
    names = [group.name for group in groups]
    forward(model, RandomTexts(model.config.vocab_size, 1, 8), 1)
    seconds_of = {"forward": cpu_seconds(lambda: forward(model, data, batch_size))[0]}
    seconds, moments = cpu_seconds(lambda: dict(input_moments(model, names, data, None, batch_size)))
    seconds_of |= {"calibration": seconds, "Gram matrices": seconds - seconds_of["forward"]}
    weights = [weight_of(model, name).float() for name in names]

    def fit() -> None:
        with tempfile.TemporaryDirectory() as folder_name:
            svd.fit(model, None, Path(folder_name)).save(Path(folder_name))

    seconds_of["fit svd"], _ = cpu_seconds(fit)
    seconds_of["LAPACK"], _ = cpu_seconds(lambda: [len(torch.linalg.svd(w, full_matrices=False)) for w in weights])
    pairs = list(zip(weights, (moments[name] for name in names), strict=True))
    decompose = whitened.decompose  # type: ignore[attr-defined]
    seconds_of["whitened"], _ = cpu_seconds(lambda: [len(decompose(w, (m, None)).spectrum) for w, m in pairs])
    seconds_of["float64 SVDs"], _ = cpu_seconds(
        lambda: [len(torch.linalg.svd(w.double() @ root(m.gram).lower, full_matrices=False)) for w, m in pairs]
    )
    return seconds_of


def main() -> int:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", help="of a checkpoint, such as Gemma 3 270M")
    parser.add_argument("--layers", type=int, help="only the first so many; default all")
    parser.add_argument("--examples", type=int, default=4)
    parser.add_argument("--length", type=int, default=512, help="tokens of an example")
    parser.add_argument("--batch-size", type=int, default=2)
    options = parser.parse_args()
    seconds_of = measure(options.folder, options.layers, options.examples, options.length, options.batch_size)
    against = {
        "calibration": "forward",
        "Gram matrices": "forward",
        "fit svd": "LAPACK",
        "whitened": "float64 SVDs",
    }
    print(f"{options.examples} x {options.length} tokens, {torch.get_num_threads()} thread(s)")
    print(f"{'':<16}{'CPU s':>9}  ratio")
    for row, seconds in seconds_of.items():
        other = against.get(row)
        print(f"{row:<16}{seconds:9.2f}  " + (f"{seconds / seconds_of[other]:.2f} of {other}" if other else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
