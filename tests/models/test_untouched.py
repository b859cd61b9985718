"""What is said to stay dense, and that the shares add up."""

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from lowrank_bench.models.architectures import random_model
from lowrank_bench.models.layers import LowRankLinear
from lowrank_bench.models.matrices import get_linear, matrices, model_size, replace_module
from lowrank_bench.models.untouched import untouched


def factorise(model, rank=3, skip=()):
    for matrix in matrices(model):
        if matrix.name not in skip:
            a, b = torch.randn(rank, matrix.in_features), torch.randn(matrix.out_features, rank)
            bias = get_linear(model, matrix.name).bias
            replace_module(model, matrix.name, LowRankLinear.from_factors(a, b, bias))
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_biases_and_break_even_are_named(tied):
    down = "model.layers.0.mlp.down_proj"
    model = factorise(random_model("qwen2", tied=tied), skip=(down, "lm_head"))
    parts = {part.what: part for part in untouched(model, {down: "not smaller"})}
    embeddings = parts["embeddings and tied output head" if tied else "embeddings"]
    assert embeddings.parameters == 96 * 32
    assert ("output head" in parts) is not tied
    assert parts["1 linear layer"].why == "not smaller"
    assert embeddings.share == pytest.approx(96 * 32 / model_size(model).parameters)
    factors = sum(p.numel() for n, p in model.named_parameters() if n.endswith(("lr_a", "lr_b")))
    assert sum(part.parameters for part in parts.values()) + factors == model_size(model).parameters


def test_experts_are_named():
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    model = factorise(MixtralForCausalLM(config))
    largest, *rest = untouched(model, {})
    assert (largest.what, largest.parameters) == ("experts", 2 * 4 * 3 * 16 * 32)
    assert 0.5 < largest.share < 1
    assert {part.what for part in rest} >= {"embeddings", "norms and biases"}
