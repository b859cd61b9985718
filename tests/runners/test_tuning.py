"""``--tune``: one grid for every method, a choice by the loss on examples that nothing trains on, and its record."""

import json
import shutil
import time
from collections import Counter
from dataclasses import replace

import pytest
import torch
import yaml
from commands import bench, start
from sweeps import changed, small_sweep, write_config

from lowrank_bench.evals.tasks.prompts import Encoded
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.loading import load_model, load_tokenizer
from lowrank_bench.records.files import read_records, same_results
from lowrank_bench.results.sweep import run_sweep
from lowrank_bench.results.tables.by_ratio import by_ratio
from lowrank_bench.runners.estimates.disk import disk_bytes
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.store.folders import MODEL_FOLDER, StageStore
from lowrank_bench.runners.store.removal import Removal, readers_of_inputs
from lowrank_bench.runners.training.data import TaskData, load_task_data
from lowrank_bench.runners.training.held_out import HELD_OUT, is_held_out, mean_loss, split_held_out

GRID = (1e-5, 3e-3, 1e-2)
SMALL = {"ratios": [2], "finetune": {"steps": 1}, "recover": {"steps": 6}, "limit": 2}
BOTH = SMALL | {"methods": ["svd", "bs:prunings=1"], "tune": "lr=1e-2,1e-5,3e-3"}


def planned(out, **changes):
    return make_plan(small_sweep(out, **SMALL | {"methods": ["svd"]} | changes))


@pytest.fixture(scope="module")
def data():
    source = small_sweep("unused").model
    tokenizer = load_tokenizer(make_plan(small_sweep("unused")).source.location)
    assert source == "tiny"
    return load_task_data("toy-math", None, None, tokenizer, None, 256, 42)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    return small_sweep(tmp_path_factory.mktemp("tuned"), **BOTH, before_recovery=True)


@pytest.fixture(scope="module")
def swept(config):
    return run_sweep(config)


@pytest.fixture(scope="module")
def store(config, swept):
    return StageStore(config.execution.folder / "stages")


def recoveries(plan, method):
    name = f"recover {method.partition(':')[0]}"
    return [stage for stage in plan.stages.values() if stage.title.startswith(name)]


def test_a_sweep_without_a_grid_has_the_stages_that_it_had(tmp_path):
    plain, tuned = planned(tmp_path), planned(tmp_path, tune="lr=1e-4,1e-3")
    assert plain.provisional == set()
    assert all("held_out" not in json.dumps(stage.spec.hashed()) for stage in plain.stages.values())
    shared = {plain.stages[key].kind for key in set(plain.stages) & set(tuned.stages)}
    assert shared == set()  # all follow from a finetuning that leaves examples out
    changed_parts = [stage.spec.hashed()["data"] for stage in tuned.stages.values() if stage.train is not None]
    assert {part["held_out"] for part in changed_parts} == {HELD_OUT}


def test_every_method_ratio_and_budget_has_the_same_grid(tmp_path):
    methods = ["svd", "fwsvd:samples=8", "bs:prunings=3"]
    plan = planned(tmp_path, methods=methods, ratios=[2, 4], recover={"steps": [3, 5]}, tune="lr=1e-3,1e-4")
    seen = Counter(
        (method, plan.grid[stage.key][0], stage.train.steps, stage.train.learning_rate)
        for method in methods
        for stage in recoveries(plan, method)
    )
    assert seen == dict.fromkeys(
        ((m, ratio, steps, rate) for m in methods for ratio in (2, 4) for steps in (3, 5) for rate in (1e-4, 1e-3)), 1
    )
    assert {stage.train.learning_rate for stage in plan.stages.values() if stage.kind == "finetune"}.isdisjoint({1e-4})
    compressions = Counter(s.title.split()[1] for s in plan.stages.values() if s.kind == "compress")
    assert compressions == {"svd": 2, "fwsvd:samples=8": 2, "bs:prunings=3": 8}  # bs trains at each rate and budget
    titles = [stage.title for stage in plan.stages.values()]
    assert len(set(titles)) == len(titles)


def test_fits_read_all_examples_and_trainings_leave_the_held_out_ones_aside(tmp_path):
    plan = planned(tmp_path, methods=["fwsvd:samples=8", "bs:prunings=3"], tune="lr=1e-4,1e-3")
    shares = {
        (stage.kind, stage.data.held_out) for stage in plan.stages.values() if stage.data and stage.kind != "evaluate"
    }
    assert shares == {("finetune", HELD_OUT), ("fit", 0.0), ("compress", HELD_OUT), ("recover", HELD_OUT)}


