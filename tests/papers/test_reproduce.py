"""Every figure and table becomes a valid sweep; one is really made again; verdicts and findings say what was seen."""

import csv
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from made_records import make_record
from rich.console import Console

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.papers.reproduce.catalogue import PAPERS, find_item
from lowrank_bench.papers.reproduce.configs import Changes, captions, departures, pick_form, sweep_config
from lowrank_bench.papers.reproduce.hours import gpu_hours
from lowrank_bench.papers.reproduce.outcome import findings, panel_table, quoted_numbers
from lowrank_bench.papers.reproduce.run import conclude, reproduce
from lowrank_bench.records.files import Record, to_frame, write_records
from lowrank_bench.records.intervals import wilson
from lowrank_bench.runners.config import make_config, nest
from lowrank_bench.runners.estimates.assumptions import BENCHMARKS
from lowrank_bench.runners.estimates.machine import assume_machine
from lowrank_bench.runners.plan import make_plan

ITEMS = [item for paper in PAPERS.values() for item in paper.items]
NAMES = [f"{item.paper}-{item.name}" for item in ITEMS]
PARAMS = 6_738_415_616


def quiet() -> Console:
    return Console(quiet=True)


@pytest.mark.parametrize("item", ITEMS, ids=NAMES)
def test_every_item_is_a_plan_on_the_built_in_model(item, tmp_path):
    form = pick_form(item, "tiny")
    assert form is item.small
    plan = make_plan(sweep_config(item, form, Changes(model="tiny", out=tmp_path)))
    assert len(plan.pending()) == len(plan.stages) > 3
    assert gpu_hours(plan) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("item", ITEMS, ids=NAMES)
def test_every_item_is_a_valid_sweep_on_its_papers_model(item):
    form = pick_form(item, None)
    config = sweep_config(item, form, Changes())
    assert (config.model, config.revision) == (item.model, item.revision)
    assert {spec.shown for spec in config.methods} == {line.label for line in form.lines}
    hours = gpu_hours(make_plan(config, assume_machine("h100:1"), dry=True))
    assert 0 < hours.total < 10_000
    assert any("arithmetic" in sentence for sentence in hours.sentences())
    assert all(name in BENCHMARKS for panel in form.panels for name in panel.ours)


def headline_hours(**changes):
    config = make_config({"methods": ["svd", "fwsvd", "bs"], "model": "llama2-7b"} | nest(changes))
    return gpu_hours(make_plan(config, assume_machine("h100:1"), dry=True))


@pytest.mark.parametrize("task", ["math", "code"])
def test_the_quick_recipe_takes_an_evening_on_one_gpu(task):
    quick, paper = (headline_hours(task=task, recipe=name) for name in ("quick", "paper"))
    assert 3 < quick.total < 5
    assert quick.stages == {"finetune": 1, "fit": 2, "compress": 6, "recover": 6, "evaluate": 14}
    assert paper.total == pytest.approx(55.5 if task == "math" else quick.total, rel=0.01)


def test_without_a_recipe_the_hours_are_the_papers():
    auto, paper = (headline_hours(task="math", **more) for more in ({}, {"recipe": "paper"}))
    assert auto == paper


@pytest.mark.parametrize("item", ITEMS, ids=NAMES)
def test_every_quoted_number_has_its_place_in_the_picture(item):
    form = item.full
    panel_benchmarks = {panel.benchmark for panel in form.panels}
    methods = {line.method for line in form.lines} | {"none", "llm-pruner"}
    for row in quoted_numbers(item, item.model):
        assert row.benchmark in panel_benchmarks
        assert row.method in methods
        if row.method not in ("none", "llm-pruner"):
            assert min(abs(ratio / row.ratio - 1) for ratio in form.ratios) < 0.001


def test_pictures_of_one_sweep_share_every_stage(tmp_path):
    pairs = [("3a", "3b"), ("4a", "4b"), ("5a", "5b"), ("6a", "6b")]
    for first, second in pairs:
        a, b = (find_item("basis-selection", name, None) for name in (first, second))
        configs = [sweep_config(item, item.full, Changes(out=tmp_path)) for item in (a, b)]
        assert configs[0] == configs[1]


