import contextlib
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import trained_together
import yaml
from commands import FRESH, bench
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from sweeps import small_sweep
from typed_stages import compress_stage, finetune_stage, recover_stage

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.methods.base import create_method
from lowrank_bench.methods.estimates import training_checkpoint_bytes
from lowrank_bench.methods.ranks.budget import Budget
from lowrank_bench.models.loading import load_model
from lowrank_bench.results.sweep import run_sweep
from lowrank_bench.runners.executors.local import prepare
from lowrank_bench.runners.executors.parallel.rank import strategy_for
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.process_setup import ProcessSetup, read_setup
from lowrank_bench.runners.stages.perform import perform
from lowrank_bench.runners.training.settings import TrainSettings

EXAMPLES = Path(__file__).parents[3] / "docs" / "accelerate"
CPU = {"OMP_NUM_THREADS": "1"}


def config(folder: Path, name: str, **changes) -> Path:
    """Return the documented configuration for two processes."""
    values = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text()) | {"num_processes": 2} | changes
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
    return file


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What two processes made of the cases, by strategy."""
    folder = tmp_path_factory.mktemp("together")
    command = [sys.executable, "-m", "lowrank_bench.runners.executors.parallel.launcher", str(os.getpid())]
    command += ["--config_file", str(config(folder, "fsdp2")), "--main_process_port", "0"]
    command += [str(Path(trained_together.__file__)), str(folder / "made")]
    done = subprocess.run(command, env=os.environ | CPU, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr[-5000:]
    return torch.load(folder / "made")


def flat(state):
    return torch.cat([tensor.double().flatten() for tensor in state.values()])


def test_the_file_alone_configures_the_processes(tmp_path, monkeypatch):
    class Started(Exception):
        pass

    def start(command, env, **_):
        assert env["HOME_OF_A_USER"] == "kept"
        assert not [name for name in env if name.startswith(("ACCELERATE_", "FSDP_")) or name == "MASTER_PORT"]
        raise Started

    for name in ("ACCELERATE_GRADIENT_CLIPPING", "FSDP_OFFLOAD_PARAMS", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HOME_OF_A_USER", "kept")
    monkeypatch.setattr(subprocess, "Popen", start)
    stage = finetune_stage(accelerate=ProcessSetup(Path("fsdp2.yaml"), 2, "fsdp2"))
    with pytest.raises(Started):
        perform(stage, tmp_path)


@pytest.mark.parametrize("case", trained_together.CASES)
def test_two_processes_train_as_one(together, case):
    start = trained_together.build(case).state_dict()
    model, log = trained_together.train(case)
    expected, moved = model.state_dict(), flat(model.state_dict()) - flat(start)
    for strategy, results in together.items():
        result = results[case]
        assert result["sharded"] == (strategy == "fsdp2")
        assert result["state"].keys() == expected.keys()
        # In bfloat16 each sum rounds to three digits, and two processes sum in another order.
        tolerance = 0.05 if case == "bfloat16" else 1e-4
        assert (flat(result["state"]) - flat(expected)).norm() < tolerance * moved.norm()
        if case != "bfloat16":
            for name, tensor in expected.items():
                torch.testing.assert_close(result["state"][name], tensor, atol=5e-6, rtol=0, msg=f"{strategy} {name}")
        assert (result["log"]["steps"], result["log"]["tokens"]) == (log.steps, log.tokens)
        assert result["log"]["loss"] == pytest.approx(log.loss, rel=1e-3 if case == "bfloat16" else 1e-5)
    assert float(moved.abs().max()) > 1e-3


@pytest.mark.parametrize("case", trained_together.SELECTIONS)
def test_two_processes_select_bases_as_one(together, case):
    expected = trained_together.select(case)
    for strategy, results in together.items():
        result = results[case]
        assert result["report"] == expected["report"]
        assert result["bases"].keys() == expected["bases"].keys()
        for name, tensor in expected["bases"].items():
            if name.endswith(".state"):
                assert torch.equal(result["bases"][name], tensor)
            else:
                torch.testing.assert_close(result["bases"][name], tensor, atol=5e-6, rtol=0, msg=f"{strategy} {name}")
        assert result["state"].keys() == expected["state"].keys()
        for name, tensor in expected["state"].items():
            torch.testing.assert_close(result["state"][name], tensor, atol=5e-6, rtol=0, msg=f"{strategy} {name}")
    states = torch.cat([tensor for name, tensor in expected["bases"].items() if name.endswith(".state")])
    assert 0 < (states == 0).sum() < len(states)
    after, before = (
        torch.cat([tensor for name, tensor in expected["bases"].items() if name.endswith(end)])
        for end in (".after", ".before")
    )
    assert (after - before)[states == 1].abs().max() > 1e-3


def test_under_fsdp2_a_process_holds_a_share_of_the_gradients_after_each_pass(together):
    sharded, copied = (together[strategy]["tied, accumulated"]["shares"] for strategy in ("fsdp2", "ddp"))
    assert len(sharded) == len(copied) > trained_together.STEPS
    assert all(0.4 < share < 0.6 for share in sharded)
    assert set(copied) == {1.0}
    # DDP's own copies for the exchange are the gradients themselves: many of them lie in one of its buckets.
    assert max(together["ddp"]["dense"]["storages"][1:]) < 0.5


def test_under_fsdp2_a_process_holds_a_share_of_the_frozen_bases_whatever_is_pruned(together):
    for case in trained_together.SELECTIONS:
        sharded, copied = (together[strategy][case]["held"] for strategy in ("fsdp2", "ddp"))
        assert sharded.keys() == copied.keys()
        assert len(sharded) == 2 * 15
        for name, (here, all_of_it) in sharded.items():
            assert 0.4 < here / all_of_it < 0.6, name
        assert all(here == all_of_it for here, all_of_it in copied.values())
        assert sum(all_of_it for _, all_of_it in copied.values()) < sum(all_of_it for _, all_of_it in sharded.values())


@pytest.mark.parametrize(
    ("method", "options", "strategy"),
    [
        ("bs", {}, "fsdp2"),
        ("bs", {"criterion": "taylor", "scope": "global", "final_policy": "uniform"}, "fsdp2"),
        ("bs", {"final_policy": "surgical"}, "ddp"),
        ("bs", {"trajectory": True}, "ddp"),
        ("bs", {"compile": True}, "ddp"),
        ("bs", {"bases_dtype": "bfloat16"}, "ddp"),
        ("bsi", {}, "ddp"),
    ],
)
def test_a_method_that_needs_the_whole_model_on_the_way_trains_by_ddp(method, options, strategy):
    stage = compress_stage(method=method, options=options)
    assert strategy_for(stage, "fsdp2") == strategy
    assert strategy_for(stage, "ddp") == "ddp"
    assert strategy_for(recover_stage(), "fsdp2") == "fsdp2"


def test_a_killed_sweep_over_processes_ends_as_one_process_does(tmp_path):
    accelerate = config(tmp_path, "fsdp2")
    words = ["run", "--methods", "basis-sharing", "--model", "tiny", "--task", "toy-math", "--ratios", "2"]
    words += ["--limit", "2", "--workers", "1"]
    words += ["--finetune-steps", "0", "--recover-steps", "8", "--max-new-tokens", "4"]
    words += ["--accelerate", str(accelerate), "--checkpoint-minutes", "0", "--out", str(tmp_path / "two")]
    process = subprocess.Popen(
        [*FRESH, *words], env=os.environ | CPU, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not list(tmp_path.glob("two/stages/.resume-*/run-0/checkpoint-*/seal.json")):
        assert process.poll() is None
        time.sleep(0.02)
    family = psutil.Process(process.pid).children(recursive=True)
    commands = []
    for child in family:
        with contextlib.suppress(psutil.NoSuchProcess):  # one that has just ended
            commands.append(" ".join(child.cmdline()))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert sum("parallel.rank" in command for command in commands) >= 2
    assert not psutil.wait_procs(family, timeout=120)[1]
    assert not list(tmp_path.glob("two/stages/recover-*"))

    done = bench(*words, timeout=1200, **CPU)
    assert done.returncode == 0, done.stderr
    changes = {"methods": ["basis-sharing"], "ratios": [2], "limit": 2, "max_new_tokens": 4}
    alone = make_plan(small_sweep(tmp_path / "two", finetune={"steps": 0}, recover={"steps": 8}, **changes))
    (key,) = [key for key in alone.stages if key.startswith("recover")]
    record = alone.store.record(key)
    prepare(1)
    (tmp_path / "one").mkdir()
    expected = perform(alone.stages[key], tmp_path / "one").training
    training, processes = record.result.training, record.result.processes
    assert (training.steps, training.tokens) == (expected.steps, expected.tokens)
    assert record.seconds > training.seconds > training.resumed_seconds > 0
    assert (processes.count, processes.strategy) == (2, "fsdp2")
    assert alone.store.read(key)["runtime"]["accelerate"]["file"] == str(accelerate)
    folders = [alone.store.path(key) / "model", tmp_path / "one" / "model"]
    assert {file.name for file in folders[0].iterdir()} == {file.name for file in folders[1].iterdir()}
    resumed, uninterrupted = (load_file(folder / "model.safetensors") for folder in folders)
    assert resumed.keys() == uninterrupted.keys()
    for name in resumed:
        torch.testing.assert_close(resumed[name], uninterrupted[name], atol=1e-4, rtol=0, msg=name)
    assert (folders[0] / "config.json").read_text() == (folders[1] / "config.json").read_text()
    assert not list(tmp_path.glob("two/stages/.resume-*"))
    assert "accelerate" not in (tmp_path / "two" / "tiny-toy-math" / "sweep.yaml").read_text()


class Cut(BaseException):
    """Ends a stage as a signal does."""


@pytest.mark.parametrize(
    ("method", "strategy"), [("bs:prunings=3,criterion=taylor", "fsdp2"), ("bs:prunings=3,trajectory=true", "ddp")]
)
def test_basis_selection_over_processes_cut_off_and_resumed_keeps_the_bases_of_one_process(tmp_path, method, strategy):
    changes = {"methods": [method], "ratios": [1.3, 2], "finetune": {"steps": 0}, "recover": {"steps": 16}}
    accelerate = config(tmp_path, "fsdp2")
    spread = make_plan(small_sweep(tmp_path, **changes, accelerate=accelerate, checkpoint_minutes=0))
    key = [key for key, stage in spread.stages.items() if stage.kind == "compress"][-1]
    alone = make_plan(small_sweep(tmp_path, **changes, checkpoint_minutes=math.inf)).stages[key]
    prepare(1)
    for need in spread.needs[key]:
        spread.store.run(spread.stages[need], lambda folder, need=need: perform(spread.stages[need], folder))
    (tmp_path / "one").mkdir()
    uninterrupted = perform(alone, tmp_path / "one")

    def cut(done, total, unit):
        if done > total / 2 and list(tmp_path.glob(".resume-*/run-0/checkpoint-*/seal.json")):
            raise Cut

    (tmp_path / "cut").mkdir()
    with pytest.raises(Cut):
        perform(spread.stages[key], tmp_path / "cut", cut)
    bs = create_method("bs", spread.stages[key].spec.options)
    estimated = training_checkpoint_bytes(bs, spread.skeleton, Budget(2.0), sharded=True)
    sealed = [file.parent for file in tmp_path.glob(".resume-*/run-0/*/seal.json")]
    sizes = [
        sum(file.stat().st_size for file in checkpoint.rglob("*") if "made" not in file.parts) for checkpoint in sealed
    ]
    assert 0.9 * estimated < max(sizes) < 1.2 * estimated  # places of parts count, with tensors as small as these
    (tmp_path / "two").mkdir()
    resumed = perform(spread.stages[key], tmp_path / "two")
    assert resumed.training.resumed_seconds > 0
    assert resumed.processes.strategy == strategy
    ratios = {"ratio-1.3", "ratio-2"} if "trajectory" in method else {"ratio-2"}
    for ratio in ratios:
        configs = [(tmp_path / name / ratio / "model" / "config.json").read_text() for name in ("one", "two")]
        assert configs[0] == configs[1]
        before, after = (load_file(tmp_path / name / ratio / "bases.safetensors") for name in ("one", "two"))
        assert all(torch.equal(before[name], after[name]) for name in before if name.endswith(".state"))
        models = [load_model(tmp_path / name / ratio / "model") for name in ("one", "two")]
        ids = torch.arange(5, 25)[None]
        with torch.no_grad():
            torch.testing.assert_close(*(model(input_ids=ids).logits for model in models), atol=1e-3, rtol=0)
    assert {path.name for name in ("one", "two") for path in (tmp_path / name).iterdir()} == ratios
    assert {f"ratio-{ratio}" for ratio in uninterrupted.reports} == ratios
    for ratio, report in uninterrupted.reports.items():
        other = resumed.reports[ratio]
        assert (report.ranks, report.steps, report.tokens) == (other.ranks, other.steps, other.tokens)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distributed_type": "MULTI_CPU"}, "distributed_type MULTI_CPU.*FSDP, MULTI_GPU"),
        ({"distributed_type": "DEEPSPEED"}, "distributed_type DEEPSPEED"),
        ({"distributed_type": None}, "no accelerate config"),
        ({"num_processes": 1}, "num_processes 1.*2 or more"),
        ({"num_processes": "four"}, "num_processes four"),
        ({"num_machines": 2}, "num_machines 2.*one machine"),
        ({"use_cpu": True}, "--device cpu"),
        ({"mixed_precision": "bf16"}, "recipe's precision"),
        ({"fsdp_config": {"fsdp_version": 1}}, "fsdp_version: 2"),
        ({"fsdp_config": {"fsdp_version": 2}}, "TRANSFORMER_BASED_WRAP"),
        ({"fsdp_config": {"fsdp_version": 2, "fsdp_activation_checkpointing": True}}, "gradient_checkpointing"),
        ({"processes": 2}, "unknown keys"),
    ],
)
def test_a_config_that_does_not_do_is_one_sentence(tmp_path, changes, words):
    with pytest.raises(UserError, match=words) as error:
        read_setup(config(tmp_path, "fsdp2", **changes), "cpu")
    assert "\n" not in str(error.value)


def test_a_missing_or_foreign_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read.*many-gpus\.md"):
        read_setup(tmp_path / "none.yaml", "cpu")
    (tmp_path / "foreign.yaml").write_text("model: [tiny")
    with pytest.raises(UserError, match=r"no valid YAML.*many-gpus\.md"):
        read_setup(tmp_path / "foreign.yaml", "cpu")


def test_under_torchrun_bench_says_how_it_is_done(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    command += ["lowrank_bench.cli", "run", "--methods", "svd", "--model", "tiny", "--task", "toy-math"]
    command += ["--out", str(tmp_path / "runs")]
    done = subprocess.run(command, env=os.environ | CPU, capture_output=True, text=True, timeout=1200)
    assert done.returncode
    assert "error: bench runs in 2 processes of torchrun" in done.stderr
    assert "--accelerate FILE" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_the_batch_must_divide_before_anything_starts(tmp_path):
    odd = config(tmp_path, "ddp", num_processes=3)
    with pytest.raises(UserError, match=r"batch size 16 cannot be divided among 3.*2, 4, 8, 16.*multiple of 3"):
        make_plan(small_sweep(tmp_path / "runs", accelerate=odd))
    assert not (tmp_path / "runs").exists()
    with pytest.raises(UserError, match="leave it out, or --executor ray"):
        small_sweep(tmp_path / "runs", accelerate=odd, executor="ray")


@given(st.integers(1, 512), st.integers(1, 64), st.integers(2, 16))
def test_processes_passes_and_examples_make_up_the_batch(batch, micro, processes):
    settings = TrainSettings(batch_size=batch, micro_batch_size=micro)
    if batch % processes:
        with pytest.raises(UserError, match="cannot be divided"):
            settings.split(processes)
    else:
        examples, passes = settings.split(processes)
        assert examples * passes * processes == batch
        assert examples <= micro


def test_where_training_runs_is_no_part_of_a_key(tmp_path):
    alone = make_plan(small_sweep(tmp_path))
    spread = make_plan(small_sweep(tmp_path, accelerate=config(tmp_path, "ddp"), checkpoint_minutes=1))
    assert list(alone.stages) == list(spread.stages)
    trainings = {key for key, stage in spread.stages.items() if stage.train}
    assert {spread.stages[key].kind for key in trainings} == {"finetune", "compress", "recover"}
    assert {key for key, stage in spread.stages.items() if stage.accelerate} == trainings


def test_a_learning_rate_at_which_processes_diverge_is_not_chosen(tmp_path):
    changes = {"methods": ["svd"], "ratios": [2], "finetune": {"steps": 0}, "recover": {"steps": 24}, "limit": 2}
    tuned = changes | {"tune": "lr=1e-5,1e30", "accelerate": config(tmp_path, "fsdp2")}
    sweep = small_sweep(tmp_path / "runs", **tuned)
    result = run_sweep(sweep)
    assert {json.loads(text)["lr"] for text in result.records.tuned if text != "{}"} == {1e-5}
    plan = make_plan(sweep)
    records = [plan.store.record(key) for key, stage in plan.stages.items() if stage.kind == "recover"]
    (diverged,) = [record for record in records if record.result.diverged]
    assert [path.name for path in plan.store.path(diverged.key).iterdir()] == ["stage.json"]
    assert diverged.result.training.steps < 24
