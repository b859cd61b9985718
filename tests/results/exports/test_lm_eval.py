"""Exports in lm-eval's layout: lm-eval's own code reads them, and they say what lm-eval itself says of the model."""

import json
import math
from pathlib import Path
from statistics import stdev

import lm_eval
import pytest
from commands import bench
from harness_tasks import write_tasks
from lm_eval import utils
from lm_eval.loggers import EvaluationTracker
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from sweeps import small_sweep

from lowrank_bench import run_sweep
from lowrank_bench.results.exports.lm_eval import _standard_error

STORIES = "models/stories260K"
TASKS = ["local_choice", "local_generated", "local_sized"]
LIMIT = 3


@pytest.fixture(scope="module")
def own_tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def run(own_tasks, data_dir, tmp_path_factory):
    names = ["toy-math", *(f"lm_eval:{task}" for task in TASKS)]
    config = small_sweep(
        tmp_path_factory.mktemp("runs"), model=str(data_dir / STORIES), methods=["svd"], ratios=[1.5],
        benchmarks=names, include_path=own_tasks, training_free=True, finetune={}, recover={}, engine="transformers",
        name="stories", limit=LIMIT, training={"recipe": "small"},
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
    asked = {"task_manager": manager, "log_samples": True, "bootstrap_iters": 0, "limit": LIMIT}
    group = lm_eval.simple_evaluate(model, tasks=TASKS[2:], **asked)["results"]
    theirs = lm_eval.simple_evaluate(model, tasks=TASKS[:2], evaluation_tracker=tracker, **asked)
    of_tasks = theirs.pop("samples")
    tracker.save_results_aggregated(theirs, of_tasks)
    for task, lines in of_tasks.items():
        tracker.save_results_samples(task, lines)
    (written,) = tmp_path.rglob("results_*.json")
    theirs = json.loads(written.read_text())
    theirs["results"]["local_sized"] = group["local_sized"]
    for task in TASKS:
        ours, own = results["results"][task], theirs["results"][task]
        for key, value in own.items():
            if "stderr" in key and (value == "N/A" or task == "local_sized"):
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
            if task == "local_generated":
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
    assert all(name in table for name in (task, "local_choice", "local_generated"))
    assert "local_sized" in utils.make_table(results, "groups")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--format", "lm-evil"], "unknown format 'lm-evil'; did you mean 'lm-eval'?"),
        (["--format", "lm-eval", "--dense"], "--format lm-eval writes results and no weights"),
        (["--format", "lm-eval", "--save-dtype", "own"], "--format lm-eval writes results and no weights"),
        (["--format", "packed", "--save-dtype", "own"], "--format packed writes integers and scales"),
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


def test_samples_of_one_problem_are_no_problems_of_their_own():
    right = [float(n % 3 == 0) for n in range(30)]
    once = [{"problem": f"p{n}"} for n in range(30)]
    ten = [line for line in once for _ in range(10)]
    expected = stdev(right) / math.sqrt(30)
    assert _standard_error(once, right) == pytest.approx(expected)
    assert _standard_error(ten, [score for score in right for _ in range(10)]) == pytest.approx(expected)
    assert _standard_error(ten[:10], right[:10]) == _standard_error(once, []) == "N/A"
