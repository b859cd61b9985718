"""`bench compress` is one cell of `bench run`: the same stages, the same bytes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from sweeps import small_sweep

from lowrank_bench.runners.compressing import CompressRequest, compress
from lowrank_bench.runners.executors.local import crew_size, do_stage
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.store.folders import MODEL_FOLDER, ratio_folder

STEPS = 3
METHODS = ("bs:prunings=2", "svd", "svd-llm:samples=16")


@pytest.fixture(scope="module")
def sweep_weights(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The weights that the compress stage of each method writes in a sweep without finetuning, by method."""
    out = tmp_path_factory.mktemp("sweep")
    plan = make_plan(
        small_sweep(out, methods=list(METHODS), ratios=[2], finetune={"steps": 0}, recover={"steps": STEPS})
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(crew_size(None, plan.device, plan.parameters, 1)[1])
    try:
        for stage in plan.stages.values():
            if stage.kind in ("fit", "compress"):
                event = do_stage(stage, plan.store, lambda done, total: None)
                assert event.kind == "done", event.text
    finally:
        torch.set_num_threads(threads)
    return {
        cell.method.shown: (
            plan.store.path(cell.stages["compress"]) / ratio_folder(2.0) / MODEL_FOLDER / "model.safetensors"
        ).read_bytes()
        for cell in plan.cells
        if "compress" in cell.stages
    }


@pytest.fixture
def two_threads() -> Iterator[None]:
    """As many as a command has on a machine of two cores; a sweep's worker takes one for a small model."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("method", METHODS)
def test_the_checkpoint_is_that_of_the_sweep(
    method: str, sweep_weights: dict[str, bytes], two_threads: None, tmp_path: Path
) -> None:
    request = CompressRequest("tiny", method, 2.0, tmp_path / "out", "toy-math", steps=STEPS)
    compress(request)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == sweep_weights[method]
    assert torch.get_num_threads() == 2
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".")]
