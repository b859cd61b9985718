"""Trackers, with their own libraries: what they hold is read back from their files. wandb keeps it offline."""

import os
import re
import struct
import time
from pathlib import Path

import pytest
import torch
import trained_together
from made_records import make_sweep
from sweeps import small_sweep
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2

from lowrank_bench import run_sweep
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.architectures import random_model
from lowrank_bench.records.files import read_records, to_frame
from lowrank_bench.results.tracked import report_results
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.tracking import names, trackers
from lowrank_bench.runners.tracking.names import Tracking, require_installed
from lowrank_bench.runners.training.data import TaskData
from lowrank_bench.runners.training.resuming import Resumable
from lowrank_bench.runners.training.trainer import TaskTrainer

STEPS = trained_together.STEPS


class Cut(BaseException):
    """Ends a training as a signal does."""


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")


def tracking(folder, *trackers):
    return Tracking(names=trackers, sweep="my sweep", folder=folder)


def train(reported=None, resumable=None, progress=None):
    model = random_model("llama")
    settings = trained_together.SETTINGS.model_copy(update={"micro_batch_size": 4})
    data = TaskData(trained_together.ITEMS, 0, 0, 42)
    trainer = TaskTrainer(
        data, settings, title="finetune it", resumable=resumable, progress=progress, tracking=reported
    )
    log = trainer.train(model, STEPS)
    return torch.cat([p.detach().flatten() for p in model.parameters()]), log


def scalars(folder):
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def logged(data):
    """Yield the records of a file in LevelDB's log format, which begins with seven bytes of wandb's own."""
    block, whole, offset = 32768, b"", 7
    while offset + 7 <= len(data):
        if block - offset % block < 7:
            offset += block - offset % block
        length, kind = struct.unpack("<HB", data[offset + 4 : offset + 7])
        whole += data[offset + 7 : offset + 7 + length]
        offset += 7 + length
        if kind in (1, 4):  # the whole record, or its last part
            yield whole
            whole = b""


def whole_run(file, seconds=30):
    """Return the records of a run; wandb's own process closes the file a moment after ``finish`` has returned."""
    deadline = time.monotonic() + seconds
    while True:
        records = [wandb_internal_pb2.Record.FromString(data) for data in logged(file.read_bytes())]
        if records and records[-1].WhichOneof("record_type") == "exit":
            return records
        assert time.monotonic() < deadline, f"{file} is not complete after {seconds} s"
        time.sleep(0.05)


def offline_records(folder):
    """Return the records of all offline runs of wandb in a folder, by the run's name."""
    runs = {}
    for file in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        records = whole_run(file)
        name = next(r.run.display_name for r in records if r.WhichOneof("record_type") == "run")
        runs.setdefault(name, []).extend(records)
    return runs


def history(records, key):
    values = []
    for record in records:
        if record.WhichOneof("record_type") == "history":
            items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
            if key in items:
                values.append(float(items[key]))
    return values


def test_a_reported_training_is_the_same_training_and_its_curves_are_its_losses(tmp_path, capfd):
    plain, log = train()
    reported, same = train(tracking(tmp_path, "tensorboard", "wandb"))
    assert torch.equal(plain, reported)
    assert (log.steps, log.tokens, log.loss) == (same.steps, same.tokens, same.loss)
    curves = scalars(tmp_path / "tensorboard" / "finetune-it")
    assert [step for step, _ in curves["train/loss"]] == list(range(1, STEPS + 1))
    assert curves["train/loss"][-1][1] == pytest.approx(log.loss)
    assert sum(value for _, value in curves["train/tokens"]) == log.tokens
    records = offline_records(tmp_path)["finetune it"]
    assert history(records, "train/loss") == pytest.approx([value for _, value in curves["train/loss"]])
    run = next(r.run for r in records if r.WhichOneof("record_type") == "run")
    assert (run.project, run.run_group, run.job_type) == ("lowrank-bench", "my sweep", "training")
    assert capfd.readouterr().out == ""


def test_without_trackers_nothing_is_written_whatever_is_installed_and_set(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    train()
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_training_continues_its_run(tmp_path):
    def cut(done, total):
        if done == 5:
            raise Cut

    resumable = Resumable(tmp_path / "resume", 0.0)
    with pytest.raises(Cut):
        train(tracking(tmp_path, "tensorboard"), resumable, cut)
    train(tracking(tmp_path, "tensorboard"), resumable)
    assert [path.name for path in (tmp_path / "tensorboard").iterdir()] == ["finetune-it"]
    train(tracking(tmp_path / "whole", "tensorboard"))
    steps = dict(scalars(tmp_path / "tensorboard" / "finetune-it")["train/loss"])
    assert steps == dict(scalars(tmp_path / "whole" / "tensorboard" / "finetune-it")["train/loss"])


@pytest.mark.parametrize("event", ["on_train_begin", "on_log", "on_train_end"])
def test_a_tracker_that_fails_is_noted_once_and_the_training_goes_on(tmp_path, monkeypatch, capfd, event):
    def fail(*args, **kwargs):
        raise ConnectionError("https://user:secret@server is gone")

    monkeypatch.setattr(f"transformers.integrations.TensorBoardCallback.{event}", fail)
    plain, _ = train()
    reported, _ = train(tracking(tmp_path, "tensorboard"))
    assert torch.equal(plain, reported)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("note:")]
    assert len(lines) == 1
    assert "tensorboard failed (ConnectionError)" in lines[0]
    assert "secret" not in lines[0]


