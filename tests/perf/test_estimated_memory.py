"""The estimated memory of every kind of stage, and the measured peak of a process that does it."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "perf" / "estimated_memory.py"
SMALL = ("llama", 384, 8, 8192)  # 20 M parameters: 0.4 GB for weights, gradients and moments


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("estimated_memory", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["estimated_memory"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def model(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("estimated") / "model"
    script.write_model(folder, *SMALL)
    return folder


def test_stages_take_what_was_estimated(script: ModuleType, model: Path, tmp_path: Path) -> None:
    """A finetuning with AdamW, a fit, a compression, evaluations of the dense and the factorised model."""
    plan = script.plan_for(model, tmp_path, "adamw_torch", False, ["svd"], recover=False)
    done = [(stage.kind, estimated / measured) for stage, estimated, measured in script.measure(plan, script.KINDS)]
    assert {kind for kind, _ in done} == {"finetune", "fit", "compress", "evaluate"}
    assert all(script.LEAST <= ratio <= script.MOST for _, ratio in done), done


def test_checkpointing_and_optimizer_are_estimated(script: ModuleType, model: Path, tmp_path: Path) -> None:
    """Adafactor has no moments, and checkpointing fewer activations."""
    plan = script.plan_for(model, tmp_path, "adafactor", True, ["svd"])
    for stage, estimated, measured in script.measure(plan, ["finetune"]):
        assert script.LEAST <= estimated / measured <= script.MOST, stage.title
