"""Measuring speed: real processes on the built-in model; what they measured is never asserted."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lowrank_bench.evals.speed.process import measure_apart
from lowrank_bench.evals.speed.spec import Measured, SpeedSpec, Timing
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.export import export_dense, is_factorised
from lowrank_bench.models.presets import PRESETS
from lowrank_bench.records.files import read_records
from lowrank_bench.results.speed.measure import SpeedRequest, measure_speed, median_ratio
from lowrank_bench.results.speed.records import save_speed, speed_records, stored_records
from lowrank_bench.results.speed.subject import find_subject
from lowrank_bench.runners.compressing import CompressRequest, compress
from lowrank_bench.runners.config import parse_method

SHORT = {"engines": ("transformers",), "batch_sizes": (1, 2), "prompt_tokens": 4, "new_tokens": 3, "threads": 1}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model, factorised."""
    folder = tmp_path_factory.mktemp("speed") / "small"
    compress(CompressRequest("tiny", parse_method("svd"), 3.0, folder))
    return folder


@pytest.fixture(scope="module")
def series(small: Path):
    """One real round: the dense export and the factorised model."""
    return measure_speed(SpeedRequest([str(small)], repeats=1, **SHORT))


def fake(seconds: dict[str, list[float]], calls: list[str]):
    """A measurement whose times are given, to see what is made of them."""

    def measure(spec: SpeedSpec) -> Measured:
        name = Path(spec.folder).name
        calls.append(name)
        value = seconds[name][calls.count(name) - 1]
        timings = tuple(Timing(batch, value, 1 / value) for batch in spec.batch_sizes)
        return Measured(value, 1000, timings, value, "", 1, "1.0")

    return measure


def test_a_factorised_checkpoint_is_measured_next_to_its_dense_export(series):
    dense, small = series
    assert (dense.subject.factorised, small.subject.factorised) == (False, True)
    assert (dense.reference, small.reference) == (None, 0)
    assert dense.size.parameters == small.subject.origin.params_original
    for measurements in series:
        (measured,) = measurements.rounds
        assert [timing.batch for timing in measured.timings] == [1, 2]
        assert min(measured.load_seconds, measured.peak_memory_bytes, measured.seconds) > 0
        assert all(t.first_token_seconds > 0 and t.decode_tokens_per_second > 0 for t in measured.timings)
    assert not Path(dense.spec.folder).exists()  # the export was temporary


def test_records_are_valid_join_their_origin_and_replace_older_ones(tmp_path, small, series):
    compression = json.loads((small / "compression.json").read_text())
    csv = save_speed(tmp_path / "speed", series)
    frame = read_records(csv)
    assert len(frame) == 2 * (2 * 2 + 3)
    assert set(frame.metric) == {
        "decode_tokens_per_second", "time_to_first_token_seconds", "load_seconds", "peak_memory_bytes", "weight_bytes",
    }  # fmt: skip
    assert set(frame[frame.headline].metric) == {"decode_tokens_per_second"}
    assert set(frame.model_sha256) == {compression["model_sha256"]}
    assert {(r.label, r.stage, r.ratio_target) for r in frame.itertuples()} == {
        ("svd", "compressed", 3.0),
        ("pretrained", "pretrained", 1.0),
    }
    weights = frame[frame.metric == "weight_bytes"].set_index("label").value
    assert weights["pretrained"] / weights["svd"] == pytest.approx(compression["ratio"])
    assert "speed-transformers-batch2-prompt4-new3-bfloat16-cpu-1thread" in set(frame.variant)
    save_speed(tmp_path / "speed", series)
    assert len(stored_records(tmp_path / "speed")) == len(frame)
    assert len(list((tmp_path / "speed").glob("rounds-*.json"))) == 1


