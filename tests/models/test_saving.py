"""Generation settings that transformers loads and refuses to save, and checks of what was written."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from sweeps import small_sweep

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.dtypes import SaveDtypes
from lowrank_bench.models.export import export_dense
from lowrank_bench.models.generation_defaults import GENERATION_FILE
from lowrank_bench.models.loading import load_model
from lowrank_bench.models.notes import notes_of
from lowrank_bench.models.presets import PRESETS
from lowrank_bench.models.saved import verify_saved
from lowrank_bench.models.shards import save_streamed
from lowrank_bench.models.streamed import open_streamed
from lowrank_bench.runners.compressing import CompressRequest, compress
from lowrank_bench.runners.config import MethodSpec
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.stages.perform import perform
from lowrank_bench.runners.sweep import fit_warnings

LLAMA2 = {"do_sample": False, "temperature": 0.9, "top_p": 0.6}
"""As Meta ships it: https://huggingface.co/meta-llama/Llama-2-7b-hf/blob/main/generation_config.json."""

CONFLICTS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "Llama 2": (LLAMA2, {"temperature", "top_p"}),
    "top_k": ({"do_sample": False, "top_k": 3, "min_p": 0.1, "max_new_tokens": 9}, {"top_k", "min_p"}),
    "beams": ({"length_penalty": 2.0, "early_stopping": True}, {"length_penalty", "early_stopping"}),
    "padding of Llama 1": ({"pad_token_id": -1}, {"pad_token_id"}),
    "cache unused": ({"use_cache": False, "cache_implementation": "static"}, {"cache_implementation"}),
    "temperature a text": ({"temperature": "hot"}, {"temperature"}),
    "unknown key": (LLAMA2 | {"frobnicate": {"a": 1}}, {"temperature", "top_p"}),
}


def with_settings(folder: Path, settings: dict[str, Any]) -> Path:
    shutil.copytree(PRESETS["tiny"].source, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (folder / GENERATION_FILE).unlink(missing_ok=True)
    (folder / GENERATION_FILE).write_text(json.dumps({"bos_token_id": 0, "eos_token_id": [1, 2]} | settings))
    return folder


@pytest.mark.parametrize("case", CONFLICTS)
def test_only_conflicting_settings_are_left_out(tmp_path: Path, case: str) -> None:
    settings, dropped = CONFLICTS[case]
    folder = with_settings(tmp_path / "model", settings)
    whole, streamed = load_model(folder), open_streamed(folder)
    for model in (whole, streamed):
        (note,) = notes_of(model)
        assert all(f"{name}={settings[name]}" in note for name in dropped)
    save_checkpoint(whole, None, tmp_path / "whole")
    save_streamed(streamed, None, tmp_path / "streamed", SaveDtypes(torch.float32))
    usable = {key: value for key, value in settings.items() if key not in dropped | {"frobnicate"}}
    for name in ("whole", "streamed"):
        written = json.loads((tmp_path / name / GENERATION_FILE).read_text())
        assert written.items() >= ({"eos_token_id": [1, 2]} | usable).items()
        assert not dropped & written.keys()
        assert notes_of(load_model(tmp_path / name)) == []


def test_settings_that_go_together_are_kept(tmp_path: Path) -> None:
    settings = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    model = load_model(with_settings(tmp_path / "model", settings))
    assert notes_of(model) == []
    save_checkpoint(model, None, tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / GENERATION_FILE).read_text()).items() >= settings.items()


@pytest.mark.parametrize("memory", ["whole", "layerwise"])
def test_compress_and_export_with_the_settings_of_llama_2(tmp_path: Path, memory: str) -> None:
    folder = with_settings(tmp_path / "model", LLAMA2)
    done = compress(CompressRequest(str(folder), MethodSpec(name="svd"), 1.5, tmp_path / "small", memory=memory))
    assert any("temperature=0.9, top_p=0.6" in warning for warning in done.warnings)
    recorded = json.loads((tmp_path / "small" / "compression.json").read_text())["warnings"]
    assert recorded == done.warnings
    # A checkpoint of another tool may hold them beside factors.
    (tmp_path / "small" / GENERATION_FILE).write_text(json.dumps(LLAMA2))
    export_dense(tmp_path / "small", tmp_path / "dense")
    save_checkpoint(load_model(tmp_path / "dense"), None, tmp_path / "again")


def test_a_run_with_the_settings_of_llama_2(tmp_path: Path) -> None:
    folder = with_settings(tmp_path / "model", LLAMA2)
    config = small_sweep(tmp_path / "run", model=str(folder), methods=["svd"], ratios=[2])
    plan = make_plan(config)
    for key, stage in plan.stages.items():
        if stage.kind in ("finetune", "fit", "compress", "recover"):
            plan.store.run(stage, lambda folder, stage=stage: perform(stage, folder))
            if stage.kind == "finetune":
                assert any("temperature=0.9" in note for note in plan.store.read(key)["result"]["warnings"])
    assert any("temperature=0.9" in warning for warning in fit_warnings(plan))


def test_what_was_written_is_checked(tmp_path: Path) -> None:
    model = load_model(PRESETS["tiny"].source)
    save_checkpoint(model, None, tmp_path)
    file = tmp_path / "model.safetensors"
    whole, tensors = file.read_bytes(), load_file(file)
    tensors.pop("model.norm.weight")
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"saving wrote [\d,]+ of [\d,]+ parameters"):
        verify_saved(model, tmp_path)
    file.write_bytes(whole[:-4])
    with pytest.raises(UserError, match="corrupt or cut short"):
        verify_saved(model, tmp_path)
    file.unlink()
    with pytest.raises(UserError, match=r"saving wrote 0 of [\d,]+ parameters"):
        verify_saved(model, tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(UserError, match=r"wrote no config\.json"):
        verify_saved(model, tmp_path)


@pytest.mark.parametrize("streamed", [False, True])
def test_saving_ends_in_that_check(tmp_path: Path, streamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    source = PRESETS["tiny"].source
    model = open_streamed(source) if streamed else load_model(source)
    monkeypatch.setattr(type(model.config), "save_pretrained", lambda *_, **__: None)
    save = partial(save_streamed, dtypes=SaveDtypes(torch.float32)) if streamed else save_checkpoint
    with pytest.raises(UserError, match=r"wrote no config\.json"):
        save(model, None, tmp_path)
