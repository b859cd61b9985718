"""Plans for machines that are not here: no GPU, no hub, no data; and what they say."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from sweeps import small_sweep
from transformers import CONFIG_MAPPING
from typer.testing import CliRunner

from lowrank_bench.cli import app
from lowrank_bench.evals.base import EvalSettings, benchmarks
from lowrank_bench.evals.tasks.base import built_in_tasks, get_task
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models import hub, pass_memory
from lowrank_bench.models.footprint import Footprint
from lowrank_bench.models.known_shapes import SHAPES, check_preset, known_skeleton
from lowrank_bench.models.matrices import model_size
from lowrank_bench.models.presets import PRESETS, resolve_model
from lowrank_bench.runners.config import make_config
from lowrank_bench.runners.estimates import at_hand, machine
from lowrank_bench.runners.estimates.assumptions import BENCHMARKS, PEAK_FLOPS, TRAINING_SETS, TRAINING_SHARE
from lowrank_bench.runners.estimates.machine import CARDS, Machine, assume_machine
from lowrank_bench.runners.estimates.seconds import estimate
from lowrank_bench.runners.estimates.speeds import Speeds
from lowrank_bench.runners.estimates.verdict import Demand, evaluation_demands, judge
from lowrank_bench.runners.plan import make_plan

GIB = 2**30
PARAMETERS = {"llama2-7b": 6_738_415_616, "llama2-13b": 13_015_864_320}
SLOW = Speeds(1e6, 1e6, 1e6, 1e6, 1e6)


def no_gpu(*_: Any) -> Any:
    raise AssertionError("a plan for another machine asked torch for a GPU")


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return an empty folder on a machine without a GPU, a hub or data."""
    # torch itself asks whether there is one, when it makes the tensors without data that passes are counted with.
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for name in ("mem_get_info", "get_device_name", "_lazy_init"):
        monkeypatch.setattr(torch.cuda, name, no_gpu)
    monkeypatch.setattr(at_hand, "is_cached", lambda *_: False)
    monkeypatch.setattr(at_hand, "hub_answers", lambda: False)
    monkeypatch.setattr("socket.socket.connect", no_gpu)
    monkeypatch.delenv("LOWRANK_BENCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dry_run(model: str, task: str, card: str, *more: str) -> str:
    words = ["run", "--methods", "svd,fwsvd,bs", "--model", model, "--task", task, "--dry-run", "--assume", card, *more]
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, words)
    assert done.exit_code == 0, f"{done.output}{done.exception}"
    assert "guessed" not in done.output
    return done.output


@pytest.mark.parametrize(("card", "placed"), [("h100:1", ()), ("rtx4090:1", ()), ("h100:1", ("host-moments",))])
def test_a_plan_for_ray_counts_its_trainings(card: str, placed: tuple[str, ...], bare: Path) -> None:
    """No placement is chosen there, so that everything on the device is what has to fit, or what was named."""
    named = [word for placement in placed for word in ("--placement", placement)]
    shown = dry_run("llama2-7b", "math", card, "--executor", "ray", *named)
    (verdict,) = [line for line in shown.splitlines() if re.match(r"(fits|does not fit)[ :]", line)]
    if placed:
        assert verdict.startswith("fits 1 h100")
        assert "finetune llama2-7b" in verdict
    else:
        needed = re.match(
            r"does not fit: finetune llama2-7b .* needs ([\d.]+) GiB .* use --placement host-moments", verdict
        )
        assert needed is not None
        # Weights, gradients and moments alone are 16 bytes a parameter.
        assert float(needed[1]) * GIB > 16 * PARAMETERS["llama2-7b"]
        assert needed[1] in next(line.split() for line in shown.splitlines() if line.startswith("finetune llama2-7b"))
    rows = [
        line.split()
        for line in shown.splitlines()
        if line.startswith(("finetune llama2-7b", "recover svd", "compress bs"))
    ]
    assert {row[2] for row in rows} == set(placed or ["device"])
    assert len(rows) == 3


