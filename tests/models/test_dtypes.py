"""The dtype that each tensor of a checkpoint is written in."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.models.architectures import CLASSIC, TODAY, random_model
from lowrank_bench.models.dtypes import SAVE_DTYPES, save_dtypes
from lowrank_bench.models.export import export_dense
from lowrank_bench.models.loading import load_model
from lowrank_bench.models.shards import save_model
from lowrank_bench.models.streamed import open_streamed


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors that stand for numbers: without the empty one that guards a factorised folder."""
    tensors = {name: t for file in folder.glob("*.safetensors") for name, t in load_file(file).items()}
    return {name: tensor for name, tensor in tensors.items() if tensor.numel()}


def stored(folder: Path, architecture: str = "llama", dtype: torch.dtype = torch.bfloat16) -> Path:
    random_model(architecture, dtype=dtype).save_pretrained(folder)
    return folder


def compressed(source: Path, out: Path, dtype: str = "own", streamed: bool = False, ratio: float = 1.1) -> Path:
    """Compress as the runners do: read in float32, save in the dtypes asked for."""
    method = create_method("svd")
    model = open_streamed(source) if streamed else load_model(source)
    method.compress(model, method.fit(load_model(source), None), Budget(ratio))
    save_model(model, None, out, save_dtypes(dtype, source))
    return out


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


@pytest.mark.parametrize("architecture", CLASSIC + TODAY)  # the tensors of mixtures are merged while loading
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_a_folder_keeps_its_dtype_either_way(architecture: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """In memory and on disk, under names that transformers changes too; what is left as it was keeps its bits."""
    source = stored(tmp_path / "dense", architecture, dtype)
    whole = compressed(source, tmp_path / "whole", ratio=1.5)
    streamed = compressed(source, tmp_path / "streamed", streamed=True, ratio=1.5)
    before, from_whole, from_streamed = weights(source), weights(whole), weights(streamed)
    assert {tensor.dtype for tensor in from_whole.values()} == {dtype}
    assert from_whole.keys() == from_streamed.keys()
    assert all(
        torch.equal(tensor, from_streamed[name]) and tensor.dtype == from_streamed[name].dtype
        for name, tensor in from_whole.items()
    )
    for name in before.keys() & from_whole.keys():
        assert torch.equal(before[name], from_whole[name]), name
    assert (whole / "config.json").read_bytes() == (streamed / "config.json").read_bytes()
    assert json.loads((whole / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("streamed", [False, True])
def test_a_mixed_folder_stays_mixed(streamed: bool, tmp_path: Path) -> None:
    """Norms and one matrix in float32 in a bfloat16 model: kept, also when compressed again or multiplied out."""
    source = stored(tmp_path / "dense")
    wide = {"model.norm.weight", "model.layers.0.input_layernorm.weight", "model.layers.1.mlp.up_proj.weight"}
    tensors = weights(source)
    tensors = {name: tensor.float() + 1e-4 if name in wide else tensor for name, tensor in tensors.items()}
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})

    def is_wide(name: str) -> bool:
        return name.replace(".lr_a", ".weight").replace(".lr_b", ".weight") in wide

    small = compressed(source, tmp_path / "small", streamed=streamed, ratio=2.0)
    small_tensors = weights(small)
    assert any(".lr_b" in name and is_wide(name) for name in small_tensors)
    for name, tensor in small_tensors.items():
        assert tensor.dtype == (torch.float32 if is_wide(name) else torch.bfloat16), name
        if name in tensors:
            assert torch.equal(tensor, tensors[name]), name
    assert json.loads((small / "config.json").read_text())["dtype"] == "bfloat16"

    export_dense(small, tmp_path / "multiplied")
    for name, tensor in weights(tmp_path / "multiplied").items():
        assert tensor.dtype == (torch.float32 if is_wide(name) else torch.bfloat16), name
    assert torch.equal(weights(tmp_path / "multiplied")["model.norm.weight"], tensors["model.norm.weight"])

    save_model(load_model(small), None, tmp_path / "again", save_dtypes("own", small))
    again = weights(tmp_path / "again")
    assert again.keys() == small_tensors.keys()
    assert all(
        torch.equal(t, small_tensors[name]) and t.dtype == small_tensors[name].dtype for name, t in again.items()
    )


def test_the_first_tensor_does_not_decide(tmp_path: Path) -> None:
    """transformers writes the dtype of the first tensor into config.json; here it is the model's own."""
    source = stored(tmp_path / "dense")
    tensors = weights(source)
    tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].float()
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    for streamed in (False, True):
        out = compressed(source, tmp_path / f"small-{streamed}", streamed=streamed, ratio=2.0)
        assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
        assert weights(out)["model.embed_tokens.weight"].dtype == torch.float32


def test_a_dtype_that_was_asked_for_is_the_dtype_of_all(tmp_path: Path) -> None:
    source = stored(tmp_path / "dense")
    for dtype in SAVE_DTYPES:
        for streamed in (False, True):
            out = compressed(source, tmp_path / f"{dtype}-{streamed}", dtype, streamed)
            expected = "bfloat16" if dtype == "own" else dtype
            assert {str(tensor.dtype) for tensor in weights(out).values()} == {f"torch.{expected}"}
            assert json.loads((out / "config.json").read_text())["dtype"] == expected
    with pytest.raises(UserError, match=r"unknown dtype 'float64'; .* bfloat16, float16, float32, own"):
        save_dtypes("float64", source)


def test_without_a_word_in_the_configuration_the_tensors_say_it(tmp_path: Path) -> None:
    """float64 is read as float32 and written so."""
    source = stored(tmp_path / "dense")
    config = json.loads((source / "config.json").read_text())
    del config["dtype"]
    (source / "config.json").write_text(json.dumps(config))
    assert save_dtypes("own", source).name == "bfloat16"
    save_file({n: t.double() for n, t in weights(source).items()}, source / "model.safetensors", {"format": "pt"})
    assert {tensor.dtype for tensor in weights(compressed(source, tmp_path / "small")).values()} == {torch.float32}


def test_float32_in_a_file_that_says_so_is_not_taken_for_bfloat16(tmp_path: Path) -> None:
    """The tensors count, not what config.json says."""
    source = stored(tmp_path / "dense", dtype=torch.float32)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    out = compressed(source, tmp_path / "small")
    with safe_open(out / "model.safetensors", "pt") as tensors:
        assert {tensors.get_slice(key).get_dtype() for key in tensors.keys()} == {"F32"}  # noqa: SIM118


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("ratio", [1.05, 1.1, 2.0])
def test_a_compressed_bfloat16_model_is_smaller(streamed: bool, ratio: float, tmp_path: Path) -> None:
    source = stored(tmp_path / "dense", "gemma")
    assert size(compressed(source, tmp_path / "small", streamed=streamed, ratio=ratio)) < size(source)


@pytest.mark.parametrize("streamed", [False, True])
def test_what_float16_cannot_hold_is_refused(streamed: bool, tmp_path: Path) -> None:
    source = stored(tmp_path / "dense")
    tensors = weights(source)
    tensors["model.norm.weight"][3] = 1e5
    save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"model\.norm\.weight holds numbers beyond float16 .* --save-dtype bfloat16"):
        compressed(source, tmp_path / "small", "float16", streamed)
    assert weights(compressed(source, tmp_path / "own", "own", streamed))["model.norm.weight"][3] > 9e4
