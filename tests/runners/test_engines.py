"""Sweeps and single commands with an engine that dies, and the choice between engines."""

import json
from functools import partial
from pathlib import Path

import commands
import killed_once
import pytest
from sweeps import small_sweep
from transformers import LlamaConfig

from lowrank_bench.evals.engines.transformers import TransformersEngine
from lowrank_bench.evals.hosting import choice
from lowrank_bench.evals.hosting.choice import Choice, choose_engine
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.records.files import read_records
from lowrank_bench.runners import evaluating
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.sweep import plan_warnings

LARGE = 1_000_000_000


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Publish the engine as an installed package does; returns a function that runs ``bench``."""
    info = tmp_path / "site" / "killed_once-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: killed-once\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lowrank_bench.engines]\nkilled-once = killed_once:KilledOnce\n")
    monkeypatch.syspath_prepend(str(Path(killed_once.__file__).parent))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    return partial(commands.bench, CRASH_MARK=str(tmp_path / "mark"))


def test_a_sweep_whose_engine_is_killed_ends_with_its_last_words_and_goes_on(published, tmp_path):
    out = tmp_path / "runs"
    steps = ("--finetune-steps", 2, "--recover-steps", 2, "--limit", 3, "--max-new-tokens", 4, "--workers", 1)
    words = ("run", "--methods", "svd", "--model", "tiny", "--task", "toy-math", "--ratios", 2, *steps)
    words = (*words, "--engine", "killed-once", "--out", out)
    crashed = published(*words)
    assert crashed.returncode == 1, crashed.stderr
    assert "evaluate toy-math" in crashed.stderr
    assert "'killed-once' died (killed, most likely because memory ran out)" in crashed.stderr
    assert "the processor is on fire" in crashed.stderr
    assert "the same command goes on where it was" in crashed.stderr
    assert "Traceback" not in crashed.stderr
    (failure,) = (out / "stages" / "failed").glob("evaluate-*.json")
    assert "the processor is on fire" in json.loads(failure.read_text())["error"]
    standing = {path: path.stat().st_mtime_ns for path in (out / "stages").glob("*/stage.json")}
    resumed = published(*words)
    assert resumed.returncode == 0, resumed.stderr
    assert {path: path.stat().st_mtime_ns for path in (out / "stages").glob("*/stage.json")}.items() >= standing.items()
    frame = read_records(out / "tiny-toy-math")
    assert set(frame.engine) == {"killed-once"}
    assert set(frame.stage) == {"finetuned", "recovered"}


def test_a_single_evaluation_whose_engine_is_killed_ends_with_its_last_words(published, tmp_path):
    words = ("eval", "tiny", "--benchmarks", "toy-math", "--limit", 2, "--max-new-tokens", 4, "--engine", "killed-once")
    crashed = published(*words, "--out", tmp_path / "out")
    assert crashed.returncode == 1
    assert "the processor is on fire" in crashed.stderr
    assert "Traceback" not in crashed.stderr
    again = published(*words, "--out", tmp_path / "out")
    assert again.returncode == 0, again.stderr
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["engine"]["name"] == "killed-once"


def llama(**changes):
    sizes = {"hidden_size": 256, "num_attention_heads": 4, "architectures": ["LlamaForCausalLM"]}
    return LlamaConfig(**(sizes | changes))


def test_a_named_engine_is_taken_or_refused():
    assert choose_engine("transformers", llama(), LARGE, "cpu") == Choice("transformers")
    with pytest.raises(UserError, match="did you mean 'vllm'"):
        choose_engine("vlm", llama(), LARGE, "cpu")


def test_without_vllm_everything_runs_with_transformers(monkeypatch):
    monkeypatch.setattr(choice, "vllm_version", lambda: "")
    assert choose_engine("auto", llama(), LARGE, "cpu") == Choice("transformers")
    with pytest.raises(UserError, match=r"vLLM is not installed.*--engine transformers"):
        choose_engine("vllm", llama(), LARGE, "cpu")


@pytest.mark.parametrize(
    ("device", "version", "changes", "word"),
    [
        ("cpu", "0.32.0+cpu", {}, ""),
        ("cuda", "0.32.0", {}, ""),
        ("cuda", "0.32.0+cpu", {}, "build for CPUs and the device is cuda"),
        ("cpu", "0.32.0", {}, "build for GPUs and the device is cpu"),
        ("cpu", "0.32.0+cpu", {"num_attention_heads": 32}, "heads of size 8"),
        ("cuda", "0.32.0", {"architectures": ["FancyForCausalLM"]}, "no FancyForCausalLM"),
    ],
)
def test_auto_takes_vllm_where_it_can_run_the_model(monkeypatch, device, version, changes, word):
    monkeypatch.setattr(choice, "vllm_version", lambda: version)
    monkeypatch.setattr(choice, "vllm_architectures", lambda: frozenset({"LlamaForCausalLM"}))
    chosen = choose_engine("auto", llama(**changes), LARGE, device)
    assert chosen.engine == ("transformers" if word else "vllm")
    assert word in chosen.note
    if word:
        with pytest.raises(UserError, match=word):
            choose_engine("vllm", llama(**changes), LARGE, device)


def test_a_small_model_on_a_cpu_runs_with_transformers_unless_vllm_is_named(monkeypatch):
    monkeypatch.setattr(choice, "vllm_version", lambda: "0.32.0+cpu")
    assert choose_engine("auto", llama(), 49_999_999, "cpu").engine == "transformers"
    assert choose_engine("auto", llama(), 50_000_000, "cpu").engine == "vllm"
    assert choose_engine("vllm", llama(), 49_999_999, "cpu").engine == "vllm"


@pytest.mark.parametrize(("device", "version"), [("cpu", "0.32.0+cpu"), ("cuda", "0.32.0")])
def test_auto_scores_with_transformers_on_a_cpu_and_generates_with_vllm(monkeypatch, device, version):
    monkeypatch.setattr(choice, "vllm_version", lambda: version)
    chosen = choose_engine("auto", llama(), LARGE, device)
    assert chosen.engine_for(True) == "vllm"
    assert chosen.engine_for(False) == ("transformers" if device == "cpu" else "vllm")
    for name in ("vllm", "transformers"):
        named = choose_engine(name, llama(), LARGE, device)
        assert named.engine_for(True) == named.engine_for(False) == name


def test_a_plan_and_an_evaluation_say_that_two_engines_share_the_benchmarks(monkeypatch, tmp_path, data_dir):
    monkeypatch.setattr(choice, "vllm_version", lambda: "0.32.0+cpu")
    monkeypatch.setattr(choice, "SMALL_PARAMETERS", 1)
    plan = make_plan(small_sweep(tmp_path, benchmarks=["toy-math", "tinystories"], data=data_dir))
    taken = {s.spec.benchmark: s.spec.engine for s in plan.stages.values() if s.kind == "evaluate"}
    assert taken == {"toy-math": "vllm", "tinystories": "transformers"}
    assert choice.SCORING_NOTE in plan_warnings(plan)
    named = make_plan(small_sweep(tmp_path, benchmarks=["tinystories"], engine="vllm", data=data_dir))
    assert choice.SCORING_NOTE not in plan_warnings(named)
    assert not any("left out" in note for note in plan_warnings(plan))
    missing = type(plan.store).missing
    twins = {key for key, s in named.stages.items() if s.kind == "evaluate"}
    monkeypatch.setattr(
        type(plan.store), "missing", lambda self, keys: [k for k in missing(self, keys) if k not in twins]
    )
    (note,) = [note for note in plan_warnings(plan) if "left out" in note]
    assert note == f"{len(twins)} finished evaluations by vllm of an earlier run are left out"


def test_two_engines_are_opened_one_after_the_other_and_named(monkeypatch, tmp_path, data_dir):
    monkeypatch.setattr(evaluating, "choose_engine", lambda *_: Choice("killed-once", scoring="transformers"))
    monkeypatch.setenv("CRASH_MARK", str(tmp_path / "mark"))
    (tmp_path / "mark").touch()
    opened = []

    def open_one(stage, longest, threads, tokenizer):
        opened.append(stage.spec.engine)
        engines = {"killed-once": killed_once.KilledOnce, "transformers": TransformersEngine}
        return engines[stage.spec.engine](stage.execution.model.location, "float32")

    monkeypatch.setattr(evaluating, "open_engine", open_one)
    settings = evaluating.default_settings(data_dir=data_dir, limit=2, max_new_tokens=2)
    names = ["tinystories", "toy-math"]
    evaluation = evaluating.evaluate("tiny", names, settings, dtype="float32", out=tmp_path / "out")
    assert (set(evaluation.outcomes), evaluation.failures) == (set(names), {})
    assert choice.SCORING_NOTE in evaluation.note
    assert opened == ["transformers", "killed-once"]
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {name: result["engine"]["name"] for name, result in written["benchmarks"].items()} == {
        "tinystories": "transformers",
        "toy-math": "killed-once",
    }
    assert "engine" not in written
