"""The time of decomposing every matrix of a real model, by `svd` and by torch."""

from collections.abc import Iterator

import torch
from gpu_sections.table import Row, Where

from lowrank_bench.methods.linalg import svd
from lowrank_bench.models.loading import load_model
from lowrank_bench.models.matrices import get_linear, matrices
from lowrank_bench.models.presets import resolve_model


def run(where: Where) -> Iterator[Row]:
    """Yield the rows: all spectra, and torch's own."""
    source = resolve_model(where.given["model"])
    model = load_model(source.location, source.revision, device=where.device)
    weights = [get_linear(model, matrix.name).weight.detach() for matrix in matrices(model, head=False)]
    svd(weights[0])  # loads the libraries; not measured
    ways = (
        ("full spectra", lambda w: svd(w)),
        ("full spectra by torch.linalg.svd", lambda w: torch.linalg.svd(w, full_matrices=False)),
    )
    for index, (name, work) in enumerate(ways):
        keep = where.left * (1 - 1 / (len(ways) - index))
        took, done = 0.0, 0
        for weight in weights:
            if where.left <= keep:
                break
            took += where.timed(lambda weight=weight, work=work: work(weight))
            done += 1
        note = "" if done == len(weights) else f"from {done} of {len(weights)} matrices, in proportion"
        yield Row(f"{len(weights)} matrices, {name}", f"{took * len(weights) / max(done, 1):.2f} s", note=note)
