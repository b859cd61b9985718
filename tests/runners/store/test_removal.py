import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from rich.console import Console
from safetensors import safe_open
from safetensors.torch import save_file
from sweeps import changed, small_sweep
from typed_stages import RESULTS

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.foundation.files import read_json
from lowrank_bench.models.architectures import random_model
from lowrank_bench.results.cells import find_cell
from lowrank_bench.results.inspection.gather import inspect_changes
from lowrank_bench.results.report.gather import gather
from lowrank_bench.results.sweep import run_sweep
from lowrank_bench.runners.doctor import _stages, repair
from lowrank_bench.runners.estimates.disk import disk_bytes, disk_sentence
from lowrank_bench.runners.executors.local import Event
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.store import removal as removal_module
from lowrank_bench.runners.store.files import KEPT, REMOVED
from lowrank_bench.runners.store.folders import verify_around
from lowrank_bench.runners.store.locks import lock_file
from lowrank_bench.runners.store.removal import LARGE_PARAMETERS, Removal, by_fit, keeps_all, remove_weights
from lowrank_bench.runners.store.shared import SharedStore
from lowrank_bench.runners.sweep import plan_warnings

FREE = {"training_free": True, "finetune": {}, "recover": {}}


def planned(out, keep="needed", **changes):
    return make_plan(small_sweep(out, **{"methods": ["svd"], "ratios": [2], "keep": keep, **changes}))


def fill(stage, folder, value=1.0):
    """Write what a stage of that kind leaves, small."""
    if stage.kind == "fit":
        save_file({"q.left": torch.full((8, 8), value), "q.spectrum": torch.ones(8)}, folder / "factors-0.safetensors")
        (folder / "fit.json").write_text("{}")
    elif stage.kind == "evaluate":
        (folder / "samples.jsonl").write_text("{}\n")
    else:
        inside = [f"ratio-{ratio:g}/model" for ratio in getattr(stage.spec, "ratios", ())] or ["model"]
        for name in inside:
            (folder / name).mkdir(parents=True)
            (folder / name / "config.json").write_text("{}")
            save_file({"w": torch.full((8, 8), value)}, folder / name / "model.safetensors")
    return RESULTS[stage.kind]


def do(plan, removal, keys, value=1.0):
    """Do stages with `fill`, and notify the removal."""
    notify = removal.after(lambda event, stage: None)
    for key in keys:
        stage = plan.stages[key]
        plan.store.run(stage, lambda folder, stage=stage: fill(stage, folder, value))
        notify(Event(key, "done"), stage)


def weights(out):
    return {file.parent.relative_to(out / "stages").parts[0].partition("-")[0] for file in weight_paths(out)}


def weight_paths(out):
    return [file for file in (out / "stages").rglob("*.safetensors") if not file.name.startswith(KEPT)]


def of_kind(plan, kind):
    return [key for key, stage in plan.stages.items() if stage.kind == kind]


def test_inputs_go_after_their_last_reader_and_last_checkpoints_stay(tmp_path):
    plan = planned(tmp_path)
    removal, seen = Removal(plan, plan.pending()), []
    with removal.claim() as pending:
        for key in pending:
            do(plan, removal, [key])
            seen.append((plan.stages[key].kind, weights(tmp_path)))
    assert seen == [
        ("finetune", {"finetune"}),
        ("evaluate", {"finetune"}),
        ("fit", {"finetune", "fit"}),
        ("compress", {"compress"}),
        ("recover", {"recover"}),
        ("evaluate", {"recover"}),
    ]
    assert removal.freed > 3 * 256
    assert plan.pending() == []
    for key in plan.stages:
        plan.store.verify(key)
    (fit,) = of_kind(plan, "fit")
    with safe_open(plan.store.path(fit) / f"{KEPT}factors-0.safetensors", framework="pt") as tensors:
        assert list(tensors.keys()) == ["q.spectrum"]
    assert not list((tmp_path / "stages").glob(".reader-*"))
    assert "3 of them without the weights" in _stages(tmp_path).text
    assert repair(tmp_path)[1:] == ([], [])


def test_without_recovery_the_compressed_checkpoints_are_the_last(tmp_path):
    plan = planned(tmp_path, **FREE, ratios=[2, 4])
    removal = Removal(plan, plan.pending())
    do(plan, removal, plan.pending())
    assert weights(tmp_path) == {"compress"}


