"""Stored tensors that no module uses: refused, or left out where the architecture ignores them, never silently."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

from lowrank_bench.evals.hosting import host
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.architectures import CLASSIC, TODAY, random_model
from lowrank_bench.models.claims import check_unclaimed, claim
from lowrank_bench.models.loading import load_model, load_skeleton, weights_size
from lowrank_bench.models.matrices import model_size
from lowrank_bench.models.notes import notes_of
from lowrank_bench.models.presets import PRESETS
from lowrank_bench.models.streamed import open_streamed, why_not_streamed
from lowrank_bench.runners.compressing import CompressRequest, compress
from lowrank_bench.runners.config import MethodSpec

ROTARY = "model.layers.0.self_attn.rotary_emb.inv_freq"
LAYER = {f"model.layers.9.{name}.weight": torch.ones(4, 4) for name in ("a", "b", "c", "d")}
MULTI_TOKEN = {"mtp.fc.weight": torch.ones(3, 5), "mtp.layers.0.norm.weight": torch.ones(7)}


def with_tensors(folder: Path, extra: dict[str, torch.Tensor]) -> Path:
    shutil.copytree(PRESETS["tiny"].source, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    save_file(tensors | extra, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return with_tensors(tmp_path_factory.mktemp("plain") / "model", {})


REFUSED: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "a layer": (LAYER, r"4 stored tensors, model\.layers\.9\.a\.weight, .*b\.weight, .*c\.weight and 1 more;"),
    "one tensor": ({"model.extra": torch.ones(1)}, r"1 stored tensor, model\.extra;"),
    "a bias": ({"model.layers.0.mlp.up_proj.bias": torch.ones(4)}, r"1 stored tensor, model\.layers\.0\.mlp\.up_proj"),
    "beside ignored ones": (LAYER | MULTI_TOKEN, r"4 stored tensors, model\.layers\.9"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("load", [load_skeleton, load_model, open_streamed, why_not_streamed, weights_size])
def test_tensors_of_no_module_are_refused(tmp_path: Path, case: str, load: Callable[[Path], Any]) -> None:
    extra, message = REFUSED[case]
    with pytest.raises(UserError, match=rf"no module of the LlamaForCausalLM .* uses {message}"):
        load(with_tensors(tmp_path / "model", extra))


@pytest.mark.parametrize("extra", [MULTI_TOKEN, {"model.mtp_layers.0.a": torch.ones(3)}], ids=["mtp", "mtp_layers"])
def test_multi_token_layers_are_left_out_and_noted(plain: Path, tmp_path: Path, extra: dict[str, torch.Tensor]) -> None:
    folder = with_tensors(tmp_path / "model", extra)
    for model in (load_model(folder), open_streamed(folder)):
        (note,) = notes_of(model)
        assert all(name in note for name in extra)
        assert model_size(model).parameters == model_size(load_skeleton(plain)).parameters
    assert why_not_streamed(folder) == ""
    assert weights_size(folder).parameters == weights_size(plain).parameters
    assert abs(weights_size(folder).bytes - weights_size(plain).bytes) < 200  # the longer header


@pytest.mark.parametrize("memory", ["whole", "layerwise"])
def test_compression_does_not_count_them(plain: Path, tmp_path: Path, memory: str) -> None:
    records = []
    for name, folder in {"plain": plain, "more": with_tensors(tmp_path / "model", MULTI_TOKEN)}.items():
        request = CompressRequest(str(folder), MethodSpec(name="svd"), 1.5, tmp_path / name, memory=memory)
        done = compress(request)
        records.append(json.loads((tmp_path / name / "compression.json").read_text()))
        assert [w for w in done.warnings if "mtp.fc.weight" in w] == done.warnings
        assert records[-1]["warnings"] == done.warnings
    differing = {key for key in records[0] if records[0][key] != records[1][key]}
    assert differing <= {"model_sha256", "warnings", "memory", "provenance", "seconds", "model", "seconds_compress"}
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("plain", "more")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0].keys() | weights[1].keys())


def test_buffers_of_old_checkpoints_are_no_news(tmp_path: Path) -> None:
    folder = with_tensors(tmp_path / "model", {ROTARY: torch.ones(8)})
    assert notes_of(load_model(folder)) == notes_of(open_streamed(folder)) == []
    assert weights_size(folder).parameters == model_size(load_skeleton(folder)).parameters


@pytest.mark.parametrize("architecture", CLASSIC + TODAY)  # the tensors of mixtures are merged while loading
def test_every_tensor_of_an_architecture_is_claimed(architecture: str, tmp_path: Path) -> None:
    model = random_model(architecture)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    claims = claim(load_skeleton(tmp_path), stored, "here")
    assert claims.left_out == ()
    assert {name: stored[key].shape for key, name in claims.names.items()} == {
        name: value.shape for name, value in model.state_dict().items() if name in claims.names.values()
    }
    assert len(set(claims.names.values())) == len(stored)
    assert weights_size(tmp_path).parameters == model_size(model).parameters


def test_what_a_class_ignores_and_what_is_merged(tmp_path: Path) -> None:
    """DeepSeek-V3 names its 62nd layer, which predicts further tokens, and stores experts one by one."""
    sizes = {"hidden_size": 16, "intermediate_size": 16, "moe_intermediate_size": 8, "num_attention_heads": 2}
    sizes |= {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4}
    config = DeepseekV3Config(
        **sizes, vocab_size=32, num_hidden_layers=2, first_k_dense_replace=1, n_routed_experts=4, num_experts_per_tok=2,
        n_group=1, topk_group=1, num_key_value_heads=2,
    )  # fmt: skip
    model = DeepseekV3ForCausalLM(config)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    stored = load_file(file)
    assert any("experts.3." in name for name in stored)
    save_file(stored | {"model.layers.61.eh_proj.weight": torch.ones(2, 2)}, file, {"format": "pt"})
    loaded = load_model(tmp_path)
    assert any("model.layers.61.eh_proj.weight" in note for note in notes_of(loaded))
    assert weights_size(tmp_path).parameters == sum(value.numel() for value in stored.values())
    assert "merged or cut" in why_not_streamed(tmp_path)
    save_file(stored | {"model.layers.60.eh_proj.weight": torch.ones(2, 2)}, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"1 stored tensor, model\.layers\.60\.eh_proj\.weight"):
        load_model(tmp_path)


def test_what_a_loader_reports_is_judged_the_same() -> None:
    """Of a hub model there are no headers before loading: transformers' own list of unexpected names is judged."""
    skeleton = load_skeleton(PRESETS["tiny"].source)
    assert check_unclaimed(skeleton, {*MULTI_TOKEN, ROTARY}, "a/b") == (ROTARY, *sorted(MULTI_TOKEN))
    with pytest.raises(UserError, match=r"of 'a/b' describes uses 4 stored tensors"):
        check_unclaimed(skeleton, LAYER, "a/b")


@pytest.mark.parametrize("sharded", [False, True])
def test_files_that_no_loader_reads_are_not_counted(
    tmp_path: Path, sharded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = random_model("llama")
    model.save_pretrained(tmp_path, **({"max_shard_size": "40KB"} if sharded else {}))
    before = weights_size(tmp_path)
    assert before.parameters == model_size(model).parameters
    assert before.bytes == sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    tensors = model.state_dict()
    save_file({name: value.clone() for name, value in tensors.items()}, tmp_path / "consolidated.safetensors")
    save_file({"x": torch.ones(999)}, tmp_path / "adapter_model.safetensors")
    assert weights_size(tmp_path) == before
    load_model(tmp_path)
    monkeypatch.setattr(host, "REUSE_BYTES", before.bytes)
    assert host._is_small(tmp_path)
