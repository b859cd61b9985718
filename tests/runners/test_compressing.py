"""`bench compress` is one cell of `bench run`: the same stages, the same bytes."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from sweeps import small_sweep

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.runners.compressing import CompressRequest, compress, estimate_compression, plan_compression
from lowrank_bench.runners.executors.local import divide_cores, do_stage
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
    torch.set_num_threads(divide_cores(None, plan.device, plan.parameters, 1)[1])
    try:
        for stage in plan.stages.values():
            if stage.kind in ("fit", "compress"):
                event = do_stage(stage, plan.store, lambda done, total, unit: None)
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


@pytest.mark.parametrize(("method", "task"), [("svd", None), ("svd", "toy-math"), ("joint-rank-k", None)])
def test_no_training_data_are_read_where_the_method_needs_none(method: str, task: str | None, tmp_path: Path) -> None:
    plan = plan_compression(CompressRequest("tiny", method, 2.0, tmp_path / "out", task))
    assert [stage.kind for stage in plan.stages.values()] == ["fit", "compress"]
    assert [stage.data for stage in plan.stages.values()] == [None, None]
    assert plan.training_sets == {}
    assert plan.cells == []


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        assert list(tmp_path.iterdir()), "nothing was being written"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(CompressRequest("tiny", "svd", 2.0, tmp_path / "out"), interrupt)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "fwsvd"}, "--task"),
        ({"method": "bs"}, "--task"),
        ({"placement": "fsdq"}, "'fsdp2'"),
        ({"placement": "fsdp2", "method": "bs", "task": "toy-math"}, "--placement auto"),
        ({"steps": -3}, "0 or more"),
        ({"seed": -1}, "from 0 to"),
        ({"save_dtype": "int3"}, "bfloat16"),
        ({"task": "toymath"}, "'toy-math'"),
        ({"data": Path("nowhere")}, "nowhere does not exist"),
    ],
)
def test_what_is_unusable_is_refused_before_anything_is_written(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        compress(replace(CompressRequest("tiny", "svd", 2.0, tmp_path / "out"), **changes))
    assert not list(tmp_path.iterdir())


def test_a_placement_that_was_asked_for_is_estimated_and_taken(tmp_path: Path) -> None:
    request = CompressRequest(
        "tiny", "bs:prunings=1", 2.0, tmp_path / "out", "toy-math", steps=2, placement="host-moments"
    )
    note = "the training keeps AdamW's moments in the host's memory, as asked"
    assert note in estimate_compression(request)[2]
    assert note in compress(request).warnings


def test_what_stays_dense_is_what_has_no_factors(tmp_path: Path) -> None:
    done = compress(CompressRequest("tiny", "svd", 2.0, tmp_path / "small"))
    factors = sum(
        tensor.numel()
        for name, tensor in load_file(tmp_path / "small" / "model.safetensors").items()
        if name.rpartition(".")[2] in ("lr_a", "lr_b")
    )
    assert sum(part.parameters for part in done.dense) == done.report.parameters - factors
    assert "linear layers" not in " ".join(part.what for part in done.dense)