def test_a_dry_run_says_that_activations_are_guessed(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no value in a tensor without data")

    monkeypatch.setattr(pass_memory, "_known", {})
    monkeypatch.setattr(pass_memory, "remembered", fail)
    words = ["run", "--methods", "svd", "--model", "llama2-7b", "--task", "math", "--dry-run", "--assume", "h100:1"]
    shown = CliRunner(env={"COLUMNS": "200"}).invoke(app, words).output
    assert "note on the memory of trainings: activations are guessed from the linear layers" in shown


def test_a_run_by_ray_is_not_judged_by_this_machine(tmp_path: Path) -> None:
    assert make_plan(small_sweep(tmp_path, executor="ray")).trainings == {}
    assert make_plan(small_sweep(tmp_path, executor="ray"), dry=True).trainings


@pytest.mark.parametrize("card", ["h100:1", "h100:8", "rtx4090:1"])
@pytest.mark.parametrize("model", ["llama2-7b", "llama2-13b"])
def test_the_headline_command_is_planned_for_a_machine_that_is_not_here(model: str, card: str, bare: Path) -> None:
    for task in ("math", "code"):
        shown = dry_run(model, task, card)
        verdict = [line for line in shown.splitlines() if re.match(r"(fits|does not fit)[ :]", line)]
        assert len(verdict) == 1
        assert "GiB" in verdict[0]
        assert verdict[0].startswith("does not fit: no placement of finetune") == (
            (model, card) in {("llama2-13b", "h100:1"), ("llama2-7b", "rtx4090:1"), ("llama2-13b", "rtx4090:1")}
        )
        assert re.search(r"about \d+\.\d h and at most [\d,]+ MB to go", shown)
        assert f"{PARAMETERS[model]:,} parameters" in shown
        assert "note: the hub was not asked for meta-llama/" in shown
    assert list(bare.iterdir()) == []


def test_a_ratio_that_is_out_of_reach_for_a_mixture_names_its_experts(bare: Path) -> None:
    """The experts are one tensor of three dimensions a layer: counted in the size, and no method factorises them."""
    asked = {"model": "mixtral-8x7b", "task": "math", "benchmarks": ["gsm8k"], "methods": ["svd"], "ratios": [2]}
    sentence = (
        rf"the ratio 2 is out of reach .*; methods factorise .* {32 * 8 * 3 * 4096 * 14336:,} of experts \(stored"
    )
    with pytest.raises(UserError, match=sentence):
        make_plan(small_sweep(bare / "out", **asked), assume_machine("h100:8"), dry=True)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--assume", "h100:1"], "--assume h100:1 plans for .*; add --dry-run, or leave it out to run"),
        (["--dry-run", "--assume", "h10:1"], "unknown card 'h10'; did you mean 'h100'"),
        (["--dry-run", "--assume", "h100:none"], "'h100:none' names no number of cards; write h100:COUNT"),
        (["--dry-run", "--assume", "h100:0"], "names no number of cards"),
        (["--dry-run", "--assume", ""], "unknown card ''.*h100, h200, a100, rtx4090"),
        (["--dry-run", "--assume", "h100:1", "--device", "cpu"], "--assume plans for GPUs, and --device cpu is none"),
    ],
)
def test_what_cannot_be_assumed_is_refused_in_a_sentence(words: list[str], message: str, bare: Path) -> None:
    sweep = ["run", "--methods", "svd", "--model", "llama2-7b", "--task", "math"]
    done = CliRunner().invoke(app, [*sweep, *words])
    assert isinstance(done.exception, UserError)
    assert re.search(message, str(done.exception))


def test_a_machine_is_a_card_and_a_number() -> None:
    single, eight = assume_machine("h100"), assume_machine("h100:8")
    assert (single.count, eight.count, eight.device, eight.assumed) == (1, 8, "cuda", True)
    assert eight.device_bytes == single.device_bytes == CARDS["h100"].memory
    assert eight.host_bytes == 8 * single.host_bytes


