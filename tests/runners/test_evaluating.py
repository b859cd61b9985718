"""`bench eval` is the evaluate stage of a sweep, with one engine for all benchmarks."""

import json
from pathlib import Path
from typing import Any

import pytest
from sweeps import small_sweep

from lowrank_bench.evals.hosting import host
from lowrank_bench.evals.hosting.host import HostedEngine
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.foundation.files import finite, read_json
from lowrank_bench.runners import tokenizers
from lowrank_bench.runners.evaluating import default_settings, evaluate
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.specs import EvaluateStage, ModelLocation
from lowrank_bench.runners.stages import evaluate as evaluate_stage
from lowrank_bench.runners.stages import shared
from lowrank_bench.runners.stages.perform import perform

BENCHMARKS = ("toy-math", "tinystories")


def test_one_engine_gives_what_the_stages_of_a_sweep_give(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []

    class Counted(HostedEngine):
        def __init__(self, *arguments: Any, **more: Any) -> None:
            started.append(arguments)
            super().__init__(*arguments, **more)

    monkeypatch.setattr(evaluate_stage, "HostedEngine", Counted)
    settings = default_settings(data_dir=data_dir, limit=3, stage="pretrained", max_new_tokens=4)
    out = tmp_path / "scores"
    measured = evaluate("tiny", BENCHMARKS, settings, engine="transformers", dtype="float32", out=out)
    assert len(started) == 1
    assert measured.failures == {}
    written = read_json(out / "metrics.json")["benchmarks"]
    plan = make_plan(
        small_sweep(
            tmp_path / "sweep",
            methods=["svd"],
            ratios=[2],
            finetune={},
            recover={},
            training_free=True,
            benchmarks=list(BENCHMARKS),
            engine="transformers",
            dtype="float32",
            limit=3,
            max_new_tokens=4,
            data=data_dir,
        )
    )
    for name in BENCHMARKS:
        stage = plan.stages[plan.cells[0].evaluations[name]]
        folder = tmp_path / name
        folder.mkdir()
        result = json.loads(json.dumps(finite(perform(stage, folder).plain())))
        assert {field: result[field] for field in written[name]} == written[name]
        assert (folder / "samples.jsonl").read_bytes() == (out / f"samples-{name}.jsonl").read_bytes()
    assert len(started) == 1 + len(BENCHMARKS)


@pytest.fixture
def tokenizer_loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the places of this process that load a tokenizer, in order; an engine's own process refuses to."""
    loads: list[str] = []
    for module in (shared, host, tokenizers):
        load = module.load_tokenizer

        def loading(*files: Any, load: Any = load, name: str = module.__name__.rpartition(".")[2]) -> Any:
            loads.append(name)
            return load(*files)

        monkeypatch.setattr(module, "load_tokenizer", loading)
    tokenizers._load.cache_clear()
    return loads


def test_a_stage_loads_the_tokenizer_once(data_dir: Path, tmp_path: Path, tokenizer_loads: list[str]) -> None:
    plan = make_plan(small_sweep(tmp_path / "sweep", benchmarks=["tinystories"], engine="transformers", data=data_dir))
    stage = next(stage for stage in plan.stages.values() if isinstance(stage, EvaluateStage))
    first = stage.model_copy(
        update={"execution": stage.execution.model_copy(update={"model": ModelLocation(location=plan.source.location)})}
    )
    tokenizer_loads.clear()
    evaluate_stage.evaluate(first, tmp_path, None)
    assert tokenizer_loads == ["shared"]


def test_bench_eval_loads_the_tokenizer_once(data_dir: Path, tokenizer_loads: list[str]) -> None:
    settings = default_settings(data_dir=data_dir, limit=1, max_new_tokens=2)
    assert evaluate("tiny", BENCHMARKS, settings, engine="transformers").failures == {}
    assert tokenizer_loads == ["tokenizers"]


@pytest.mark.parametrize("contexts", [[513], [64, 5000], [10**9]])
def test_a_context_longer_than_the_models_is_refused_before_a_model_is_loaded(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contexts: list[int]
) -> None:
    monkeypatch.setattr(evaluate_stage, "HostedEngine", lambda *_, **__: pytest.fail("loaded a model"))
    out, model = tmp_path / "scores", str(data_dir / "models" / "stories260K")
    with pytest.raises(UserError, match=rf"--context {contexts[-1]} is more than the model takes \(512\)"):
        evaluate(model, ["tinystories"], default_settings(data_dir=data_dir), contexts=contexts, out=out)
    assert not out.exists()
    config = small_sweep(tmp_path / "runs", model=model, benchmarks=["tinystories"], context=contexts, data=data_dir)
    with pytest.raises(UserError, match=rf"--context {contexts[-1]} is more than .* takes \(512\)"):
        make_plan(config)
    assert not (tmp_path / "runs").exists()
