"""--recovery: what the plan shares, what a sweep records, and a run that is killed in a phase."""

import json
import time

import pytest
from commands import bench, start
from sweeps import changed, small_sweep, write_config

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.records.files import read_records, same_results
from lowrank_bench.runners.estimates.arithmetic import Arithmetic
from lowrank_bench.runners.plan import make_plan


def plan(out, recovery=None, **changes):
    more = {} if recovery is None else {"recovery": recovery}
    return make_plan(small_sweep(out, **{"methods": ["svd"], "ratios": [2]} | more | changes))


def kinds(plan):
    return [stage.kind for stage in plan.stages.values()]


def test_full_is_what_a_sweep_without_the_option_has(tmp_path):
    without, full = plan(tmp_path), plan(tmp_path, "full")
    assert list(without.stages) == list(full.stages)
    recover = next(stage for stage in without.stages.values() if stage.kind == "recover")
    assert "recovery" not in recover.spec.hashed()
    assert "recovery_options" not in recover.spec.hashed()


def test_recoveries_share_all_that_lies_before(tmp_path):
    full, both = plan(tmp_path), plan(tmp_path, "full,lora")
    new = [stage for key, stage in both.stages.items() if key not in full.stages]
    assert set(full.stages) < set(both.stages)
    assert [stage.kind for stage in new] == ["recover", "evaluate"]
    assert [cell.label for cell in both.cells if cell.state == "recovered"] == ["svd", "svd:recovery=lora"]
    titles = [stage.title for stage in both.stages.values()]
    assert len(set(titles)) == len(titles)


def test_options_are_part_of_the_key(tmp_path):
    lora, same, other = (plan(tmp_path, text) for text in ("lora", "lora:r=8", "lora:r=4"))
    assert list(lora.stages) == list(same.stages)
    assert list(lora.stages) != list(other.stages)


def test_none_is_the_mechanism_of_no_recover_steps_and_of_before_recovery(tmp_path):
    none, zero = plan(tmp_path, "none"), plan(tmp_path, recover={"steps": 0})
    assert list(none.stages) == list(zero.stages)
    assert "recover" not in kinds(none)
    before, listed = plan(tmp_path, before_recovery=True), plan(tmp_path, "full,none")
    assert set(before.stages) == set(listed.stages)
    assert [cell.label for cell in before.cells] == [cell.label for cell in listed.cells]


