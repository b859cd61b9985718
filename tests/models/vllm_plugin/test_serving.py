"""vLLM serves factorised folders: the same greedy tokens as transformers and as the dense model, in float32."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from served_models import (
    ENVIRONMENT,
    NEW,
    WIDTH,
    dense_twin,
    mixed_llama,
    prompts,
    save_pair,
    served_models,
    small_gemma3,
    tokens,
)

from lowrank_bench.methods.base import create_method, methods
from lowrank_bench.methods.contract_parts import PlainTrainer, RandomData
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.models.architectures import random_model
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.layers import LowRankLinear
from lowrank_bench.models.loading import load_model
from lowrank_bench.models.matrices import low_rank_layers
from lowrank_bench.models.presets import PRESETS
from lowrank_bench.models.quantised.compressed_tensors import export_packed
from lowrank_bench.models.quantised.folder import write_packed
from lowrank_bench.models.quantised.model import quantise
from lowrank_bench.models.quantised.scheme import PACKED_FILE, Scheme

_CHILD = Path(__file__).parents[2] / "vllm_child.py"
FACTORISED = {"llama": 9, "mistral": 9, "qwen2": 9, "gemma": 8, "opt": 8, "gpt-neox": 9, "phi3": 9}
FACTORISED |= {"llama3": 8, "qwen3": 9, "smollm3": 8, "olmo2": 9, "qwen3-moe": 7}
"""Four layers of each decoder layer, fused ones counted once, and the head where it is not tied; experts stay dense."""
EMBEDDED = ("llama-embedding", "qwen2-embedding", "gemma3-embedding")
"""Models whose embedding is factorised too, and with it the tied head."""
DENSE = ("llama", "mistral", "qwen2", "gemma", "stories260K", *EMBEDDED)
"""Models that have dense twins; transformers answers with each, and one of either kind is served too."""
DENSE_SERVED = ("llama", "gemma3-embedding")
SHARED = ("mixed", EMBEDDED[0])
"""Models that two processes share, each with a part of every matrix."""


def serve(cache: Path, *jobs: dict[str, Any]) -> list[dict[str, Any]]:
    """Run vLLM in a process that knows this package only by its installed entry points."""
    jobs = tuple({"dtype": "float32", "enforce_eager": True, "block_size": 32} | job for job in jobs)
    task = {"prompts": prompts(), "new": NEW, "jobs": jobs}
    settings = ENVIRONMENT | {"VLLM_CACHE_ROOT": str(cache)}
    done = subprocess.run(
        [sys.executable, str(_CHILD), json.dumps(task)],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=1800,
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


@pytest.fixture(scope="module")
def altered(folders: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The mixed model with ``other`` factors, and with a ``narrow`` layer on top of these."""
    root = tmp_path_factory.mktemp("altered")
    torch.manual_seed(0)
    model = mixed_llama()
    for layer in low_rank_layers(model).values():
        layer.lr_b.data += torch.randn_like(layer.lr_b) / 8
    save_checkpoint(model, None, root / "other")
    down = model.model.layers[1].mlp.down_proj
    model.model.layers[1].mlp.down_proj = LowRankLinear.from_factors(down.lr_a[:50], down.lr_b[:, :50])
    save_checkpoint(model, None, root / "narrow")
    return root


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model in 4 bits: ``model`` has the weights that are evaluated, ``packed`` the integers."""
    root = tmp_path_factory.mktemp("control")
    scheme, model = Scheme(bits=4, group=64), load_model(PRESETS["tiny"].source).to(torch.bfloat16)
    write_packed(quantise(model, scheme), scheme, root / PACKED_FILE)
    save_checkpoint(model, None, root / "model")
    export_packed(root / "model", root / "packed")
    return root


@pytest.fixture(scope="module")
def by_methods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what each built-in method leaves behind, two of them with a factorised embedding."""
    root = tmp_path_factory.mktemp("methods")
    for row in methods.listings():
        if row.origin == "built in":
            method, model = create_method(row.name), random_model("llama", width=WIDTH)
            trainer = PlainTrainer(4) if method.requirements.trains else None
            method.compress(model, method.fit(model, RandomData()), Budget(2.0), trainer, RandomData())
            save_checkpoint(model, None, root / row.name)
    for name in ("fwsvd", "bs"):
        method, model = create_method(name, {"embeddings": True}), small_gemma3()
        trainer = PlainTrainer(4) if method.requirements.trains else None
        method.compress(model, method.fit(model, RandomData()), Budget(2.0), trainer, RandomData())
        save_checkpoint(model, None, root / f"{name} with embeddings")
    return root


def structure(folder: Path) -> str:
    """Return all of a folder that vLLM's layers are made from, except how large the ranks are."""
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["ranks"] = sorted(config["quantization_config"]["ranks"])
    with safe_open(folder / "model.safetensors", "pt") as weights:
        return json.dumps([config, sorted(weights.keys())], sort_keys=True)


