"""Bases as tokens: planted meanings come out, and every head is the one that was asked for."""

import pytest
import torch

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.models.architectures import ARCHITECTURES, random_model
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.export import export_dense
from lowrank_bench.models.loading import load_model
from lowrank_bench.models.residual import final_norm, find_matrix, input_norm, through_norm
from lowrank_bench.results.inspection.meaning import find_bases, read_tokens, readable_side

SIZE = 96


def weights(model, name):
    return model.get_submodule(name).weight.detach().double()


def same_up_to_sign(a, b, tolerance=1e-6):
    return torch.allclose((a * b).sum(1).abs(), torch.ones(len(a), dtype=torch.float64), atol=tolerance)


def plant(model, name, left, right, s=50.0):
    """Add s·left·rightᵀ, which becomes the strongest basis by far."""
    with torch.no_grad():
        model.get_submodule(name).weight += (s * torch.outer(left / left.norm(), right / right.norm())).float()


def tokens(model, bases, top=3, **how):
    return read_tokens(model, bases.linear, bases.side, bases.vectors[:1], top, SIZE, **how)[0]


def unit_rows(model):
    """Give the token vectors equal lengths, so that each row's nearest is itself."""
    for module in {model.get_output_embeddings(), model.get_input_embeddings()}:
        with torch.no_grad():
            module.weight /= module.weight.norm(dim=1, keepdim=True).clamp_min(1e-6)  # padding's is 0
    return model


def gain(norm):
    return through_norm(norm, torch.ones(1, 32, dtype=torch.float64))[0]


@pytest.mark.parametrize("name", ["llama", "qwen2", "gemma", "opt", "gpt-neox"])
@pytest.mark.parametrize("matrix", ["o", "down"])
@pytest.mark.parametrize(("token", "sign"), [(5, 1), (77, -1)])
def test_a_planted_output_is_read_by_the_head(name, matrix, token, sign):
    model = unit_rows(random_model(name))
    target = find_matrix(model, matrix, 1)
    written = model.get_output_embeddings().weight.detach().double()[token]
    plant(
        model, target.module, sign * written, torch.randn(weights(model, target.module).shape[1], dtype=torch.float64)
    )
    bases = find_bases(model, matrix, 1)
    assert bases.side == "left"
    ends = tokens(model, bases, fold_norm=False)
    assert ends.positive[0][0] == token
    assert ends.positive[0][1] == pytest.approx(1, abs=0.05)
    assert [score for _, score in ends.positive] == sorted((s for _, s in ends.positive), reverse=True)
    assert [score for _, score in ends.negative] == sorted(s for _, s in ends.negative)


@pytest.mark.parametrize("name", ["llama", "gemma"])
def test_norms_are_folded_in_on_the_way_out_and_in(name):
    model = unit_rows(random_model(name))
    with torch.no_grad():  # strong enough that leaving them out changes the answer
        for norm in (final_norm(model), input_norm(model, find_matrix(model, "up", 0))):
            norm.weight.copy_(torch.linspace(0.05, 4, 32)[torch.randperm(32)])
    row = model.get_output_embeddings().weight.detach().double()[11]
    plant(model, "model.layers.0.mlp.down_proj", row / gain(final_norm(model)), torch.ones(96, dtype=torch.float64))
    assert tokens(model, find_bases(model, "down", 0)).positive[0][0] == 11
    row = model.get_input_embeddings().weight.detach().double()[42]
    own = gain(input_norm(model, find_matrix(model, "up", 0)))
    plant(model, "model.layers.0.mlp.up_proj", torch.ones(96, dtype=torch.float64), row / own)
    bases = find_bases(model, "up", 0)
    assert bases.side == "right"
    assert tokens(model, bases).positive[0][0] == 42
    # Read through the output head a token's direction in the stream is its row times the final norm's weight.
    rows = model.get_output_embeddings().weight.detach().double() * gain(final_norm(model))
    scores = rows @ (own * bases.vectors[0])
    through = tokens(model, bases, lens="output")
    assert through.positive[0][1] == pytest.approx(float(scores.abs().max()))
    plain = tokens(model, bases, fold_norm=False)
    scores = model.get_input_embeddings().weight.detach().double() @ bases.vectors[0]
    assert plain.positive[0][1] == pytest.approx(float(scores.abs().max()))


