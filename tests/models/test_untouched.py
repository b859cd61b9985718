"""What is said to stay dense, and that the shares add up."""

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from lowrank_bench.models.architectures import random_model
from lowrank_bench.models.known_shapes import known_skeleton
from lowrank_bench.models.layers import LowRankLinear
from lowrank_bench.models.matrices import get_linear, matrices, model_size, replace_module
from lowrank_bench.models.untouched import out_of_reach, untouched


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


@pytest.mark.parametrize(
    ("hub_id", "total", "factorised", "experts"),
    # Attention of 32 layers, 4096 → 4096, 1024, 1024, 4096, and the head; 8 experts of 3 matrices 4096 × 14336.
    [
        ("mistralai/Mixtral-8x7B-v0.1", 46_702_792_704, 32 * 41_943_040 + 131_072_000, 32 * 8 * 3 * 4096 * 14336),
        ("Qwen/Qwen3-30B-A3B-Base", 30_532_122_624, None, 48 * 128 * 3 * 2048 * 768),
    ],
)
def test_what_no_method_reaches_is_said_before_work_starts(hub_id, total, factorised, experts):
    model = known_skeleton(hub_id)
    sentence = out_of_reach(model)
    assert f"of the {total:,} parameters" in sentence
    assert f"{experts:,} of experts" in sentence
    assert "Router" in sentence
    assert "output head" not in sentence
    if factorised:
        assert f"methods factorise {factorised:,} " in sentence


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "phi3"])
def test_plain_models_need_no_sentence(architecture):
    assert out_of_reach(random_model(architecture)) == ""
