"""vLLM serves factorised folders: the same greedy tokens as transformers and as the dense model, in float32."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from served_models import (
    ENVIRONMENT,
    NEW,
    WIDTH,
    dense_twin,
    mixed_llama,
    prompts,
    save_pair,
    served_models,
    tokens,
)

from lowrank_bench.methods.base import create_method, methods
from lowrank_bench.methods.contract_parts import PlainTrainer, RandomData
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.models.architectures import random_model
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.layers import LowRankLinear
from lowrank_bench.models.matrices import low_rank_layers

_CHILD = Path(__file__).parents[2] / "vllm_child.py"
FACTORISED = {"llama": 9, "mistral": 9, "qwen2": 9, "gemma": 8, "opt": 8, "gpt-neox": 9, "phi3": 9}
"""Four layers of each decoder layer, fused ones counted once, and the head where it is not tied."""


def serve(cache: Path, *jobs: dict[str, Any], **environment: str) -> list[dict[str, Any]]:
    """Run vLLM in a process that knows this package only by its installed entry points."""
    jobs = tuple({"dtype": "float32", "enforce_eager": True, "block_size": 32} | job for job in jobs)
    task = {"prompts": prompts(), "new": NEW, "jobs": jobs}
    settings = ENVIRONMENT | {"VLLM_CACHE_ROOT": str(cache)}
    done = subprocess.run(
        [sys.executable, str(_CHILD), json.dumps(task)],
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return [json.loads(line[6:]) for line in done.stdout.splitlines() if line.startswith("FOUND ")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """One folder per model with ``lowrank`` and, where there can be one, ``dense``."""
    root = tmp_path_factory.mktemp("served")
    for name, model in served_models(data_dir):
        save_pair(model, root / name)
    return root


def test_same_greedy_tokens_from_transformers_vllm_and_the_dense_model(folders: Path, tmp_path: Path) -> None:
    expected = {folder.name: tokens(folder / "lowrank") for folder in folders.iterdir()}
    served = [folder / "lowrank" for folder in folders.iterdir()]
    dense = [folders / name / "dense" for name in ("llama", "mistral", "qwen2", "gemma", "stories260K")]
    half = [{"model": str(folders / "mixed" / "lowrank"), "dtype": dtype} for dtype in ("bfloat16", "float16")]
    answers = serve(tmp_path, *({"model": str(folder)} for folder in served + dense), *half)
    found = dict(zip([*served, *dense, "bfloat16", "float16"], answers, strict=True))

    assert not [folder for folder in served + dense if found[folder]["tokens"] != expected[folder.parent.name]]
    # Served as factors, not multiplied out.
    counts = {folder.parent.name: found[folder]["layers"] for folder in served}
    assert counts == FACTORISED | {"stories260K": 20, "mixed": 8}
    assert not any(found[folder]["layers"] for folder in dense)
    # The second time the long prompt's first block came from the prefix cache.
    assert all(found[folder]["cached"] == 32 for folder in served)
    assert all(found[folder]["again"] == found[folder]["tokens"] for folder in served)
    for dtype in ("bfloat16", "float16"):
        assert found[dtype]["layers"] == 8
        assert {len(made) for made in found[dtype]["tokens"]} == {NEW}


def test_two_processes_share_a_model(folders: Path, tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("tensor parallelism on the CPU needs two cores")
    folder = folders / "mixed" / "lowrank"
    bind = {"VLLM_CPU_OMP_THREADS_BIND": f"{cores[0]}|{cores[1]}", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    (answer,) = serve(tmp_path, {"model": str(folder), "tensor_parallel_size": 2}, **bind)
    assert answer["tokens"] == tokens(folder)


def test_compiled_with_weights_read_again_and_with_a_draft_model(folders: Path, tmp_path: Path) -> None:
    folder, other, narrow = folders / "mixed" / "lowrank", tmp_path / "other", tmp_path / "narrow"
    torch.manual_seed(0)
    model = mixed_llama()
    for layer in low_rank_layers(model).values():
        layer.lr_b.data += torch.randn_like(layer.lr_b) / 8
    save_checkpoint(model, None, other)
    down = model.model.layers[1].mlp.down_proj
    model.model.layers[1].mlp.down_proj = LowRankLinear.from_factors(down.lr_a[:50], down.lr_b[:, :50])
    save_checkpoint(model, None, narrow)
    draft = {"model": str(folder), "num_speculative_tokens": 3, "method": "draft_model"}
    reloaded, drafted = serve(
        tmp_path / "cache",
        {"model": str(folder), "enforce_eager": False, "reload": [None, str(other), str(folder), str(narrow)]},
        {"model": str(folder), "speculative_config": draft, "disable_log_stats": False},
    )
    same, changed, back, refusal = reloaded["reloaded"]
    assert reloaded["tokens"] == same == back == tokens(folder)
    assert changed == tokens(other) != same
    assert "UserError: the tensor model.layers.1.mlp.down_proj.lr_" in refusal
    assert "config.json says rank 61" in refusal
    assert drafted["tokens"] == drafted["again"] == tokens(folder)
    # The draft is the model itself, so what it drafts is right.
    assert drafted["draft"]["layers"] == FACTORISED["llama"] - 1
    assert drafted["draft"]["accepted"] > 0.9 * drafted["draft"]["drafted"] > 0


def test_twins_are_dense(data_dir: Path) -> None:
    for _, model in served_models(data_dir):
        assert low_rank_layers(model)
        assert not low_rank_layers(dense_twin(model))


def test_what_every_method_leaves_behind_is_served(tmp_path: Path) -> None:
    """Shared factors, added biases and a factorised head as the methods themselves make them."""
    names = [row.name for row in methods.listings() if row.origin == "built in"]
    for name in names:
        method, model = create_method(name), random_model("llama", width=WIDTH)
        trainer = PlainTrainer(4) if method.requirements.trains else None
        method.compress(model, method.fit(model, RandomData()), Budget(2.0), trainer, RandomData())
        save_checkpoint(model, None, tmp_path / name)
    answers = serve(tmp_path / "cache", *({"model": str(tmp_path / name)} for name in names))
    found = dict(zip(names, answers, strict=True))
    assert not [name for name in names if found[name]["tokens"] != tokens(tmp_path / name)]
    assert all(found[name]["layers"] for name in names)
