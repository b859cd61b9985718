"""Typed records of finished stages."""

import pytest
from sealing import seal
from typed_stages import compress_stage, evaluate_stage, finetune_stage, fit_stage, recover_stage

from lowrank_bench.evals.base import Metric
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.foundation.files import read_json, write_json
from lowrank_bench.runners.stage_results import CompressResult, EvaluateResult, FitResult, TrainingResult
from lowrank_bench.runners.store.files import DamagedStage
from lowrank_bench.runners.store.folders import StageStore

TRAINING = {"training": {"steps": 3, "tokens": 40, "seconds": 1.0, "loss": 2.0}}
REPORT = {"parameters": 50, "ratio_matrices": 2.5, "steps": 1, "tokens": 7, "ranks": {}, "dense": {}}
METRIC = {"name": "accuracy", "value": 0.5, "low": None, "high": 1.0, "n": 8}
RESULTS = {
    finetune_stage: TRAINING | {"warnings": ["a note"]},
    fit_stage: {"warnings": [], "matrices": 28},
    compress_stage: {"reports": {"2": REPORT}, "memory": {}},
    recover_stage: TRAINING,
    evaluate_stage: {
        "metrics": [METRIC],
        "dataset_sha256": "d",
        "prompt_sha256": "p",
        "details": {},
        "variant": "toy-math-250-0shot",
        "bytes": 9,
    },
}
TYPES = {
    finetune_stage: TrainingResult,
    fit_stage: FitResult,
    compress_stage: CompressResult,
    recover_stage: TrainingResult,
    evaluate_stage: EvaluateResult,
}


def stored(tmp_path, make):
    store, stage = StageStore(tmp_path), make("a title")
    store.run(stage, lambda folder: TYPES[make].model_validate(RESULTS[make]))
    return store, stage


@pytest.mark.parametrize("make", RESULTS, ids=lambda make: make.__name__)
def test_a_record_holds_the_spec_that_was_run(tmp_path, make):
    store, stage = stored(tmp_path, make)
    record = store.record(stage.key)
    assert (record.kind, record.key, record.title) == (stage.kind, stage.key, "a title")
    assert type(record.spec) is type(stage.spec)
    assert record.spec == stage.spec
    assert record.execution.device == stage.execution.device
    assert record.execution.model == stage.execution.model
    assert record.provenance.versions["torch"]


def test_results_are_attributes(tmp_path):
    records = {make: (store_and_stage := stored(tmp_path, make))[0].record(store_and_stage[1].key) for make in RESULTS}
    assert (records[recover_stage].result.training.steps, records[recover_stage].result.training.tokens) == (3, 40)
    assert records[finetune_stage].result.warnings == ("a note",)
    assert records[compress_stage].result.report(2.0).parameters == 50
    (metric,) = records[evaluate_stage].result.metrics
    assert isinstance(metric, Metric)
    assert (metric.value, metric.low) == (0.5, float("-inf"))


def test_fields_that_this_version_does_not_know_are_left_out(tmp_path):
    store, stage = stored(tmp_path, fit_stage)
    before = store.record(stage.key)
    plain = store.read(stage.key)
    seal(store.path(stage.key), config=plain["config"] | {"later": 1}, extra=True, runtime=plain["runtime"] | {"x": 2})
    assert store.record(stage.key) == before


@pytest.mark.parametrize("make", RESULTS, ids=lambda make: make.__name__)
def test_a_record_of_an_earlier_version_that_wrote_less_is_read(tmp_path, make):
    """Fields beside those that have always been there may be absent, empty, or have more in them."""
    store, stage = stored(tmp_path, make)
    before = store.record(stage.key)
    plain = store.read(stage.key)
    parts = {name: {"since": 1} for name in ("memory", "recovery", "engine")}
    seal(store.path(stage.key), result=plain["result"] | parts | {"processes": {"count": 2}})
    after = store.record(stage.key)
    assert after.result.warnings == before.result.warnings
    assert after.result.processes.count == 2
    assert after.result.memory.predicted_peak_bytes is None


def test_a_record_without_a_version_is_of_the_first(tmp_path):
    store, stage = stored(tmp_path, fit_stage)
    file = store.path(stage.key) / "stage.json"
    assert '"version": 1' in file.read_text()
    record = read_json(file)
    del record["version"]
    write_json(file, record)
    seal(store.path(stage.key))
    assert '"version"' not in file.read_text()
    assert store.record(stage.key).kind == "fit"


def test_a_record_of_a_later_version_is_refused_in_one_sentence(tmp_path):
    store, stage = stored(tmp_path, fit_stage)
    seal(store.path(stage.key), version=2)
    with pytest.raises(
        UserError, match=r"is of version 2 and .* reads versions up to 1; upgrade.*results\.csv"
    ) as error:
        store.record(stage.key)
    assert not isinstance(error.value, DamagedStage)


@pytest.mark.parametrize(
    ("make", "result", "noun"),
    [
        (compress_stage, {"reports": {"2": {}}}, "a compression"),
        (recover_stage, {}, "a recovery"),
        (evaluate_stage, {"metrics": "many"}, "an evaluation"),
    ],
    ids=["compress", "recover", "evaluate"],
)
def test_results_of_another_kind_are_damage(tmp_path, make, result, noun):
    store, stage = stored(tmp_path, make)
    seal(store.path(stage.key), result=result)
    with pytest.raises(DamagedStage, match=f"holds no results of {noun}"):
        store.record(stage.key)
