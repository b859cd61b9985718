"""Whole models: what is rounded, what the packed file holds and takes, and that both say the same."""

import pytest
import torch
from served_models import factorise_embedding, mixed_llama, small_gemma3

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.architectures import random_model
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.loading import load_model
from lowrank_bench.models.matrices import get_linear, low_rank_layers, matrices, model_size
from lowrank_bench.models.quantised.folder import read_packed, write_packed
from lowrank_bench.models.quantised.model import quantise
from lowrank_bench.models.quantised.scheme import CONTROLS, FACTORS, Scheme, parse_control
from lowrank_bench.models.quantised.size import packed_bytes

IDS = torch.arange(5, 17)[None]
INT4 = CONTROLS["rtn-int4"]


def factorised_gemma():
    return factorise_embedding(small_gemma3())


MODELS = {
    "shared factors, added biases, dense layers": (mixed_llama, FACTORS),
    "factorised tied embedding": (factorised_gemma, FACTORS),
    "dense in 8 bits": (lambda: random_model("llama"), CONTROLS["rtn-int8"]),
    "dense in 4 bits": (lambda: random_model("llama"), INT4),
    "biases": (lambda: random_model("opt"), INT4),
    "tied embedding in 4 bits": (small_gemma3, Scheme(bits=4, embeddings=True)),
    "fused names on the hub": (lambda: random_model("gpt-neox"), INT4),
}


@pytest.fixture(params=MODELS)
def case(request):
    make, scheme = MODELS[request.param]
    return make(), scheme


def test_bytes_follow_from_shapes_and_are_those_of_the_tensors(case):
    model, scheme = case
    expected = packed_bytes(model, scheme, 4)
    tensors = quantise(model, scheme)
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) == expected
    assert expected < model_size(model).bytes


def test_the_packed_file_holds_the_weights_that_are_evaluated(case, tmp_path):
    model, scheme = case
    size = write_packed(quantise(model, scheme), scheme, tmp_path / "packed.safetensors")
    assert size == (tmp_path / "packed.safetensors").stat().st_size
    weights, layers = read_packed(tmp_path / "packed.safetensors"), low_rank_layers(model)
    for name, parameter in model.named_parameters():
        module, _, part = name.rpartition(".")
        if part in ("lr_a", "lr_b"):
            layer = layers[module]
            owner = next(other for other in layers if layers[other] is (layer.source or layer))
            product = weights[f"{module}.lr_b"] @ weights[f"{owner}.lr_a"]
            assert torch.allclose(product, layer.dense_weight(), rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(weights[name], parameter.float())


def test_the_dequantised_model_loads_as_any_other(case, tmp_path):
    model, scheme = case
    before = model(IDS).logits
    quantise(model, scheme)
    save_checkpoint(model, None, tmp_path)
    with torch.no_grad():
        again = load_model(tmp_path)(IDS).logits
        assert torch.allclose(again, model(IDS).logits, atol=1e-5)
    assert 0 < (again - before).norm() / before.norm() < (0.5 if scheme.bits == 4 else 0.05)


def test_factors_take_r_times_m_plus_n_and_two_bytes_a_component():
    model = mixed_llama()
    tensors = quantise(model, FACTORS)
    layer = model.get_submodule("model.layers.0.self_attn.v_proj")
    own = [tensor for name, tensor in tensors.items() if name.startswith("model.layers.0.self_attn.v_proj.")]
    size = sum(tensor.numel() * tensor.element_size() for tensor in own)
    assert size == layer.rank * (layer.in_features + layer.out_features) + 2 * layer.rank


def test_rounding_a_rounded_model_changes_nothing():
    model = mixed_llama()
    first = quantise(model, FACTORS)
    second = quantise(model, FACTORS)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_without_the_option_embeddings_stay():
    model = small_gemma3()
    before = model.get_input_embeddings().weight.clone()
    tensors = quantise(model, INT4)
    assert torch.equal(model.get_input_embeddings().weight, before)
    assert "model.embed_tokens.weight" in tensors
    assert "lm_head.weight" not in tensors  # tied: stored once


def test_weights_that_are_not_finite_are_named():
    model = random_model("llama")
    name = matrices(model)[3].name
    with torch.no_grad():
        get_linear(model, name).weight[0, 0] = torch.nan
    with pytest.raises(UserError, match=f"{name}.weight holds NaN or infinity"):
        quantise(model, INT4)


def test_factors_in_four_bits_are_refused():
    with pytest.raises(UserError, match="stored in 8 bits and not in 4"):
        quantise(mixed_llama(), INT4)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rtn-int3", {}, "unknown control 'rtn-int3'"),
        ("rtn-int4", {"bits": 8}, "no option 'bits'"),
        ("rtn-int4", {"group": 12}, "group=12 is not usable"),
        ("rtn-int8", {"embeddings": "some"}, "embeddings=some is not usable"),
        ("rtn-int4", {"rank": 4}, "no option 'rank'; it has group and embeddings"),
        ("rtn4+r", {"rank": -1}, "rank=-1 is not usable in 'rtn4\\+r'; rank is a whole number such as 16"),
        ("rtn4+r", {"rank": 2.5}, "rank=2.5 is not usable"),
        ("rtn4+r", {"samples": 0}, "samples=0 is not usable"),
        ("rtn4+r", {"bits": 3}, "no option 'bits'; it has group, embeddings, rank, whiten, "),
    ],
)
def test_controls_say_what_they_take(name, options, message):
    with pytest.raises(UserError, match=message):
        parse_control(name, options)
