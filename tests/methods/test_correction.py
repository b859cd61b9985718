"""Corrections of rounding errors: the optimum of the whitened objective, and what any architecture keeps of them."""

import copy

import pytest
import torch

from lowrank_bench.methods.calibration.collection import input_moments
from lowrank_bench.methods.contract import logits
from lowrank_bench.methods.contract_parts import CountedData, RandomData
from lowrank_bench.methods.correction import corrections
from lowrank_bench.models.architectures import ARCHITECTURES, random_model
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.loading import load_model
from lowrank_bench.models.matrices import get_linear, matrices, model_size
from lowrank_bench.models.quantised.folder import read_packed, write_packed
from lowrank_bench.models.quantised.model import quantise
from lowrank_bench.models.quantised.rounding import from_groups, group_for, round_groups
from lowrank_bench.models.quantised.scheme import Correction, Scheme, parse_control
from lowrank_bench.models.quantised.size import packed_bytes

INT4 = Scheme(bits=4)
DATA = RandomData(64)


def rounding_error(weight, scheme=INT4):
    group = group_for(weight.shape[1], scheme.group)
    return weight - from_groups(*round_groups(weight, scheme.bits, group), group)


def grams(model):
    return {n: m.gram for n, m in input_moments(model, [m.name for m in matrices(model)], DATA, None)}


def lost(error, gram):
    """Return tr(E G Eᵀ), what an error of a weight does to the outputs."""
    wide = error.double()
    return float(torch.einsum("ij,jk,ik->", wide, gram, wide))


@pytest.fixture(scope="module")
def dense():
    return random_model("llama")


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_a_correction_is_the_optimum_of_the_whitened_objective(dense, rank):
    factors, seen = corrections(dense, INT4, Correction(rank=rank), DATA), grams(dense)
    for matrix in matrices(dense):
        error, gram = rounding_error(get_linear(dense, matrix.name).weight.detach()), seen[matrix.name]
        values, vectors = torch.linalg.eigh(gram)
        root = vectors * values.clamp_min(0).sqrt()  # another root of G than the Cholesky factor
        tail = torch.linalg.svd(error.double() @ root)[1][rank:].square().sum()
        a, b = factors[matrix.name]
        assert a.shape == (rank, matrix.in_features)
        assert b.shape == (matrix.out_features, rank)
        assert lost(error - b @ a, gram) == pytest.approx(float(tail), rel=1e-4)


def test_without_whitening_it_is_the_truncated_svd_of_the_error(dense):
    unread = CountedData()
    factors = corrections(dense, INT4, Correction(rank=4, whiten=False), unread)
    assert unread.reads == 0
    for name, (a, b) in factors.items():
        error = rounding_error(get_linear(dense, name).weight.detach()).double()
        tail = torch.linalg.svd(error)[1][4:].square().sum()
        assert float((error - (b @ a).double()).square().sum()) == pytest.approx(float(tail), rel=1e-4)


def test_the_lost_outputs_fall_with_the_rank_to_nothing(dense):
    seen, losses = grams(dense), []
    for rank in (0, 1, 2, 4, 8, 16, 10_000):
        factors, total = corrections(dense, INT4, Correction(rank=rank), DATA), 0.0
        for matrix in matrices(dense):
            weight = get_linear(dense, matrix.name).weight.detach()
            error = rounding_error(weight)
            if rank:
                a, b = factors[matrix.name]
                error = error - b @ a
            total += lost(error, seen[matrix.name])
            if rank == 10_000:
                assert len(a) == min(weight.shape)
                assert error.norm() <= 1e-4 * rounding_error(weight).norm()
        losses.append(total)
    assert losses == sorted(losses, reverse=True)
    assert losses[1] < 0.95 * losses[0]
    assert losses[-1] < 1e-6 * losses[0]


def test_whitening_loses_less_of_the_outputs_than_no_whitening_and_more_of_the_weights(dense):
    seen, whitened, plain = grams(dense), [0.0, 0.0], [0.0, 0.0]
    for sums, whiten in ((whitened, True), (plain, False)):
        for name, (a, b) in corrections(dense, INT4, Correction(rank=4, whiten=whiten), DATA).items():
            error = rounding_error(get_linear(dense, name).weight.detach()) - b @ a
            sums[0] += lost(error, seen[name])
            sums[1] += float(error.square().sum())
    assert whitened[0] < plain[0]
    assert whitened[1] > plain[1]


def test_the_model_is_left_as_it_was(dense):
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    corrections(dense, INT4, Correction(rank=2), DATA)
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())


def test_rank_zero_is_plain_rounding(dense):
    plain, zero = copy.deepcopy(dense), copy.deepcopy(dense)
    packed = quantise(plain, INT4)
    again = quantise(zero, INT4, corrections(zero, INT4, Correction(rank=0), DATA))
    assert packed.keys() == again.keys()
    assert all(torch.equal(packed[name], again[name]) for name in packed)
    assert all(torch.equal(p, q) for p, q in zip(plain.parameters(), zero.parameters(), strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_any_architecture_is_corrected_packed_and_loaded(architecture, tmp_path):
    model = random_model(architecture)
    expected, before, size = packed_bytes(model, INT4, 4, rank=20), logits(model), model_size(model).parameters
    plain = copy.deepcopy(model)
    quantise(plain, INT4)
    tensors = quantise(model, INT4, corrections(model, INT4, Correction(rank=20), DATA))
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) == expected
    errors = [float((logits(other) - before).norm()) for other in (plain, model)]
    assert errors[1] < 0.7 * errors[0]
    assert model_size(model).parameters == size
    write_packed(tensors, INT4, tmp_path / "packed.safetensors")
    weights = read_packed(tmp_path / "packed.safetensors")
    save_checkpoint(model, None, tmp_path / "model")
    loaded = load_model(tmp_path / "model")
    for name, parameter in loaded.named_parameters():
        assert torch.allclose(weights[name].float(), parameter, rtol=1e-6, atol=1e-7)


def test_an_embedding_that_is_rounded_gets_no_correction():
    model, control = random_model("gemma3"), parse_control("rtn4+r", {"embeddings": True, "rank": 4})
    name = "model.embed_tokens"
    factors = corrections(model, control.scheme, control.correction, DATA)
    assert name not in factors
    expected = packed_bytes(model, control.scheme, 4, rank=4)
    tensors = quantise(model, control.scheme, factors)
    assert f"{name}.weight_packed" in tensors
    assert f"{name}.correction_a" not in tensors
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) == expected