@pytest.mark.parametrize("head", range(4))
def test_ov_is_the_product_that_one_head_computes(head):
    """Against explicit slices; with grouped queries two heads share a key/value head."""
    model = random_model("llama")
    w_o, w_v = (weights(model, f"model.layers.1.self_attn.{n}_proj") for n in "ov")
    part, shared = slice(8 * head, 8 * head + 8), slice(8 * (head // 2), 8 * (head // 2) + 8)
    u, s, vt = torch.linalg.svd(w_o[:, part] @ w_v[shared])
    left, right = (find_bases(model, "ov", 1, head, side) for side in ("left", "right"))
    assert torch.allclose(left.values, s[:8])
    assert len(left.values) == len(right.values) == 8
    assert same_up_to_sign(left.vectors, u.T[:8])
    assert same_up_to_sign(right.vectors, vt[:8])


def test_a_head_is_its_rows_or_columns():
    model = random_model("llama")
    for name, head, size in (("q", 3, 8), ("k", 1, 8), ("v", 0, 8), ("o", 2, 8)):
        whole = weights(model, f"model.layers.0.self_attn.{name}_proj")
        part = whole[:, 16:24] if name == "o" else whole[8 * head : 8 * head + 8]
        u, s, vt = torch.linalg.svd(part, full_matrices=False)
        bases = find_bases(model, name, 0, head, "left" if name == "o" else "right")
        assert torch.allclose(bases.values, s)
        assert same_up_to_sign(bases.vectors, u.T if name == "o" else vt)
        assert bases.values.shape == (size,)


def test_v_of_one_head_goes_through_o_where_only_one_head_uses_it():
    opt = random_model("opt")
    assert torch.allclose(find_bases(opt, "v", 0, 2).values, find_bases(opt, "ov", 0, 2).values)
    with pytest.raises(UserError, match="--matrix ov --head 2"):
        find_bases(random_model("llama"), "v", 0, 1)


@pytest.mark.parametrize(
    ("matrix", "head", "side", "words"),
    [
        ("q", 0, "left", "--side right"),
        ("gate", None, "left", "--side right"),
        ("v", None, "left", "name one head"),
        ("o", 1, "right", "--side left"),
        ("down", None, "right", "--side left"),
        ("ov", None, None, "--head 0"),
        ("ov", 4, None, "0 to 3"),
        ("k", 2, "right", "2 key/value heads"),
    ],
)
def test_sides_outside_the_residual_stream_are_refused(matrix, head, side, words):
    with pytest.raises(UserError, match=words):
        find_bases(random_model("llama"), matrix, 0, head, side)


def test_the_output_heads_left_vectors_are_tokens_themselves():
    model = random_model("llama")
    u, s, _ = torch.linalg.svd(weights(model, "lm_head"), full_matrices=False)
    bases = find_bases(model, "lm_head", None, side="left")
    ends = read_tokens(model, bases.linear, bases.side, bases.vectors, 1, SIZE)
    assert torch.allclose(bases.values, s)
    assert [end.positive[0][0] for end in ends] == u.abs().argmax(0).tolist()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_signs_mean_nothing_and_padding_is_no_token(name):
    model = random_model(name)
    for matrix in ("o", {"phi3": "o", "mixtral": "q"}.get(name, "up")):
        bases = find_bases(model, matrix, 0)
        ends, mirrored = (
            read_tokens(model, bases.linear, bases.side, v, 4, 90) for v in (bases.vectors, -bases.vectors)
        )
        assert ends == mirrored
        for end in ends:
            assert abs(end.positive[0][1]) >= abs(end.negative[0][1])
            assert all(i < 90 for i, _ in end.positive + end.negative)
        again = read_tokens(model, bases.linear, bases.side, find_bases(model, matrix, 0).vectors, 4, 90)
        assert again == ends


def test_tied_embeddings_read_as_an_untied_copy():
    tied = random_model("llama", tied=True)
    untied = random_model("llama", tied=False)
    untied.load_state_dict(tied.state_dict())
    for matrix in ("o", "gate"):
        a, b = (find_bases(model, matrix, 1) for model in (tied, untied))
        assert read_tokens(tied, a.linear, a.side, a.vectors, 3, SIZE) == read_tokens(
            untied, b.linear, b.side, b.vectors, 3, SIZE
        )


@pytest.mark.parametrize("embeddings", [False, True])
def test_a_factorised_checkpoint_is_its_dense_export(tmp_path, embeddings):
    model = random_model("llama", tied=embeddings)
    svd = create_method("svd", {"embeddings": embeddings})
    svd.compress(model, svd.fit(model, None), Budget(2.0))
    save_checkpoint(model, None, tmp_path / "factors")
    export_dense(tmp_path / "factors", tmp_path / "dense")
    factors, dense = load_model(tmp_path / "factors"), load_model(tmp_path / "dense")
    rank = factors.get_submodule("model.layers.1.self_attn.o_proj").rank
    for matrix, head in (("o", None), ("ov", 2), ("q", 1), ("down", None), ("lm_head", None)):
        layer = None if matrix == "lm_head" else 1
        a, b = (find_bases(loaded, matrix, layer, head) for loaded in (factors, dense))
        count = min(len(a.values), 4)
        assert torch.allclose(a.values[:count], b.values[:count], rtol=1e-4)
        ends = [
            read_tokens(loaded, x.linear, x.side, x.vectors[:count], 2, SIZE)
            for loaded, x in ((factors, a), (dense, b))
        ]
        assert [[i for i, _ in e.positive] for e in ends[0]] == [[i for i, _ in e.positive] for e in ends[1]]
    assert len(find_bases(factors, "o", 1).values) == rank


def test_whole_matrices_have_one_readable_side():
    model = random_model("llama")
    sides = {name: readable_side(model, find_matrix(model, name, 0)) for name in ("q", "v", "o", "up", "down")}
    assert sides == {"q": "right", "v": "right", "o": "left", "up": "right", "down": "left"}
    assert readable_side(model, find_matrix(model, "lm_head", None)) == "right"