def test_the_small_figure_3_shares_the_demos_stages(tmp_path):
    item = find_item("basis-selection", "3a", None)
    ours = make_plan(sweep_config(item, item.small, Changes(model="tiny", out=tmp_path)))
    demo = make_plan(
        make_config(
            {
                "methods": ["svd", "fwsvd", "bs"],
                "model": "tiny",
                "task": "toy-math",
                "ratios": [1.5, 2, 3, 4],
                "training": {"recover": {"steps": 200}},
                "execution": {"out": tmp_path},
            }
        )
    )
    assert set(ours.stages) == set(demo.stages)


def test_changes_reach_the_sweep_and_departures_say_so(tmp_path):
    item = find_item("basis-selection", "7", None)
    changes = Changes(ratios=(8.0,), seeds=(1, 2), recover_steps=10, limit=5, data=tmp_path, workers=1, out=tmp_path)
    config = sweep_config(item, item.full, changes)
    assert (config.ratios, config.seeds) == ((8.0,), (1, 2))
    assert (config.evaluation.limit, config.execution.workers) == (5, 1)
    text = "; ".join(departures(item, item.full, config))
    assert "other training steps (recover)" in text
    assert "ours is gsm8k+math, theirs metamathqa" in text
    assert departures(item, item.full, sweep_config(item, item.full, Changes())) == []
    with pytest.raises(UserError, match=r"the ratio 0\.5 is not usable"):
        sweep_config(item, item.full, Changes(ratios=(0.5,)))


@pytest.mark.parametrize(
    ("paper", "figure", "table", "message"),
    [
        ("basis-selction", "7", None, "did you mean 'basis-selection'"),
        ("basis-selection", "9", None, "allowed: 3a, 3b, 4a, 4b, 5a, 5b, 6a, 6b, 7, 8"),
        ("basis-selection", None, "1", "basis-selection has no table here; write --figure 3a"),
        ("sfsd", None, "unifrom", "did you mean 'uniform'"),
        ("sfsd", None, None, "name one figure or table of sfsd, such as --table uniform"),
        ("sfsd", "1", "uniform", "name a figure or a table, not both"),
    ],
)
def test_unknown_items_are_reported_with_what_there_is(paper, figure, table, message):
    with pytest.raises(UserError, match=message):
        find_item(paper, figure, table)


@pytest.fixture(scope="module")
def seventh(tmp_path_factory):
    """Figure 7 really made in small, with a few steps."""
    out = tmp_path_factory.mktemp("reproduced")
    changes = Changes(model="tiny", out=out, ratios=(2.0, 4.0), finetune_steps=2, recover_steps=4, limit=4, workers=1)
    item = find_item("basis-selection", "7", None)
    return item, changes, reproduce(item, changes, quiet())


def test_a_small_figure_ends_with_picture_findings_and_verdicts(seventh):
    item, _, done = seventh
    names = {path.name for path in done.folder.iterdir()}
    assert {"figure-7.png", "figure-7.svg", "figure-7.md", "figure-7-verdicts.csv", "results.csv"} <= names
    assert [path.name for path in done.pictures] == ["figure-7.png", "figure-7.svg"]
    assert done.verdicts == []
    assert len(done.findings) == len(item.claims)
    assert "4x" in done.findings[0]
    assert "One seed" in done.findings[0]
    assert "gives no numbers for Figure 7" in (done.folder / "figure-7.md").read_text()


def test_the_same_again_runs_nothing_and_draws_the_same(seventh):
    item, changes, done = seventh
    before = {path.name: path.read_bytes() for path in done.folder.iterdir()}
    console = Console(record=True, width=120, file=open(os.devnull, "w"))  # noqa: SIM115
    reproduce(item, changes, console)
    assert "stages are complete already; nothing to do" in console.export_text()
    assert {path.name: path.read_bytes() for path in done.folder.iterdir()} == before


def test_finished_stages_are_the_estimate_for_their_kind(seventh):
    item, changes, _ = seventh
    more = sweep_config(item, item.small, replace(changes, ratios=(2.0, 3.0)))
    plan = make_plan(more)
    plan.parameters = PARAMS
    hours = gpu_hours(plan)
    assert hours.measured == {"compress", "recover", "evaluate"}
    assert set(hours.stages.items()) == {("compress", 2), ("recover", 2), ("evaluate", 2)}
    assert hours.total < 1
    assert "(measured)" in hours.sentences()[0]
    assert not any("arithmetic" in sentence for sentence in hours.sentences())