def test_rounds_alternate_and_ratios_are_paired(tmp_path, small):
    export_dense(small, tmp_path / "dense")
    calls: list[str] = []
    seconds = {"dense": [1.0, 2.0, 4.0], "small": [0.5, 1.0, 4.0]}
    request = SpeedRequest([str(tmp_path / "dense"), str(small)], repeats=3, **SHORT)
    dense, factorised = measure_speed(request, measure=fake(seconds, calls))
    assert calls == ["dense", "small", "small", "dense", "dense", "small"]
    assert factorised.reference == 0  # the dense folder is its dense form: none is exported
    assert median_ratio(factorised.values("load_seconds"), dense.values("load_seconds")) == 0.5
    (record,) = (
        r for r in speed_records([factorised]) if r.metric == "time_to_first_token_seconds" and "batch2-" in r.variant
    )
    assert (record.low, record.value, record.high, record.confidence, record.n) == (0.5, 1.0, 4.0, 0.75, 3)


def test_one_round_bounds_nothing(series):
    record = next(r for r in speed_records(series) if r.metric == "load_seconds")
    assert (record.low, record.high) == (float("-inf"), float("inf"))


def test_cells_of_a_run_keep_their_names(finished):
    run = finished.execution.out / "tiny-toy-math"
    subject = find_subject(f"{run}:svd@4")
    assert is_factorised(subject.folder)
    assert (subject.origin.label, subject.origin.stage, subject.origin.ratio_target) == ("svd", "recovered", 4)
    by_folder = find_subject(str(subject.folder))
    assert by_folder.origin.method == "svd"
    assert by_folder.origin.stage == "recovered"
    assert by_folder.origin.ratio == pytest.approx(subject.origin.ratio)
    assert by_folder.shape == subject.shape
    dense = find_subject(f"{run}:finetuned@1")
    assert not dense.factorised
    assert dense.shape == subject.shape
    assert find_subject("tiny").shape == find_subject(PRESETS["tiny"].source).shape


def test_a_folder_that_nobody_described_is_measured_all_the_same(tmp_path, small):
    shutil.copytree(small, tmp_path / "found")
    (tmp_path / "found" / "compression.json").unlink()
    origin = find_subject(str(tmp_path / "found")).origin
    assert (origin.method, origin.label, origin.stage) == ("lowrank", "found", "compressed")
    assert origin.ratio_target == origin.ratio == pytest.approx(3, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"checkpoints": ["nowhere"]}, "nowhere does not exist"),
        ({"engines": ("vlm",)}, "did you mean 'vllm'"),
        ({"dtype": "float23"}, "unknown dtype"),
        ({"batch_sizes": ()}, "--batch-sizes"),
        ({"batch_sizes": (1, 0)}, "--batch-sizes"),
        ({"batch_sizes": (2, 2)}, "--batch-sizes"),
        ({"new_tokens": 1}, "--new-tokens is 1"),
        ({"prompt_tokens": 0}, "--prompt-tokens is 0"),
        ({"repeats": 0}, "--repeats is 0"),
        ({"threads": 0}, "--threads is 0"),
        ({"new_tokens": 100_000}, "do not fit the context"),
        ({"device": "tpu"}, "the device 'tpu' is not there"),
    ],
)
def test_unusable_input_is_refused_before_anything_is_measured(small, changes, words):
    request = replace(SpeedRequest([str(small)], **SHORT), **changes)
    with pytest.raises(UserError, match=words):
        measure_speed(request, measure=fake({}, []))


def test_the_same_checkpoint_twice_is_refused(small):
    with pytest.raises(UserError, match="named twice"):
        measure_speed(SpeedRequest([str(small), str(small)], **SHORT), measure=fake({}, []))


def test_a_process_that_fails_tells_why(tmp_path, small):
    shutil.copytree(small, tmp_path / "cut")
    file = tmp_path / "cut" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    spec = SpeedSpec(str(tmp_path / "cut"), "transformers", "float32", "cpu", 1, (1,), 4, 2)
    with pytest.raises(UserError, match="corrupt"):
        measure_apart(spec)
    with pytest.raises(UserError, match=r"ended with exit code 1: .*Error"):
        measure_apart(replace(spec, folder=str(small), device="nonsense"))


def test_vllm_is_measured_too(small):
    (measurements,) = measure_speed(
        SpeedRequest([str(small)], repeats=1, against_dense=False, **SHORT | {"engines": ("vllm",), "new_tokens": 2})
    )
    assert [timing.batch for timing in measurements.rounds[0].timings] == [1, 2]
    assert measurements.reference is None
    assert all(record.engine == "vllm" for record in speed_records([measurements]))
