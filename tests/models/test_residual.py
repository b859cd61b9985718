"""Where matrices read and write, by architecture."""

import pytest
import torch

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.architectures import CLASSIC, TODAY, random_model
from lowrank_bench.models.layers import LowRankLinear
from lowrank_bench.models.matrices import replace_module
from lowrank_bench.models.residual import (
    Heads,
    final_norm,
    find_matrix,
    input_norm,
    matrix_of,
    named_matrices,
    through_norm,
    weight,
)

MLP = ("gate", "up", "down")


@pytest.mark.parametrize(
    ("name", "roles"),
    [("phi3", {"o", "down"}), ("mixtral", set("qkvo")), ("qwen3-moe", set("qkvo")), ("olmo2", {*"qkvo", *MLP})],
)
def test_fused_matrices_and_experts_have_no_role_and_norms_may_follow(name, roles):
    model = random_model(name)
    assert {matrix.role for matrix in named_matrices(model) if matrix.layer == 1} - {""} == roles
    q = [matrix for matrix in named_matrices(model) if matrix.role == "q"]
    assert all((input_norm(model, matrix) is None) == (name == "olmo2") for matrix in q)


@pytest.mark.parametrize("name", [name for name in CLASSIC + TODAY if name not in ("phi3", "olmo2")])
def test_every_layer_has_its_matrices_and_norms(name):
    model = random_model(name)
    roles = {"gpt-neox": {"o", "up", "down"}, "opt": {"q", "k", "v", "o", "up", "down"}}
    expected = roles.get(name, {*"qkvo", *MLP})
    for layer in (0, 1):
        matrices = [matrix for matrix in named_matrices(model) if matrix.layer == layer]
        assert {matrix.role for matrix in matrices} - {""} == expected
        for matrix in matrices:
            assert find_matrix(model, matrix.module, layer) == matrix == matrix_of(matrix.module)
            assert find_matrix(model, matrix.module.rpartition(".")[2], layer) == matrix
            assert matrix.role in ("o", "down") or input_norm(model, matrix) is not None
    assert final_norm(model) is not None
    assert input_norm(model, find_matrix(model, "up", 0)) is not input_norm(model, find_matrix(model, "up", 1))


@pytest.mark.parametrize("name", ["llama", "gemma", "opt", "gpt-neox"])
@pytest.mark.parametrize("last", [True, False])
def test_a_norm_is_its_linear_part_times_a_number_a_vector(name, last):
    """norm(x) - bias is through_norm(x) up to one positive factor, and reading is its transpose."""
    model = random_model(name)
    norm = final_norm(model) if last else input_norm(model, find_matrix(model, "up", 1))
    x = torch.randn(5, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        y = norm(x.float()).double()
    bias = getattr(norm, "bias", None)
    y = y if bias is None else y - bias.detach()
    linear = through_norm(norm, x)
    factor = (y * linear).sum(1, keepdim=True) / (linear**2).sum(1, keepdim=True)
    assert (factor > 0).all()
    assert torch.allclose(y, factor * linear, atol=1e-4)
    z = torch.randn(5, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.allclose(linear @ z.T, x @ through_norm(norm, z, reading=True).T)


def test_a_factorised_weight_is_its_product():
    model = random_model("llama")
    a, b = torch.randn(3, 32), torch.randn(32, 3)
    replace_module(model, "model.layers.1.self_attn.o_proj", LowRankLinear.from_factors(a, b))
    left, right = weight(model, find_matrix(model, "o", 1))
    assert torch.allclose(left @ right, b.double() @ a.double())
    for name in ("up", "down"):  # wide and tall
        matrix = find_matrix(model, name, 0)
        left, right = weight(model, matrix)
        assert torch.equal(left @ right, model.get_submodule(matrix.module).weight.detach().double())


@pytest.mark.parametrize(
    ("matrix", "layer", "words"),
    [
        ("v", None, ["--layer 0", "lm_head"]),
        ("v", 2, ["layer 2", "0 to 1"]),
        ("vp", 0, ["'vp'", "layer 0", "gate"]),
    ],
)
def test_what_is_not_there_is_refused_with_what_is(matrix, layer, words):
    with pytest.raises(UserError) as error:
        find_matrix(random_model("llama"), matrix, layer)
    assert all(word in str(error.value) for word in words)


def test_a_fused_matrix_is_refused_by_parts_and_found_by_name():
    model = random_model("gpt-neox")
    with pytest.raises(UserError, match="query_key_value"):
        find_matrix(model, "v", 0)
    assert find_matrix(model, "query_key_value", 0).role == ""


def test_heads_count_as_the_matrix_has_them():
    heads = Heads.of(random_model("llama"))
    assert (heads.query, heads.key_value, heads.width) == (4, 2, 8)
    assert heads.rows("q", 3) == heads.rows("o", 3) == slice(24, 32)
    assert heads.rows("v", 1) == slice(8, 16)
    assert list(heads.serves(1)) == [2, 3]
    for role, head, words in (("v", 2, "2 key/value heads"), ("o", 4, "0 to 3"), ("up", 0, "no heads")):
        with pytest.raises(UserError, match=words):
            heads.rows(role, head)
