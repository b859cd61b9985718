"""The dtype of saved weights is the model's own, whatever the arithmetic of the evaluation is."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sweeps import small_sweep
from typer.testing import CliRunner

from lowrank_bench.cli import app
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.loading import load_model, load_tokenizer
from lowrank_bench.models.presets import PRESETS
from lowrank_bench.runners.compressing import CompressRequest, compress
from lowrank_bench.runners.config import parse_method
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.stages.perform import perform
from lowrank_bench.runners.store.folders import MODEL_FOLDER, StageStore, ratio_folder

TINY = Path(PRESETS["tiny"].source)
FREE = {"training_free": True, "finetune": {}, "recover": {}, "methods": ["svd"], "ratios": [1.1]}


def size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def dtypes(folder: Path) -> set[torch.dtype]:
    tensors = [t for file in folder.glob("*.safetensors") for t in load_file(file).values()]
    return {tensor.dtype for tensor in tensors if tensor.numel()}


def ran(plan, *kinds: str) -> StageStore:
    """Run the plan's stages of these kinds in this process."""
    for stage in plan.stages.values():
        if stage.kind in kinds:
            plan.store.run(stage, lambda folder, stage=stage: perform(stage, folder))
    return plan.store


@pytest.mark.parametrize("memory", ["whole", "layerwise"])
def test_evaluating_in_float32_does_not_widen_what_is_saved(memory: str, tmp_path: Path) -> None:
    """A bfloat16 model at 1.1x is smaller than its original, and what is evaluated is what was saved."""
    assert dtypes(TINY) == {torch.bfloat16}
    plan = make_plan(small_sweep(tmp_path, dtype="float32", memory=memory, **FREE))
    store = ran(plan, "fit", "compress")
    [compress] = [key for key, stage in plan.stages.items() if stage.kind == "compress"]
    folder = store.path(compress) / ratio_folder(1.1) / MODEL_FOLDER
    assert dtypes(folder) == {torch.bfloat16}
    assert size(folder) < size(TINY)
    evaluated = [s.execution.model.location for s in plan.stages.values() if s.kind == "evaluate"]
    assert evaluated == [str(TINY), str(folder)]


@pytest.mark.parametrize("memory", ["whole", "layerwise"])
def test_bench_compress_saves_in_the_models_own_dtype(memory: str, tmp_path: Path) -> None:
    def compressed(source: Path, **more) -> Path:
        out = tmp_path / f"{source.name}-{more.get('save_dtype', 'default')}"
        compress(CompressRequest(str(source), parse_method("svd"), 1.1, out, memory=memory, **more))
        return out

    assert size(compressed(TINY)) < size(TINY)
    assert dtypes(compressed(TINY, save_dtype="float32")) == {torch.float32}
    wide = tmp_path / "wide"
    save_checkpoint(load_model(TINY), load_tokenizer(TINY), wide)
    assert dtypes(compressed(wide)) == {torch.float32}
    assert dtypes(compressed(wide, save_dtype="float16")) == {torch.float16}
    with pytest.raises(UserError, match="unknown dtype 'float64'"):
        compressed(wide, save_dtype="float64")
    assert not (tmp_path / "wide-float64").exists()


def test_trained_weights_follow_the_recipe_unless_another_dtype_is_asked_for(tmp_path: Path) -> None:
    """The recipe for small models keeps float32; what is compressed from that is float32 as well."""
    saved_dtypes = {}
    for asked in (None, "own"):
        options = {"methods": ["svd"], "ratios": [2], "save_dtype": asked}
        plan = make_plan(small_sweep(tmp_path / str(asked), finetune={"steps": 1}, recover={"steps": 2}, **options))
        store = ran(plan, "finetune", "fit", "compress", "recover")
        folders = [store.path(key) for key, stage in plan.stages.items() if stage.kind != "evaluate"]
        saved_dtypes[asked] = {k for folder in folders for model in folder.rglob(MODEL_FOLDER) for k in dtypes(model)}
    assert saved_dtypes == {None: {torch.float32}, "own": {torch.bfloat16}}


def test_the_dtype_of_the_evaluation_is_no_part_of_what_is_saved(tmp_path: Path) -> None:
    """Another --dtype evaluates the same weights again; another --save-dtype makes others."""
    first, second = (make_plan(small_sweep(tmp_path, dtype=dtype)) for dtype in ("float32", "bfloat16"))
    assert {first.stages[key].kind for key in set(first.stages) - set(second.stages)} == {"evaluate"}
    other = make_plan(small_sweep(tmp_path, save_dtype="bfloat16"))
    assert not set(first.stages) & set(other.stages)


def test_the_command_line_says_which_option_is_which(tmp_path: Path) -> None:
    words = ["compress", "tiny", "--method", "svd", "--ratio", "1.1", "--out", str(tmp_path / "small")]
    result = CliRunner().invoke(app, [*words, "--dtype", "bfloat16"])
    assert isinstance(result.exception, UserError)
    assert "--save-dtype bfloat16" in str(result.exception)
    assert CliRunner().invoke(app, [*words, "--dtype", "float32"]).exit_code == 0
    assert size(tmp_path / "small") < size(TINY)
