"""A damaged model, hardly any data, hardly any compression: every built-in method, as `bench compress` runs it."""

from pathlib import Path

import pytest
import torch
from commands import bench

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.registry import methods
from lowrank_bench.models import tiny
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.loading import load_model, load_tokenizer
from lowrank_bench.models.matrices import get_linear
from lowrank_bench.runners.compressing import CompressRequest, compress
from lowrank_bench.runners.config import MethodSpec

BUILT_IN = [row.name for row in methods.listings() if row.origin == "built in"]
TOKENS = 8
RATIOS = (1.02, 3.0)
"""The first is below break-even: factors of most matrices would be larger than the matrices."""


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model with a zero matrix, a rank-one matrix and 40 of 96 inputs that are always zero."""
    folder, location = tmp_path_factory.mktemp("damaged") / "model", Path(tiny.__file__).parent
    model = load_model(location)
    with torch.no_grad():
        get_linear(model, "model.layers.0.mlp.down_proj").weight.zero_()
        get_linear(model, "model.layers.1.mlp.up_proj").weight[1:] = 0
        model.model.layers[0].input_layernorm.weight[:40] = 0
    save_checkpoint(model, load_tokenizer(location), folder)
    return folder


def poor(method: str) -> dict[str, int]:
    """Options that leave a method with one example of eight tokens, and Basis Selection with few prunings."""
    fields = type(create_method(method)).model_fields
    options = {"samples": 1, "length": TOKENS, "probe_samples": 1, "hessian_samples": 1, "prunings": 5}
    return {name: value for name, value in options.items() if name in fields}


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize("ratio", RATIOS)
def test_the_result_is_sound(name: str, ratio: float, damaged: Path, tmp_path: Path) -> None:
    options = poor(name)
    request = CompressRequest(
        str(damaged), MethodSpec(name=name, options=options), ratio, tmp_path / "out", "toy-math", steps=2, seed=1
    )
    done = compress(request)
    dense, model = load_model(damaged), load_model(tmp_path / "out")
    assert done.report.ratio >= ratio
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    worst = 0.0
    for matrix in create_method(name).targets(dense):
        layer, before = model.get_submodule(matrix.name), get_linear(dense, matrix.name).weight.detach()
        after = (layer.dense_weight() if hasattr(layer, "dense_weight") else layer.weight).detach()
        if matrix.name in done.report.dense and not done.report.steps:
            assert torch.equal(after, before), f"{matrix.name} is reported as dense, but changed"
        if not before.any() and not done.report.steps:
            assert not after.any(), f"{matrix.name} was zero"
        if before.any():
            worst = max(worst, float((after - before).norm() / before.norm()))
    # Noise of a matrix's own size has a relative error of 1.4, an empty matrix 1.
    assert worst < 1.05, f"a matrix is further from its original than an empty one: {worst}"
    starved = "samples" in options and "length" in options
    assert any("fewer than the" in warning for warning in done.warnings) == starved


def test_the_command_line_says_what_was_poor(damaged: Path, tmp_path: Path) -> None:
    method = f"svd-llm:samples=1,length={TOKENS}"
    arguments = ("compress", str(damaged), "--method", method, "--ratio", "2", "--out", "out", "--task", "toy-math")
    done = bench(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"svd-llm was calibrated on {TOKENS} tokens, fewer than the 320 inputs" in " ".join(done.stdout.split())


def test_no_calibration_token_at_all_is_refused(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError):
        compress(
            CompressRequest(
                str(damaged),
                MethodSpec(name="svd-llm", options={"samples": 0}),
                2.0,
                tmp_path / "out",
                "toy-math",
            )
        )
    assert not (tmp_path / "out").exists()
