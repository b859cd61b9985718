"""Input moments and the truncation probe against one plain pass per example."""

import contextlib
from typing import Any
from weakref import ReferenceType, ref

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from lowrank_bench.methods.calibration.batch_memory import batch_peak
from lowrank_bench.methods.calibration.collection import input_moments
from lowrank_bench.methods.calibration.moments import MomentSums, Reached, add_gram, add_moments, mirrored
from lowrank_bench.methods.contract import logits, same, weights
from lowrank_bench.methods.contract_parts import RandomData
from lowrank_bench.methods.fitted import Factors, Fitted
from lowrank_bench.methods.groups import Group, singles
from lowrank_bench.methods.linalg import svd
from lowrank_bench.methods.ranks.probe import Probe
from lowrank_bench.models.architectures import ARCHITECTURES, random_model
from lowrank_bench.models.matrices import get_linear, matrices

SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 256}


def plain(model: Any, name: str, data: RandomData) -> torch.Tensor:
    """All inputs of one layer, one unpadded example at a time, (tokens, n) in float64."""
    inputs: list[torch.Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(
        lambda _, args: inputs.append(args[0].detach().reshape(-1, args[0].shape[-1]).double())
    )
    for example in data.batches(None, 1):
        length = int(example["attention_mask"].sum())
        with torch.no_grad():
            model(input_ids=example["input_ids"][:, :length])
    handle.remove()
    return torch.cat(inputs)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_moments_equal_a_plain_pass_without_padding(architecture: str) -> None:
    model, data = random_model(architecture), RandomData(5)
    names = [matrix.name for matrix in matrices(model)]
    before = weights(model)
    for limit in (1 << 30, 1):  # one pass for all, one pass for each
        statistics = dict(input_moments(model, names, data, None, 2, limit))
        assert list(statistics) == names
        for name in names:
            x, moments = plain(model, name, data), statistics[name]
            assert moments.tokens == len(x)
            scale = float(moments.gram.abs().max())
            torch.testing.assert_close(moments.gram, x.T @ x, rtol=1e-4, atol=1e-5 * scale)
            torch.testing.assert_close(moments.total, x.sum(0), rtol=1e-4, atol=1e-3)
            torch.testing.assert_close(moments.absolute, x.abs().sum(0), rtol=1e-4, atol=1e-3)
            assert moments.gram.dtype == torch.float64
    assert same(before, weights(model))
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_queries_keys_and_values_share_one_gram() -> None:
    names = [f"model.layers.0.self_attn.{kind}_proj" for kind in "qkvo"]
    statistics = dict(input_moments(random_model("llama"), names, RandomData(3), None))
    q, k, v, o = (statistics[name].gram for name in names)
    assert q.data_ptr() == k.data_ptr() == v.data_ptr() != o.data_ptr()


def test_inputs_are_freed_while_the_batch_goes_on() -> None:
    """At the last layer no input of an earlier module is in memory."""
    model = random_model("llama")
    names = [matrix.name for matrix in matrices(model, head=False)]
    inputs: dict[str, ReferenceType[torch.Tensor]] = {}
    left: list[str] = []

    def note(name: str) -> Any:
        def see(_: Any, args: tuple[torch.Tensor, ...]) -> None:
            inputs[name] = ref(args[0])
            if name == names[-1]:
                left.extend(other for other, given in inputs.items() if given() is not None)

        return see

    for name in names:
        model.get_submodule(name).register_forward_pre_hook(note(name))
    ids = torch.ones(2, 8, dtype=torch.long)
    sums = MomentSums(names, grams=True)
    sums.begin(torch.ones_like(ids))
    with torch.no_grad(), sums.watching(model), contextlib.suppress(Reached):
        model(input_ids=ids, use_cache=False)
    assert {name.rpartition(".")[0] for name in left} == {names[-1].rpartition(".")[0]}  # its caller has that one
    assert len(sums.result()) == len(names)


def test_a_batch_without_gradients_takes_no_more_in_a_deeper_model() -> None:
    peaks = []
    for layers in (4, 8):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(LlamaConfig(**SMALL, num_hidden_layers=layers))
        names = [matrix.name for matrix in matrices(model)]
        peaks.append(batch_peak(model, names, 4, 64, gradients=False, inputs_held=False))
    assert peaks[0] is not None
    assert peaks[0] == peaks[1]


@pytest.mark.parametrize("n", [1, 255, 256, 600])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gram_matrices_are_float64_however_ill_conditioned(n: int, dtype: torch.dtype) -> None:
    """Half the products, in bands and parts: within 1e-14 of the plain float64 product, relative to √(G_ii G_jj).

    The inputs' sizes spread over ten orders of magnitude. Float32 products miss that by seven orders.
    """
    x = (torch.randn(4100, n, generator=torch.Generator().manual_seed(n)) * torch.logspace(0, 10, n)).to(dtype)
    total = torch.zeros(n, n, dtype=torch.float64)
    for part in x.split(4097):  # more than are taken at a time, then three
        add_gram(total, part)
    gram, expected = mirrored(total), x.double().T @ x.double()
    size = expected.diagonal().sqrt()
    assert torch.equal(gram, gram.T)
    assert float(((gram - expected) / size / size[:, None]).abs().max()) < 1e-14
    add_gram(gram, x)  # a sum that was made whole goes on
    torch.testing.assert_close(mirrored(gram), 2 * expected)
    if dtype == torch.float32 and n > 1:
        assert float((((x.T @ x).double() - expected) / size / size[:, None]).abs().max()) > 1e-9


def ill_conditioned(kind: str) -> torch.Tensor:
    """Inputs (3000, 300), float32: a condition of 1e8, large means, or outlier channels as real models have them."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3000, 300, generator=generator, dtype=torch.float64)
    if kind == "condition 1e8":
        basis = torch.linalg.qr(torch.randn(300, 300, generator=generator, dtype=torch.float64))[0]
        x = x * torch.logspace(0, -8, 300) @ basis
    elif kind == "large means":
        x += 1e4 * torch.randn(300, generator=generator, dtype=torch.float64)
    else:
        x[:, [3, 17, 255, 256]] *= 3000
        x[::1000] *= 100  # and a few tokens, such as the first
    return x.float()


@pytest.mark.parametrize("kind", ["condition 1e8", "large means", "outlier channels"])
def test_sums_over_ill_conditioned_inputs_are_right_to_1e_14(kind: str) -> None:
    """Against the float64 product; what follows from it, the least eigenvalues, is right where float32 has noise."""
    x = ill_conditioned(kind)
    gram, total, absolute = (torch.zeros(size, dtype=torch.float64) for size in ((300, 300), (300,), (300,)))
    for part in x.split(1025):
        add_moments(gram, total, absolute, part)
    wide = x.double()
    expected = wide.T @ wide
    size = expected.diagonal().sqrt()
    assert float(((mirrored(gram) - expected) / size / size[:, None]).abs().max()) < 1e-14
    torch.testing.assert_close(total, wide.sum(0), rtol=0, atol=1e-14 * float(wide.abs().sum(0).max()))
    torch.testing.assert_close(absolute, wide.abs().sum(0), rtol=1e-13, atol=0)
    assert torch.equal(x, wide.float())  # the input is as it was
    add_moments(gram, total, absolute, wide)
    assert torch.equal(x.double(), wide)  # one that is float64 already too

    def least(matrix: torch.Tensor) -> float:
        return float(torch.linalg.eigvalsh(matrix / size / size[:, None])[0])

    float32 = (x.T @ x).double()
    assert least(expected) == pytest.approx(least(mirrored(gram) / 2), abs=1e-13)
    if kind == "condition 1e8":
        assert least(float32) < -1e-9  # no Cholesky factor


def test_padding_is_left_out_and_full_batches_are_not_copied() -> None:
    """The sums of a padded batch are those of its tokens alone; a batch without padding gives the same bits."""
    layer = torch.nn.Linear(5, 2)
    model = torch.nn.Sequential(layer)
    tokens = torch.randn(2, 3, 5)
    padded = torch.cat([tokens, torch.full((2, 2, 5), 1e6)], 1)
    moments = []
    for x in (tokens, padded):
        sums = MomentSums(["0"], True, stop=False)
        with sums.watching(model):
            sums.begin((x[..., 0] < 1e5).long())
            model(x)
        moments.append(sums.result()["0"])
    assert moments[0].tokens == moments[1].tokens == 6
    assert all(torch.equal(getattr(moments[0], key), getattr(moments[1], key)) for key in ("gram", "total", "absolute"))


def test_probe_truncates_in_place_and_restores() -> None:
    model = random_model("qwen2", tied=False)
    groups = singles(matrices(model))
    fitted = Fitted()
    for group in groups:
        u, s, vt = svd(group.weight(model))
        mean = torch.randn(group.out_features)
        fitted.add(group.name, Factors(u * s, vt, s, mean, torch.zeros(len(s))))
    probe = Probe(model, groups, fitted, RandomData(6), 4, 2)
    before, dense = weights(model), logits(model)
    assert sum(len(batch["input_ids"]) for batch in probe.batches) == 4
    whole = probe.loss({})
    torch.testing.assert_close(logits(model), dense)
    name = "model.layers.0.mlp.down_proj"  # no bias of its own
    query = "model.layers.1.self_attn.q_proj"  # one of its own
    with probe.truncated({name: 3, query: 2}) as cut:
        layer = get_linear(cut, name)
        torch.testing.assert_close(layer.weight, (fitted.factors(name).left[:, :3] @ fitted.factors(name).right[:3]))
        torch.testing.assert_close(layer.bias, fitted.factors(name).output_mean)
        torch.testing.assert_close(
            get_linear(cut, query).bias, before[f"{query}.bias"] + fitted.factors(query).output_mean
        )
    assert same(before, weights(model))
    assert probe.loss({}) == whole
    assert probe.loss({name: 1}) != whole


def test_groups_need_a_common_input() -> None:
    by_name = {matrix.name: matrix for matrix in matrices(random_model("llama"))}
    pair = Group((by_name["model.layers.0.self_attn.q_proj"], by_name["model.layers.0.self_attn.k_proj"]))
    assert (pair.in_features, pair.out_features, pair.unit().cost) == (32, 48, 80)
    assert pair.unit(affine=True).overhead == 48
    with pytest.raises(ValueError, match="different widths"):
        Group((by_name["model.layers.0.self_attn.q_proj"], by_name["model.layers.0.mlp.down_proj"]))