def test_a_dry_run_writes_nothing(tmp_path):
    item = find_item("basis-selection", "8", None)
    console = Console(record=True, width=120, file=open(os.devnull, "w"))  # noqa: SIM115
    assert reproduce(item, Changes(model="tiny", out=tmp_path / "runs"), console, dry_run=True) is None
    text = console.export_text()
    assert "20 prunings" in text
    assert "to go" in text
    assert not (tmp_path / "runs").exists()


def measured(values: dict[tuple[str, float], float], benchmark="gsm8k", n=1319, **more) -> list[Record]:
    """Records of a finished Llama-2 7B sweep that scored so, by label and ratio; ratio 1 is the uncompressed model."""
    rows = []
    for (label, ratio), value in values.items():
        solved = round(value * n)
        low, high = wilson(solved, n)
        fields = {"value": solved / n, "low": low, "high": high, "n": n, "stage_key": f"{label}{ratio}", **more}
        fields |= {"benchmark": benchmark, "variant": f"{benchmark}-0shot-alpaca", "label": label}
        if ratio == 1:
            fields |= {"method": "none", "stage": "finetuned", "ratio_target": 1.0, "params": PARAMS}
        else:
            fields |= {"method": label, "ratio_target": ratio, "params": int(PARAMS / ratio)}
        rows.append(make_record(**fields))
    return rows