@pytest.mark.parametrize("changes", [{"ratios": [2, 4]}, {"methods": ["svd", "laser"]}, {"before_recovery": True}])
def test_what_is_asked_for_later_runs_exactly_the_missing_stages(tmp_path, changes):
    first = planned(tmp_path)
    do(first, Removal(first, first.pending()), first.pending())
    records = {key: read_json(first.store.path(key) / "stage.json") for key in first.stages}

    more = planned(tmp_path, **changes)
    pending = more.pending()
    again = set(pending) & set(first.stages)
    names = {more.stages[key].kind for key in again}
    expected = {"finetune", "fit"} if "ratios" in changes else {"finetune"}
    assert names == ({"finetune", "fit", "compress"} if "before_recovery" in changes else expected)
    notes = [note for note in plan_warnings(more) if "removed" in note]
    assert len(notes) == len(again)
    assert all("(--keep needed); it is run again" in note for note in notes)

    do(more, Removal(more, pending), pending)
    assert more.pending() == []
    assert weights(tmp_path) == {"recover"}
    assert {key: read_json(first.store.path(key) / "stage.json") for key in first.stages} == records


def test_all_by_name_makes_removed_weights_again_and_auto_does_not(tmp_path):
    plan = planned(tmp_path)
    do(plan, Removal(plan, plan.pending()), plan.pending())
    assert planned(tmp_path, "auto").pending() == []
    everything = planned(tmp_path, "all")
    assert [everything.stages[key].kind for key in everything.pending()] == ["finetune", "fit", "compress"]
    do(everything, Removal(everything, everything.pending()), everything.pending(), value=2.0)
    assert weights(tmp_path) == {"finetune", "fit", "compress", "recover"}
    assert everything.pending() == []
    for key in everything.stages:
        everything.store.verify(key)


def test_a_failed_evaluation_keeps_what_it_reads(tmp_path):
    plan = planned(tmp_path)
    failed = of_kind(plan, "evaluate")[0]
    removal = Removal(plan, plan.pending())
    do(plan, removal, [key for key in plan.stages if key != failed])
    removal.remove_all()
    assert weights(tmp_path) == {"finetune", "recover"}


def test_a_sweep_that_ran_with_all_is_made_small_by_the_same_command(tmp_path):
    plan = planned(tmp_path, "all")
    do(plan, Removal(plan, plan.pending()), plan.pending())
    assert weights(tmp_path) == {"finetune", "fit", "compress", "recover"}
    Removal(planned(tmp_path, "auto"), []).remove_all()
    assert weights(tmp_path) == {"finetune", "fit", "compress", "recover"}
    Removal(planned(tmp_path), []).remove_all()
    assert weights(tmp_path) == {"recover"}


def test_what_another_running_sweep_reads_stays_until_it_ends(tmp_path):
    plan, other = planned(tmp_path), planned(tmp_path, "all", ratios=[4])
    removal = Removal(plan, plan.pending())
    with Removal(other, other.pending()).claim():
        do(plan, removal, plan.pending())
        removal.remove_all()
        assert weights(tmp_path) == {"finetune", "fit", "recover"}
    removal.remove_all()
    assert weights(tmp_path) == {"recover"}


def test_a_sweep_on_a_checkpoint_of_a_stage_claims_it(tmp_path):
    plan = planned(tmp_path)
    (finetune,) = of_kind(plan, "finetune")

    def copy(folder):
        shutil.copytree(plan.source.location, folder / "model")
        return RESULTS["finetune"]

    plan.store.run(plan.stages[finetune], copy)
    do(plan, Removal(planned(tmp_path, "all"), []), plan.pending())
    other = planned(tmp_path, "auto", model=str(plan.store.path(finetune) / "model"), **FREE)
    with Removal(other, other.pending()).claim():
        Removal(plan, []).remove_all()
        assert weights(tmp_path) == {"finetune", "recover"}


def test_a_claim_of_a_killed_sweep_does_not_count(tmp_path):
    plan = planned(tmp_path)
    do(plan, Removal(planned(tmp_path, "all"), []), plan.pending())
    (child := os.fork()) or claim_and_die(plan)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert list((tmp_path / "stages").glob(".reader-*"))
    Removal(plan, []).remove_all()
    assert weights(tmp_path) == {"recover"}
    assert not list((tmp_path / "stages").glob(".reader-*"))


