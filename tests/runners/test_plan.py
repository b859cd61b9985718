import shutil
from collections import Counter
from typing import get_type_hints

import pytest
import torch
from sweeps import small_sweep

from lowrank_bench.cli.run import run
from lowrank_bench.cli.single import compress
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.ranks.policies.uniform import Uniform
from lowrank_bench.models.presets import PRESETS
from lowrank_bench.runners.choices import merge_settings, pick_device
from lowrank_bench.runners.collect import _options
from lowrank_bench.runners.config import parse_method
from lowrank_bench.runners.estimates.machine import assume_machine
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.provenance import hardware
from lowrank_bench.runners.stages.perform import perform
from lowrank_bench.runners.sweep import plan_warnings
from lowrank_bench.runners.training.recipes import RECIPES
from lowrank_bench.runners.training.settings import TrainSettings


def kinds(plan):
    return Counter(stage.kind for stage in plan.stages.values())


def test_stages_are_shared_where_they_can_be(tmp_path):
    plan = make_plan(small_sweep(tmp_path))
    # bs takes its bases from svd's fit; finetune serves every method and ratio.
    assert kinds(plan) == {"finetune": 1, "fit": 2, "compress": 6, "recover": 6, "evaluate": 7}
    assert not list(tmp_path.iterdir()), "planning writes nothing"


def test_one_more_ratio_adds_only_its_own_cells(tmp_path):
    two, three = make_plan(small_sweep(tmp_path)), make_plan(small_sweep(tmp_path, ratios=[2, 3, 4]))
    assert set(two.stages) < set(three.stages)
    added = Counter(three.stages[key].kind for key in set(three.stages) - set(two.stages))
    assert added == {"compress": 3, "recover": 3, "evaluate": 3}


def test_every_stage_comes_after_what_it_needs(tmp_path):
    plan = make_plan(small_sweep(tmp_path, seeds=[1, 2]))
    seen = set()
    for key in plan.stages:
        assert set(plan.needs[key]) <= seen
        seen.add(key)


def test_where_and_how_fast_it_runs_is_no_part_of_the_key(tmp_path):
    first = make_plan(small_sweep(tmp_path / "a", eval_batch_size=8, workers=1))
    second = make_plan(small_sweep(tmp_path / "b", eval_batch_size=16, workers=2))
    assert list(first.stages) == list(second.stages)


def test_multiples_of_ranks_change_compressions_only(tmp_path):
    """And 1, the default on every device, changes no key: finished stages of older sweeps stay valid."""
    plain, explicit = make_plan(small_sweep(tmp_path)), make_plan(small_sweep(tmp_path, rank_multiple=1))
    aligned = make_plan(small_sweep(tmp_path, rank_multiple=8))
    assert list(plain.stages) == list(explicit.stages)
    assert not any("rank_multiple" in stage.spec.hashed() for stage in plain.stages.values())
    shared = Counter(plain.stages[key].kind for key in set(plain.stages) & set(aligned.stages))
    assert shared == {"finetune": 1, "fit": 2, "evaluate": 1}
    changed = [stage for key, stage in aligned.stages.items() if key not in plain.stages and stage.kind == "compress"]
    assert [stage.spec.rank_multiple for stage in changed] == [8] * 6
    assert [_options(plan, plan.cells[-1]).get("rank_multiple") for plan in (plain, aligned)] == [None, 8]
    assert all(rank % 8 == 0 for allocation in aligned.allocations.values() for rank in allocation.ranks.values())


def test_a_new_version_of_a_policy_is_compressed_again_and_fitted_once(tmp_path, monkeypatch):
    """And version 1, which most have, changes no key."""
    before = make_plan(small_sweep(tmp_path, methods=["svd", "fwsvd"]))
    assert not any("versions" in stage.spec.hashed() for stage in before.stages.values())
    monkeypatch.setattr(Uniform, "version", 3)
    after = make_plan(small_sweep(tmp_path, methods=["svd", "fwsvd"]))
    shared = Counter(before.stages[key].kind for key in set(before.stages) & set(after.stages))
    assert shared == {"finetune": 1, "fit": 2, "evaluate": 1}
    changed = [stage for stage in after.stages.values() if stage.kind == "compress"]
    assert changed
    assert all(stage.spec.hashed()["versions"] == {"uniform": 3} for stage in changed)
    assert create_method("laser").compress_versions() == {"laser": 2}


