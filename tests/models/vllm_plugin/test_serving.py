"""vLLM serves factorised folders: the same greedy tokens as transformers and as the dense model, in float32."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from served_models import NEW, dense_twin, prompts, save_pair, served_models, tokens

from lowrank_bench.models.matrices import low_rank_layers

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

_CHILD = Path(__file__).parents[2] / "vllm_child.py"
EAGER = {"dtype": "float32", "enforce_eager": True, "block_size": 32}


def serve(folders: Sequence[Path], engine: dict[str, Any], cache: Path, **environment: str) -> list[dict[str, Any]]:
    """Run vLLM in a process that knows this package only by its installed entry points."""
    job = {"engine": engine, "prompts": prompts(), "new": NEW, "folders": [str(folder) for folder in folders]}
    settings = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",  # to send a function that counts layers to the workers
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_CACHE_ROOT": str(cache),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, str(_CHILD), json.dumps(job)],
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
        timeout=600,
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
    names = sorted(folder.name for folder in folders.iterdir())
    run = [folders / name / kind for name in names for kind in ("lowrank", "dense") if (folders / name / kind).exists()]
    found = dict(zip(run, serve(run, EAGER, tmp_path), strict=True))
    expected = {name: tokens(folders / name / "lowrank") for name in names}
    wrong = [f"{f.parent.name}/{f.name}" for f, answer in found.items() if answer["tokens"] != expected[f.parent.name]]
    assert not wrong
    # Served as factors, not multiplied out: four fused layers a decoder layer, and the head where it is not tied.
    counts = {folder.parent.name: answer["layers"] for folder, answer in found.items() if folder.name == "lowrank"}
    assert counts == {
        "llama": 9, "mistral": 9, "qwen2": 9, "gemma": 8, "opt": 8, "gpt-neox": 9, "phi3": 9, "stories260K": 20, "mixed": 8
    }  # fmt: skip
    assert all(answer["layers"] == 0 for folder, answer in found.items() if folder.name == "dense")
    # The second time the long prompt's first block came from the prefix cache.
    assert all(answer["cached"] == 32 and answer["again"] == answer["tokens"] for answer in found.values())


def test_two_processes_share_a_model(folders: Path, tmp_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        pytest.skip("tensor parallelism on the CPU needs two cores")
    engine = EAGER | {"tensor_parallel_size": 2}
    bind = {"VLLM_CPU_OMP_THREADS_BIND": f"{cores[0]}|{cores[1]}", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    (answer,) = serve([folders / "mixed" / "lowrank"], engine, tmp_path, **bind)
    assert answer["tokens"] == tokens(folders / "mixed" / "lowrank")
    assert answer["layers"] == 2 * 8


def test_compiled(folders: Path, tmp_path: Path) -> None:
    engine = EAGER | {"enforce_eager": False}
    (answer,) = serve([folders / "mixed" / "lowrank"], engine, tmp_path)
    assert answer["tokens"] == tokens(folders / "mixed" / "lowrank")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_runs_factorised(folders: Path, tmp_path: Path, dtype: str) -> None:
    (answer,) = serve([folders / "mixed" / "lowrank"], EAGER | {"dtype": dtype}, tmp_path)
    assert answer["layers"] == 8
    assert all(len(made) == NEW for made in answer["tokens"])


def test_twins_are_dense(data_dir: Path) -> None:
    for _, model in served_models(data_dir):
        assert low_rank_layers(model)
        assert not low_rank_layers(dense_twin(model))