def test_the_share_follows_from_each_example_alone(data):
    trained, held_out = split_held_out(data, HELD_OUT)
    numbers = trained.items.numbers, held_out.items.numbers
    assert sorted([*numbers[0], *numbers[1]]) == list(range(len(data.items)))
    assert 0.02 < len(held_out.items) / len(data.items) < 0.09
    assert {tuple(item.input_ids) for item in trained.items}.isdisjoint(
        tuple(item.input_ids) for item in held_out.items
    )
    shuffled = replace(data, items=[*reversed(data.items), *data.items])
    assert len(split_held_out(shuffled, HELD_OUT)[1].items) == 2 * len(held_out.items)
    assert held_out.items[:2] == [held_out.items[0], held_out.items[1]]
    many = sum(is_held_out(Encoded([number, 7], [0, 0]), 0.05) for number in range(20_000))
    assert 900 < many < 1100


def test_the_loss_is_the_mean_over_all_target_tokens(data):
    model = load_model(make_plan(small_sweep("unused")).source.location)
    few = TaskData(data.items[:7], data.pad_token_id, 0, 42)
    total, count = 0.0, 0
    for item in few.items:
        with torch.no_grad():
            scores = model(torch.tensor([item.input_ids])).logits[0].log_softmax(-1)
        for position, label in enumerate(item.labels[1:]):
            if label != -100:
                total, count = total - float(scores[position, label]), count + 1
    for batch_size in (1, 3, 7):
        measured = mean_loss(model, few, batch_size)
        assert measured.loss == pytest.approx(total / count, rel=1e-4)
        assert measured.examples == 7
        assert measured.tokens == sum(len(item.input_ids) for item in few.items)


def test_the_least_loss_on_held_out_examples_chooses(config, swept, store, data):
    plan = make_plan(config)
    assert plan.provisional == set()
    held_out = split_held_out(data, HELD_OUT)[1]
    for method in ("svd", "bs:prunings=1"):
        (cell,) = [cell for cell in plan.cells if cell.state == "recovered" and cell.method.shown == method]
        losses = {}
        for stage in recoveries(plan, method):
            model = load_model(store.path(stage.key) / MODEL_FOLDER)
            losses[stage.train.learning_rate] = mean_loss(model, held_out, 5).loss
            recorded = store.record(stage.key).result.held_out
            assert recorded.loss == pytest.approx(losses[stage.train.learning_rate], rel=1e-4)
            assert recorded.examples == len(held_out.items)
        assert cell.tuned.grid == tuple(losses) == GRID
        assert cell.tuned.losses == pytest.approx(tuple(losses.values()), rel=1e-4)
        best = min(losses, key=losses.__getitem__)
        assert cell.tuned.chosen == best == plan.stages[cell.stages["recover"]].train.learning_rate
        assert best != GRID[0]  # which was the provisional rate
        (evaluation,) = cell.evaluations.values()
        assert plan.stages[evaluation].inputs["model"].startswith(f"{cell.stages['recover']}/")


def test_only_what_was_chosen_is_evaluated(swept, store):
    keys = store.keys()
    kinds = Counter(key.partition("-")[0] for key in keys)
    assert kinds == {"finetune": 1, "fit": 1, "compress": 4, "recover": 6, "evaluate": 5}


def test_a_compression_that_trains_is_shown_at_the_chosen_rate(config, swept):
    plan = make_plan(config)
    before, after = [cell for cell in plan.cells if cell.method.name == "bs"]
    assert (before.state, after.state) == ("compressed", "recovered")
    assert before.stages["compress"] == after.stages["compress"]
    assert plan.stages[after.stages["compress"]].train.learning_rate == after.tuned.chosen
    assert before.tuned == after.tuned
    svd = next(cell for cell in plan.cells if cell.method.name == "svd" and cell.state == "compressed")
    assert svd.tuned is None


def test_records_say_the_choice_and_its_cost(config, swept, store):
    plan = make_plan(config)
    rows = swept.records[swept.records.headline]
    for row in rows.itertuples():
        tuned = json.loads(row.tuned)
        if row.stage != "recovered":
            assert bool(tuned) == (row.method == "bs")
            continue
        assert tuned["grid"] == list(GRID)
        assert tuned["lr"] == GRID[tuned["losses"].index(min(tuned["losses"]))]
        assert tuned["held_out"] == HELD_OUT
        stages = recoveries(plan, row.label)
        tokens = sum(store.record(stage.key).result.training.tokens for stage in stages)
        if row.method == "bs":
            compressions = [stage for stage in plan.stages.values() if stage.title.startswith("compress bs")]
            tokens += sum(store.record(stage.key).result.report(2).tokens for stage in compressions)
        assert tuned["tokens"] == tokens > 2 * (row.tokens_compress + row.tokens_recover)


