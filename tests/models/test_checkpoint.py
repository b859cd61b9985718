"""Checkpoints: what is written, and that a damaged one is an error that names the tensor or the file."""

import copy
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CompileConfig

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.architectures import random_model
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.layers import LowRankLinear
from lowrank_bench.models.loading import load_model, load_skeleton, load_tokenizer
from lowrank_bench.models.matrices import get_linear, low_rank_layers, matrices, model_size, replace_module

QUERY = "model.layers.0.self_attn.q_proj"
UP = "model.layers.1.mlp.up_proj"
DOWN = "model.layers.0.mlp.down_proj"


def factorised() -> Any:
    model = random_model("qwen2", tied=False)
    for name, rank in ((QUERY, 3), (UP, 7)):
        dense = get_linear(model, name)
        a, b = torch.randn(rank, dense.in_features), torch.randn(dense.out_features, rank)
        replace_module(model, name, LowRankLinear.from_factors(a, b, dense.bias))
    return model


def shared() -> Any:
    """A model whose queries and keys share a factor, across layers too, with an added bias and a factorised head."""
    model, owner = random_model("llama", tied=False), None
    for layer in (0, 1):
        for kind in ("q_proj", "k_proj"):
            name = f"model.layers.{layer}.self_attn.{kind}"
            out, width = get_linear(model, name).weight.shape
            new = LowRankLinear.from_factors(torch.randn(20, width), torch.randn(out, 20), source=owner)
            replace_module(model, name, new)
            owner = owner or new
    a, b = torch.randn(5, 96), torch.randn(32, 5)
    replace_module(model, DOWN, LowRankLinear.from_factors(a, b, added_bias=torch.randn(32)))
    replace_module(model, "lm_head", LowRankLinear.from_factors(torch.randn(9, 32), torch.randn(96, 9)))
    return model


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A factorised and a dense checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    save_checkpoint(factorised(), None, folder / "lowrank")
    save_checkpoint(random_model("qwen2", tied=False), None, folder / "dense")
    save_checkpoint(shared(), None, folder / "shared")
    return folder


