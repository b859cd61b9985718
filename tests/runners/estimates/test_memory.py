"""When a model is read layer by layer, what is estimated, and that results do not depend on it."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from sweeps import small_sweep
from torch import nn
from transformers import LlamaConfig
from typed_stages import DATA, fit_stage

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.matrixwise import MatrixCompressor
from lowrank_bench.methods.memory import Calibration, Peak, fit_peak
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.models.architectures import random_model
from lowrank_bench.models.checkpoint import save_checkpoint
from lowrank_bench.models.loading import load_skeleton
from lowrank_bench.models.matrices import model_size
from lowrank_bench.models.presets import resolve_model
from lowrank_bench.runners.compressing import CompressRequest, compress, estimate_compression
from lowrank_bench.runners.config import MethodSpec, parse_method
from lowrank_bench.runners.estimates import memory as memory_estimates
from lowrank_bench.runners.estimates import stage_peaks
from lowrank_bench.runners.estimates.memory import (
    LoadMode,
    calibration,
    compress_mode,
    fit_mode,
    larger,
    load_modes,
    read_length,
)
from lowrank_bench.runners.estimates.stage_peaks import check_training
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.stages.perform import perform
from lowrank_bench.runners.store.folders import StageStore
from lowrank_bench.runners.training.data import example_length
from lowrank_bench.runners.training.memory import TrainingPeak
from lowrank_bench.runners.training.settings import TrainSettings

TINY = resolve_model("tiny")
WHOLE_NEEDS = {"svd": (True, True), "swsd": (True, False), "laser": (False, True), "bs": (True, False)}


def modes(name: str, memory: str, model: Any = None, location: str = "") -> tuple[LoadMode, LoadMode]:
    """Return how fit and compress get at a model."""
    skeleton = model or load_skeleton(TINY.location)
    source = (location or TINY.location, "", memory, "cpu")
    method = create_method(name)
    return fit_mode(method, skeleton, *source), compress_mode(method, skeleton, *source)


@pytest.mark.parametrize("name", WHOLE_NEEDS)
def test_models_are_read_layer_by_layer_where_one_layer_is_enough(name: str) -> None:
    """Not where a policy measures or asks the whole model, nor where the method trains; small models not at all."""
    assert not any(mode.layerwise or mode.why for mode in modes(name, "auto"))
    assert not any(mode.layerwise for mode in modes(name, "whole"))
    method, skeleton = create_method(name), load_skeleton(TINY.location)
    for choose, able in zip((fit_mode, compress_mode), WHOLE_NEEDS[name], strict=True):
        if able:
            assert choose(method, skeleton, TINY.location, "", "layerwise", "cpu").layerwise
        else:
            with pytest.raises(UserError, match="--memory whole"):
                choose(method, skeleton, TINY.location, "", "layerwise", "cpu")


def test_a_large_model_is_read_layer_by_layer_unless_it_cannot_be(tmp_path: Path) -> None:
    """By its size alone, or whole with the reason."""
    large = load_skeleton(TINY.location)
    large.more = nn.Embedding(10_000, 6_000, device="meta")  # parameters that only count
    fit, compress = modes("svd", "auto", large)
    assert fit.layerwise
    assert compress.layerwise
    fit, compress = modes("bs", "auto", large)
    assert fit.layerwise
    assert not compress.layerwise
    assert "trains" in compress.why
    model = random_model("llama")
    method = create_method("svd")
    save_checkpoint(model, None, tmp_path / "dense")
    fitted = method.fit(model, None)
    method.compress(model, fitted, Budget(2.0))
    save_checkpoint(model, None, tmp_path / "small")
    fit, _ = modes("svd", "auto", large, str(tmp_path / "small"))
    assert not fit.layerwise
    assert "factorised already" in fit.why


def test_too_much_is_refused_and_a_rough_excess_reported() -> None:
    """What is certain and does not fit is an error that says what to do; an estimate is a warning."""
    huge = 1 << 60
    assert LoadMode(True, "", Peak(1, 0, 1)).check("fit", "cpu") == []
    [warning] = LoadMode(True, "", Peak(huge, 0, 1)).check("fit of svd", "cpu")
    assert "fit of svd may need" in warning
    with pytest.raises(UserError, match=r"needs at least .* use --memory layerwise, head=false"):
        LoadMode(False, "", Peak(huge, 0, huge)).check("fit", "cpu")
    with pytest.raises(UserError, match=r"loaded whole because it is odd"):
        LoadMode(False, "it is odd", Peak(huge, 0, huge)).check("fit", "cpu")


def test_the_host_is_checked_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Statistics, buffers and offloaded moments wait in the host's memory, which may be the smaller one."""
    for module in (memory_estimates, stage_peaks):
        monkeypatch.setattr(module, "free_memory", lambda device="cpu": 80 << 30 if device == "cuda" else 32 << 30)
    assert LoadMode(True, "", Peak(20 << 30, 60 << 30, 1)).check("fit of io-svd", "cuda") == []
    [warning] = LoadMode(True, "", Peak(90 << 30, 60 << 30, 1, usual=40 << 30)).check("fit of io-svd", "cuda")
    assert "fit of io-svd may need 40.0 GiB of the host's memory beside the GPU's, but 32.0 GiB are free" in warning
    settings = TrainSettings(steps=1)
    assert check_training(TrainingPeak(60 << 30, 30 << 30), "finetune", settings, "cuda") == ""
    message = check_training(TrainingPeak(60 << 30, 70 << 30), "finetune", settings, "cuda")
    assert "finetune may need 70.0 GiB of the host's memory" in message
    both = check_training(TrainingPeak(90 << 30, 70 << 30), "finetune", settings, "cuda")
    assert "90.0 GiB at its peak" in both
    assert "70.0 GiB of the host's" in both
    on_cpu = TrainingPeak(20 << 30, 70 << 30, on_cpu=True)  # of several processes together, which see one another
    assert check_training(on_cpu, "finetune", settings, "cpu") == ""


