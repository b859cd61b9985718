"""A report says what the run's own files say, whatever of them is left."""

import json
import os
import shutil
import socket
from collections import Counter

import numpy as np
import pytest
from commands import bench
from safetensors.numpy import load_file
from sealing import seal
from sweeps import small_sweep

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.foundation.files import read_json
from lowrank_bench.records.files import read_records, to_frame, write_records
from lowrank_bench.results.report.answers import failure
from lowrank_bench.results.report.gather import gather
from lowrank_bench.results.report.markdown import report_markdown
from lowrank_bench.results.report.page import report_page
from lowrank_bench.results.report.write import write_report
from lowrank_bench.results.samples.compare import compare
from lowrank_bench.results.samples.stored import load_samples
from lowrank_bench.results.sweep import run_sweep

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\x1b[31m\u202e```\n# not a heading\n--> ]]>"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run: shared fits and factors, two ratios, two seeds."""
    methods = ["svd", "bs:prunings=3", "joint-rank-k", "svd-llm:samples=8"]
    config = small_sweep(tmp_path_factory.mktemp("report"), methods=methods, seeds=[1, 2], limit=6, max_new_tokens=24)
    return run_sweep(config).folder


@pytest.fixture
def copied(run, tmp_path):
    """A copy of the run that a test may damage."""
    shutil.copytree(run.parent, tmp_path / "runs")
    return tmp_path / "runs" / run.name


@pytest.fixture(scope="module")
def report(run):
    return gather(run)


@pytest.fixture(scope="module")
def stages(run):
    """What the stages of the run say, by key, read without our own code."""
    return {path.parent.name: json.loads(path.read_text()) for path in (run.parent / "stages").glob("*/stage.json")}


def test_ranks_and_shares_are_those_of_the_checkpoints(report, stages):
    compressed = {
        (record["config"]["method"], float(ratio)): stored
        for record in stages.values()
        if record["kind"] == "compress" and record["config"]["seed"] == 1
        for ratio, stored in record["result"]["reports"].items()
    }
    seen = 0
    for map_ in report.ranks:
        for label in map_.labels:
            stored = compressed[label.partition(":")[0], map_.ratio]
            cells = [cell for row in map_.cells for cell in row if cell is not None]
            assert Counter(cell.rank for cell in cells if cell.rank) == Counter(stored["ranks"].values())
            assert sum(cell.rank is None for cell in cells) == len(stored["dense"])
            seen += 1
    assert seen == len(compressed) == 8


def test_shares_add_up_to_the_compressed_matrices(report, run, stages):
    config = read_json(next((run.parent / "stages").glob("finetune-*/model/config.json")))
    wide, narrow = config["intermediate_size"], config["hidden_size"]
    sizes = dict.fromkeys(("gate_proj", "up_proj", "down_proj"), wide * narrow)
    for map_ in report.ranks:
        stored = sum(
            cell.share * sizes.get(kind, narrow * narrow)
            for row in map_.cells
            for kind, cell in zip(map_.kinds, row, strict=True)
        )
        reports = [
            compression
            for record in stages.values()
            if record["kind"] == "compress" and record["config"]["method"] == map_.labels[0].partition(":")[0]
            for ratio, compression in record["result"]["reports"].items()
            if float(ratio) == map_.ratio and record["config"]["seed"] == map_.seed
        ]
        assert round(stored) == reports[0]["matrices_after"]


def test_shared_factors_are_marked(report):
    (map_,) = [m for m in report.ranks if m.labels == ("joint-rank-k",) and m.ratio == 4]
    shared = {kind for row in map_.cells for kind, cell in zip(map_.kinds, row, strict=True) if cell.shared}
    assert len(shared & {"q_proj", "k_proj"}) == 1
    assert len(shared & {"gate_proj", "up_proj"}) == 1
    assert "v_proj" not in shared


def test_every_stage_is_counted_once(report, stages):
    assert len(report.costs) == len(stages)
    for kind in ("finetune", "fit", "compress", "recover", "evaluate"):
        expected = sum(record["seconds"] for record in stages.values() if record["kind"] == kind)
        assert sum(cost.seconds for cost in report.costs if cost.kind == kind) == pytest.approx(expected)
    tokens = sum(r["result"]["training"]["tokens"] for r in stages.values() if r["kind"] in ("finetune", "recover"))
    assert sum(cost.tokens for cost in report.costs if cost.kind in ("finetune", "recover")) == tokens
    fits = Counter(cost.labels for cost in report.costs if cost.kind == "fit")
    assert fits == {("bs:prunings=3", "svd"): 2, ("joint-rank-k",): 2, ("svd-llm:samples=8",): 2}
    assert {cost.labels for cost in report.costs if cost.kind == "finetune"} == {
        ("bs:prunings=3", "joint-rank-k", "svd", "svd-llm:samples=8")
    }


def test_spectra_are_those_of_the_finetuned_weights(report, run, stages):
    fit = next(fit for fit in report.spectra if fit.name == "svd")
    (tuned,) = [key for key, r in stages.items() if r["kind"] == "finetune" and r["config"]["seed"] == fit.seed]
    weights = load_file(run.parent / "stages" / tuned / "model" / "model.safetensors")
    energy = next(e for e in fit.kinds if e.kind == "v_proj")
    curves = []
    for name, weight in weights.items():
        if name.endswith("v_proj.weight"):
            squares = np.linalg.svd(weight.astype(np.float64), compute_uv=False) ** 2
            whole = np.concatenate([[0], np.cumsum(squares)]) / squares.sum()
            curves.append(np.interp(energy.shares, np.linspace(0, 1, len(whole)), whole))
    assert energy.matrices == len(curves)
    np.testing.assert_allclose(energy.median, np.median(curves, axis=0), atol=1e-4)
    np.testing.assert_allclose(energy.low, np.min(curves, axis=0), atol=1e-4)


def test_failures_agree_with_the_records(report, run):
    frame = read_records(run)
    headline = frame[frame.headline & (frame.method != "none")]
    (part,) = report.failures
    for (label, ratio), rows in headline.groupby(["label", "ratio_target"]):
        (counted,) = [c for c in part.counted if (c.label, c.ratio) == (label, ratio)]
        assert counted.total == rows.n.sum()
        assert counted.counts.get("correct", 0) == round((rows.value * rows.n).sum())
        assert sum(counted.counts.values()) == counted.total
    assert part.examples
    assert all(example.prompt.startswith("Question:") and example.gold for example in part.examples)


def test_one_seed_is_tested_as_bench_compare_does(run, copied):
    frame = read_records(run)
    chosen = frame[frame.seed == 1]
    (copied / "results.parquet").unlink()
    rows = [r for r in _records(run) if r.seed == 1]
    write_records(copied, rows)
    tests = gather(copied).paired
    assert len(tests) == 3 * 2
    for test in tests:
        lines = []
        for label in (test.label, test.leader):
            (key,) = set(chosen[(chosen.label == label) & (chosen.ratio_target == test.ratio)].stage_key)
            lines.append(load_samples(run.parent / "stages" / key / "samples.jsonl"))
        same = compare(*lines)
        assert (test.p_value, test.difference) == pytest.approx((same.p_value, same.difference))
        assert test.p_value <= test.p_corrected <= 1


def _records(run):
    from lowrank_bench.records.files import Record

    return [Record(**row) for row in read_records(run).to_dict("records")]


def test_several_seeds_are_averaged(report):
    assert {test.seeds for test in report.paired} == {2}
    assert {test.test for test in report.paired} == {"sign flips of problems"}


def test_a_moved_run_gives_the_same_bytes(run, copied):
    first, second = gather(run), gather(copied)
    assert report_page(first) == report_page(second)
    assert report_markdown(first) == report_markdown(second)


def test_records_alone_are_enough(run, tmp_path):
    shutil.copy(run / "results.csv", tmp_path / "results.csv")
    report = gather(tmp_path / "results.csv")
    text = report_markdown(report)
    assert "The stages of this run are not beside its records" in text
    assert "No compress stage of this run can be read" in text
    assert "interval" in text
    assert [report.ranks, report.spectra, report.failures, report.paired, report.failed] == [()] * 5
    with_stages = gather(run)
    assert sum(c.seconds for c in report.costs) == pytest.approx(sum(c.seconds for c in with_stages.costs))
    assert report_page(report).count("<h2") >= 5


def test_what_is_damaged_is_left_out_and_said(copied):
    root = copied.parent / "stages"
    for path in root.glob("fit-*/factors*.safetensors"):
        path.write_bytes(b"\xff" * 100)
    for path in root.glob("compress-*/ratio-*/model/*.safetensors"):
        path.unlink()
    evaluations = sorted(root.glob("evaluate-*"))
    (evaluations[0] / "stage.json").write_text("{")
    (evaluations[1] / "samples.jsonl").write_text('{"verdicts": 3}\n')
    (evaluations[2] / "samples.jsonl").write_bytes(b"\xff\xfe\x00")
    os.mkfifo(evaluations[3] / "extra.jsonl")
    report = gather(copied)
    assert report.spectra == ()
    assert report.ranks  # the ranks themselves are in stage.json
    text = report_markdown(report)
    assert f"The stages of 1 of {len(evaluations)} evaluations are missing or damaged" in text
    assert "None of the fits of this run can be read" in text
    for number, damage in enumerate(
        ("no readable stage.json", "samples.jsonl has", "samples.jsonl has", "extra.jsonl was")
    ):
        assert f"The stage {evaluations[number].name} is damaged ({damage}" in text.replace("\\", "")
    assert report_page(report)


@pytest.mark.parametrize("key", ["../../outside", "evaluate-../../../etc", "/etc", "evaluate-" + "0" * 16])
def test_stage_keys_lead_nowhere_else(run, tmp_path, key):
    records = [r.model_copy(update={"stage_key": key}) for r in _records(run) if r.headline][:2]
    write_records(tmp_path / "runs" / "x", records)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "stage.json").write_text(json.dumps({"key": key, "status": "done", "result": {}, "kind": "evaluate"}))
    assert gather(tmp_path / "runs" / "x").span == ()


def test_hostile_completions_stay_text(copied):
    for path in (copied.parent / "stages").glob("evaluate-*/samples.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        changed = [{**line, "completion": HOSTILE, "gold": HOSTILE, "answers": {"strict": HOSTILE}} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in changed))
        seal(path.parent)
    report = gather(copied)
    page, text = report_page(report), report_markdown(report)
    assert page.count("<script") == 1
    assert "<img" not in page
    assert not {"\x1b", "\u202e"} & set(page + text)
    assert "&lt;img src=x onerror=alert(2)&gt;" in page
    assert "\n````text\n" in text  # a longer fence than the one inside
    outside = "".join(part for i, part in enumerate(text.split("````")) if i % 2 == 0)
    assert "<script" not in outside.replace("\\<script", "")


def test_failures_of_stages_are_listed(copied, stages):
    failed = copied.parent / "stages" / "failed"
    failed.mkdir(exist_ok=True)
    done = next(key for key in stages if key.startswith("recover-"))
    tuned = next(key for key in stages if key.startswith("finetune-"))
    common = {"status": "failed", "error": "OutOfMemoryError: no memory left"}
    for name, key, title, inputs in (
        ("a", done, "recover again", {"model": "x"}),
        ("b", "fit-" + "1" * 16, "fit asvd", {"model": f"{tuned}/model"}),
        ("c", "fit-" + "2" * 16, "of another sweep", {"model": "finetune-" + "3" * 16}),
    ):
        record = {**common, "key": key, "title": title, "inputs": inputs}
        (failed / f"{name}-20260131T120000.json").write_text(json.dumps(record))
    (failed / "d.json").write_text("[]")
    listed = gather(copied).failed
    assert [(stage.title, stage.later) for stage in listed] == [("fit asvd", False), ("recover again", True)]
    assert listed[0].ended == "2026-01-31 12:00:00"
    assert "OutOfMemoryError" in report_markdown(gather(copied))


def test_nothing_is_asked_of_the_network(copied, monkeypatch):
    def refuse(*_):
        raise AssertionError("a report opened a socket")

    for path in (copied.parent / "stages").glob("evaluate-*"):  # as if evaluated on a dataset of the hub
        record = json.loads((path / "stage.json").read_text())
        text = (path / "samples.jsonl").read_text().replace('"benchmark": "toy-math"', '"benchmark": "gsm8k"')
        (path / "samples.jsonl").write_text(text)
        seal(path, runtime=record["runtime"] | {"data": None})
    monkeypatch.setattr(socket.socket, "connect", refuse)
    (part,) = gather(copied).failures
    assert part.examples
    assert not any(example.prompt for example in part.examples)


def test_perplexities_without_training(tmp_path, data_dir):
    config = small_sweep(
        tmp_path,
        model=str(data_dir / "models" / "stories260K"),
        task="language",
        data=data_dir,
        training_free=True,
        finetune={},
        recover={},
        methods=["svd", "svd-llm:samples=8"],
        ratios=[2],
        limit=12,
        max_new_tokens=None,
        workers=1,
    )
    report = gather(run_sweep(config).folder)
    (test,) = report.paired
    assert test.unit == "windows"
    text = report_markdown(report)
    assert "No method was trained after the first finetuning." in text
    assert "No samples with verdicts are there" in text
    assert test.difference > 0
    assert report_page(report)


def test_one_uncompressed_model_alone(run, tmp_path):
    write_records(tmp_path, [r for r in _records(run) if r.method == "none"])
    text = report_markdown(gather(tmp_path))
    assert "No compressed model was evaluated." in text
    assert report_page(gather(tmp_path))


def test_the_command_writes_two_files(copied):
    done = bench("report", copied)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(copied / "report.html"), str(copied / "report.md")]
    assert (copied / "report.html").read_text() == report_page(gather(copied))
    wrong = bench("report", copied.parent / "none")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("error: ")
    assert "Traceback" not in wrong.stderr


def test_bad_records_write_nothing(copied):
    (copied / "results.parquet").unlink()
    (copied / "results.csv").write_text("a,b\n1,2\n")
    before = set(copied.iterdir())
    with pytest.raises(UserError, match="has not the columns"):
        write_report(copied)
    assert set(copied.iterdir()) == before


def test_frames_in_any_order_give_the_same_page(run, tmp_path):
    records = _records(run)
    write_records(tmp_path / "a", records)
    write_records(tmp_path / "b", records[::-1])
    assert to_frame(records).equals(to_frame(records[::-1]))
    assert report_page(gather(tmp_path / "a")) == report_page(gather(tmp_path / "b"))


@pytest.mark.parametrize(
    ("kind", "description"),
    [("missing-package", "missing package"), ("exception", "program raises"), ("exited", "program ended: exited")],
)
def test_kinds_of_failed_programs_are_kept_apart(kind, description):
    line = {"verdicts": {"tests": "wrong"}, "scorer": "tests", "finish_reason": "stop", "kind": kind}
    assert failure(line) == description
