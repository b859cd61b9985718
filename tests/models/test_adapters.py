"""peft's LoRA on factorised models: train, save, load, merge."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from served_models import factorise, mixed_llama
from torch import Tensor
from transformers import AutoModelForCausalLM

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.architectures import random_model
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.layers import LowRankLinear
from lowrank_bench.models.loading import load_model, load_tokenizer
from lowrank_bench.models.matrices import low_rank_layers
from lowrank_bench.models.presets import PRESETS

DOCS = Path(__file__).parents[2] / "docs" / "serving.md"
IDS = torch.arange(3, 23).reshape(2, 10)


def llama(folder: Path) -> Path:
    """Save a Llama with factors of ranks 12 to 16 of 32 and a factorised head; three MLP matrices stay dense."""
    model = factorise(
        random_model("llama"), only=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "1.mlp.up_proj")
    )
    save_checkpoint(factorise_head(model), None, folder)
    return folder


def factorise_head(model: Any) -> Any:
    width, outputs = model.lm_head.in_features, model.lm_head.out_features
    model.lm_head = LowRankLinear.from_factors(torch.randn(20, width) / 6, torch.randn(outputs, 20) / 6)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return llama(tmp_path_factory.mktemp("adapters") / "llama")


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        output: Tensor = model.eval()(input_ids=IDS).logits
    return output


def shake(model: Any) -> Any:
    """Give the adapters numbers other than the zeros they start with."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).to(parameter.dtype) / 8
    return model


def adapted_names(model: Any) -> set[str]:
    return {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if "lora_A" in name}


@pytest.mark.parametrize(
    ("targets", "count"), [(["q_proj"], 2), ("all-linear", 14), (r".*\.1\.mlp\.(up|down)_proj", 2)]
)
def test_adapters_train_are_saved_loaded_and_merged(
    folder: Path, tmp_path: Path, targets: list[str] | str, count: int
) -> None:
    torch.manual_seed(0)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    assert len(adapted_names(model)) == count
    assert not [name for name in adapted_names(model) if "lm_head" in name]
    assert all(("lora_" in name) == parameter.requires_grad for name, parameter in model.named_parameters())
    assert torch.equal(logits(model), logits(load_model(folder))), "a new adapter changes nothing"

    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    losses = []
    for _ in range(6):
        loss = model.train()(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    assert torch.equal(logits(again), expected)

    before = {name: layer.rank for name, layer in low_rank_layers(load_model(folder)).items()}
    adapted = {name.removeprefix("base_model.model.") for name in adapted_names(again)}
    merged = again.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-4)
    after = {name: layer.rank for name, layer in low_rank_layers(merged).items()}
    assert after == {name: rank + 4 * (name in adapted) for name, rank in before.items()}
    save_checkpoint(merged, None, tmp_path / "ours")
    merged.save_pretrained(tmp_path / "theirs")
    for saved in ("ours", "theirs"):
        reloaded = load_model(tmp_path / saved)
        assert {name: layer.rank for name, layer in low_rank_layers(reloaded).items()} == after
        assert torch.equal(logits(reloaded), logits(merged))


def test_two_adapters_are_merged_and_taken_out_again(folder: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder)
    plain = logits(base)
    model = peft.get_peft_model(base, peft.LoraConfig(r=3, target_modules=["q_proj", "k_proj"], use_rslora=True))
    model.add_adapter("second", peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights="gaussian"))
    shake(model).base_model.set_adapter(["default", "second"])
    both = logits(model)
    assert not torch.allclose(both, plain, atol=1e-2)
    model.merge_adapter(["default"])
    model.merge_adapter(["second"], safe_merge=True)
    torch.testing.assert_close(logits(model), both, atol=1e-5, rtol=1e-4)
    rank = low_rank_layers(load_model(folder))["model.layers.0.self_attn.q_proj"].rank
    assert model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj").get_base_layer().rank == rank + 5
    model.unmerge_adapter()
    assert torch.equal(logits(model), both)
    with model.disable_adapter():
        assert torch.equal(logits(model), plain)
    assert torch.equal(logits(model.unload()), plain)
    assert low_rank_layers(model.base_model.model)["model.layers.0.self_attn.q_proj"].rank == rank


