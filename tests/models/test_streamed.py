"""Models whose weights stay on disk, and how they are written."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.contract import logits
from lowrank_bench.methods.contract_parts import RandomData
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.models.architectures import CLASSIC, TODAY, random_model
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.dtypes import SaveDtypes
from lowrank_bench.models.loading import load_model
from lowrank_bench.models.matrices import model_size, tied_modules
from lowrank_bench.models.shards import save_streamed
from lowrank_bench.models.streamed import NotStreamable, loaded, open_streamed, weight_of, weights_of, why_not_streamed


def saved(folder: Path, architecture: str = "llama", dtype: torch.dtype = torch.float32, tied: bool | None = None):
    """Write a random model as transformers does, in several shards, and return it."""
    model = random_model(architecture, tied, dtype)
    model.generation_config.temperature = 0.5
    model.generation_config.do_sample = True
    model.save_pretrained(folder, max_shard_size="40KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return model


@pytest.mark.parametrize("architecture", CLASSIC + TODAY)  # the tensors of mixtures are merged while loading
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gives_what_loading_gives(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Every parameter, every buffer, the size and the ties, from shards, under names that transformers changes too."""
    saved(tmp_path, architecture, dtype)
    whole, streamed = load_model(tmp_path), open_streamed(tmp_path)
    assert all(parameter.is_meta for parameter in streamed.parameters())
    assert model_size(streamed) == model_size(whole)
    assert tied_modules(streamed) == tied_modules(whole)
    weights = weights_of(streamed)
    for name, parameter in whole.named_parameters():
        assert torch.equal(weights.read(name), parameter), name
    buffers = dict(streamed.named_buffers())
    assert buffers.keys() == dict(whole.named_buffers()).keys()
    for name, buffer in whole.named_buffers():
        assert torch.equal(buffers[name], buffer), name
    assert weights_of(whole) is None
    linear = next(name for name, module in whole.named_modules() if isinstance(module, nn.Linear))
    assert torch.equal(weight_of(streamed, linear), weight_of(whole, linear))


def test_a_part_is_loaded_and_let_go(tmp_path: Path) -> None:
    """Inside, a block computes as in the whole model; afterwards, and after an error, it holds nothing."""
    saved(tmp_path)
    whole, streamed = load_model(tmp_path), open_streamed(tmp_path)
    x = torch.randn(2, 5, 32)
    with loaded(streamed, "model.layers.1"):
        assert torch.equal(streamed.model.layers[1].mlp(x), whole.model.layers[1].mlp(x))
        assert all(parameter.is_meta for parameter in streamed.model.layers[0].parameters())
    assert all(parameter.is_meta for parameter in streamed.parameters())
    with pytest.raises(KeyError), loaded(streamed, "model.layers.1"):
        raise KeyError
    assert all(parameter.is_meta for parameter in streamed.parameters())


@pytest.mark.parametrize("architecture", ["llama", "gemma", "gpt-neox", "opt"])
def test_is_written_as_one_in_memory(architecture: str, tmp_path: Path) -> None:
    """A compressed model in one file or in shards: the same files, the same tensors, the same logits when loaded."""
    dense = tmp_path / "dense"
    saved(dense, architecture)
    method = create_method("svd")
    whole, streamed = load_model(dense), open_streamed(dense)
    fitted = method.fit(whole, None)
    method.compress(whole, fitted, Budget(2.0))
    method.compress(streamed, fitted, Budget(2.0))
    save_checkpoint(whole.to(torch.bfloat16), None, tmp_path / "whole")
    save_streamed(streamed, None, tmp_path / "one", SaveDtypes(torch.bfloat16))
    save_streamed(streamed, None, tmp_path / "many", SaveDtypes(torch.bfloat16), limit_bytes=10_000)
    assert {p.name for p in (tmp_path / "one").iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}
    for file in (tmp_path / "whole").glob("*.json"):
        assert (tmp_path / "one" / file.name).read_bytes() == file.read_bytes(), file.name
    expected, actual = (load_file(tmp_path / folder / "model.safetensors") for folder in ("whole", "one"))
    assert expected.keys() == actual.keys()
    assert all(
        torch.equal(actual[name], value) and actual[name].dtype == value.dtype for name, value in expected.items()
    )
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    files = {file.name: file for file in (tmp_path / "many").glob("*.safetensors")}
    assert set(index["weight_map"].values()) == files.keys()
    assert len(files) > 2
    for file in files.values():
        tensors = load_file(file)
        assert {index["weight_map"][name] for name in tensors} == {file.name}
        assert len(tensors) == 1 or sum(t.numel() * t.element_size() for t in tensors.values()) <= 10_000
    for folder in ("one", "many"):
        assert torch.equal(logits(load_model(tmp_path / folder)), logits(load_model(tmp_path / "whole"))), folder


@pytest.mark.parametrize("architecture", ["qwen2", "opt", "gpt-neox"])
@pytest.mark.parametrize("method", ["svd", "afm"])
def test_biases_are_written_without_a_gpu(architecture: str, method: str, tmp_path: Path) -> None:
    """With the meta device, from which nothing can be read back, as a stand-in for a GPU."""
    saved(tmp_path / "dense", architecture)
    compressor = create_method(method)
    whole, streamed = load_model(tmp_path / "dense"), open_streamed(tmp_path / "dense")
    fitted = compressor.fit(whole, RandomData(7))
    compressor.compress(whole, fitted, Budget(2.0))
    compressor.compress(streamed, fitted, Budget(2.0))
    weights_of(streamed).device = "meta"
    save_checkpoint(whole, None, tmp_path / "whole")
    save_streamed(streamed, None, tmp_path / "streamed", SaveDtypes(torch.float32))
    expected, actual = (load_file(tmp_path / folder / "model.safetensors") for folder in ("whole", "streamed"))
    assert any(name.endswith("bias") for name in actual)
    assert expected.keys() == actual.keys()
    assert all(torch.equal(actual[name], value) for name, value in expected.items())


def test_says_why_it_must_be_loaded_whole(tmp_path: Path) -> None:
    """A factorised model, or a tensor stored beside the one it is tied to; missing or misshapen, no loader takes it."""
    model = saved(tmp_path / "dense")
    assert why_not_streamed(tmp_path / "dense") == ""
    fitted = create_method("svd").fit(model, None)
    create_method("svd").compress(model, fitted, Budget(2.0))
    save_checkpoint(model, None, tmp_path / "factorised")
    assert "factorised already" in why_not_streamed(tmp_path / "factorised")

    def changed(name: str, tied: bool, change) -> str:
        save_checkpoint(random_model("llama", tied), None, tmp_path / name)
        file = tmp_path / name / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})
        with pytest.raises(NotStreamable) as caught:
            open_streamed(tmp_path / name)
        assert str(caught.value) == why_not_streamed(tmp_path / name)
        return str(caught.value)

    with pytest.raises(UserError, match=r"the tensor model\.norm\.weight is missing"):
        changed("missing", False, lambda t: t.pop("model.norm.weight"))
    with pytest.raises(UserError, match=r"model\.norm\.weight has another shape"):
        changed("shape", False, lambda t: t.update({"model.norm.weight": torch.ones(31)}))
    twice = changed("twice", True, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert "tied tensor lm_head.weight" in twice