def test_autocast_holds_weights_in_16_bits_for_the_backward_pass() -> None:
    skeleton = load_skeleton(TINY.location)
    parameters = model_size(skeleton).parameters
    for name, copies in (("svd-llm", 0), ("fwsvd", 2 * parameters)):
        method = create_method(name)
        assert isinstance(method, MatrixCompressor)
        wide, narrow = (
            fit_peak(method, skeleton, False, "cuda", Calibration(64, 8, 256, autocast)) for autocast in (False, True)
        )
        assert narrow.device - wide.device == copies


def test_compress_rounds_ranks_to_multiples(tmp_path: Path) -> None:
    """bench compress --rank-multiple: all ranks, the whole model not above its target, and the record says it."""
    request = CompressRequest(str(TINY.location), parse_method("svd"), 2.0, tmp_path / "out", rank_multiple=16)
    report = compress(request).report
    assert set(report.ranks.values()) <= set(range(16, 1024, 16))
    assert report.ratio >= 2
    record = json.loads((tmp_path / "out" / "compression.json").read_text())
    assert record["rank_multiple"] == 16
    with pytest.raises(UserError, match="the rank multiple 0 is not usable"):
        compress(CompressRequest(str(TINY.location), parse_method("svd"), 2.0, tmp_path / "no", rank_multiple=0))
    assert not (tmp_path / "no").exists()


def test_compress_gives_the_same_either_way(tmp_path: Path) -> None:
    """bench compress: the same weights, report and list of what stays dense; memory estimated and measured."""
    written = {}
    for memory in ("layerwise", "whole"):
        out = tmp_path / memory
        request = CompressRequest(
            str(TINY.location),
            parse_method("fwsvd:samples=8"),
            2.0,
            out,
            "toy-math",
            save_dtype="bfloat16",
            memory=memory,
        )
        _, rows, _ = estimate_compression(request)
        assert [row[0] for row in rows] == ["fit", "compress"]
        assert {row[1] for row in rows} == {"layer by layer" if memory == "layerwise" else "whole"}
        assert not out.exists()
        compress(request)
        record = json.loads((out / "compression.json").read_text())
        used = record.pop("memory")
        assert used["fit"]["load"] == memory
        assert 0 < used["peak_bytes"] < 4 * used["fit"]["predicted_peak_bytes"]
        record.pop("provenance")
        files = {file.name: file.read_bytes() for file in out.glob("*.json") if file.name != "compression.json"}
        tensors = {name: value.view(-1).tolist() for name, value in load_file(out / "model.safetensors").items()}
        written[memory] = record, files, tensors
        assert not [file for file in out.iterdir() if file.name.startswith(".")]
    assert written["layerwise"] == written["whole"]