def claim_and_die(plan):
    with Removal(plan, plan.pending()).claim():
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_stage_that_another_process_works_at_is_left_alone(tmp_path):
    plan = planned(tmp_path)
    do(plan, Removal(planned(tmp_path, "all"), []), plan.pending())
    (fit,) = of_kind(plan, "fit")
    with FileLock(lock_file(plan.store.root, fit)):
        Removal(plan, []).remove_all()
        assert weights(tmp_path) == {"fit", "recover"}
    Removal(plan, []).remove_all()
    assert weights(tmp_path) == {"recover"}


@pytest.mark.parametrize("step", ["_keep_small_part", "write_json", "unlink"])
def test_a_removal_killed_at_any_step_leaves_no_damage_and_is_finished(tmp_path, step):
    changes = {"ratios": [2, 4], "methods": ["bs:trajectory=true,prunings=3"]}
    plan = planned(tmp_path, **changes)
    do(plan, Removal(planned(tmp_path, "all", **changes), []), plan.pending())
    (compress,) = of_kind(plan, "compress")  # with two files
    (child := os.fork()) or remove_and_die(plan, compress, step)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL

    plan.store.verify(compress)
    assert bool(plan.store.removed(compress)) == (step == "unlink")
    left = len([file for file in weight_paths(tmp_path) if compress in file.parts])
    assert left == (1 if step == "unlink" else 2)
    assert plan.pending() == []
    Removal(plan, []).remove_all()
    assert weights(tmp_path) == {"recover"}
    assert _stages(tmp_path).fine


def remove_and_die(plan, key, step):
    target, name = (Path, step) if step == "unlink" else (removal_module, step)
    real = getattr(target, name)

    def dying(*args, **more):
        real(*args, **more) if step != "write_json" else None
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(target, name, dying)
    remove_weights(plan.store, key)
    os._exit(0)


def test_a_stage_killed_between_its_two_renames_runs_again(tmp_path, monkeypatch):
    plan = planned(tmp_path)
    do(plan, Removal(plan, plan.pending()), plan.pending())
    (finetune,) = of_kind(plan, "finetune")
    real = os.rename

    def cut(source, target):
        if str(source).endswith(f".part-{finetune}"):
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "rename", cut)
    with pytest.raises(KeyboardInterrupt):
        do(plan, Removal(plan, plan.pending()), [finetune])
    monkeypatch.undo()
    assert plan.pending() == [finetune]
    do(plan, Removal(plan, plan.pending()), [finetune])
    assert plan.pending() == []
    assert not list(plan.store.root.glob(".part-*"))


def test_a_resumable_training_of_removed_weights_is_not_taken_for_cut_off(tmp_path):
    plan = planned(tmp_path)
    do(plan, Removal(plan, plan.pending()), plan.pending())
    (finetune,) = of_kind(plan, "finetune")
    (plan.store.root / f".resume-{finetune}").mkdir()
    assert [path.name for path in plan.store.resumable()] == [f".resume-{finetune}"]
    assert plan.store.cut_off() == []


def test_readers_of_removed_weights_hear_so_and_a_bad_list_is_damage(tmp_path):
    plan = planned(tmp_path)
    do(plan, Removal(plan, plan.pending()), plan.pending())
    (finetune,) = of_kind(plan, "finetune")
    folder = plan.store.path(finetune)
    for reader in (
        lambda: plan.store.whole(finetune),
        lambda: verify_around(folder / "model"),
        lambda: planned(tmp_path, model=str(folder / "model")),
    ):
        with pytest.raises(
            UserError, match=r"removed when their sweep had read them .*'bench run' again with --keep all"
        ):
            reader()
    verify_around(folder / "stage.json")
    (folder / REMOVED).write_text("[1]")
    with pytest.raises(UserError, match=f"no readable {REMOVED}"):
        plan.store.verify(finetune)


def test_auto_keeps_what_is_needed_from_a_billion_parameters_on_without_a_storage(tmp_path):
    plan = planned(tmp_path, "auto")
    assert keeps_all(plan)
    plan.parameters = LARGE_PARAMETERS
    assert not keeps_all(plan)
    assert keeps_all(replace_config(plan, storage=f"file://{tmp_path}/shared"))
    with pytest.raises(UserError, match=r"--keep needed removes weights that --storage .* leave one of them out"):
        planned(tmp_path, storage=f"file://{tmp_path}/shared")