def test_gpus_are_measured_by_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    probed = machine.ProbedGpus("H100", [70 * GIB, 60 * GIB], 600e12)
    monkeypatch.setattr(machine, "probe_gpus", lambda device: probed)
    measured = machine.measure_machine("cuda")
    assert (measured.count, measured.device_bytes, measured.flops) == (2, 60 * GIB, 800e12)
    monkeypatch.undo()
    machine.probe_gpus.cache_clear()
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match=r"the GPU cannot be used .*see bench doctor, or use --device cpu"):
            machine.probe_gpus("cuda:0")


@pytest.mark.parametrize(
    ("hub_id", "parameters"),
    [
        ("meta-llama/Llama-2-7b-hf", 6_738_415_616),
        ("meta-llama/Llama-2-13b-hf", 13_015_864_320),
        ("huggyllama/llama-7b", 6_738_415_616),
        ("mistralai/Mistral-7B-v0.1", 7_241_732_096),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
        ("meta-llama/Llama-3.2-1B", 1_235_814_400),
        ("meta-llama/Llama-3.2-3B", 3_212_749_824),
        ("Qwen/Qwen2.5-0.5B", 494_032_768),
        ("Qwen/Qwen2.5-1.5B", 1_543_714_304),
        ("Qwen/Qwen2.5-7B", 7_615_616_512),
        ("Qwen/Qwen3-0.6B-Base", 596_049_920),
        ("Qwen/Qwen3-1.7B-Base", 1_720_574_976),
        ("Qwen/Qwen3-8B-Base", 8_190_735_360),
        ("google/gemma-3-270m", 268_098_176),
        ("google/gemma-3-1b-pt", 999_885_952),
        ("mistralai/Mistral-7B-v0.3", 7_248_023_552),
        ("microsoft/phi-4", 14_659_507_200),
        ("microsoft/Phi-4-mini-instruct", 3_836_021_760),
        ("HuggingFaceTB/SmolLM2-135M", 134_515_008),
        ("HuggingFaceTB/SmolLM2-360M", 361_821_120),
        ("HuggingFaceTB/SmolLM2-1.7B", 1_711_376_384),
        ("HuggingFaceTB/SmolLM3-3B-Base", 3_075_098_624),
        ("allenai/OLMo-2-0425-1B", 1_484_916_736),
        ("allenai/OLMo-2-1124-7B", 7_298_617_344),
        ("mistralai/Mixtral-8x7B-v0.1", 46_702_792_704),
        ("Qwen/Qwen3-30B-A3B-Base", 30_532_122_624),
    ],
)
def test_known_shapes_have_the_published_size(hub_id: str, parameters: int) -> None:
    """Totals of the hub's safetensors index, as public catalogues quote them (docs/models.md)."""
    assert model_size(known_skeleton(hub_id)).parameters == parameters


def test_every_preset_of_the_hub_carries_its_shapes() -> None:
    assert {preset.source for preset in PRESETS.values() if preset.revision} <= set(SHAPES)


def test_a_hub_configuration_that_differs_from_the_preset_is_refused() -> None:
    source = resolve_model("llama2-7b")
    shapes = dict(SHAPES[source.location])
    check_preset(source, CONFIG_MAPPING["llama"].from_dict(shapes))
    with pytest.raises(UserError, match="says max_position_embeddings 2048, and the preset 4096"):
        check_preset(source, CONFIG_MAPPING["llama"].from_dict(shapes | {"max_position_embeddings": 2048}))