def test_multiples_out_of_reach_are_refused_before_work(tmp_path):
    sentence = r"with ranks in multiples of 64.* rank multiple, or factorise the token embedding .*embeddings=true\)$"
    with pytest.raises(UserError, match=sentence):
        make_plan(small_sweep(tmp_path, rank_multiple=64, ratios=[6]))
    with pytest.raises(UserError, match="rank_multiple cannot be 0"):
        small_sweep(tmp_path, rank_multiple=0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"seeds": [7]},
        {"finetune": {"steps": 3}},
        {"finetune": {"steps": 2, "learning_rate": 1e-4}},
        {"task": "toy-code"},
        {"save_dtype": "bfloat16"},
    ],
)
def test_what_changes_the_result_changes_the_key(tmp_path, change):
    first, second = make_plan(small_sweep(tmp_path)), make_plan(small_sweep(tmp_path, **change))
    assert not set(first.stages) & set(second.stages)


def test_models_in_folders_of_one_name_have_results_of_their_own(tmp_path):
    for parent, end in (("mA", ""), ("mB", " ")):
        folder = shutil.copytree(PRESETS["tiny"].source, tmp_path / parent / "ckpt")
        (folder / "config.json").write_text((folder / "config.json").read_text() + end)
    plans = [make_plan(small_sweep(tmp_path, model=str(tmp_path / parent / "ckpt"))) for parent in ("mA", "mB")]
    assert len({plan.name for plan in plans} | {plan.source.name for plan in plans}) == 4
    assert plans[0].name == f"ckpt-{plans[0].source.sha256[:8]}-toy-math"
    assert not set(plans[0].stages) & set(plans[1].stages)
    assert make_plan(small_sweep(tmp_path)).name == "tiny-toy-math"


@pytest.mark.parametrize("device", ["cuda:2", "cuda:x", "cudax", "tpu", "cuda:-1"])
def test_a_device_that_is_not_there_is_refused(monkeypatch, device):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert [pick_device(name) for name in ("auto", "cuda", "cuda:1", "cpu")] == ["cuda", "cuda", "cuda:1", "cpu"]
    with pytest.raises(UserError, match=rf"'{device}' is not there .there is cpu, cuda, cuda:0, cuda:1"):
        pick_device(device)


