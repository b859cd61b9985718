"""Real vLLM layers, one process of a tensor-parallel group at a time: the shares together make the dense layer."""

import gc
import weakref
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lowrank_bench.foundation.errors import UserError

WIDTH, HEAD, HEADS, KV_HEADS = 64, 16, 4, 2
PACKED = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
PARTS = {"q_proj": "q", "k_proj": "k", "v_proj": "v", "gate_proj": 0, "up_proj": 1}
Tensors = Mapping[str, Mapping[str, Tensor]]


@pytest.fixture(params=[1, 2, 4])
def group(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """For every rank of a group a function that builds a layer as that rank would."""
    from vllm.model_executor import parameter
    from vllm.model_executor.layers import linear, vocab_parallel_embedding

    def member(rank: int) -> Any:
        def build(make: Any) -> Any:
            for module in (linear, vocab_parallel_embedding, parameter):
                monkeypatch.setattr(module, "get_tensor_model_parallel_rank", lambda: rank)
                monkeypatch.setattr(module, "get_tensor_model_parallel_world_size", lambda: request.param)
            return make()

        return build

    return [member(rank) for rank in range(request.param)]


def config(tensors: Tensors, **more: Any) -> Any:
    from lowrank_bench.models.vllm_plugin.config import LowRankServingConfig

    ranks = {name: t["lr_b"].shape[1] for name, t in tensors.items() if "lr_b" in t}
    added = [name for name, t in tensors.items() if "lr_bias" in t]
    quant_config = LowRankServingConfig.from_config({"version": 1, "ranks": ranks, "added_bias": added} | more)
    quant_config.packed_modules_mapping = PACKED
    return quant_config


def load(layer: Any, tensors: Tensors, fused: bool = True) -> None:
    for module, weights in tensors.items():
        for name, tensor in weights.items():
            parameter = getattr(layer, name)
            part = PARTS.get(module.rpartition(".")[2])
            parameter.weight_loader(parameter, tensor, *([part] if fused and part is not None else []))


def fill(layer: Any, tensors: Tensors, fused: bool = True) -> Any:
    load(layer, tensors, fused)
    layer.quant_method.process_weights_after_loading(layer)
    return layer


def factors(rank: int, outputs: int, width: int = WIDTH, **more: Tensor) -> dict[str, Tensor]:
    return {"lr_a": torch.randn(rank, width), "lr_b": torch.randn(outputs, rank) / rank} | more


def dense(weights: Mapping[str, Tensor]) -> Tensor:
    return weights["weight"] if "weight" in weights else weights["lr_b"] @ weights["lr_a"]


def attention(group: list[Any], x: Tensor, tensors: Tensors, **more: Any) -> list[list[Tensor]]:
    """Return q, k and v of every rank."""
    from vllm.model_executor.layers.linear import QKVParallelLinear

    prefix = "l.qkv_proj"
    outputs = []
    for build in group:
        quant_config = config(tensors, **more)
        layer = build(
            lambda quant_config=quant_config: QKVParallelLinear(
                WIDTH, HEAD, HEADS, KV_HEADS, bias=any("bias" in t for t in tensors.values()),
                quant_config=quant_config, prefix=prefix,
            )
        )  # fmt: skip
        fill(layer, tensors)
        own = max(KV_HEADS // len(group), 1) * HEAD
        outputs.append(list(layer(x)[0].split([HEADS * HEAD // len(group), own, own], -1)))
    return outputs


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def check_attention(shares: list[list[Tensor]], whole: list[Tensor]) -> None:
    close(torch.cat([share[0] for share in shares], -1), whole[0])
    times = max(len(shares) // KV_HEADS, 1)  # how many ranks hold the same key-value head
    for part in (1, 2):
        close(torch.cat([share[part] for share in shares[::times]], -1), whole[part])
        for rank, share in enumerate(shares):
            close(share[part], shares[rank - rank % times][part])


def attention_tensors(kind: str) -> dict[str, dict[str, torch.Tensor]]:
    """Factors of q, k and v with unequal ranks, and what the kind adds or leaves dense."""
    tensors = {f"l.{n}_proj": factors(r, h * HEAD) for n, r, h in (("q", 9, HEADS), ("k", 5, KV_HEADS), ("v", 14, 2))}
    if kind in ("bias", "added bias"):
        for parts in tensors.values():
            parts["bias" if kind == "bias" else "lr_bias"] = torch.randn(len(parts["lr_b"]))
    if kind == "v dense":
        tensors["l.v_proj"] = {"weight": torch.randn(KV_HEADS * HEAD, WIDTH)}
    return tensors


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("kind", ["unequal ranks", "bias", "added bias", "v dense"])
def test_attention(group: list[Any], kind: str, rows: int) -> None:
    torch.manual_seed(0)
    tensors = attention_tensors(kind)
    x = torch.randn(rows, WIDTH)
    whole = [x @ dense(t).T + t.get("bias", t.get("lr_bias", torch.zeros(1))) for t in tensors.values()]
    check_attention(attention(group, x, tensors), whole)


def test_attention_with_a_shared_first_factor(group: list[Any]) -> None:
    torch.manual_seed(0)
    tensors = {f"l.{n}_proj": factors(7, h * HEAD) for n, h in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS))}
    a = tensors["l.q_proj"]["lr_a"]
    for name in ("l.k_proj", "l.v_proj"):
        del tensors[name]["lr_a"]
    x = torch.randn(3, WIDTH)
    shares = attention(group, x, tensors, shared={"l.k_proj": "l.q_proj", "l.v_proj": "l.q_proj"})
    check_attention(shares, [x @ (weights["lr_b"] @ a).T for weights in tensors.values()])


def test_fused_on_disk(group: list[Any]) -> None:
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear

    torch.manual_seed(0)
    qkv, mlp = factors(11, (HEADS + 2 * KV_HEADS) * HEAD), factors(6, 2 * 96)
    x = torch.randn(3, WIDTH)
    shares, halves = [], []
    for build in group:
        quant_config = config({"l.qkv_proj": qkv, "l.gate_up_proj": mlp})
        sizes = {"bias": False, "quant_config": quant_config}
        layer = build(lambda: QKVParallelLinear(WIDTH, HEAD, HEADS, KV_HEADS, prefix="l.qkv_proj", **sizes))  # noqa: B023
        own = max(KV_HEADS // len(group), 1) * HEAD
        answer = fill(layer, {"l.qkv_proj": qkv})(x)[0]
        shares.append(list(answer.split([HEADS * HEAD // len(group), own, own], -1)))
        layer = build(lambda: MergedColumnParallelLinear(WIDTH, [96, 96], prefix="l.gate_up_proj", **sizes))  # noqa: B023
        halves.append(fill(layer, {"l.gate_up_proj": mlp})(x)[0].chunk(2, -1))
    check_attention(shares, list((x @ dense(qkv).T).split([HEADS * HEAD, KV_HEADS * HEAD, KV_HEADS * HEAD], -1)))
    for part, whole in enumerate((x @ dense(mlp).T).chunk(2, -1)):
        close(torch.cat([half[part] for half in halves], -1), whole)


@pytest.mark.parametrize("bias", ["bias", "lr_bias", ""])
def test_row_parallel_adds_its_bias_once(group: list[Any], bias: str) -> None:
    from vllm.model_executor.layers.linear import RowParallelLinear

    torch.manual_seed(0)
    tensors = {"l.o_proj": factors(9, 48)}
    if bias:
        tensors["l.o_proj"][bias] = torch.randn(48)
    x = torch.randn(3, WIDTH)
    total = torch.zeros(3, 48)
    for rank, (build, own) in enumerate(zip(group, x.chunk(len(group), -1), strict=True)):
        quant_config = config(tensors)
        layer = build(
            lambda quant_config=quant_config: RowParallelLinear(
                WIDTH, 48, bias=bias == "bias", quant_config=quant_config, prefix="l.o_proj"
            )
        )
        fill(layer, tensors)
        # As the layer's forward does, without the all-reduce, which is the sum here.
        total += layer.quant_method.apply(layer, own.contiguous(), layer.bias if rank == 0 else None)
    close(total, x @ dense(tensors["l.o_proj"]).T + tensors["l.o_proj"].get(bias, torch.zeros(48)))


def test_head(group: list[Any]) -> None:
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    torch.manual_seed(0)
    tensors = {"lm_head": factors(10, 100)}
    x = torch.randn(3, WIDTH)
    logits = []
    for build in group:
        quant_config = config(tensors)
        head = build(
            lambda quant_config=quant_config: ParallelLMHead(100, WIDTH, quant_config=quant_config, prefix="lm_head")
        )
        logits.append(head.quant_method.apply(fill(head, tensors), x))
    close(torch.cat(logits, -1)[:, :100], x @ dense(tensors["lm_head"]).T)


@pytest.mark.parametrize("prefix", ["model.embed_tokens", ""])
def test_embedding_and_tied_head(group: list[Any], prefix: str) -> None:
    """The rows that each process looks up add up to the whole; Llama's class gives its embedding no name."""
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

    torch.manual_seed(0)
    tensors = {"model.embed_tokens": factors(10, 100)}
    weight = dense(tensors["model.embed_tokens"])
    ids, x = torch.tensor([0, 3, 41, 63, 64, 99]), torch.randn(3, WIDTH)
    rows, logits = torch.zeros(len(ids), WIDTH), []
    for build in group:
        quant_config = config(tensors, embeddings={"model.embed_tokens": "lm_head"})
        layer = build(
            lambda quant_config=quant_config: VocabParallelEmbedding(
                100, WIDTH, quant_config=quant_config, prefix=prefix
            )
        )
        fill(layer, tensors)
        shard = layer.shard_indices
        own = (ids >= shard.org_vocab_start_index) & (ids < shard.org_vocab_end_index)
        rows += layer.quant_method.embedding(layer, (ids - shard.org_vocab_start_index) * own) * own[:, None]
        head = build(
            lambda quant_config=quant_config: ParallelLMHead(100, WIDTH, quant_config=quant_config, prefix="lm_head")
        )
        tied = head.tie_weights(layer)
        assert tied is layer
        logits.append(tied.quant_method.apply(tied, x))
    close(rows, weight[ids])
    close(torch.cat(logits, -1)[:, :100], x @ weight.T)


def test_a_class_that_builds_its_embedding_dense_is_refused(monkeypatch: pytest.MonkeyPatch, group: list[Any]) -> None:
    """As vLLM's Gemma and OPT do: they do not ask how the embedding is stored."""
    from vllm.model_executor.layers.linear import ColumnParallelLinear

    from lowrank_bench.models.vllm_plugin import config as module

    monkeypatch.setattr(module, "get_pp_group", lambda: SimpleNamespace(is_first_rank=True))
    quant_config = config({"model.embed_tokens": factors(10, 100)}, embeddings={"model.embed_tokens": "lm_head"})
    with pytest.raises(UserError, match=r"factorises the embedding, which vLLM's class .* only knows dense; export"):
        group[0](
            lambda: ColumnParallelLinear(WIDTH, WIDTH, quant_config=quant_config, prefix="model.layers.0.mlp.down_proj")
        )


def test_padded_ranks_change_nothing(group: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from lowrank_bench.models.vllm_plugin import method

    monkeypatch.setattr(method, "rank_multiple", lambda: 16)  # as on accelerators
    test_attention_with_a_shared_first_factor(group)
    test_attention(group, "v dense", 2)


def test_layers_share_the_memory_of_a_factor(group: list[Any]) -> None:
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear

    torch.manual_seed(0)
    tensors = {f"{layer}.{n}_proj": factors(r, 32) for layer in "ab" for n, r in (("gate", 4), ("up", 7))}
    shared = {"b.gate_proj": "a.gate_proj", "b.up_proj": "a.up_proj"}
    for name in shared:
        tensors[name] = {"lr_b": tensors[name]["lr_b"]}
    quant_config = config(tensors, shared=shared)
    x = torch.randn(2, WIDTH)
    layers = {
        name: group[0](
            lambda name=name: MergedColumnParallelLinear(
                WIDTH, [32, 32], bias=False, quant_config=quant_config, prefix=f"{name}.gate_up_proj"
            )
        )
        for name in "ab"
    }
    for name, layer in layers.items():
        fill(layer, {module: weights for module, weights in tensors.items() if module.startswith(name)})
    (first,), (second,) = layers["a"].lr_stacks, layers["b"].lr_stacks
    assert first is second
    own = 32 // len(group)
    for part, name in enumerate(("gate", "up")):
        whole = x @ (tensors[f"b.{name}_proj"]["lr_b"] @ tensors[f"a.{name}_proj"]["lr_a"]).T
        close(layers["b"](x)[0].chunk(2, -1)[part], whole[:, :own])


DAMAGE = {
    "no second factor": ("lr_b", None, r"no tensor l\.o_proj\.lr_b"),
    "no first factor": ("lr_a", None, r"no tensor l\.o_proj\.lr_a"),
    "other rank": ("lr_a", torch.zeros(8, WIDTH), r"l\.o_proj\.lr_a has shape \(8, 64\).*rank 9"),
    "other rank behind": ("lr_b", torch.zeros(48, 8), r"l\.o_proj\.lr_b has shape \(48, 8\).*rank 9"),
    "dense weight too": ("weight", torch.zeros(48, WIDTH), r"a tensor l\.o_proj\.weight"),
    "unannounced bias": ("lr_bias", torch.zeros(48), r"a tensor l\.o_proj\.lr_bias"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_does_not_belong_together_is_named(monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    from vllm.model_executor.layers import linear

    monkeypatch.setattr(linear, "get_tensor_model_parallel_rank", lambda: 0)
    monkeypatch.setattr(linear, "get_tensor_model_parallel_world_size", lambda: 1)
    name, tensor, message = DAMAGE[damage]
    whole = factors(9, 48)
    quant_config = config({"l.o_proj": whole})
    layer = linear.RowParallelLinear(WIDTH, 48, bias=False, quant_config=quant_config, prefix="l.o_proj")
    damaged = {key: value for key, value in (whole | {name: tensor}).items() if value is not None}
    with pytest.raises(UserError, match=message):
        fill(layer, {"l.o_proj": damaged})


def test_guard_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.layers import linear

    monkeypatch.setattr(linear, "get_tensor_model_parallel_rank", lambda: 0)
    monkeypatch.setattr(linear, "get_tensor_model_parallel_world_size", lambda: 1)
    tensors = {"l.o_proj": factors(9, 48, weight=torch.empty(0))}
    layer = linear.RowParallelLinear(WIDTH, 48, bias=False, quant_config=config(tensors), prefix="l.o_proj")
    x = torch.randn(2, WIDTH)
    expected = x @ (tensors["l.o_proj"]["lr_b"] @ tensors["l.o_proj"]["lr_a"]).T
    close(fill(layer, tensors)(x)[0], expected)


def other(tensors: Tensors) -> dict[str, dict[str, Tensor]]:
    """Return tensors of the same names and shapes."""
    return {name: {key: torch.randn_like(value) for key, value in weights.items()} for name, weights in tensors.items()}


RELOADED = ("plain", "bias", "added bias", "v dense", "head", "fused on disk")


@pytest.mark.parametrize("kind", RELOADED)
def test_a_reload_fills_the_same_memory(group: list[Any], kind: str) -> None:
    """As vLLM's `reload_weights` does it, layer by layer, here without the model around them."""
    from vllm.model_executor.layers.linear import QKVParallelLinear
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
    from vllm.model_executor.model_loader.reload import layerwise

    torch.manual_seed(0)
    tensors = attention_tensors(kind)
    if kind == "fused on disk":
        tensors = {"l.qkv_proj": factors(11, (HEADS + 2 * KV_HEADS) * HEAD)}
    if kind == "head":
        tensors = {"lm_head": factors(10, 100)}
    x = torch.randn(3, WIDTH)
    for build in group:

        def make(build: Any = build) -> Any:
            quant_config = config(tensors)
            if kind == "head":
                return build(lambda: ParallelLMHead(100, WIDTH, quant_config=quant_config, prefix="lm_head"))
            return build(
                lambda: QKVParallelLinear(
                    WIDTH, HEAD, HEADS, KV_HEADS, bias=kind == "bias", quant_config=quant_config, prefix="l.qkv_proj"
                )
            )

        def answer(layer: Any) -> Tensor:
            result: Tensor = layer.quant_method.apply(layer, x, getattr(layer, "bias", None))
            return result

        layer = make()
        layerwise.record_metadata_for_reloading(layer)
        first, memory = answer(fill(layer, tensors)), dict(layer.named_parameters())
        for new in (other(tensors), tensors):
            layerwise.initialize_layerwise_reload(layer)
            load(layer, new)
            layerwise.finalize_layerwise_reload(layer, None)
            expected = answer(fill(make(), new))
            assert torch.equal(answer(layer), expected)
            assert torch.equal(expected, first) == (new is tensors)
            parameters = dict(layer.named_parameters())
            assert parameters.keys() == memory.keys()
            assert all(parameters[name] is memory[name] for name in memory), "CUDA graphs refer to the old memory"


def test_a_table_of_parameters_by_layer_does_not_keep_the_layer(group: list[Any]) -> None:
    """vLLM has one of copies of the parameters, with their loaders, for as long as the layer lives."""
    from vllm.model_executor.layers.linear import RowParallelLinear
    from vllm.model_executor.model_loader.reload import layerwise

    tensors = {"l.o_proj": factors(9, 48)}
    quant_config = config(tensors)
    layer = group[0](lambda: RowParallelLinear(WIDTH, 48, bias=False, quant_config=quant_config, prefix="l.o_proj"))
    layerwise.record_metadata_for_reloading(layer)
    alive = weakref.ref(fill(layer, tensors))
    del layer
    gc.collect()
    assert alive() is None


RELOAD_DAMAGE = {
    "other rank": (
        {"lr_a": torch.zeros(7, WIDTH), "lr_b": torch.zeros(32, 7)},
        r"l\.up_proj\.lr_[ab] has shape .*rank 9",
    ),
    "larger rank": (
        {"lr_a": torch.zeros(12, WIDTH), "lr_b": torch.zeros(32, 12)},
        r"l\.up_proj\.lr_[ab] has shape .*rank 9|no tensor l\.up_proj\.lr_b, or .in a reload. more in front",
    ),
    "no second factor": ({"lr_b": None}, r"no tensor l\.up_proj\.lr_b"),
    "shares its first factor": ({"lr_a": None}, r"no tensor l\.up_proj\.lr_a"),
    "NaN": ({"lr_b": torch.full((32, 9), torch.nan)}, r"l\.up_proj\.lr_b holds NaN"),
}


@pytest.mark.parametrize("damage", RELOAD_DAMAGE)
def test_a_reload_of_another_layout_is_named(group: list[Any], damage: str) -> None:
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear
    from vllm.model_executor.model_loader.reload import layerwise

    changed, message = RELOAD_DAMAGE[damage]
    tensors = {"l.gate_proj": factors(5, 32), "l.up_proj": factors(9, 32)}
    quant_config = config(tensors)
    layer = group[0](
        lambda: MergedColumnParallelLinear(WIDTH, [32, 32], False, quant_config=quant_config, prefix="l.gate_up_proj")
    )
    layerwise.record_metadata_for_reloading(layer)
    fill(layer, tensors)
    new: Any = other(tensors)
    new["l.up_proj"] = {key: value for key, value in (new["l.up_proj"] | changed).items() if value is not None}

    def reload() -> None:
        layerwise.initialize_layerwise_reload(layer)
        load(layer, new)
        layerwise.finalize_layerwise_reload(layer, None)

    with pytest.raises(UserError, match=message):
        reload()


def test_a_reload_of_factors_that_are_shared_here_is_named(group: list[Any]) -> None:
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear
    from vllm.model_executor.model_loader.reload import layerwise

    whole = {"l.gate_proj": factors(5, 32), "l.up_proj": factors(5, 32)}
    tensors = {"l.gate_proj": whole["l.gate_proj"], "l.up_proj": {"lr_b": whole["l.up_proj"]["lr_b"]}}
    quant_config = config(tensors, shared={"l.up_proj": "l.gate_proj"})
    layer = group[0](
        lambda: MergedColumnParallelLinear(WIDTH, [32, 32], False, quant_config=quant_config, prefix="l.gate_up_proj")
    )
    layerwise.record_metadata_for_reloading(layer)
    fill(layer, tensors)
    layerwise.initialize_layerwise_reload(layer)
    with pytest.raises(UserError, match=r"no tensor l\.up_proj\.lr_b, or \(in a reload\) more in front"):
        load(layer, whole)


@pytest.mark.parametrize("prefix", ["", "draft_model."])
@pytest.mark.parametrize("mapping", [True, False])
def test_fused_layers_of_a_class_without_a_mapping(group: list[Any], prefix: str, mapping: bool) -> None:
    """As the draft models of speculative decoding come."""
    from vllm.model_executor.layers.linear import (
        MergedColumnParallelLinear,
        QKVParallelLinear,
        RowParallelLinear,
        UnquantizedLinearMethod,
    )

    torch.manual_seed(0)
    heads = {"q_proj": HEADS, "k_proj": KV_HEADS, "v_proj": KV_HEADS}
    tensors = {f"a.{n}": factors(5, h * HEAD) for n, h in heads.items()}
    tensors |= {f"m.{n}": factors(6, 32) for n in ("gate_proj", "up_proj")} | {"a.o_proj": factors(9, 48)}
    quant_config = config(tensors, dense=["b.q_proj", "b.k_proj", "b.v_proj", "c.query_key_value"])
    quant_config.packed_modules_mapping = PACKED if mapping else {}
    x, build = torch.randn(2, WIDTH), group[0]

    def qkv(name: str) -> Any:
        return build(
            lambda: QKVParallelLinear(WIDTH, HEAD, HEADS, KV_HEADS, False, quant_config=quant_config, prefix=name)
        )

    def merged(name: str) -> Any:
        return build(lambda: MergedColumnParallelLinear(WIDTH, [32, 32], False, quant_config=quant_config, prefix=name))

    attention = {name: weights for name, weights in tensors.items() if name.startswith("a.") and "o_proj" not in name}
    answer = fill(qkv(f"{prefix}a.qkv_proj"), attention)(x)[0]
    own = HEADS * HEAD // len(group)
    close(answer[:, :own], (x @ dense(attention["a.q_proj"]).T)[:, :own])
    mlp = {name: weights for name, weights in tensors.items() if name.startswith("m.")}
    whole = [(x @ dense(weights).T)[:, : 32 // len(group)] for weights in mlp.values()]
    close(fill(merged(f"{prefix}m.gate_up_proj"), mlp)(x)[0], torch.cat(whole, -1))
    for name in ("b.qkv_proj", "c.query_key_value", "elsewhere.qkv_proj"):
        assert type(qkv(prefix + name).quant_method) is UnquantizedLinearMethod
    output = build(
        lambda: RowParallelLinear(WIDTH, 48, bias=False, quant_config=quant_config, prefix=f"{prefix}a.o_proj")
    )
    assert type(output.quant_method).__name__ == "LowRankMethod"


def test_experts_under_the_names_of_the_hub_are_refused() -> None:
    quant_config = config({"model.layers.0.self_attn.o_proj": factors(5, 64)})
    for name in ("gate", "experts"):
        with pytest.raises(
            UserError, match=rf"reads 'model\.layers\.0\.block_sparse_moe\.{name}'.*export the model dense"
        ):
            quant_config.get_quant_method(torch.nn.Module(), f"model.layers.0.block_sparse_moe.{name}")


@pytest.mark.parametrize("names", [("query", "key", "value"), ("w1", "w3"), ("Wq", "out_proj")])
def test_fused_layers_of_unknown_parts_are_refused(group: list[Any], names: tuple[str, ...]) -> None:
    from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear

    quant_config = config({f"l.{name}": factors(5, 64) for name in names})
    quant_config.packed_modules_mapping = {}
    with pytest.raises(UserError, match=rf"fuses 'l\.qkv'.*factorises 'l\.{names[0]}'.*export the model dense"):
        group[0](
            lambda: QKVParallelLinear(WIDTH, HEAD, HEADS, KV_HEADS, False, quant_config=quant_config, prefix="l.qkv")
        )
    with pytest.raises(UserError, match=r"has no gate_proj or up_proj"):
        group[0](
            lambda: MergedColumnParallelLinear(WIDTH, [32, 32], quant_config=quant_config, prefix="draft_model.l.fc")
        )
