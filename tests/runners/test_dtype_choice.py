"""Where a CPU would emulate bfloat16, evaluations compute in float32, unless the user names a dtype."""

import json
from types import MappingProxyType

import pytest
import torch
from safetensors.torch import load_file

from lowrank_bench.foundation.processor import native_bfloat16
from lowrank_bench.models.architectures import random_model
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.loading import load_tokenizer
from lowrank_bench.models.presets import resolve_model
from lowrank_bench.runners.choices import DtypeChoice, pick_calibration_dtype, pick_dtype
from lowrank_bench.runners.collect import _options
from lowrank_bench.runners.compressing import CompressRequest, compress
from lowrank_bench.runners.compression_note import FILE
from lowrank_bench.runners.config import make_config, nest
from lowrank_bench.runners.estimates.machine import assume_machine
from lowrank_bench.runners.evaluating import default_settings, evaluate
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.sweep import plan_warnings

OLD = {"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}
NEW = OLD | {"amx_bf16": True}


@pytest.fixture
def cpu(monkeypatch):
    def be(capabilities):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(capabilities))

    return be


@pytest.mark.parametrize(
    ("capabilities", "native"),
    [
        (OLD, False),
        (NEW, True),
        (OLD | {"avx512_bf16": True}, True),
        ({"architecture": "arm64", "neon": True}, False),
        ({"architecture": "arm64", "bf16": True}, True),
        ({}, False),
    ],
)
def test_the_cpu_says_what_it_has(capabilities, native, cpu):
    cpu(capabilities)
    assert native_bfloat16() is native


@pytest.mark.parametrize(
    ("asked", "default", "device", "expected"),
    [
        (None, "bfloat16", "cpu", "float32"),
        ("bfloat16", "bfloat16", "cpu", "bfloat16"),
        (None, "bfloat16", "cuda", "bfloat16"),
        (None, "float16", "cpu", "float16"),
        (None, "float32", "cpu", "float32"),
    ],
)
def test_an_explicit_dtype_and_a_gpu_are_respected(asked, default, device, expected, cpu):
    cpu(OLD)
    chosen = pick_dtype(asked, default, device)
    assert chosen.dtype == expected
    assert bool(chosen.why) is (expected != (asked or default))
    cpu(NEW)
    assert pick_dtype(asked, default, device).dtype == (asked or default)


def planned(out, assumed=None, **more):
    values = {"model": "tiny", "task": "toy-math", "methods": ("svd",), "ratios": (2.0,), "recipe": "paper", "out": out}
    return make_plan(make_config(nest(values | {"training_free": True} | more)), assumed, dry=assumed is not None)


def evaluations(plan):
    return [stage for stage in plan.stages.values() if stage.kind == "evaluate"]


def test_a_sweep_decides_once_and_hashes_what_is_used(tmp_path, cpu):
    cpu(OLD)
    plan = planned(tmp_path)
    [note] = [note for note in plan_warnings(plan) if "AVX512-BF16" in note]
    assert "float32" in note
    assert "--dtype bfloat16" in note
    assert {stage.spec.dtype for stage in evaluations(plan)} == {"float32"}
    assert {stage.execution.stored()["dtype_why"] for stage in evaluations(plan)} == {plan.dtype_note}
    asked = planned(tmp_path, dtype="float32")
    assert [stage.key for stage in evaluations(asked)] == [stage.key for stage in evaluations(plan)]
    assert "dtype_why" not in evaluations(asked)[0].execution.stored()
    cpu(NEW)
    native = planned(tmp_path)
    assert {stage.spec.dtype for stage in evaluations(native)} == {"bfloat16"}
    assert not native.dtype_note


def fits(plan):
    return {stage.execution.method: stage for stage in plan.stages.values() if stage.kind == "fit"}


def test_on_a_gpu_statistics_are_gathered_in_bfloat16_and_the_key_says_so(tmp_path):
    """The weights of the built-in model are stored in bfloat16. Keys on a CPU are what they were."""
    methods, gpu = ("svd", "svd-llm", "fwsvd"), assume_machine("h100:1")
    plan, on_cpu = planned(tmp_path, gpu, methods=methods), planned(tmp_path, methods=methods)
    assert {name: fit.spec.calibration_dtype for name, fit in fits(plan).items()} == {
        "svd": "float32", "svd-llm": "bfloat16", "fwsvd": "bfloat16",
    }  # fmt: skip
    assert not any("calibration_dtype" in fit.spec.hashed() for fit in fits(on_cpu).values())
    assert fits(plan)["fwsvd"].spec.hashed()["calibration_dtype"] == "bfloat16"
    assert fits(plan)["fwsvd"].execution.stored()["calibration_why"] == plan.calibration_note
    [note] = [note for note in plan_warnings(plan) if "--calibration-dtype float32" in note]
    assert "16 bits" in note
    assert not on_cpu.calibration_note
    compressed = [cell for cell in plan.cells if "fit" in cell.stages]
    options = {cell.method.name: _options(plan, cell).get("calibration_dtype") for cell in compressed}
    assert options == {"svd": None, "svd-llm": "bfloat16", "fwsvd": "bfloat16"}


