"""The whole line on real input: real model, real tokenizer, real worker processes."""

import json
import os
import random
import shutil
import signal
import subprocess
import time

import pandas as pd
import psutil
import pytest
import torch
from commands import FRESH, bench, start
from sweeps import small_sweep, write_config

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.foundation.files import read_json
from lowrank_bench.foundation.fork_server import ForkServer
from lowrank_bench.models.loading import load_model, weights_size
from lowrank_bench.models.matrices import low_rank_layers, model_size
from lowrank_bench.records.files import read_records, same_results
from lowrank_bench.results.sweep import run_sweep
from lowrank_bench.runners.compressing import CompressRequest, compress
from lowrank_bench.runners.config import parse_method
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.progress import LOG_FILE
from lowrank_bench.runners.store.folders import MODEL_FOLDER, ratio_folder


def results(config):
    return read_records(config.execution.out / make_plan(config).name)


def test_every_cell_has_its_rows(finished):
    frame = results(finished)
    headline = frame[frame.headline]
    assert len(headline) == 1 + 3 * 2
    assert set(headline.label) == {"finetuned", "svd", "fwsvd:samples=8", "bs:prunings=3"}
    assert (headline.n == 4).all()
    assert headline.value.between(0, 1).all()
    assert (headline.low <= headline.value).all()
    assert (headline.value <= headline.high).all()


def test_equal_steps_and_honest_counts(finished):
    frame = results(finished)
    frame = frame[frame.stage == "recovered"]
    assert (frame.steps_compress + frame.steps_recover == 4).all()
    assert set(frame[frame.method == "bs"].steps_compress) == {2}
    assert (frame.tokens_compress[frame.method != "bs"] == 0).all()
    assert (frame.tokens_recover > 0).all()
    # Equal steps of equal batches: tokens differ only by how long the drawn examples are.
    tokens = frame.tokens_compress + frame.tokens_recover
    assert tokens.max() < 1.3 * tokens.min()


def test_rows_agree_with_the_checkpoints_on_disk(finished):
    plan = make_plan(finished)
    frame = results(finished).drop_duplicates("stage_key").set_index("stage_key")
    for cell in plan.cells:
        if "recover" not in cell.stages:
            continue
        row = frame.loc[cell.evaluations["toy-math"]]
        folder = plan.store.path(cell.stages["recover"]) / "model"
        model = load_model(folder)
        assert model_size(model).parameters == weights_size(folder).parameters == row.params
        assert row.bytes == sum(file.stat().st_size for file in folder.glob("*.safetensors"))
        assert row.ratio == pytest.approx(plan.parameters / row.params)
        assert cell.ratio <= row.ratio < cell.ratio * 1.01
        assert low_rank_layers(model)


def test_recovered_factors_were_trained(finished):
    plan = make_plan(finished)
    cell = next(cell for cell in plan.cells if cell.method.name == "svd")
    before = load_model(plan.store.path(cell.stages["compress"]) / f"ratio-{cell.ratio:g}" / "model")
    after = load_model(plan.store.path(cell.stages["recover"]) / "model")
    for name, layer in low_rank_layers(after).items():
        assert not torch.equal(layer.lr_a, low_rank_layers(before)[name].lr_a)


def test_stage_files_say_what_ran(finished):
    plan = make_plan(finished)
    for key in plan.stages:
        record = json.loads((plan.store.path(key) / "stage.json").read_text())
        assert record["status"] == "done"
        assert record["seconds"] > 0
        assert record["peak_memory_bytes"] > 0
        assert record["provenance"]["versions"]["torch"]


def test_raw_samples_are_kept(finished):
    plan = make_plan(finished)
    for cell in plan.cells:
        lines = (plan.store.path(cell.evaluations["toy-math"]) / "samples.jsonl").read_text().splitlines()
        assert len(lines) == 4
        assert all("completion" in json.loads(line) for line in lines)


def test_curves_and_files_are_there(finished):
    folder = finished.execution.out / make_plan(finished).name
    names = {path.suffix for path in folder.iterdir()}
    assert {".csv", ".parquet", ".png", ".svg", ".yaml"} <= names
    assert not same_results(read_records(folder / "results.csv"), read_records(folder / "results.parquet"))


def test_the_same_again_does_no_work(finished):
    before = (finished.execution.out / make_plan(finished).name / "results.csv").read_bytes()
    again = run_sweep(finished)
    assert again.stages_run == 0
    assert again.csv.read_bytes() == before


def test_damaged_stage_folder_stops_with_its_name(finished, tmp_path):
    copied = small_sweep(tmp_path / "copy")
    shutil.copytree(finished.execution.out, copied.execution.out)
    plan = make_plan(copied)
    key = next(key for key in plan.stages if key.startswith("recover"))
    (plan.store.path(key) / "model" / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=rf"{key}.*model\.safetensors has another size"):
        run_sweep(copied)


