"""The time of decomposing every matrix of a real model, by `svd` and by torch."""

from collections.abc import Iterator

import torch
from gpu_sections.table import Context, Row

from lowrank_bench.methods.linalg import svd
from lowrank_bench.models.loading import load_model
from lowrank_bench.models.matrices import get_linear, matrices
from lowrank_bench.models.presets import resolve_model


def run(context: Context) -> Iterator[Row]:
    """Yield the rows: all spectra, and torch's own."""
    source = resolve_model(context.options["model"])
    model = load_model(source.location, source.revision, device=context.device)
    weights = [get_linear(model, matrix.name).weight.detach() for matrix in matrices(model, head=False)]
    svd(weights[0])  # loads the libraries; not measured
    variants = (
        ("full spectra", lambda w: svd(w)),
        ("full spectra by torch.linalg.svd", lambda w: torch.linalg.svd(w, full_matrices=False)),
    )
    for index, (name, work) in enumerate(variants):
        keep = context.left * (1 - 1 / (len(variants) - index))
        seconds, done = 0.0, 0
        for weight in weights:
            if context.left <= keep:
                break
            seconds += context.timed(lambda weight=weight, work=work: work(weight))
            done += 1
        note = "" if done == len(weights) else f"from {done} of {len(weights)} matrices, in proportion"
        yield Row(f"{len(weights)} matrices, {name}", f"{seconds * len(weights) / max(done, 1):.2f} s", note=note)
