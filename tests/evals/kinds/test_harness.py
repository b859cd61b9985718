"""Our numbers are those of lm-evaluation-harness with its own transformers model on the same local data."""

import builtins
import json
import math
from importlib.metadata import PackageNotFoundError

import lm_eval
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from lowrank_bench.evals.base import EvalSettings, benchmarks
from lowrank_bench.evals.engines.transformers import TransformersEngine
from lowrank_bench.evals.kinds import harness
from lowrank_bench.foundation.errors import UserError

LIMIT = 24
TASKS = ("piqa", "hellaswag", "winogrande", "arc-easy", "arc-challenge", "boolq", "openbookqa", "crows-pairs")
FOLDER = "models/stories260K"


@pytest.fixture(scope="module")
def engine(data_dir):
    torch.set_num_threads(1)
    return TransformersEngine(data_dir / FOLDER, dtype="float32")


@pytest.fixture(scope="module")
def reference(engine):
    # One place less than the model has: the reference sends all ids but the last, we send all (see `likelihood`).
    return HFLM(engine.model, tokenizer=engine.tokenizer, max_length=engine.context_length - 1, batch_size=8)


def their_results(reference, benchmark, rows, folder):
    """Run the harness's task on a file of the same rows, read by the harness itself."""
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {
        "task": benchmark.task,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(path)}, "cache_dir": str(folder / "cache")},
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
    }
    tasks = f"{lm_eval.__path__[0]}/tasks/{benchmark.folder}"
    return lm_eval.simple_evaluate(
        reference,
        tasks=[{"group": "local", "task": [changes]}],
        task_manager=TaskManager(include_path=tasks, include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )


@pytest.mark.parametrize("name", TASKS)
def test_numbers_are_the_harnesss_own(name, engine, reference, data_dir, tmp_path):
    benchmark, settings = benchmarks.get(name)(), EvalSettings(data_dir, limit=LIMIT)
    outcome = benchmark.evaluate(engine, settings)
    theirs = their_results(reference, benchmark, benchmark.data(settings).rows[:LIMIT], tmp_path)
    samples = theirs["samples"][benchmark.task]
    assert len(samples) == len(outcome.samples) == LIMIT
    for mine, other in zip(outcome.samples, samples, strict=True):
        values = [float(resps[0][0]) for resps in other["resps"]]
        assert mine["loglikelihoods"] == pytest.approx(values, abs=1e-4, rel=1e-6)
        for metric, verdict in mine["verdicts"].items():
            assert (verdict in ("correct", "stereotype")) == (other[metric] == 1)
    numbers = theirs["results"][benchmark.task]
    for metric in outcome.metrics:
        if "/" not in metric.name:
            assert metric.value == pytest.approx(numbers[f"{metric.name},none"], abs=1e-4)
    if name == "boolq":
        assert outcome.details["problems_cut_to_context"] > 0, "long passages are compared too"


def test_a_missing_harness_is_reported_in_one_sentence(monkeypatch, data_dir):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(harness, "version", missing)
    harness.harness_version.cache_clear()
    try:
        with pytest.raises(UserError, match=r"pip install 'lowrank-bench\[harness\]'") as caught:
            benchmarks.get("piqa")().check(EvalSettings(data_dir))
        assert "\n" not in str(caught.value)
    finally:
        harness.harness_version.cache_clear()


def test_listing_and_planning_import_no_harness(monkeypatch, data_dir):
    real = builtins.__import__

    def guarded(name, *args, **kwargs):
        assert not name.startswith("lm_eval"), "lm_eval takes a second to import"
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", guarded)
    for name in TASKS:
        benchmark = benchmarks.get(name)()
        benchmark.check(EvalSettings(data_dir))
        assert benchmark.identity(EvalSettings(data_dir))["lm_eval"] == lm_eval.__version__


def test_headlines_are_the_harnesss_length_normalised_ones_where_there_are_any(engine, data_dir):
    for name in TASKS:
        outcome = benchmarks.get(name)().evaluate(engine, EvalSettings(data_dir, limit=3))
        (headline,) = [metric for metric in outcome.metrics if metric.headline]
        expected = {"winogrande": "acc", "boolq": "acc", "crows-pairs": "pct_stereotype"}.get(name, "acc_norm")
        assert headline.name == expected
        assert math.isfinite(headline.value)
        assert headline.low <= headline.value <= headline.high
        assert headline.n == 3