def test_flipped_bits_are_found_and_only_their_stages_done_again(finished, tmp_path):
    """By the bench commands: run refuses, doctor --repair moves aside, run does just these stages again."""
    copied = small_sweep(tmp_path / "copy")
    shutil.copytree(finished.execution.out, copied.execution.out)
    plan = make_plan(copied)
    hit = [next(k for k in plan.stages if k.startswith(kind)) for kind in ("fit", "compress", "recover", "evaluate")]
    for key in hit:
        file = max((p for p in plan.store.path(key).rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 4
        file.write_bytes(raw)
    with pytest.raises(UserError, match=r"evaluate-.* is damaged .*bench doctor --repair"):
        run_sweep(copied)
    done = bench("doctor", "--repair", "--out", copied.execution.out)
    assert done.returncode == 0, done.stderr
    assert f"{len(plan.stages) - len(hit)} stages are complete, {len(hit)} damaged" in " ".join(done.stdout.split())
    assert sorted(path.name for path in (copied.execution.out / "stages" / "damaged").iterdir()) == sorted(hit)
    assert run_sweep(copied).stages_run == len(hit)
    assert same_results(results(finished), results(copied)) == []


def test_a_polite_end_is_an_interruption(tmp_path):
    """SIGTERM to the process alone: exit code 143, one sentence, no half stage, no process left."""
    process = start("run", "--methods", "svd", "--model", "tiny", "--task", "toy-math", "--out", tmp_path / "out")
    while not list((tmp_path / "out").glob("stages/.part-*")):
        time.sleep(0.1)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=600) == 143
    assert "run the same command again" in " ".join(process.errors().split())
    assert "Traceback" not in process.errors()
    assert not [key for key in (tmp_path / "out" / "stages").iterdir() if key.name.startswith("finetune")]


def test_failing_stage_ends_the_sweep_with_its_sentence(tmp_path):
    config = small_sweep(tmp_path, methods=["svd"], ratios=[2], finetune={"steps": 30, "learning_rate": 1e30})
    with pytest.raises(UserError, match=r"the loss became (nan|inf) at step .* finetune tiny"):
        run_sweep(config)
    assert [file.name for file in (tmp_path / "tiny-toy-math").iterdir()] == [LOG_FILE]
    assert "failed after" in (tmp_path / "tiny-toy-math" / LOG_FILE).read_text(encoding="utf-8")
    assert list((tmp_path / "stages" / "failed").glob("finetune-*.json"))


def test_workers_that_are_started_afresh_do_the_same(finished, tmp_path, monkeypatch):
    """As where a GPU is used, or a system has no fork server."""
    part = {"methods": ["svd"], "ratios": [2]}
    shutil.copytree(finished.execution.out, tmp_path / "forked")
    forked, afresh = (small_sweep(tmp_path / name, **part) for name in ("forked", "afresh"))
    assert run_sweep(forked).stages_run == 0
    monkeypatch.setattr(ForkServer, "available", staticmethod(lambda: False))
    assert run_sweep(afresh).stages_run == len(make_plan(afresh).stages)
    assert same_results(results(forked), results(afresh)) == []


KILLS = int(os.environ.get("LOWRANK_BENCH_KILLS", "3"))
"""More than a few take minutes: LOWRANK_BENCH_KILLS=50 pytest tests/runners/test_sweep.py -k killed."""


def test_a_killed_run_ends_with_the_same_results(finished, tmp_path):
    """SIGKILL to the whole run at random moments: first to a command that started afresh, then to forked ones."""
    config = small_sweep(tmp_path / "out")
    words = ("run", "--config", str(write_config(config, tmp_path / "sweep.yaml")))
    process = subprocess.Popen([*FRESH, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list((config.execution.out / "stages").glob(".part-*")):
        time.sleep(0.1)
        assert process.poll() is None
    family = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.wait()
    assert family
    assert not psutil.wait_procs(family, timeout=120)[1]
    moments, kills = random.Random(os.getpid()), 1
    while kills < KILLS:
        run = start(*words)
        try:
            assert run.wait(timeout=moments.uniform(0.1, 8)) == 0, run.errors()
        except subprocess.TimeoutExpired:
            run.kill()
            run.wait()
            kills += 1
        else:
            assert same_results(results(finished), results(config)) == []
            shutil.rmtree(config.execution.out)
    done = bench(*words)
    assert done.returncode == 0, done.stderr
    assert same_results(results(finished), results(config)) == []
    assert not list((config.execution.out / "stages").glob(".part-*"))


def test_language_on_the_real_model(tmp_path, data_dir):
    """stories260K on TinyStories: the loss of its README, and perplexity that falls as the ratio falls."""
    config = small_sweep(
        tmp_path,
        model=str(data_dir / "models" / "stories260K"),
        task="language",
        data=data_dir,
        methods=["svd"],
        ratios=[1.2, 3],
        finetune={"steps": 0},
        recover={"steps": 2},
        limit=None,
        pretrained=True,
    )
    run_sweep(config)
    frame = results(config)
    nats = frame[(frame.metric == "nats_per_token") & (frame.stage == "pretrained")].value.item()
    assert nats == pytest.approx(1.2451, abs=5e-5)
    small = frame[(frame.metric == "perplexity") & (frame.stage == "recovered")].sort_values("ratio")
    assert pd.Series(small.value.tolist()).is_monotonic_increasing
    assert small.value.lt(1e6).all()


@pytest.mark.parametrize("method", ["bs:prunings=3", "fwsvd:samples=8", "svd"])
def test_compress_gives_the_checkpoint_of_the_same_cell_of_a_sweep(finished, tmp_path, method):
    records = [read_json(path) for path in (finished.execution.out / "stages").glob("compress-*/stage.json")]
    stage = next(record for record in records if f"compress {method} 2x," in record["title"])
    request = CompressRequest(
        str(finished.execution.out / "stages" / stage["inputs"]["model"]),
        parse_method(method),
        2.0,
        tmp_path / "alone",
        "toy-math",
        steps=4,
        seed=stage["config"]["seed"],
        recipe="small",
    )
    compress(request)
    weights = finished.execution.out / "stages" / stage["key"] / ratio_folder(2.0) / MODEL_FOLDER / "model.safetensors"
    assert (tmp_path / "alone" / "model.safetensors").read_bytes() == weights.read_bytes()