def test_stages_give_the_same_either_way(tmp_path: Path) -> None:
    """The same keys, the same files; the record says which, what was estimated and what it took."""
    records = {}
    for memory in ("layerwise", "whole"):
        untrained = {"training_free": True, "finetune": {}, "recover": {}}
        config = small_sweep(tmp_path / memory, methods=["svd-llm:samples=8"], ratios=[2], memory=memory, **untrained)
        plan = make_plan(config)
        store = StageStore(tmp_path / memory / "stages")
        stages = {key: stage for key, stage in plan.stages.items() if stage.kind in ("fit", "compress")}
        for stage in stages.values():
            store.run(stage, lambda folder, stage=stage: perform(stage, folder))
        records[memory] = {key: store.read(key) for key in stages}
    layerwise, whole = records["layerwise"], records["whole"]
    assert layerwise.keys() == whole.keys()
    for key, record in layerwise.items():
        assert record["result"]["memory"]["load"] == "layerwise"
        assert whole[key]["result"]["memory"]["load"] == "whole"
        assert record["result"]["memory"]["predicted_peak_bytes"] > 0
        assert record["peak_memory_bytes"] > 0
        names = [name for name in record["files"] if name.endswith(".json") or "factors" in name]
        assert names
        assert {n: record["sha256"][n] for n in names} == {n: whole[key]["sha256"][n] for n in names}


def test_unknown_ways_are_refused() -> None:
    """With what is allowed."""
    request = CompressRequest(str(TINY.location), MethodSpec(name="svd"), 2.0, Path("unused"))
    with pytest.raises(UserError, match="layerwise"):
        estimate_compression(replace(request, memory="wak"))


LONG = 32768


@pytest.mark.parametrize(
    ("task", "method", "max_length", "expected"),
    [
        ("toy-math", "svd-llm", None, 256),
        ("language-c4", "svd-llm", None, 1024),
        ("language-c4", "svd-llm:length=4096", None, 4096),
        ("toy-math", "svd-llm:length=100000", None, LONG),
        ("toy-math", "svd-llm", 64, 64),
        ("toy-math", "svd-llm:calibration=toy-code", None, 256),
    ],
)
def test_calibration_is_estimated_at_the_length_that_is_read(
    task: str, method: str, max_length: int | None, expected: int
) -> None:
    """Of a model of 32k tokens of context: the task's own length, not the context."""
    skeleton = SimpleNamespace(config=LlamaConfig(max_position_embeddings=LONG))
    spec = parse_method(method)
    compressor = create_method(spec.name, spec.options)
    name = compressor.requirements.calibration_task or task
    length = compressor.requirements.calibration_length or max_length
    stage = fit_stage(data=DATA.model_copy(update={"task": name, "max_length": length}))
    assert calibration(compressor, skeleton, read_length(stage)).length == expected
    assert read_length(fit_stage()) is None


def test_where_nobody_says_a_length_it_is_2048_or_the_context() -> None:
    skeleton, method = SimpleNamespace(config=LlamaConfig(max_position_embeddings=LONG)), create_method("svd-llm")
    assert calibration(method, skeleton, None).length == 2048
    skeleton.config.max_position_embeddings = 512
    assert calibration(method, skeleton, None).length == 512
    assert example_length("toy-math", None, 100) == 100


def test_the_length_is_in_the_record(tmp_path: Path) -> None:
    request = CompressRequest(str(TINY.location), parse_method("svd-llm:samples=8"), 2.0, tmp_path / "out", "toy-math")
    compress(request)
    assert json.loads((tmp_path / "out" / "compression.json").read_text())["calibration_length"] == 256


@given(peaks=st.lists(st.none() | st.integers(0, 1 << 40), min_size=1, max_size=5))
def test_of_stages_with_one_name_the_largest_is_shown(peaks: list[int | None]) -> None:
    shown = None
    for host in peaks:
        shown = larger(shown, LoadMode(True, "", None if host is None else Peak(host, 0, 1)))
    assert shown is not None
    if None not in peaks:
        assert shown.peak == Peak(max(peak for peak in peaks if peak is not None), 0, 1)


def test_a_plan_shows_the_fit_that_takes_most_whatever_the_order(tmp_path: Path) -> None:
    """svd-llm and zs-svd share the name of their factors; zs-svd's fit holds gradients of all weights beside."""
    shown = []
    for methods_asked in (["svd-llm"], ["zs-svd"], ["svd-llm", "zs-svd"], ["zs-svd", "svd-llm"]):
        config = small_sweep(tmp_path, methods=methods_asked)
        peak = load_modes(make_plan(config))["fit whitened"].peak
        assert peak is not None
        shown.append(peak.host)
    assert shown[0] < shown[1] == shown[2] == shown[3]