def edit_config(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        change(config)
        (folder / "config.json").write_text(json.dumps(config))

    return edit


def edit_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return edit


def cut(size: int) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "model.safetensors"
        file.write_bytes(file.read_bytes()[:size])

    return edit


def write(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def test_layout(originals: Path) -> None:
    config = json.loads((originals / "lowrank" / "config.json").read_text())["quantization_config"]
    assert config.pop("dense") == [
        m.name for m in matrices(random_model("qwen2", tied=False)) if m.name not in (QUERY, UP)
    ]
    empty = {"shared": {}, "added_bias": [], "guard": f"{QUERY}.weight"}
    assert config == {"quant_method": "lowrank", "version": 1, "ranks": {QUERY: 3, UP: 7}} | empty
    shapes = {name: tuple(t.shape) for name, t in load_file(originals / "lowrank" / "model.safetensors").items()}
    assert shapes[f"{QUERY}.lr_a"] == (3, 32)
    assert shapes[f"{QUERY}.lr_b"] == (32, 3)
    assert shapes[f"{QUERY}.bias"] == (32,)
    assert shapes[f"{QUERY}.weight"] == (0,)
    assert "quantization_config" not in json.loads((originals / "dense" / "config.json").read_text())


def test_round_trip_is_exact_and_trains(originals: Path) -> None:
    model = load_model(originals / "lowrank")
    stored = load_file(originals / "lowrank" / "model.safetensors")
    parameters = dict(model.named_parameters())
    assert parameters.keys() == stored.keys() - {f"{QUERY}.weight"}
    assert all(torch.equal(parameters[name], stored[name]) for name in parameters)
    ids = torch.randint(3, 96, (2, 5))
    model.train()(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in low_rank_layers(model)[QUERY].parameters())


def test_shared_factors_are_stored_once_and_stay_shared(originals: Path) -> None:
    torch.manual_seed(0)
    factorised()
    expected = shared()
    model = load_model(originals / "shared")
    layers = low_rank_layers(model)
    owner, *members = (layers[f"model.layers.{i}.self_attn.{k}_proj"] for i in (0, 1) for k in "qk")
    assert all(layer.lr_a is owner.lr_a and layer.source is owner for layer in members)
    stored = load_file(originals / "shared" / "model.safetensors")
    assert [name for name in stored if name.endswith("lr_a")] == ["lm_head.lr_a", f"{DOWN}.lr_a", f"{QUERY}.lr_a"]
    assert model_size(model).parameters == sum(tensor.numel() for tensor in stored.values())
    ids = torch.randint(3, 96, (2, 7))
    assert torch.equal(model(input_ids=ids).logits, expected(input_ids=ids).logits)
    again = copy.deepcopy(model)
    with torch.no_grad():
        low_rank_layers(again)[QUERY].lr_a.zero_()
    assert not low_rank_layers(again)["model.layers.1.self_attn.k_proj"].lr_a.any(), "a copy shares as the original"
    assert owner.lr_a.any(), "and is a copy"
    model(input_ids=ids, labels=ids).loss.backward()
    assert owner.lr_a.grad is not None


IMPORTS = {
    "package first": "import lowrank_bench; from transformers import AutoModelForCausalLM as Auto",
    "package last": "from transformers import AutoModelForCausalLM as Auto; import lowrank_bench",
    "loader first": "import lowrank_bench.models.loading; from transformers import AutoModelForCausalLM as Auto",
    "no package": "from transformers import AutoModelForCausalLM as Auto",
    "installed": "from transformers import AutoModelForCausalLM as Auto",
    "half-made table": "import transformers.quantizers.auto; from transformers import AutoModelForCausalLM as Auto",
}


@pytest.mark.parametrize("order", IMPORTS)
def test_transformers_loads_factors_with_the_package_and_refuses_without(originals: Path, order: str) -> None:
    code = f"{IMPORTS[order]}; m = Auto.from_pretrained({str(originals / 'lowrank')!r})"
    code += f"; print('rank', m.get_submodule({QUERY!r}).rank)"
    # torch's entry point would bring the package in: here a program has it from an import, or not at all.
    environment = os.environ | {
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "1" if order in ("installed", "half-made table") else "0"
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    if order == "no package":
        assert done.returncode != 0
        assert "ignore_mismatched_sizes" in done.stderr
    else:
        assert done.stdout.split() == ["rank", "3"], done.stderr


def test_loaded_models_can_be_saved_again(originals: Path, tmp_path: Path) -> None:
    model = load_model(originals / "lowrank")
    save_checkpoint(model, None, tmp_path / "again")
    first, second = (load_file(f / "model.safetensors") for f in (originals / "lowrank", tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for name, layer in low_rank_layers(model).items():
        dense = torch.nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        replace_module(model, name, dense)
    save_checkpoint(model, None, tmp_path / "dense")
    assert "quantization_config" not in json.loads((tmp_path / "dense" / "config.json").read_text())
    assert not low_rank_layers(load_model(tmp_path / "dense"))


def test_dtypes(originals: Path) -> None:
    assert {p.dtype for p in load_model(originals / "lowrank", dtype="bfloat16").parameters()} == {torch.bfloat16}
    assert {p.dtype for p in load_model(originals / "lowrank", dtype="auto").parameters()} == {torch.float32}


def test_skeleton_has_the_shapes_of_the_dense_model(originals: Path) -> None:
    skeleton, model = load_skeleton(originals / "dense"), load_model(originals / "dense")
    assert {p.device.type for p in skeleton.parameters()} == {"meta"}
    assert matrices(skeleton) == matrices(model)
    assert model_size(skeleton).parameters == model_size(model).parameters


DAMAGE = {
    "cut in the header": ("lowrank", cut(300), r"model\.safetensors is corrupt or cut short"),
    "cut in the tensors": ("lowrank", cut(-40), r"model\.safetensors is corrupt or cut short"),
    "empty file": ("dense", cut(0), r"model\.safetensors is corrupt or cut short"),
    "no weights": ("dense", lambda f: (f / "model.safetensors").unlink(), r"holds neither model\.safetensors nor"),
    "factor gone": ("lowrank", edit_tensors(lambda t: t.pop(f"{UP}.lr_b")), rf"lacks the tensor {UP}\.lr_b"),
    "bias gone": ("lowrank", edit_tensors(lambda t: t.pop(f"{QUERY}.bias")), rf"tensor {QUERY}\.bias is missing"),
    "norm gone": ("dense", edit_tensors(lambda t: t.pop("model.norm.weight")), r"model\.norm\.weight is missing"),
    "other rank": (
        "lowrank",
        edit_config(lambda c: c["quantization_config"]["ranks"].update({QUERY: 4})),
        rf"{QUERY}\.lr_a has shape \(3, 32\) but config\.json says rank 4",
    ),
    "rank gone": (
        "lowrank",
        edit_config(lambda c: c["quantization_config"]["ranks"].pop(QUERY)),
        rf"holds the tensor {QUERY}\.lr_\w+ but config\.json names no rank for {QUERY}",
    ),
    "shared with a stranger": (
        "lowrank",
        edit_config(lambda c: c["quantization_config"].update(shared={UP: QUERY})),
        rf"'{UP}' share the first factor of '{QUERY}', which are not two factorised modules of one rank",
    ),
    "shared factor gone": (
        "shared",
        edit_tensors(lambda t: t.pop(f"{QUERY}.lr_a")),
        rf"lacks the tensor {QUERY}\.lr_a",
    ),
    "added bias gone": (
        "shared",
        edit_tensors(lambda t: t.pop(f"{DOWN}.lr_bias")),
        rf"lacks the tensor {DOWN}\.lr_bias",
    ),
    "added bias of another": (
        "shared",
        edit_config(lambda c: c["quantization_config"].update(added_bias=["model.norm"])),
        r"adds a bias to 'model\.norm', which is not factorised",
    ),
    "ranks no mapping": (
        "lowrank",
        edit_config(lambda c: c["quantization_config"].update(ranks=3)),
        "names no rank for each factorised module",
    ),
    "other layer": (
        "lowrank",
        lambda f: (
            edit_config(lambda c: c["quantization_config"]["ranks"].update({"model.norm": 3}))(f),
            edit_tensors(
                lambda t: t.update({"model.norm.lr_a": torch.ones(3, 3), "model.norm.lr_b": torch.ones(3, 3)})
            )(f),
        ),
        r"factors for 'model\.norm', which is no linear layer of Qwen2ForCausalLM",
    ),
    "other version": (
        "lowrank",
        edit_config(lambda c: c["quantization_config"].update(version=2)),
        "layout version 2 of 'lowrank', this lowrank-bench reads version 1",
    ),
    "other width": (
        "dense",
        edit_config(lambda c: c.update(vocab_size=97)),
        "embed_tokens.weight has another shape|lm_head.weight has another shape",
    ),
    "other architecture": ("dense", edit_config(lambda c: c.update(model_type="abacus")), "describes no causal"),
    "config no JSON": ("dense", write("config.json", "{"), r"config\.json cannot be read"),
    "config no object": ("dense", write("config.json", "[]"), r"config\.json cannot be read"),
    "index no JSON": ("dense", write("model.safetensors.index.json", "{"), r"index\.json cannot be read"),
    "shard gone": (
        "dense",
        write("model.safetensors.index.json", '{"weight_map": {"a": "gone.safetensors"}}'),
        r"gone\.safetensors is missing, which the weight_map of",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_checkpoints_name_what_is_wrong(originals: Path, tmp_path: Path, damage: str) -> None:
    kind, change, message = DAMAGE[damage]
    shutil.copytree(originals / kind, tmp_path / "damaged")
    change(tmp_path / "damaged")
    with pytest.raises(UserError, match=message):
        load_model(tmp_path / "damaged")


def test_folders_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        load_model(tmp_path)
    with pytest.raises(UserError, match=r"config\.json cannot be read"):
        load_skeleton(tmp_path)
    with pytest.raises(UserError, match="the tokenizer of"):
        load_tokenizer(tmp_path)


def test_real_model_loads_factorised(data_dir: Path, tmp_path: Path) -> None:
    source = data_dir / "models" / "stories260K"
    model, tokenizer = load_model(source), load_tokenizer(source)
    name = matrices(model)[0].name
    dense = get_linear(model, name)
    u, s, vt = torch.linalg.svd(dense.weight.detach(), full_matrices=False)
    replace_module(model, name, LowRankLinear.from_factors(vt, u * s))
    save_checkpoint(model, tokenizer, tmp_path)
    ids = torch.tensor([tokenizer("Once upon a time there was")["input_ids"]])
    with torch.no_grad():
        expected = load_model(source)(input_ids=ids).logits
        actual = load_model(tmp_path)(
            input_ids=torch.tensor([load_tokenizer(tmp_path)("Once upon a time there was")["input_ids"]])
        ).logits
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("make", [factorised, shared])
def test_a_static_cache_is_compiled_for_as_with_dense_models(make: Callable[[], Any], tmp_path: Path) -> None:
    """With each step's graph in one piece, which this backend runs as it is, so that no compiler is needed."""
    graphs = []

    def backend(graph: Any, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    save_checkpoint(make(), None, tmp_path)
    model, ids = load_model(tmp_path), torch.tensor([[1, 5, 7, 9]])
    settings = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": None}
    expected = model.generate(ids, **settings)
    assert not graphs
    compiled = CompileConfig(backend=backend, mode=None, fullgraph=True)
    compiled._compile_all_devices = True  # else CPUs are left out
    actual = model.generate(ids, cache_implementation="static", compile_config=compiled, **settings)
    assert torch.equal(actual, expected)
    assert graphs
