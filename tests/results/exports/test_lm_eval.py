"""Exports in lm-eval's layout: lm-eval's own code reads them, and they say what lm-eval itself says of the model."""

import json
import math
from pathlib import Path

import lm_eval
import pytest
from commands import bench
from lm_eval import utils
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from sweeps import small_sweep

from lowrank_bench import run_sweep

STORIES = "models/stories260K"
CHOICE = """
task: exported_choice
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/test.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: label
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 2.0}
"""
GENERATED = """
task: exported_words
dataset_path: json
dataset_kwargs: {data_files: {test: FOLDER/test.jsonl}}
output_type: generate_until
test_split: test
doc_to_text: "{{question}}"
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: [".", "\\n"], max_gen_toks: 8}
filter_list:
  - name: first-word
    filter: [{function: regex, regex_pattern: '(\\w+)'}, {function: take_first}]
  - name: last-word
    filter: [{function: regex, regex_pattern: '(\\w+)', group_select: -1}, {function: take_first}]
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
GROUP = """
group: exported_group
task: [exported_choice]
aggregate_metric_list: [{metric: acc, aggregation: mean, weight_by_size: true}]
"""
TASKS = ["exported_choice", "exported_words", "exported_group"]
ROWS = [
    {"question": "Once upon a time, there was a", "choices": [" little", " theorem"], "label": 0},
    {"question": "Lily and Tom wanted to play in the", "choices": [" xylophone", " park"], "label": 1},
    {"question": "She was so sad that she started to", "choices": [" cry", " fry"], "label": 1},
]


@pytest.fixture(scope="module")
def own_tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, text in {"choice": CHOICE, "words": GENERATED, "group": GROUP}.items():
        (folder / f"{name}.yaml").write_text(text.replace("FOLDER", str(folder)))
    return folder


@pytest.fixture(scope="module")
def run(own_tasks, data_dir, tmp_path_factory):
    names = ["toy-math", *(f"lm_eval:{task}" for task in TASKS)]
    config = small_sweep(
        tmp_path_factory.mktemp("runs"), model=str(data_dir / STORIES), methods=["svd"], ratios=[1.5],
        benchmarks=names, include_path=own_tasks, training_free=True, finetune={}, recover={}, engine="transformers",
        name="stories", limit=3, training={"recipe": "small"},
    )  # fmt: skip
    return run_sweep(config)


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("exported") / "files"
    done = bench("export", run.folder, "--format", "lm-eval", "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def read_cell(exported, cell):
    (folder,) = [path for path in exported.iterdir() if cell in path.name]
    names = [str(path) for path in folder.iterdir()]
    (file,) = utils.get_results_filenames(names)
    samples = {}
    for name in utils.get_sample_results_filenames(names):
        lines = [json.loads(line) for line in Path(name).read_text().splitlines()]
        samples[utils.get_file_task_name(Path(name).name)] = lines
    return json.loads(Path(file).read_text()), samples


def test_it_says_what_lm_eval_writes_of_the_same_model(exported, own_tasks, data_dir, tmp_path):
    results, samples = read_cell(exported, "pretrained@1x")
    location = str(data_dir / STORIES)
    tracker = EvaluationTracker(output_path=str(tmp_path))
    model = HFLM(pretrained=location, dtype="float32", device="cpu", batch_size=4)
    manager = TaskManager(include_path=str(own_tasks), include_defaults=False)
    asked = {"task_manager": manager, "log_samples": True, "bootstrap_iters": 0}
    group = lm_eval.simple_evaluate(model, tasks=TASKS[2:], **asked)["results"]
    theirs = lm_eval.simple_evaluate(model, tasks=TASKS[:2], evaluation_tracker=tracker, **asked)
    of_tasks = theirs.pop("samples")
    tracker.save_results_aggregated(theirs, of_tasks)
    for task, lines in of_tasks.items():
        tracker.save_results_samples(task, lines)
    (written,) = tmp_path.rglob("results_*.json")
    theirs = json.loads(written.read_text())
    theirs["results"]["exported_group"] = group["exported_group"]
    for task in TASKS:
        ours, own = results["results"][task], theirs["results"][task]
        for key, value in own.items():
            if "stderr" in key and (value == "N/A" or task == "exported_group"):
                continue  # the group's is pooled from its members', which records do not hold
            assert ours[key] == (pytest.approx(value, rel=1e-5) if isinstance(value, float) else value), (task, key)
    for task in TASKS[:2]:
        assert str(results["versions"][task]) == str(theirs["versions"][task])
        assert results["n-shot"][task] == theirs["n-shot"][task]
        assert results["n-samples"][task]["effective"] == theirs["n-samples"][task]["effective"]
        assert results["higher_is_better"][task] == theirs["higher_is_better"][task]
        assert results["configs"][task]["output_type"] == theirs["configs"][task]["output_type"]
        assert results["task_hashes"][task] == theirs["task_hashes"][task]
        (file,) = tmp_path.rglob(f"samples_{task}_*.jsonl")
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        keyed = {(line["doc_id"], line["filter"]): line for line in samples[task]}
        assert len(keyed) == len(lines) == len(samples[task])
        for line in lines:
            same = keyed[line["doc_id"], line["filter"]]
            assert sorted(same["metrics"]) == sorted(line["metrics"])
            for key in ("doc_hash", "prompt_hash", "target_hash", "target", *line["metrics"]):
                assert same[key] == line[key], key
            assert same["arguments"]["gen_args_0"]["arg_0"] == line["arguments"]["gen_args_0"]["arg_0"]
            if task == "exported_words":
                assert (same["resps"], same["filtered_resps"]) == (line["resps"], line["filtered_resps"])
            else:
                numbers = [float(reply[0][0]) for reply in line["resps"]]
                assert [float(reply[0][0]) for reply in same["resps"]] == pytest.approx(numbers, rel=1e-4)
                assert [reply[0][1] for reply in same["resps"]] == [reply[0][1] for reply in line["resps"]]


def test_every_cell_has_its_records_and_our_own_benchmarks_are_marked(run, exported):
    assert len(list(exported.iterdir())) == 2
    results, samples = read_cell(exported, "svd@1.5x")
    rows = run.records[run.records.label == "svd"]
    task = "lowrank-bench.toy-math-250-0shot"
    (headline,) = rows[(rows.benchmark == "toy-math") & rows.headline].to_dict("records")
    name = f"{headline['metric']},{headline['scorer'] or 'none'}"
    value = results["results"][task][name]
    assert value == headline["value"]
    assert results["results"][task][name.replace(",", "_stderr,")] == pytest.approx(
        math.sqrt(value * (1 - value) / (headline["n"] - 1))
    )
    assert results["configs"][task]["metadata"]["from"] == "lowrank-bench"
    assert results["versions"][task] == "N/A"
    assert "n-shot" not in results or task not in results["n-shot"]
    assert not {"doc_hash", "prompt_hash"} & set(samples[task][0])
    assert results["config"]["model_num_parameters"] == headline["params"]
    assert len(results["lowrank_bench"]["intervals"]) == len(rows)
    table = utils.make_table(results)
    assert all(name in table for name in (task, "exported_choice", "exported_words"))
    assert "exported_group" in utils.make_table(results, "groups")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--format", "lm-evil"], "unknown format 'lm-evil'; did you mean 'lm-eval'?"),
        (["--format", "lm-eval", "--dense"], "--format lm-eval writes results and no weights"),
        (["--format", "lm-eval", "--seed", "7"], "has no seed 7; its seeds: 42"),
        ([], "--format lm-eval --out DIR writes results as lm-eval does"),
    ],
)
def test_wrong_exports_are_refused(run, tmp_path, more, sentence):
    done = bench("export", run.folder, "--out", tmp_path / "out", *more)
    assert done.returncode == 2
    assert sentence in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


def test_one_cell_can_be_named(run, tmp_path):
    assert bench("export", f"{run.folder}:svd@1.5", "--format", "lm-eval", "--out", tmp_path / "one").returncode == 0
    assert len(list((tmp_path / "one").iterdir())) == 1
    done = bench("export", f"{run.folder}:svd@7", "--format", "lm-eval", "--out", tmp_path / "none")
    assert done.returncode == 2
    assert "'svd@7' is no cell of" in done.stderr