def test_without_a_hub_an_unknown_model_is_refused_and_a_real_run_still_needs_it(
    bare: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = make_config(
        {"model": "a/b", "revision": "0" * 40, "task": "math", "methods": ["svd"], "execution": {"out": bare}}
    )
    with pytest.raises(UserError, match="the shapes of a/b are not on this machine and the hub cannot be reached"):
        make_plan(other, assume_machine("h100"), dry=True)
    monkeypatch.undo()
    monkeypatch.setattr(hub, "is_offline", lambda: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(bare))
    known = make_config(
        {"model": "llama2-7b", "task": "math", "methods": ["svd"], "execution": {"out": bare, "device": "cpu"}}
    )
    with pytest.raises(
        UserError, match=r"cannot load the model 'meta-llama/Llama-2-7b-hf' at .* HF_HUB_OFFLINE forbids"
    ):
        make_plan(known)


def test_published_sizes_are_those_of_the_data(data_dir: Path) -> None:
    for name, known in BENCHMARKS.items():
        if name != "hellaswag":  # local data have a sample of it
            assert len(benchmarks.get(name)().data(EvalSettings(data_dir=data_dir)).rows) == known.problems, name
    for task, source in (("math", "gsm8k+math"), ("code", "mbpp"), ("language-c4", "c4"), ("bias", "tinystories")):
        assert len(get_task(task).train_examples(source, data_dir, 42).examples) == TRAINING_SETS[source].examples
    built_in = [row.name for row in benchmarks.listings() if row.origin == "built in"]
    assert set(BENCHMARKS) == {name for name in built_in if not name.startswith("toy")}
    named = {source for name in built_in_tasks() for source in get_task(name).sources}
    assert set(TRAINING_SETS) == named - {"generated"}


def test_hours_follow_the_peak_the_tokens_and_the_gpus(bare: Path) -> None:
    config = make_config(
        {"model": "llama2-7b", "task": "math", "methods": ["svd"], "ratios": [2], "execution": {"out": bare}}
    )

    def finetune(card: str) -> float:
        plan = make_plan(config, assume_machine(card), dry=True)
        estimated = estimate(plan)
        return next(seconds for key, seconds in estimated.seconds.items() if plan.stages[key].kind == "finetune")

    operations = 8 * 6_738_415_616 * 3 * 3086 * 128 * 200
    assert finetune("h100:1") == pytest.approx(operations / (TRAINING_SHARE * PEAK_FLOPS), rel=0.03)
    assert finetune("h100:8") == pytest.approx(finetune("h100:1") / 8, rel=0.03)
    assert finetune("a100:4") == pytest.approx(finetune("h100:1") * 989 / 312 / 4, rel=0.03)


def test_an_estimate_follows_limits_and_lengths(tmp_path: Path) -> None:
    def seconds(**changes: Any) -> dict[str, float]:
        plan = make_plan(small_sweep(tmp_path, methods=["svd"], ratios=[2], device="cpu", **changes), dry=True)
        estimated = estimate(plan, SLOW)
        return {kind: together / count for kind, (count, together, _) in estimated.by_kind(plan).items()}

    few, many = seconds(limit=4), seconds(limit=40)
    assert many["evaluate"] - 2 == pytest.approx(10 * (few["evaluate"] - 2), rel=0.2)
    assert seconds(recover={"steps": 8})["recover"] - 2 == pytest.approx(2 * (few["recover"] - 2), rel=0.01)


def test_a_verdict_looks_at_the_gpu_and_at_the_host() -> None:
    here = Machine("1 card", "cuda", 1, 80 * GIB, 64 * GIB)
    small, large = Demand("fit", 10 * GIB, 2 * GIB, "less"), Demand("finetune", 70 * GIB, 77 * GIB, "more")
    assert judge(here, [small]).startswith("fits 1 card by formula: at most 10.0 of 80.0 GiB of a GPU (fit) and 2.0 of")
    assert judge(here, [small, large]) == (
        "does not fit: finetune needs 77.0 GiB of host memory, and 1 card has 64.0; use more"
    )
    assert judge(here, [small], ["no placement of training fits"]) == "does not fit: no placement of training fits"
    (whole,) = evaluation_demands({"gsm8k": Footprint(81 * GIB, 0, 4096, "bfloat16")}, "cuda")
    assert "a GPU of 1 card has 80.0; use a machine" in judge(here, [whole])