def replace_config(plan, **changes):
    other = replace(plan, config=changed(plan.config, **changes))
    other.parameters = plan.parameters
    return other


def test_a_shared_store_takes_from_its_storage_what_was_removed_here(tmp_path):
    plan = planned(tmp_path / "one", "all")
    url = f"file://{tmp_path}/shared"
    do(plan, Removal(plan, plan.pending()), plan.pending())
    (finetune,), (fit,) = of_kind(plan, "finetune"), of_kind(plan, "fit")
    shared = SharedStore(plan.store.root, url)
    shared.publish([finetune])
    Removal(planned(tmp_path / "one"), []).remove_all()
    assert shared.publish(plan.stages) == 3  # what has its weights: the recovered checkpoint and two evaluations
    assert shared.without_weights([finetune, fit]) == {fit}
    assert (shared.whole(finetune) / "model" / "model.safetensors").is_file()
    with pytest.raises(UserError, match="were removed"):
        shared.whole(fit)


def test_disk_is_estimated_for_both_ways(tmp_path):
    plan = planned(tmp_path, "all", ratios=[2, 4], workers=1)
    size = 4 * plan.parameters
    assert disk_bytes(plan, "all") == pytest.approx(size * (1 + 2 + 2 * 0.5 + 2 * 0.25))
    # model, factors and both forms of the first ratio; then its recovered form and both of the second
    assert disk_bytes(plan, "needed") == pytest.approx(size * (1 + 2 + 2 * 0.5))
    assert "with --keep all (" in disk_sentence(plan)
    assert "with --keep needed (" in disk_sentence(planned(tmp_path, ratios=[2, 4]))


def test_the_headline_on_seven_billion_parameters_fits_on_a_normal_disk(tmp_path):
    plan = planned(tmp_path, "auto", ratios=[2, 4], recipe="paper", methods=["svd", "fwsvd:samples=8", "bs:prunings=3"])
    plan.skeleton = random_model("llama", width=256)
    plan.skeleton.config.dtype = torch.bfloat16
    plan.parameters = 6_738_415_616
    order = [plan.stages[key].title.partition(",")[0] for key in by_fit(plan, plan.pending())]
    fits = [index for index, title in enumerate(order) if title.startswith("fit")]
    assert not any(" svd" in title or "bs:" in title for title in order[fits[1] :])
    assert disk_bytes(plan, "all") > 340e9
    assert disk_bytes(plan) == disk_bytes(plan, "needed") < 190e9
    endless = replace_config(plan, checkpoint_minutes=math.inf)
    assert disk_bytes(endless) < 120e9


def test_a_real_sweep_without_its_weights_takes_one_more_ratio(tmp_path):
    first = small_sweep(tmp_path, methods=["svd"], ratios=[2], limit=1, keep="needed")
    run_sweep(first)
    assert weights(tmp_path) == {"recover"}
    files = [next((tmp_path / "stages").glob(f"{kind}-*/stage.json")) for kind in ("finetune", "fit")]
    records = [file.read_bytes() for file in files]

    console = Console(record=True, width=300)
    result = run_sweep(changed(first, ratios=(2.0, 4.0)), console)
    assert result.stages_run == 5  # finetune and fit again, and one compress, recover, evaluate
    assert console.export_text().count("it is run again") == 2
    assert [file.read_bytes() for file in files] == records  # the same weights, byte for byte
    assert weights(tmp_path) == {"recover"}
    assert "keep" not in (result.folder / "sweep.yaml").read_text()

    report = gather(result.folder)
    assert report.spectra
    shapes = [rank.full for rank_map in report.ranks for row in rank_map.cells for rank in row if rank]
    assert len(shapes) > 8
    assert min(shapes) > 8
    assert find_cell(f"{result.folder}:svd@4", any_benchmark=True).checkpoint().is_dir()
    for reader in (
        lambda: find_cell(f"{result.folder}:finetuned@1", any_benchmark=True).checkpoint(),
        lambda: inspect_changes(f"{result.folder}:svd@2"),
    ):
        with pytest.raises(UserError, match="were removed when their sweep had read them"):
            reader()