def test_numbers_like_the_papers_are_reproduced_and_others_are_not(tmp_path):
    item = find_item("basis-selection", "3a", None)
    config = sweep_config(item, item.full, Changes(out=tmp_path))
    values = {("dense", 1.0): 0.6, ("bs", 7.0): 0.42, ("svd", 7.0): 0.40, ("fwsvd", 7.0): 0.01}
    path, _ = write_records(tmp_path / "run", measured(values))
    done = conclude(item, item.full, config, path, quiet())
    outcomes = {row.quoted.method: row.outcome for row in done.verdicts}
    assert outcomes == {"bs": "reproduced", "svd": "not reproduced", "fwsvd": "reproduced"}
    with (done.folder / "figure-3a-verdicts.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {line["method"]: line["verdict"] for line in lines} == outcomes
    assert {line["source"] for line in lines} == {"arXiv:2405.15877"}
    drawn = done.pictures[1].read_text()
    plain = conclude(item, item.full, config, path, quiet(), draw_quoted=False).pictures[1].read_text()
    assert plain.count("stroke-width: 1.6") < drawn.count("stroke-width: 1.6")


def test_other_conditions_make_every_number_not_comparable(tmp_path):
    item = find_item("basis-selection", "3a", None)
    config = sweep_config(item, item.full, Changes(out=tmp_path, recover_steps=5))
    values = {("bs", 7.0): 0.43, ("svd", 7.0): 0.27, ("fwsvd", 7.0): 0.01}
    path, _ = write_records(tmp_path / "run", measured(values))
    for row in conclude(item, item.full, config, path, quiet()).verdicts:
        assert (row.outcome, row.reason) == ("not comparable", "ours has other training steps (recover)")


def test_several_budgets_are_drawn_and_judged_apart(tmp_path):
    item = find_item("basis-selection", "7", None)
    changes = Changes(model="tiny", out=tmp_path, recover_steps=(1200, 600), seeds=(1,))
    config = sweep_config(item, item.small, changes)
    assert config.training.recover.steps == (1200, 600)
    rows = measured({("dense", 1.0): 0.9}, benchmark="toy-math")
    for steps, ahead, behind in ((600, 0.2, 0.6), (1200, 0.8, 0.3)):
        values = {("additional dimension 32", 3.0): ahead, ("additional dimension 0", 3.0): behind}
        rows += [
            row.model_copy(update={"steps_budget": steps, "stage_key": f"{row.label}-{steps}"})
            for row in measured(values, benchmark="toy-math")
        ]
    path, _ = write_records(tmp_path / "run", rows)
    done = conclude(item, item.small, config, path, quiet())
    assert [picture.name for picture in done.pictures] == [
        f"figure-7-{steps}-steps.{kind}" for steps in (600, 1200) for kind in ("png", "svg")
    ]
    first, second = done.findings
    assert first.startswith("600 steps: ")
    assert "The contrary is seen here" in first
    assert second.startswith("1,200 steps: ")
    assert "Seen here" in second
    assert "600 and 1,200 after it" in (done.folder / "figure-7-600-steps.md").read_text()
    assert (done.folder / "figure-7-1200-steps-verdicts.csv").is_file()


@pytest.mark.parametrize(
    ("paper", "item", "changes", "words"),
    [
        ("basis-selection", "8", {}, ["300 optimizer steps before compression and 200 after it", "2x, 2.5x, 3x, 3.5x"]),
        (
            "basis-selection",
            "8",
            {"finetune_steps": 500, "recover_steps": (1200, 600), "ratios": (4.0, 2.0)},
            [
                "500 optimizer steps before compression and 600 and 1,200 after it",
                "ratios 2x, 4x for",
                "a third of the",
            ],
        ),
        ("sfsd", "uniform", {}, ["300 steps of finetuning come first, none after", "Ratios 1.1x, 1.25x for"]),
        ("sfsd", "uniform", {"recover_steps": (40,)}, ["300 steps of finetuning come first, 40 after compression"]),
        ("joint-rank-k", "headline", {"finetune_steps": 20}, ["20 steps of finetuning come first, none after"]),
    ],
)
def test_a_caption_has_the_steps_and_ratios_of_its_run(paper, item, changes, words):
    chosen_item = find_item(paper, item, None) if paper == "basis-selection" else find_item(paper, None, item)
    config = sweep_config(chosen_item, chosen_item.small, Changes(model="tiny", **changes))
    caption = " ".join(captions(chosen_item.small, config))
    assert [word for word in words if word not in caption] == []


@pytest.mark.parametrize(
    ("with_32", "with_0", "finding"),
    [
        (0.5, 0.3, "Seen here"),
        (0.3, 0.5, "The contrary is seen here"),
        (0.40, 0.41, "Open here"),
    ],
)
def test_findings_say_what_was_seen(with_32, with_0, finding):
    item = find_item("basis-selection", "7", None)
    first, second = (line.label for line in item.full.lines)
    shallow = {(first, 4.0): 0.5, (second, 4.0): 0.1}
    deep = {(first, ratio): with_32 for ratio in (8.0, 10.0)} | {(second, ratio): with_0 for ratio in (8.0, 10.0)}
    frame = to_frame(r.model_copy(update={"method": "bs"}) for r in measured(shallow | deep))
    (sentence,) = findings(item, item.full, panel_table(frame, item.full.panels[0]))
    assert f"above 6x (§4.4). {finding};" in sentence
    assert "4x" not in sentence.partition(";")[2]


def test_findings_without_a_ratio_to_see_them_at():
    item = find_item("basis-selection", "8", None)
    labels = [line.label for line in item.full.lines]
    frame = to_frame(measured({(label, 6.0): 0.4 for label in labels}))
    (sentence,) = findings(item, item.full, panel_table(frame, item.full.panels[0]))
    assert sentence.endswith("Ours has no ratio to see that at.")


def command(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "lowrank_bench.cli", "reproduce", *words]
    return subprocess.run(line, capture_output=True, text=True, env={**os.environ, **environment}, check=False)


def test_a_model_that_is_not_here_is_reported_before_any_work(tmp_path):
    done = command(
        "basis-selection", "--figure", "3a", "--out", str(tmp_path / "runs"), HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path)
    )
    assert done.returncode == 2
    assert "needs meta-llama/Llama-2-7b-hf, which is not on this machine" in done.stderr
    assert "--model tiny" in done.stderr
    assert "Traceback" not in done.stderr
    assert "GPU hours" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_the_list_names_everything_and_imports_no_torch():
    done = command(COLUMNS="200")
    assert done.returncode == 0
    for item in ITEMS:
        assert f"--{item.kind} {item.name}" in done.stdout
    script = (
        "import sys; from lowrank_bench.papers.reproduce.catalogue import PAPERS; assert 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