def test_a_dtype_of_calibration_that_is_named_is_taken(tmp_path):
    gpu = assume_machine("h100:1")
    wide = planned(tmp_path, gpu, methods=("svd-llm",), calibration_dtype="float32")
    auto = planned(tmp_path, gpu, methods=("svd-llm",))
    assert "calibration_dtype" not in fits(wide)["svd-llm"].spec.hashed()
    assert fits(wide)["svd-llm"].key != fits(auto)["svd-llm"].key
    narrow = planned(tmp_path, methods=("svd-llm",), calibration_dtype="bfloat16")
    assert fits(narrow)["svd-llm"].spec.calibration_dtype == "bfloat16"
    assert "calibration_why" not in fits(narrow)["svd-llm"].execution.stored()


@pytest.mark.parametrize(
    ("stored", "device", "expected"),
    [
        ("bfloat16", "cuda", "bfloat16"),
        ("float16", "cuda:1", "bfloat16"),  # Llama 2; trainings and evaluations of it are in bfloat16 too
        ("float32", "cuda", "float32"),
        ("bfloat16", "cpu", "float32"),
    ],
)
def test_the_dtype_of_calibration_follows_weights_and_device(stored, device, expected):
    chosen = pick_calibration_dtype("auto", stored, device)
    assert chosen.dtype == expected
    assert bool(chosen.why) is (expected == "bfloat16")
    assert pick_calibration_dtype("float32", stored, device) == DtypeChoice("float32")


def test_weights_that_a_finetuning_saves_in_float32_are_read_in_float32(tmp_path):
    trained = {"training_free": False, "finetune": {"steps": 1}, "recover": {"steps": 1}, "methods": ("svd-llm",)}
    gpu = assume_machine("h100:1")
    assert fits(planned(tmp_path, gpu, **trained))["svd-llm"].spec.calibration_dtype == "bfloat16"
    wide = planned(tmp_path, gpu, **trained, save_dtype="float32")
    assert fits(wide)["svd-llm"].spec.calibration_dtype == "float32"


def test_a_fit_computes_in_the_dtype_of_its_key(tmp_path):
    """The stage itself, on a CPU: other statistics than in float32, and the record says so."""
    records = {}
    for dtype in ("float32", "bfloat16"):
        request = CompressRequest(
            "tiny", "svd-llm:samples=4", 2.0, tmp_path / dtype, task="toy-math", calibration_dtype=dtype
        )
        compress(request)
        records[dtype] = json.loads((tmp_path / dtype / FILE).read_text())
        assert records[dtype]["calibration_dtype"] == dtype
    first, second = (load_file(tmp_path / dtype / "model.safetensors") for dtype in records)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_a_cluster_and_an_assumed_machine(tmp_path, cpu):
    cpu(OLD)
    assert "all nodes" in planned(tmp_path, executor="ray").dtype_note
    assumed = planned(tmp_path, assume_machine("h100:1"))
    assert (assumed.dtype, assumed.dtype_note) == ("bfloat16", "")


@pytest.mark.parametrize(("dtype", "computed"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_one_evaluation_takes_it_from_the_checkpoint(dtype, computed, tmp_path, cpu):
    cpu(OLD)
    tokenizer = load_tokenizer(resolve_model("tiny").location)
    model = random_model("llama").bfloat16()
    model.resize_token_embeddings(len(tokenizer))
    model.config.dtype, model.config.max_position_embeddings = torch.bfloat16, 256
    save_checkpoint(model, tokenizer, tmp_path / "model")
    done = evaluate(
        str(tmp_path / "model"),
        ["toy-math"],
        default_settings(limit=1, max_new_tokens=4),
        engine="transformers",
        dtype=dtype,
        out=tmp_path / "out",
    )
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert record["dtype"] == computed
    assert ("AMX-BF16" in done.dtype_note) is (dtype == "auto")
    assert record.get("dtype_why", "") == done.dtype_note
