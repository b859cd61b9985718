"""Shared input factors: stored once, counted once, and no worse than what they replace at equal size."""

import copy

import pytest
import torch
from torch import nn

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.contract import logits
from lowrank_bench.methods.contract_parts import FixedRank, RandomData
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.models.architectures import random_model
from lowrank_bench.models.matrices import get_linear, low_rank_layers

Q, K = (f"model.layers.0.self_attn.{kind}_proj" for kind in "qk")
GATE, UP = (f"model.layers.0.mlp.{kind}_proj" for kind in ("gate", "up"))


def compressed(name: str, dense: nn.Module, budget: Budget, **options: object) -> nn.Module:
    method, model = create_method(name, options), copy.deepcopy(dense)
    method.compress(model, method.fit(dense, RandomData()), budget, None, RandomData())
    return model


def test_pairs_hold_one_tensor() -> None:
    model = compressed("joint-rank-k", random_model("llama"), Budget(2.0))
    layers = low_rank_layers(model)
    assert layers[K].lr_a is layers[Q].lr_a
    assert layers[UP].lr_a.data_ptr() == layers[GATE].lr_a.data_ptr()
    assert layers["model.layers.0.self_attn.v_proj"].source is None
    for name in (Q, GATE):
        assert sum(p.numel() for p in layers[name].parameters()) == layers[name].rank * (32 + layers[name].out_features)
    assert [name for name, _ in model.named_parameters() if name == f"{K}.lr_a"] == []


@pytest.mark.parametrize("rank", [3, 11, 32])
def test_joint_product_is_the_svd_of_the_stack(rank: int) -> None:
    dense = random_model("llama")
    layers = low_rank_layers(compressed("joint-rank-k", dense, FixedRank(rank=rank), guard=False))
    for pair in ((Q, K), (GATE, UP)):
        stack = torch.cat([get_linear(dense, name).weight.detach() for name in pair])
        u, s, vt = torch.linalg.svd(stack, full_matrices=False)
        product = torch.cat([layers[name].dense_weight().detach() for name in pair])
        torch.testing.assert_close(product, (u[:, :rank] * s[:rank]) @ vt[:rank], rtol=1e-4, atol=1e-4)
        error = float((stack - product).square().sum())
        assert abs(error - float(s[rank:].square().sum())) <= 1e-4 * float(s.square().sum())


def test_identical_matrices_cost_no_extra_error() -> None:
    dense = random_model("llama")
    with torch.no_grad():
        get_linear(dense, UP).weight.copy_(get_linear(dense, GATE).weight)
    layers = low_rank_layers(compressed("joint-rank-k", dense, FixedRank(rank=7), guard=False))
    weight = get_linear(dense, GATE).weight.detach()
    u, s, vt = torch.linalg.svd(weight, full_matrices=False)
    for name in (GATE, UP):
        torch.testing.assert_close(
            layers[name].dense_weight().detach(), (u[:, :7] * s[:7]) @ vt[:7], rtol=1e-3, atol=1e-3
        )


def test_others_may_stay_dense() -> None:
    model = compressed("joint-rank-k", random_model("llama"), Budget(1.3), others="dense")
    kinds = {name.rpartition(".")[2] for name in low_rank_layers(model)}
    assert kinds == {"q_proj", "k_proj", "gate_proj", "up_proj"}
    with pytest.raises(UserError, match="others=alone"):
        compressed("joint-rank-k", random_model("gpt-neox"), Budget(1.3), others="dense")


def test_basis_sharing_of_one_layer_is_svd_llm() -> None:
    dense = random_model("llama")
    single = compressed("basis-sharing", dense, Budget(2.0), layers=1)
    torch.testing.assert_close(logits(single), logits(compressed("svd-llm", dense, Budget(2.0))), rtol=1e-3, atol=1e-3)


def test_basis_sharing_shares_across_layers_and_keeps_o_and_down_private() -> None:
    layers = low_rank_layers(compressed("basis-sharing", random_model("llama"), Budget(2.0)))
    for kind in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
        first, second = (layers[f"model.layers.{index}.{kind}"] for index in (0, 1))
        assert second.source is first
        assert first.rank == second.rank
    for kind in ("self_attn.o_proj", "mlp.down_proj"):
        assert layers[f"model.layers.1.{kind}"].source is None


def test_bases_that_are_shared_or_affine_are_refused_by_basis_selection() -> None:
    for start in ("joint-rank-k", "afm", "basis-sharing"):
        with pytest.raises(UserError, match="one matrix at a time and adds no bias"):
            create_method("bs", {"start": start})
