"""Which matrices a model has, which are tied, and how big it is."""

from typing import Any

import pytest
import torch
from torch import nn

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.architectures import ARCHITECTURES, random_model
from lowrank_bench.models.layers import LowRankLinear
from lowrank_bench.models.matrices import (
    Matrix,
    get_linear,
    head_name,
    low_rank_layers,
    matrices,
    model_size,
    replace_module,
    tied_modules,
)


def skeleton(model: Any) -> Any:
    with torch.device("meta"):
        return type(model)(model.config)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("tied", [None, True, False])
def test_meta_and_real_models_agree(architecture: str, tied: bool | None) -> None:
    model = random_model(architecture, tied)
    empty = skeleton(model)
    assert tied_modules(empty) == tied_modules(model)
    assert matrices(empty) == matrices(model)
    assert model_size(empty) == model_size(model)
    assert model_size(model).parameters == sum({p.data_ptr(): p.numel() for p in model.parameters()}.values())
    assert model_size(model).bytes == 4 * model_size(model).parameters
    assert model_size(model.bfloat16()).bytes == 2 * model_size(model).parameters


@pytest.mark.parametrize(("architecture", "tied"), [("gemma", True), ("opt", True), ("llama", False), ("qwen2", False)])
def test_a_tied_head_is_no_matrix_to_compress(architecture: str, tied: bool) -> None:
    model = random_model(architecture, tied)
    head = head_name(model)
    assert (head in tied_modules(model)) == tied
    names = [matrix.name for matrix in matrices(model)]
    assert (head in names) == (not tied)
    assert head not in [matrix.name for matrix in matrices(model, head=False)]
    assert len(matrices(model, head=False)) == len(names) - (not tied)


def test_by_hand_tied_layers_are_found() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    assert tied_modules(model) == {"0", "2"}
    assert [matrix.name for matrix in matrices(model)] == ["1"]
    assert model_size(model).parameters == 2 * 16 + 3 * 4


def test_a_model_without_linear_layers_is_refused() -> None:
    with pytest.raises(UserError, match=r"Sequential has no nn\.Linear"):
        matrices(nn.Sequential(nn.Embedding(3, 4), nn.LayerNorm(4)))


def test_replacing_and_finding_layers() -> None:
    model = random_model("llama")
    name = "model.layers.1.mlp.up_proj"
    replace_module(model, name, LowRankLinear(32, 96, 5))
    assert {key: layer.rank for key, layer in low_rank_layers(model).items()} == {name: 5}
    with pytest.raises(TypeError, match=r"up_proj is a LowRankLinear"):
        get_linear(model, name)
    assert name not in [matrix.name for matrix in matrices(model, required=False)]
    with pytest.raises(UserError, match="factorised already"):
        matrices(model)


def test_break_even_is_where_factors_cost_as_much() -> None:
    matrix = Matrix("x", 6, 3, False)
    assert matrix.parameters == 18
    assert matrix.break_even * (6 + 3) == matrix.parameters


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_random_models_are_reproducible_and_leave_the_random_state(architecture: str) -> None:
    before = torch.get_rng_state()
    first, second, other = (random_model(architecture, seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    pairs = list(zip(first.parameters(), second.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not any(torch.equal(a, c) for a, _, c in pairs)


def test_unknown_architecture() -> None:
    with pytest.raises(ValueError, match="no architecture 'gpt2'; there are llama"):
        random_model("gpt2")
