"""Several numbers of steps after compression as an axis of a sweep: what the plan shares, and a run that is killed."""

import time

import pytest
from commands import bench, start
from sweeps import changed, small_sweep, write_config

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.records.files import read_records, same_results
from lowrank_bench.results.sweep import run_sweep
from lowrank_bench.runners.plan import make_plan


def kinds(plan):
    return [stage.kind for stage in plan.stages.values()]


def steps(out, value, **changes):
    return make_plan(small_sweep(out, ratios=[2], recover={"steps": value}, **changes))


def test_a_budget_in_a_list_has_the_keys_that_it_has_alone(tmp_path):
    several, alone, listed = steps(tmp_path, [3, 7]), steps(tmp_path, 7), steps(tmp_path, [7])
    assert list(alone.stages) == list(listed.stages)
    assert set(alone.stages) < set(several.stages)
    assert [stage.title for stage in alone.stages.values()] == [stage.title for stage in listed.stages.values()]
    assert not any(" 7 steps" in stage.title for stage in alone.stages.values())


def test_only_what_trains_while_it_compresses_is_compressed_for_each_budget(tmp_path):
    svd, bs = (steps(tmp_path, [3, 5, 7], methods=[name]) for name in ("svd", "bs:prunings=3"))
    assert [kinds(svd).count(kind) for kind in ("finetune", "fit", "compress", "recover")] == [1, 1, 1, 3]
    assert [kinds(bs).count(kind) for kind in ("finetune", "fit", "compress", "recover")] == [1, 1, 3, 3]
    assert [cell.budget for cell in svd.cells] == [None, 3, 5, 7]


def test_another_budget_adds_only_its_own_stages(tmp_path):
    before = steps(tmp_path, [3, 5], methods=["svd"])
    after = steps(tmp_path, [3, 5, 7], methods=["svd"])
    new = [stage for key, stage in after.stages.items() if key not in before.stages]
    assert set(before.stages) < set(after.stages)
    assert [stage.kind for stage in new] == ["recover", "evaluate"]
    assert all("7 steps" in stage.title for stage in new)


def test_titles_are_unique(tmp_path):
    titles = [stage.title for stage in steps(tmp_path, [3, 5], before_recovery=True).stages.values()]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ([0, 100], "--recover-steps 100 --before-recovery"),
        ("100,100", "100 is given twice"),
        (-5, "-5 recover steps are not possible"),
        (["a"], "cannot be 'a'"),
    ],
)
def test_wrong_budgets_are_refused(tmp_path, value, sentence):
    with pytest.raises(UserError, match=sentence):
        small_sweep(tmp_path, recover={"steps": value})


def test_training_free_has_no_budgets(tmp_path):
    with pytest.raises(UserError, match="--training-free leaves out both finetunings"):
        small_sweep(tmp_path, training_free=True, finetune={}, recover={"steps": [3, 5]})


def test_a_killed_run_and_a_later_budget_give_the_results_of_one_run(tmp_path):
    """The second run has one budget, is killed after its first stage, and is asked for both budgets when it goes on."""
    options = {"methods": ["svd", "bs:prunings=1"], "ratios": [2], "finetune": {"steps": 1}, "limit": 2}
    whole = small_sweep(tmp_path / "whole", recover={"steps": [6, 12]}, **options)
    assert bench("run", "--config", str(write_config(whole, tmp_path / "whole.yaml"))).returncode == 0
    first = small_sweep(tmp_path / "parts", recover={"steps": 6}, **options)
    stages = first.execution.out / "stages"
    run = start("run", "--config", str(write_config(first, tmp_path / "first.yaml")))
    while not list(stages.glob("finetune-*")):
        time.sleep(0.1)
        assert run.poll() is None, run.errors()
    run.kill()
    run.wait()
    assert not list(stages.glob("recover-*"))
    both = changed(first, recover={"steps": [6, 12]})
    done = bench("run", "--config", str(write_config(both, tmp_path / "both.yaml")))
    assert done.returncode == 0, done.stderr
    frames = [read_records(config.execution.out / "tiny-toy-math") for config in (whole, both)]
    assert same_results(*frames) == []
    compressed = frames[0][frames[0].method != "none"]
    assert set(compressed.steps_budget) == {6, 12}
    assert (compressed.steps_budget == compressed.steps_compress + compressed.steps_recover).all()
    assert list((whole.execution.out / "tiny-toy-math").glob("*-by-tokens.png"))


def test_budgets_of_a_training_while_compressing_are_kept_apart_without_a_recovery(tmp_path):
    config = small_sweep(
        tmp_path, methods=["bs:prunings=1"], ratios=[2], recovery="none", recover={"steps": [4, 8]}, limit=2
    )
    rows = run_sweep(config).records
    assert set(rows[(rows.method == "bs") & rows.headline].steps_budget) == {4, 8}
    alone = run_sweep(changed(config, recover={"steps": 4}, name="alone")).records
    assert set(alone[alone.method == "bs"].steps_budget) == {4}