def by_structure(by_methods: Path) -> dict[str, Path]:
    """Return a folder of each structure that methods leave behind: serving another of the same shows nothing new."""
    return {structure(folder): folder for folder in sorted(by_methods.iterdir())}


@pytest.fixture(scope="module")
def served(
    folders: Path, altered: Path, control: Path, by_methods: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[object, dict[str, Any]]:
    """What one process with vLLM made of every folder, and of the mixed model in other ways."""
    mixed = str(folders / "mixed" / "lowrank")
    paths = [folder / "lowrank" for folder in folders.iterdir()]
    paths += [folders / name / "dense" for name in DENSE_SERVED]
    paths += by_structure(by_methods).values()
    jobs: dict[object, dict[str, Any]] = {path: {"model": str(path)} for path in paths}
    jobs |= {dtype: {"model": mixed, "dtype": dtype} for dtype in ("bfloat16", "float16")}
    reloads = [None, str(altered / "other"), mixed, str(altered / "narrow")]
    jobs["embedding"] = {"model": str(folders / EMBEDDED[0] / "lowrank"), "reload": [None]}
    jobs["compiled"] = {"model": mixed, "enforce_eager": False, "reload": reloads}
    jobs |= {control / name: {"model": str(control / name), "dtype": "bfloat16"} for name in ("model", "packed")}
    draft = {"model": mixed, "num_speculative_tokens": 3, "method": "draft_model"}
    if len(os.sched_getaffinity(0)) >= 2:
        for name in SHARED:
            jobs["shared", name] = {"model": str(folders / name / "lowrank"), "tensor_parallel_size": 2}
    jobs["drafted"] = {"model": mixed, "speculative_config": draft, "disable_log_stats": False}
    return dict(zip(jobs, serve(tmp_path_factory.mktemp("cache"), *jobs.values()), strict=True))


def test_same_greedy_tokens_from_transformers_vllm_and_the_dense_model(
    folders: Path, served: dict[object, dict[str, Any]]
) -> None:
    expected = {folder.name: tokens(folder / "lowrank") for folder in folders.iterdir()}
    factorised = [folder / "lowrank" for folder in folders.iterdir()]
    dense = [folders / name / "dense" for name in DENSE_SERVED]

    assert [tokens(folders / name / "dense") for name in DENSE] == [expected[name] for name in DENSE]
    assert not [folder for folder in factorised + dense if served[folder]["tokens"] != expected[folder.parent.name]]
    # Served as factors, not multiplied out.
    counts = {folder.parent.name: served[folder]["layers"] for folder in factorised}
    assert counts == FACTORISED | {"stories260K": 20, "mixed": 8} | dict.fromkeys(EMBEDDED, 8)
    assert not any(served[folder]["layers"] for folder in dense)
    assert served["embedding"]["reloaded"] == [expected[EMBEDDED[0]]]
    # The second time the long prompt's first block came from the prefix cache.
    assert all(served[folder]["cached"] == 32 for folder in factorised)
    assert all(served[folder]["again"] == served[folder]["tokens"] for folder in factorised)
    for dtype in ("bfloat16", "float16"):
        assert served[dtype]["layers"] == 8
        assert {len(generated) for generated in served[dtype]["tokens"]} == {NEW}


def test_integers_of_a_control_are_served(control: Path, served: dict[object, dict[str, Any]]) -> None:
    """The kernel for 4 bits sums in another order, so that in bfloat16 a close call may go the other way."""
    dense, packed = (served[control / name]["tokens"] for name in ("model", "packed"))
    first = [[completion[0] for completion in side] for side in (dense, packed)]
    assert sum(a == b for a, b in zip(*first, strict=True)) >= len(dense) - 1
    assert len({tuple(completion) for completion in packed}) > 1


def test_two_processes_share_a_model(folders: Path, served: dict[object, dict[str, Any]]) -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("tensor parallelism on the CPU needs two cores")
    for name in SHARED:
        assert served["shared", name]["tokens"] == tokens(folders / name / "lowrank")


def test_compiled_with_weights_read_again_and_with_a_draft_model(
    folders: Path, altered: Path, served: dict[object, dict[str, Any]]
) -> None:
    folder, reloaded, drafted = folders / "mixed" / "lowrank", served["compiled"], served["drafted"]
    same, changed, back, refusal = reloaded["reloaded"]
    assert reloaded["tokens"] == same == back == tokens(folder)
    assert changed == tokens(altered / "other") != same
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


def test_what_every_method_leaves_behind_is_served(by_methods: Path, served: dict[object, dict[str, Any]]) -> None:
    """Shared factors, added biases and a factorised head as the methods themselves make them."""
    distinct = by_structure(by_methods)
    assert len(distinct) < len(list(by_methods.iterdir()))
    assert {folder.name for folder in distinct.values()} >= {"basis-sharing", "joint-rank-k", "sfsd", "swsd"}
    assert any("embeddings" in folder.name for folder in distinct.values())
    assert not [folder.name for folder in distinct.values() if served[folder]["tokens"] != tokens(folder)]
    assert all(served[folder]["layers"] for folder in distinct.values())