def test_cells_and_the_table_have_the_numbers_of_the_records(tmp_path):
    frame = to_frame(make_sweep(methods=("svd",), ratios=(2.0,)))
    csv = tmp_path / "results.csv"
    frame.to_csv(csv)
    report_results(tracking(tmp_path, "tensorboard", "wandb"), frame, csv)
    (row,) = frame[frame.headline & (frame.method == "svd")].to_dict("records")
    cell = scalars(tmp_path / "tensorboard" / "cell-svd@2-recovered-seed-42")
    metric = f"{row['variant']}/{row['metric']}"
    for name, column in ((metric, "value"), (f"{metric}/low", "low"), ("bytes", "bytes"), ("ratio", "ratio")):
        assert cell[name][0][1] == pytest.approx(row[column])
    records = offline_records(tmp_path)
    assert history(records["cell svd@2, recovered, seed 42"], metric) == [row["value"]]
    (tables,) = [path for path in (tmp_path / "wandb").glob("offline-run-*/files/media/table") if path.is_dir()]
    (table,) = tables.iterdir()
    assert f'"svd",2.0,"recovered",600,42,{row["params"]}' in table.read_text()
    (text,) = EventAccumulator(str(tmp_path / "tensorboard" / "results")).Reload().Tensors("results/text_summary")
    assert f"| svd | 2.0 | recovered | 600 | 42 | {row['params']} |" in text.tensor_proto.string_val[0].decode()


def test_every_scorer_of_a_metric_has_its_own_number(tmp_path):
    (row,) = [
        entry for entry in make_sweep(methods=("svd",), ratios=(2.0,)) if entry.method == "svd" and entry.headline
    ]
    others = {"strict": 0.01, "flexible": 0.35, "boxed": 0.0}
    rows = [
        row.model_copy(update={"scorer": name, "value": value, "low": 0.0, "high": 1.0, "headline": False})
        for name, value in others.items()
    ]
    report_results(tracking(tmp_path, "tensorboard"), to_frame([row, *rows]), tmp_path / "results.csv")
    cell = scalars(tmp_path / "tensorboard" / "cell-svd@2-recovered-seed-42")
    metric = f"{row.variant}/{row.metric}"
    assert cell[metric][0][1] == pytest.approx(row.value)
    assert {name: cell[f"{metric}/{name}"][0][1] for name in others} == pytest.approx(others)


def test_cells_of_two_training_budgets_are_runs_of_their_own(tmp_path):
    few = make_sweep(methods=("svd",), ratios=(2.0,), steps_recover=200, steps_budget=200)
    more = [entry for entry in make_sweep(methods=("svd",), ratios=(2.0,)) if entry.method == "svd"]
    frame = to_frame([entry.model_copy(update={"value": 0.25, "low": 0.2, "high": 0.3}) for entry in few] + more)
    report_results(tracking(tmp_path, "tensorboard"), frame, tmp_path / "results.csv")
    for budget in (200, 600):
        rows = frame[frame.headline & (frame.method == "svd") & (frame.steps_budget == budget)]
        (row,) = rows.to_dict("records")
        cell = scalars(tmp_path / "tensorboard" / f"cell-svd@2-{budget}-recovered-seed-42")
        assert cell[f"{row['variant']}/{row['metric']}"] == [(0, pytest.approx(row["value"]))]


def test_a_sweep_reports_from_its_workers_and_keeps_its_records(tmp_path, finished):
    reported = run_sweep(small_sweep(tmp_path, methods=["svd"], ratios=[2], report_to=["tensorboard"]))
    folder = finished.execution.folder / "tiny-toy-math"
    plain, records = read_records(folder), reported.records
    plain = plain[plain.stage_key.isin(records.stage_key)].reset_index(drop=True)
    changing = [c for c in plain if c.startswith("seconds") or c in ("evaluated_at", "peak_memory_bytes", "git_commit")]
    assert len(plain) == len(records) > 0
    assert plain.drop(columns=changing).equals(records.drop(columns=changing))
    assert not (folder / "tensorboard").exists()
    assert {path.name for path in (reported.folder / "tensorboard").iterdir()} == {
        "finetune-tiny-on-toy-math-seed-42",
        "recover-svd-2x-seed-42",
        "cell-finetuned@1-finetuned-seed-42",
        "cell-svd@2-recovered-seed-42",
        "results",
    }
    losses = scalars(reported.folder / "tensorboard" / "recover-svd-2x-seed-42")["train/loss"]
    assert [step for step, _ in losses] == [1, 2, 3, 4]
    assert "report_to" not in (reported.folder / "sweep.yaml").read_text()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["wandbb"], "unknown tracker 'wandbb'; did you mean 'wandb'?"),
        (["all"], "unknown tracker 'all'"),
        (["wandb", "wandb"], "the tracker wandb is given twice"),
    ],
)
def test_wrong_names_are_refused(tmp_path, given, sentence):
    with pytest.raises(UserError, match=re.escape(sentence)):
        small_sweep(tmp_path, report_to=given)


def test_a_tracker_that_is_not_installed_is_named_with_its_command(tmp_path, monkeypatch):
    monkeypatch.setattr(names, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs mlflow, which is not installed; type pip install mlflow, or leave it"):
        make_plan(small_sweep(tmp_path, report_to=["mlflow"]))
    with pytest.raises(UserError, match="mlflow and wandb, which are not installed; type pip install mlflow wandb, or"):
        require_installed(("mlflow", "wandb"))


def test_wandb_without_a_key_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    (wandb,) = trackers.trackers(tracking(tmp_path / "runs", "wandb"))
    with pytest.raises(UserError, match="type wandb login, or set WANDB_MODE=offline"):
        wandb.prepare()
    assert not (tmp_path / "runs").exists()
    assert Path(os.environ["HOME"]) == tmp_path