@pytest.mark.parametrize(
    "variable",
    ["NVIDIA_TF32_OVERRIDE", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE"],
)
def test_number_formats_of_the_environment_are_part_of_the_key(tmp_path, monkeypatch, variable):
    first = make_plan(small_sweep(tmp_path))
    monkeypatch.setenv(variable, "")
    assert list(make_plan(small_sweep(tmp_path)).stages) == list(first.stages)
    monkeypatch.setenv(variable, "1")
    second = make_plan(small_sweep(tmp_path))
    assert not set(first.stages) & set(second.stages)
    assert hardware().environment == {variable: "1"}
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    assert list(make_plan(small_sweep(tmp_path)).stages) == list(second.stages), "kernels are as a processor is"
    assert hardware().environment == {variable: "1", "MKL_CBWR": "COMPATIBLE"}
    monkeypatch.delenv(variable)
    stage = next(iter(second.stages.values()))
    with pytest.raises(UserError, match=rf"planned with {variable}=1.*this worker.*has no variable"):
        perform(stage, tmp_path)


def test_a_trajectory_compresses_all_ratios_in_one_stage(tmp_path):
    plan = make_plan(small_sweep(tmp_path, methods=["bs:trajectory=true"], ratios=[2, 3, 4]))
    assert kinds(plan) == {"finetune": 1, "fit": 1, "compress": 1, "recover": 3, "evaluate": 4}


def test_stages_of_no_steps_are_left_out(tmp_path):
    plan = make_plan(small_sweep(tmp_path, finetune={"steps": 0}, recover={"steps": 0}))
    assert kinds(plan) == {"fit": 2, "compress": 6, "evaluate": 7}
    assert {cell.state for cell in plan.cells} == {"finetuned", "compressed"}


def test_training_free_trains_nothing_and_asks_as_of_a_pretrained_model(tmp_path, data_dir):
    free = {"training_free": True, "finetune": {}, "recover": {}, "methods": ["svd", "fwsvd"]}
    plan = make_plan(small_sweep(tmp_path, **free))
    assert kinds(plan) == {"fit": 2, "compress": 4, "evaluate": 5}
    assert [cell.state for cell in plan.cells] == ["pretrained", *["compressed"] * 4]
    model = data_dir / "models" / "stories260K"
    plan = make_plan(small_sweep(tmp_path, model=str(model), benchmarks=["humaneval"], data=data_dir, **free))
    stages = {stage.settings.stage for stage in plan.stages.values() if stage.kind == "evaluate"}
    assert stages == {"pretrained"}


def test_each_context_is_a_stage_of_its_own(tmp_path, data_dir):
    changes = {"task": "commonsense", "data": data_dir, "benchmarks": ["wikitext2", "piqa"], "training_free": True}
    changes |= {"finetune": {}, "recover": {}, "methods": ["svd"], "ratios": [2]}
    plan = make_plan(small_sweep(tmp_path, context=[64, 128], **changes))
    assert kinds(plan) == {"fit": 1, "compress": 1, "evaluate": 8}
    windows = {"wikitext2@64", "wikitext2@128"}
    assert set(plan.cells[0].evaluations) == {*windows, *(f"{name}-no-bos" for name in windows), "piqa"}
    assert set(plan.cells[1].evaluations) == {*windows, "piqa"}
    variants = {plan.stages[key].spec.variant for key in plan.cells[1].evaluations.values()}
    assert variants == {"wikitext2-test-64-bos", "wikitext2-test-128-bos", "piqa-0shot"}


def test_language_shows_the_pretrained_model(tmp_path, data_dir):
    plan = make_plan(small_sweep(tmp_path, task="language", data=data_dir))
    assert [cell.state for cell in plan.cells[:2]] == ["pretrained", "finetuned"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "tinny"}, "did you mean 'tiny'"),
        ({"model": "someone/some-model"}, "--revision"),
        ({"model": "."}, "config.json is missing"),
        ({"task": "toy-maths"}, "did you mean 'toy-math'"),
        ({"methods": ["svdd"]}, "did you mean 'svd'"),
        ({"methods": ["bs:pruning=3"]}, "did you mean 'prunings'"),
        ({"methods": ["bs:prunings=none"]}, "prunings"),
        ({"benchmarks": ["gsm8"]}, "did you mean 'gsm8k'"),
        ({"engine": "transformer"}, "did you mean 'transformers'"),
        ({"recipe": "papers"}, "did you mean 'paper'"),
        ({"ratios": [1000]}, "ask for at most"),
        ({"device": "cuda:99"}, "--device cpu"),
        ({"train_set": "gsm8k"}, "allowed: generated"),
        ({"context": [128]}, "none of toy-math is one"),
        ({"context": [128, 128]}, "given twice"),
        ({"context": [1]}, "predicts nothing"),
        ({"training_free": True}, "leave one of them out"),
        ({"training_free": True, "finetune": {}, "recover": {}}, "method 'bs' trains"),
        ({"data": "nowhere"}, "does not exist"),
    ],
)
def test_wrong_input_is_found_before_anything_is_written(tmp_path, change, words):
    with pytest.raises(UserError, match=words) as error:
        make_plan(small_sweep(tmp_path / "out", **change))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_missing_and_corrupt_data_are_named(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    with pytest.raises(UserError, match="gsm8k"):
        make_plan(small_sweep(tmp_path / "out", task="math", data=tmp_path))
    (tmp_path / "gsm8k" / "train.jsonl").write_text('{"question": "x"')
    with pytest.raises(UserError, match=r"train\.jsonl"):
        make_plan(small_sweep(tmp_path / "out", task="math", data=tmp_path))


def test_paper_recipe_is_the_authors():
    paper = RECIPES["paper"]
    assert (paper.finetune.learning_rate, paper.finetune.batch_size, paper.finetune.warmup) == (2e-5, 128, 0.03)
    assert (paper.finetune.epochs, paper.recover.epochs, paper.finetune.weight_decay) == (3, 6, 0)
    bs = create_method("bs")
    assert (bs.prunings, bs.additional_dimension, bs.new_vectors) == (100, 32, "zero")
    assert (bs.keep_epochs, bs.prune_epochs, bs.post_epochs) == (1, 2, 3)


def test_quick_recipe_is_the_papers_on_fewer_examples(tmp_path, data_dir):
    paper, quick = RECIPES["paper"], RECIPES["quick"]
    assert (quick.finetune, quick.recover, quick.dtype) == (paper.finetune, paper.recover, paper.dtype)
    assert quick.train_set("math", None) == "gsm8k+math"
    assert quick.train_set("math", "gsm8k") == "gsm8k"
    assert quick.train_set("code", None) is None
    changes = {"task": "math", "data": data_dir, "pretrained": False, "finetune": {}, "recover": {}}
    plan = make_plan(small_sweep(tmp_path, recipe="quick", methods=["svd", "fwsvd", "bs"], **changes))
    trained = [stage for stage in plan.stages.values() if stage.train]
    assert all(stage.execution.train_set == "gsm8k+math" for stage in trained)
    # One budget for all: whoever trains while compressing gets the same settings as the others' recovery.
    after = [stage.train for stage in trained if stage.kind != "finetune"]
    assert len(after) > 3
    assert all(settings == quick.recover for settings in after)
    assert {getattr(stage.spec, "extra_pruning_steps", 0) for stage in trained} == {0}


@pytest.mark.parametrize(
    ("device", "asked", "optimizer"),
    [
        ("cpu", {}, "adamw_torch"),
        ("cuda", {}, "adamw_torch_fused"),
        ("cuda:1", {}, "adamw_torch_fused"),
        ("cuda", {"optimizer": "adamw_torch"}, "adamw_torch"),
        ("cuda", {"optimizer": "adafactor"}, "adafactor"),
        ("cpu", {"optimizer": "adamw_torch_fused"}, "adamw_torch_fused"),
    ],
)
def test_the_key_names_the_optimizer_that_runs_on_the_device(tmp_path, monkeypatch, device, asked, optimizer):
    monkeypatch.setattr("lowrank_bench.runners.plan.pick_device", lambda name: device)
    monkeypatch.setattr("lowrank_bench.runners.graph.measure_machine", lambda device: assume_machine("h100:1"))
    changes = {"finetune": {"steps": 2} | asked, "recover": {"steps": 2} | asked, "methods": ["svd", "bs"]}
    plan = make_plan(small_sweep(tmp_path, engine="transformers", **changes))
    trained = [stage for stage in plan.stages.values() if stage.train]
    assert {stage.kind for stage in trained} == {"finetune", "compress", "recover"}
    assert {stage.train.optimizer for stage in trained} == {optimizer}


@pytest.mark.parametrize("kind", ["instruction", "language"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_a_gpu_changes_nothing_but_the_optimizers_kernel(recipe, kind):
    for on_cpu, on_gpu in zip(recipe.for_kind(kind), recipe.for_kind(kind, "cuda"), strict=True):
        assert on_gpu == on_cpu.model_copy(update={"optimizer": "adamw_torch_fused"})


@pytest.mark.parametrize("command", [run, compress])
def test_help_names_every_recipe(command):
    option = get_type_hints(command, include_extras=True)["recipe"].__metadata__[0]
    assert all(name in option.help for name in [*RECIPES, "auto"])


def test_epochs_override_a_recipes_steps():
    assert merge_settings(TrainSettings(steps=200), {"epochs": 2.0, "steps": None}).steps is None
    assert merge_settings(TrainSettings(steps=200), {"steps": 5}).steps == 5


def test_label_is_what_was_typed():
    assert parse_method("bs:prunings=2").shown == "bs:prunings=2"


def test_a_benchmark_that_cannot_measure_the_model_is_refused_before_any_work(tmp_path, data_dir):
    changes = {"task": "math", "benchmarks": ["gsm8k"], "data": data_dir}
    make_plan(small_sweep(tmp_path, **changes, pretrained=False))
    for refused in ({"pretrained": True}, {"training_free": True, "finetune": {}, "recover": {}, "methods": ["svd"]}):
        with pytest.raises(UserError, match=r"no prompt of 'gsm8k' fits this model: the shortest has \d+ tokens"):
            make_plan(small_sweep(tmp_path, **changes, **refused))
    assert not list(tmp_path.iterdir())


def test_windows_with_bos_are_stages_of_their_own(tmp_path, data_dir):
    changes = {"task": "language", "data": data_dir, "benchmarks": ["wikitext2", "tinystories"]}
    never, auto, both = (make_plan(small_sweep(tmp_path, **changes, bos=b)) for b in ("never", ["auto"], "never,auto"))
    assert "leave out --bos never" in " ".join(plan_warnings(never))
    assert "--bos" not in " ".join(plan_warnings(auto) + plan_warnings(both))
    plain, with_bos = "wikitext2-test-2048", "wikitext2-test-2048-bos"
    for plan, compressed, uncompressed in (
        (never, {plain}, {plain}),
        (auto, {with_bos}, {plain, with_bos}),  # readers compare with numbers of GPTQ's recipe
        (both, {plain, with_bos}, {plain, with_bos}),
    ):
        for cell in plan.cells:
            variants = {plan.stages[key].spec.variant for key in cell.evaluations.values()}
            expected = uncompressed if cell.method.name == "none" else compressed
            assert variants == expected | {"tinystories-40-bos-512"}
    assert set(auto.cells[0].evaluations) == {"wikitext2", "wikitext2@no-bos", "tinystories"}
    assert set(both.cells[0].evaluations) == {"wikitext2", "wikitext2@bos", "tinystories"}
    shared = {key for plan in (never, auto) for key, stage in plan.stages.items() if stage.kind == "evaluate"}
    assert shared == {key for key, stage in both.stages.items() if stage.kind == "evaluate"}


@pytest.mark.parametrize(
    ("bos", "words"),
    [("allways", "unknown BOS rule 'allways'; did you mean 'always'"), ("never,never", "'?BOS rule never'? is given"),
     ([], "bos is empty; write one value")],
)  # fmt: skip
def test_rules_of_bos_that_are_none(tmp_path, bos, words):
    with pytest.raises(UserError, match=words):
        small_sweep(tmp_path, bos=bos)