def test_the_table_shows_losses_choices_and_tokens(swept):
    (table,) = [table for table in by_ratio(swept.records) if table.title.endswith("learning rates")]
    headings = [column.title for column in table.columns]
    assert headings == ["", "target", *(f"loss at {rate:g}" for rate in GRID), "chosen", "tokens of the grid"]
    assert [row[0] for row in table.rows] == ["bs:prunings=1, not recovered", "bs:prunings=1", "svd"]
    for row in table.rows:
        losses = [cell.value for cell in row[2:5]]
        assert row[5] == f"{GRID[losses.index(min(losses))]:g}"


def test_the_same_command_again_does_nothing_and_one_rate_more_trains_it_alone(config, swept):
    assert run_sweep(config).stages_run == 0
    plan = make_plan(changed(config, tune="lr=1e-2,1e-5,3e-3,1e-4"))
    assert Counter(plan.stages[key].kind for key in plan.pending() if key not in plan.provisional) == {
        "compress": 1,
        "recover": 2,
    }


def test_a_dry_run_counts_the_whole_grid(tmp_path):
    options = ["--methods", "svd", "--model", "tiny", "--task", "toy-math", "--ratios", "2,3", "--out", str(tmp_path)]
    done = bench("run", *options, "--tune", "lr=1e-4,3e-4,1e-3", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "recover   6" in done.stdout
    assert "tuning: lr=0.0001,0.0003,0.001: each method is trained at each of 3 learning rates" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_killed_run_goes_on_to_the_results_of_one_run(config, swept, tmp_path):
    again = changed(config, out=str(tmp_path))
    run = start("run", "--config", str(write_config(again, tmp_path / "sweep.yaml")))
    while not list((tmp_path / "stages").glob("recover-*")):
        time.sleep(0.1)
        assert run.poll() is None, run.errors()
    run.kill()
    run.wait()
    assert not list((tmp_path / "stages").glob("evaluate-*"))
    done = bench("run", "--config", str(tmp_path / "sweep.yaml"))
    assert done.returncode == 0, done.stderr
    assert same_results(swept.records, read_records(tmp_path / "tiny-toy-math")) == []


def test_a_rate_at_which_a_training_diverges_is_not_chosen(config, swept, tmp_path):
    # bs diverges while it compresses too, and then leaves nothing to recover.
    shutil.copytree(config.execution.folder / "stages", tmp_path / "stages")
    wide = changed(config, out=str(tmp_path), tune="lr=1e-5,1e30", recover={"steps": 24})
    result = run_sweep(wide)
    plan, store = make_plan(wide), StageStore(tmp_path / "stages")
    for method, compressed in (("svd", ""), ("bs:prunings=1", "the loss became nan")):
        low, high = (store.record(stage.key).result for stage in recoveries(plan, method))
        assert (low.diverged, high.held_out) == ("", None)
        assert "no model to train" in high.diverged if compressed else "the loss became nan" in high.diverged
    records = [store.record(key) for key in plan.stages]
    (compressed,) = [record for record in records if record.kind == "compress" and record.result.diverged]
    assert compressed.result.reports == {}
    assert [path.name for path in store.path(compressed.key).iterdir()] == ["stage.json"]
    choices = [json.loads(text) for text in result.records.tuned if text != "{}"]
    assert {choice["lr"] for choice in choices} == {1e-5}
    assert all(choice["losses"][1] is None and choice["losses"][0] < 10 for choice in choices)
    (table,) = [table for table in by_ratio(result.records) if table.title.endswith("learning rates")]
    assert {row[3].text for row in table.rows} == {"not finite"}
    assert run_sweep(wide).stages_run == 0

    none = changed(wide, tune="lr=1e30,1e32", methods=["svd"])
    with pytest.raises(UserError, match=r"at no learning rate of --tune \(lr=1e\+30,1e\+32\) does 'recover svd 2x"):
        run_sweep(none)


@pytest.mark.parametrize(
    "changes",
    [
        {"before_recovery": True},
        {"recovery": "full,none", "ratios": [2, 3], "methods": ["bs:prunings=1,trajectory=true"]},
        {"before_recovery": True, "bits": [16, 8], "methods": ["svd", "bs:prunings=1"]},
    ],
)
def test_what_a_choice_reads_stays_until_the_choice_and_goes_after_it(tmp_path, changes):
    """With ``--keep needed`` no stage runs twice, and weights of the rates that were not chosen go as all others do."""
    options = SMALL | {"methods": ["bs:prunings=1"], "tune": "lr=1e-5,1e-2", "keep": "needed"} | changes
    config, events = small_sweep(tmp_path, **options), []
    with pytest.MonkeyPatch.context() as patch:
        after = Removal.after
        patch.setattr(
            Removal,
            "after",
            lambda own, seen: after(own, lambda event, stage: (events.append(event), seen(event, stage))),
        )
        result = run_sweep(config)
    plan, store = make_plan(config), StageStore(tmp_path / "stages")
    done = Counter(event.key for event in events if event.kind == "done")
    assert done.total() == result.stages_run
    assert set(done.values()) == {1}
    chosen = {cell.tuned.chosen for cell in plan.cells if cell.tuned and cell.method.name == "bs"}
    assert chosen == {1e-2}  # not the provisional rate
    assert not plan.alternatives
    compressed = [key for key, stage in plan.stages.items() if stage.kind == "compress"]
    assert store.without_weights(compressed) == set(compressed)
    last = {cell.stages["recover"] for cell in plan.cells if "recover" in cell.stages}
    read_again = last if "bits" in changes else set()  # by the rounding, after which they go too
    assert store.without_weights(plan.grid) == set(plan.grid) - last | read_again
    assert 0 < len(last) < len(plan.grid)
    assert run_sweep(config).stages_run == 0


def test_a_model_that_another_sweep_measured_stays_and_one_that_is_chosen_later_is_made_again(tmp_path):
    short = small_sweep(tmp_path, **SMALL | {"methods": ["svd"], "tune": "lr=1e-5,1e-4", "keep": "all"}, name="short")
    run_sweep(short)
    (measured,) = make_plan(short).grid.keys() & {cell.stages.get("recover") for cell in make_plan(short).cells}
    longer = changed(short, tune="lr=1e-5,1e-4,1e-2", keep="needed", name="longer")
    run_sweep(longer)
    plan, store = make_plan(longer), StageStore(tmp_path / "stages")
    (best,) = plan.grid.keys() & {cell.stages.get("recover") for cell in plan.cells}
    assert len({measured, best}) == 2
    assert store.without_weights(plan.grid) == set(plan.grid) - {measured, best}
    other = changed(short, tune=f"lr=1e-5,{1e-6}", keep="needed", name="other")  # chooses one whose weights went
    run_sweep(other)
    (again,) = make_plan(other).grid.keys() & {cell.stages.get("recover") for cell in make_plan(other).cells}
    assert again in plan.grid
    assert not store.without_weights([again, measured, best])


def test_a_longer_grid_trains_only_what_is_new_where_weights_of_other_rates_were_removed(tmp_path):
    options = SMALL | {"methods": ["svd", "bs:prunings=1"], "tune": "lr=1e-5,1e-2", "keep": "needed"}
    run_sweep(small_sweep(tmp_path, **options))
    longer = small_sweep(tmp_path, **options | {"tune": "lr=1e-5,1e-4,1e-2"})
    plan = make_plan(longer)
    trained = {"recover svd 2x": [], "recover bs:prunings=1 2x": [], "compress bs:prunings=1 2x": []}
    for key in plan.pending():
        stage = plan.stages[key]
        if (name := stage.title.split(",")[0]) in trained:
            trained[name].append(stage.train.learning_rate)
    assert set(map(tuple, trained.values())) == {(1e-4,)}
    run_sweep(longer)
    assert run_sweep(longer).stages_run == 0


def test_a_plan_with_a_choice_to_make_counts_the_weights_that_it_waits_with(tmp_path):
    changes = {"methods": ["bs:prunings=1"], "tune": "lr=1e-4,1e-3,1e-2", "workers": 1, "before_recovery": True}
    plan = planned(tmp_path, **changes)
    compressed = {key for key, stage in plan.stages.items() if stage.kind == "compress"}
    assert len(compressed) == 3
    readers = readers_of_inputs(plan)
    (evaluation,) = {key for key in readers[min(compressed)] if key.startswith("evaluate-")}
    assert all(evaluation in readers[key] for key in compressed)
    size = 4 * plan.parameters
    recovered = planned(tmp_path, **changes | {"before_recovery": False})
    assert disk_bytes(plan, "needed") - disk_bytes(recovered, "needed") == pytest.approx(size, rel=0.01)


@pytest.mark.parametrize(
    ("method", "rate", "steps"),
    [("bs:prunings=1", 1e29, 3), ("bs:prunings=2,trajectory=true", 1e36, 3), ("bsi:prunings=1", 1e29, 3)],
)
def test_finite_weights_whose_matrix_overflows_are_a_diverged_training(tmp_path, method, rate, steps):
    """In one sentence, or for a grid a rate that is not chosen."""
    options = SMALL | {"methods": [method], "limit": 1}
    config = small_sweep(tmp_path, **options | {"recover": {"steps": steps, "learning_rate": rate}})
    sentence = r"the bases of \S+ make no finite matrix after \d steps of compress .*; lower the learning rate \(now 1e"
    with pytest.raises(UserError, match=sentence) as error:
        run_sweep(config)
    assert str(error.value).count("\n") == 0
    assert not list((tmp_path / "stages").glob("compress-*"))

    tuned = small_sweep(tmp_path, **options | {"recover": {"steps": steps}, "tune": f"lr=1e-5,{rate:g}"})
    run_sweep(tuned)
    plan = make_plan(tuned)
    assert {cell.tuned.chosen for cell in plan.cells if cell.tuned} == {1e-5}
    records = [plan.store.record(key).result for key, stage in plan.stages.items() if stage.kind == "compress"]
    assert sum("make no finite matrix" in result.diverged for result in records) == 1
    assert {result.training.steps > 0 for result in records} == {True}


def test_another_machine_gets_what_a_choice_needs_from_the_storage(tmp_path):
    storage = f"file://{tmp_path / 'storage'}"
    options = SMALL | {"methods": ["bs:prunings=1"], "tune": "lr=1e-4,1e-3", "storage": storage}
    first = run_sweep(small_sweep(tmp_path / "one", **options))
    second = run_sweep(small_sweep(tmp_path / "two", **options))
    assert second.stages_run == 0
    assert same_results(first.records, second.records) == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tune": "lr=1e-3"}, "needs at least two: --tune lr=1e-4,3e-4,1e-3; --lr sets one"),
        ({"tune": "lr=1e-3,1e-3"}, "the learning rate 0.001 is given twice"),
        ({"tune": "lr=1e-3,-1"}, "-1 is no learning rate; write numbers above 0"),
        ({"tune": "lr=1e-3,inf"}, "inf is no learning rate"),
        ({"tune": "lr=1e-3,1e38"}, r"1e\+38 is no learning rate; write numbers above 0 and up to 1e\+36"),
        ({"tune": "lr=small,large"}, "'small,large' are no learning rates; write numbers with commas"),
        ({"tune": "steps=3,4"}, "'steps=3,4' is no grid; the learning rate after compression is what can be tuned"),
        ({"tune": "1e-3,1e-4"}, "is no grid"),
        ({"tune": 0.001}, "'0.001' is no grid"),
        ({"tune": {"lr": [1e-3, 1e-4]}}, "is no grid"),
        ({"tune": "lr=1e-3,1e-4", "training_free": True, "finetune": {}, "recover": {}}, "and there is none"),
        ({"tune": "lr=1e-3,1e-4", "recover": {"steps": 0}}, "and there is none; leave --tune out"),
        ({"tune": "lr=1e-3,1e-4", "recovery": "none"}, "and there is none; leave --tune out"),
        ({"tune": "lr=1e-3,1e-4", "recover": {"steps": 3, "max_length": 64}}, "max_length has to be the same in both"),
    ],
)
def test_what_cannot_be_tuned_is_refused(tmp_path, options, sentence):
    with pytest.raises(UserError, match=sentence):
        small_sweep(tmp_path, **options)


def test_too_few_examples_are_refused_before_any_work(tmp_path):
    (tmp_path / "sums.csv").write_text("q,a\n" + "".join(f"What is {n} + 1?,{n + 1}\n" for n in range(40)))
    task = {"name": "sums", "summary": "sums", "prompt": "question", "max_length": 64}
    task["train"] = {"data": "sums.csv", "columns": {"prompt": "q", "completion": "a"}}
    task["benchmarks"] = [{"name": "exact", "kind": "match", "max_new_tokens": 4}]
    (tmp_path / "sums.yaml").write_text(yaml.safe_dump(task))
    config = small_sweep(tmp_path / "out", task=str(tmp_path / "sums.yaml"), methods=["svd"], tune="lr=1e-3,1e-4")
    with pytest.raises(UserError, match="are too few for that; leave --tune out, or train on 200 or more"):
        make_plan(config)
    assert not (tmp_path / "out").exists()