@pytest.mark.parametrize("targets", [["q_proj"], ["k_proj"], ["o_proj", "gate_proj"], r".*\.0\..*q_proj", "all-linear"])
def test_a_merge_of_shared_factors_leaves_the_others_sharing(tmp_path: Path, targets: list[str] | str) -> None:
    """Layer 0's q is the owner of what its k and layer 1's q use too; o and gate share across layers."""
    model = mixed_llama()
    model.model.layers[1].self_attn.k_proj = LowRankLinear.from_factors(
        torch.empty(40, 128), torch.randn(64, 40) / 6, source=model.model.layers[0].self_attn.q_proj
    )
    save_checkpoint(model, None, tmp_path / "base")
    config = peft.LoraConfig(r=4, target_modules=targets)
    model = shake(peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config))
    adapted = {name.removeprefix("base_model.model.") for name in adapted_names(model)}
    expected = logits(model)
    model.merge_adapter()
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-4)
    model.unmerge_adapter()  # exact but for what peft itself does to dense layers
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-4)
    merged = model.merge_and_unload()
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-4)
    save_checkpoint(merged, None, tmp_path / "merged")
    reloaded = load_model(tmp_path / "merged")
    assert torch.equal(logits(reloaded), logits(merged))
    layers = low_rank_layers(reloaded)
    groups = [[n for n in layers if (layers[n].source or layers[n]) is layer] for layer in layers.values()]
    sharing = {frozenset(group) for group in groups if len(group) > 1}
    first, second = "model.layers.0", "model.layers.1"
    q, o, gate = "self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj"
    before = [{f"{first}.{q}", f"{first}.self_attn.k_proj", f"{second}.{q}", f"{second}.self_attn.k_proj"}]
    before += [{f"{first}.{o}", f"{second}.{o}"}, {f"{first}.{gate}", f"{second}.{gate}"}]
    left = [group - adapted for group in before]
    assert sharing == {frozenset(group) for group in left if len(group) > 1}


def test_bfloat16_and_ranks_beyond_the_width(folder: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model = shake(peft.get_peft_model(base, peft.LoraConfig(r=40, target_modules=["q_proj", "gate_proj"])))
    expected = logits(model)
    merged = model.merge_and_unload()
    layers = low_rank_layers(merged)
    assert {layers[f"model.layers.{i}.self_attn.q_proj"].rank for i in (0, 1)} == {32}
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(logits(merged), expected, atol=0.3, rtol=0.1)


def test_transformers_own_interface(folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.add_adapter(peft.LoraConfig(r=2, target_modules=["q_proj"]))
    expected = logits(shake(model))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(folder)
    again.load_adapter(tmp_path)
    assert torch.equal(logits(again), expected)


REFUSED = {
    "use_dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "use_bdlora": {"use_bdlora": peft.tuners.lora.BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2)},
    "init_lora_weights='pissa'": {"init_lora_weights": "pissa"},
    "init_lora_weights='olora'": {"init_lora_weights": "olora"},
    "target_parameters": {"target_parameters": ["q_proj.lr_a"], "target_modules": []},
}


@pytest.mark.parametrize("named", REFUSED)
def test_variants_that_need_a_dense_weight_are_refused(folder: Path, named: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = peft.LoraConfig(**({"target_modules": ["q_proj"]} | REFUSED[named]))  # type: ignore[arg-type]
    with pytest.raises(UserError) as refusal:
        peft.get_peft_model(model, config)
    assert named in str(refusal.value)
    assert "use" in str(refusal.value).replace(named, "") or "leave" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_broken_adapter_is_not_merged(folder: Path) -> None:
    config = peft.LoraConfig(target_modules=["q_proj"])
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    model.get_submodule("base_model.model.model.layers.1.self_attn.q_proj").lora_A["default"].weight.data[0, 0] = (
        torch.nan
    )
    with pytest.raises(UserError, match="default hold NaN"):
        model.merge_adapter(safe_merge=True)


def test_other_models_are_adapted_as_ever() -> None:
    model = peft.get_peft_model(random_model("llama"), peft.LoraConfig(target_modules="all-linear", use_dora=True))
    assert {type(model.get_submodule(name)).__module__ for name in adapted_names(model)} == {"peft.tuners.lora.layer"}
    assert len(adapted_names(model)) == 14


@pytest.mark.parametrize("order", ["package first", "peft first"])
def test_script_of_the_documentation(tmp_path: Path, order: str) -> None:
    source, folder = PRESETS["tiny"].source, tmp_path / "small"
    save_checkpoint(factorise(load_model(source)), load_tokenizer(source), folder)
    script = DOCS.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    if order == "peft first":
        line = "import lowrank_bench  # before or after transformers and peft\n"
        assert line in script
        script = script.replace(line, "").replace("\nfolder, out", f"{line}\nfolder, out")
    (tmp_path / "adapt.py").write_text(script)
    command = [sys.executable, tmp_path / "adapt.py", folder, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    losses = [float(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("loss")]
    assert losses[-1] < losses[0]
    base = load_model(folder)
    ranks = {name: layer.rank for name, layer in low_rank_layers(base).items()}
    adapted = peft.PeftModel.from_pretrained(base, tmp_path / "out" / "adapter")
    merged = load_model(tmp_path / "out" / "merged")
    torch.testing.assert_close(logits(merged), logits(adapted), atol=1e-4, rtol=1e-3)
    assert {n: layer.rank for n, layer in low_rank_layers(merged).items() if n != "lm_head"} == {
        name: rank + 8 for name, rank in ranks.items() if name != "lm_head"
    }
