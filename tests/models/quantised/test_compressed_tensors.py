"""A control as a folder of compressed-tensors: transformers makes of it what was evaluated, exactly."""

import json

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from served_models import mixed_llama, small_gemma3
from transformers import AutoModelForCausalLM, LlamaConfig

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.architectures import random_model
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.quantised.compressed_tensors import export_packed
from lowrank_bench.models.quantised.folder import write_packed
from lowrank_bench.models.quantised.model import quantise
from lowrank_bench.models.quantised.scheme import FACTORS, PACKED_FILE, Scheme

IDS = torch.arange(5, 17)[None]


def rounded(model, scheme, folder, corrections=None, shard_size=None):
    """Write a model as a quantise stage does, and return the folder of its dequantised weights."""
    folder.mkdir(exist_ok=True)
    write_packed(quantise(model, scheme, corrections), scheme, folder / PACKED_FILE)
    if shard_size:
        model.save_pretrained(folder / "model", max_shard_size=shard_size)
    else:
        save_checkpoint(model, None, folder / "model")
    return folder / "model"


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "opt", "gemma3"])
def test_transformers_makes_the_evaluated_weights_of_a_packed_folder(architecture, dtype, bits, tmp_path):
    model = small_gemma3() if architecture == "gemma3" else random_model(architecture)
    folder = rounded(model.to(dtype), Scheme(bits=bits, group=8), tmp_path)
    size = export_packed(folder, tmp_path / "out")
    assert size == sum(file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors"))
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=dtype)
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, expected(IDS).logits)
    stored = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert QuantizationConfig.model_validate(stored).config_groups["group_0"].weights.num_bits == bits


def test_files_of_a_large_model_are_packed_one_by_one(tmp_path):
    folder = rounded(random_model("llama"), Scheme(bits=8, group=8), tmp_path, shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    export_packed(folder, tmp_path / "out")
    expected, loaded = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, tmp_path / "out"))
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, expected(IDS).logits)


def test_matrices_of_several_widths_have_groups_of_their_own(tmp_path):
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=96,
    )
    folder = rounded(AutoModelForCausalLM.from_config(config), Scheme(bits=4), tmp_path)
    export_packed(folder, tmp_path / "out")
    groups = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["config_groups"]
    assert [group["weights"]["group_size"] for group in groups.values()] == [32, 128]
    assert groups["group_1"]["targets"] == ["model.layers.0.mlp.down_proj"]
    expected, loaded = (AutoModelForCausalLM.from_pretrained(path) for path in (folder, tmp_path / "out"))
    with torch.no_grad():
        assert torch.equal(loaded(IDS).logits, expected(IDS).logits)


def corrected(model):
    weight = model.model.layers[0].mlp.down_proj.weight
    pair = (torch.zeros(2, weight.shape[1]), torch.zeros(weight.shape[0], 2))
    return {"model.layers.0.mlp.down_proj": pair}


REFUSED = {
    "corrections": (lambda: random_model("llama"), Scheme(bits=4, group=8), corrected, "has corrections"),
    "embeddings": (small_gemma3, Scheme(bits=4, group=8, embeddings=True), None, "is an embedding"),
    "other names": (lambda: random_model("gpt-neox"), Scheme(bits=4, group=8), None, "under another name"),
    "groups": (lambda: random_model("llama"), Scheme(bits=4, group=48), None, "use a control with group="),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_the_format_has_no_room_for_is_refused_and_nothing_is_written(reason, tmp_path):
    make, scheme, correct, sentence = REFUSED[reason]
    model = make()
    folder = rounded(model, scheme, tmp_path, correct and correct(model))
    with pytest.raises(UserError, match=sentence):
        export_packed(folder, tmp_path / "out")
    assert {entry.name for entry in tmp_path.iterdir()} == {"model", PACKED_FILE}


def test_factors_and_folders_that_are_no_control_are_refused(tmp_path):
    with pytest.raises(UserError, match="is factorised"):
        export_packed(rounded(mixed_llama(), FACTORS, tmp_path), tmp_path / "out")
    (tmp_path / PACKED_FILE).unlink()
    with pytest.raises(UserError, match="name a control of a run"):
        export_packed(tmp_path / "model", tmp_path / "out")
    assert {entry.name for entry in tmp_path.iterdir()} == {"model"}