def test_none_leaves_the_training_of_a_method_to_it(tmp_path):
    """What trains while it compresses does so with its share of the budget; only the recovery is left out."""
    full, none = (plan(tmp_path, recovery, methods=["bs:prunings=3"]) for recovery in ("full", "none"))
    compressions = [{key for key in p.stages if key.startswith("compress")} for p in (full, none)]
    assert compressions[0] == compressions[1]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"recovery": "loar"}, "did you mean 'lora'"),
        ({"recovery": "lora:rank=4"}, "no option 'rank'"),
        ({"recovery": "lora:r"}, "'lora:r' is no recovery|has no value; options follow the recovery's name"),
        ({"recovery": "lora,lora:r=8"}, r"lora is given twice, the second time as lora\(r=8\)"),
        ({"recovery": "full,full"}, "given twice"),
        ({"recovery": []}, "recovery"),
        ({"recovery": "lora", "recover": {"steps": 0}}, "0 recover steps leave nothing to --recovery lora"),
        (
            {"recovery": "lora", "training_free": True, "finetune": {}, "recover": {}},
            "--training-free leaves out both finetunings, and --recovery lora is one",
        ),
    ],
)
def test_wrong_words_are_refused_before_any_work(tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        small_sweep(tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_a_missing_peft_is_said_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'lowrank-bench\[peft\]'"):
        plan(tmp_path, "lora")


def test_estimates_count_the_adapters_alone(tmp_path):
    both = plan(tmp_path, "full,lora")
    peaks = {title: peak for title, (_, peak) in both.trainings.items() if title.startswith("recover")}
    full, lora = peaks["recover svd 2x, seed 42"], peaks["recover svd 2x by lora, seed 42"]
    parameters = both.parameters / 2
    assert full.least == pytest.approx(16 * parameters, rel=0.05)
    assert 4 * parameters < lora.least < 8 * parameters  # no gradients and no moments of the frozen weights
    assert lora.device < full.device
    work = {stage.title: Arithmetic(both).work(key) for key, stage in both.stages.items() if stage.kind == "recover"}
    assert work["recover svd 2x by lora, seed 42"].training == pytest.approx(
        2 / 3 * work["recover svd 2x, seed 42"].training
    )


OPTIONS = {"methods": ["svd"], "ratios": [2], "finetune": {"steps": 1}, "recover": {"steps": 12}, "limit": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished sweep with all recoveries."""
    folder = tmp_path_factory.mktemp("whole")
    config = small_sweep(folder, recovery="full,lora,none", **OPTIONS)
    done = bench("run", "--config", str(write_config(config, folder / "sweep.yaml")))
    assert done.returncode == 0, done.stderr
    return config


def test_records_have_equal_tokens_and_say_what_recovered(whole):
    frame = read_records(whole.execution.out / "tiny-toy-math")
    frame = frame[frame.headline]
    rows = {(row.label, row.stage): row for row in frame.itertuples()}
    assert set(rows) == {
        ("finetuned", "finetuned"),
        ("svd", "compressed"),
        ("svd", "recovered"),
        ("svd:recovery=lora", "recovered"),
    }
    full, lora = rows["svd", "recovered"], rows["svd:recovery=lora", "recovered"]
    assert full.tokens_recover > 0
    assert (full.tokens_recover, full.steps_recover) == (lora.tokens_recover, lora.steps_recover)
    assert (full.params, full.bytes, full.steps_budget) == (lora.params, lora.bytes, lora.steps_budget)
    assert json.loads(lora.options)["recovery"] == {
        "name": "lora",
        **{"r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "lr_scale": 1.0},
    }
    assert "recovery" not in json.loads(full.options)


def test_stage_records_have_memory_and_time_of_each_phase(whole):
    files = (whole.execution.out / "stages").glob("recover-*/stage.json")
    records = [json.loads(file.read_text()) for file in files]
    stages = {record["config"].get("recovery", "full"): record for record in records}
    phases = stages["lora"]["result"]["recovery"]["phases"]
    assert [(phase["name"], phase["steps"]) for phase in phases] == [("lr_b", 6), ("lr_a", 6)]
    assert all(phase["seconds"] > 0 for phase in phases)
    (full,) = stages["full"]["result"]["recovery"]["phases"]
    assert sum(phase["tokens"] for phase in phases) == full["tokens"]
    assert max(phase["trained_parameters"] for phase in phases) < full["trained_parameters"] / 4
    predicted = {name: record["result"]["memory"]["predicted_peak_bytes"] for name, record in stages.items()}
    assert predicted["lora"] < predicted["full"]


def test_a_run_killed_in_a_phase_ends_with_the_same_results(whole, tmp_path):
    config = changed(whole, out=tmp_path, checkpoint_minutes=0.0, recovery="lora")
    asked = str(write_config(config, tmp_path / "sweep.yaml"))
    stages, run = tmp_path / "stages", start("run", "--config", asked)
    while not list(stages.glob("**/run-1/checkpoint-*/seal.json")):
        time.sleep(0.02)
        assert run.poll() is None, run.errors()
    run.kill()
    run.wait()
    assert not list(stages.glob("recover-*/stage.json")), "it had ended before it was killed"
    done = bench("run", "--config", asked)
    assert done.returncode == 0, done.stderr
    (recover,) = stages.glob("recover-*")
    first = whole.execution.out / "stages" / recover.name
    assert (first / "model" / "model.safetensors").read_bytes() == (
        recover / "model" / "model.safetensors"
    ).read_bytes()
    before, after = (read_records(folder / "tiny-toy-math") for folder in (whole.execution.out, tmp_path))
    alike = before.label.isin(["finetuned", "svd:recovery=lora"])
    assert same_results(before[alike], after) == []
