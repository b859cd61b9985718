"""`bench shrink` finds the smallest model that keeps a share of the accuracy, and ends the same after being killed."""

import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise

import numpy as np
import pytest
from commands import bench
from shrinking import likelihood_sweep, write_sums
from sweeps import small_sweep

from lowrank_bench.cli.shrink import NOT_USED
from lowrank_bench.evals.base import EvalSettings, benchmarks
from lowrank_bench.foundation.errors import UserError
from lowrank_bench.models.loading import load_model
from lowrank_bench.models.matrices import low_rank_layers, model_size
from lowrank_bench.records.files import read_records
from lowrank_bench.records.paired import paired_interval
from lowrank_bench.results.cells import find_cell
from lowrank_bench.results.shrink.margin import confirmation_confidence, margin, problems_for_equal_answers
from lowrank_bench.results.shrink.run import CONFIRM_SEED, as_plain, check, shrink
from lowrank_bench.results.shrink.search import largest_confirmed, largest_ratio, ratio_grid
from lowrank_bench.results.sweep import run_sweep


@pytest.fixture(scope="module")
def include_path(tmp_path_factory):
    """Return a folder with a task whose answers the built-in model finds likelier than letters in disorder."""
    return write_sums(tmp_path_factory.mktemp("sums"))


BETWEEN, RESOLUTION, SHARE = (1.1, 8.0), 1.0, 0.7


def test_the_search_finds_the_border_with_few_questions():
    grid = ratio_grid(1.1, 8, 0.05)
    assert (grid[0], grid[-1]) == (1.1, 8)
    assert all(1 < right / left < 1.06 for left, right in pairwise(grid))
    draw = random.Random(3)
    for _ in range(200):
        borders = {name: draw.randint(-1, len(grid) - 1) for name in "abc"}
        asked = []

        def holds(name, ratio, borders=borders, asked=asked):
            asked.append((name, ratio))
            return grid.index(ratio) <= borders[name]

        largest = largest_ratio("abc", grid, holds)
        best = max(borders.values())
        assert largest == (None if best < 0 else (next(n for n in "abc" if borders[n] == best), best))
        assert len(asked) == len(set(asked)) <= 3 * 7


def test_the_margin_is_agresti_and_mins_for_the_whole_accuracy():
    draw = np.random.default_rng(0)
    small, large = draw.integers(0, 2, 80), draw.integers(0, 2, 80)
    difference = margin(small.tolist(), large.tolist(), 1.0)
    only_large, only_small = int((large > small).sum()), int((small > large).sum())
    assert (difference.low, difference.high) == pytest.approx(paired_interval(only_large, only_small, 80))
    assert difference.value == pytest.approx(small.mean() - large.mean())


def test_the_margin_covers_the_truth():
    """At the border, a share that is just kept is said to be kept in 2.5 % of samples and not in many more."""
    draw, share, count = np.random.default_rng(1), 0.9, 0
    for _ in range(2000):
        large = draw.random(250) < 0.6
        small = np.where(draw.random(250) < 0.7, large, draw.random(250) < 0.4)  # 0.7 * 0.6 + 0.3 * 0.4 = 0.54
        count += margin(small.astype(int).tolist(), large.astype(int).tolist(), share).holds
    assert 0.01 < count / 2000 < 0.04


def test_however_many_candidates_are_confirmed_few_searches_accept_one_that_is_too_bad():
    """Six candidates at the border in each of 800 searches, each on new problems."""
    draw, share, grid = np.random.default_rng(2), 0.9, list(range(6))
    accepted = uncorrected = 0
    for _ in range(800):
        large = draw.random((6, 250)) < 0.6
        small = np.where(draw.random((6, 250)) < 0.7, large, draw.random((6, 250)) < 0.4)  # 0.54 on average
        scores = list(zip(small.astype(int).tolist(), large.astype(int).tolist(), strict=True))
        asked = []

        def confirms(method, ratio, scores=scores, asked=asked):
            asked.append(ratio)
            return margin(*scores[ratio], share, confirmation_confidence(len(asked) - 1)).holds

        accepted += largest_confirmed("a", grid, ("a", 5), lambda method, ratio: True, confirms) is not None
        uncorrected += any(margin(*pair, share).holds for pair in scores)
    assert accepted / 800 < 0.045
    assert uncorrected / 800 > 0.09
    assert [confirmation_confidence(number) for number in range(3)] == pytest.approx([0.975, 0.9875, 0.99375])


def test_candidates_are_confirmed_from_the_largest_ratio_down_with_the_chosen_method_first():
    asked = []

    def confirms(method, ratio):
        asked.append((method, ratio))
        return (method, ratio) == ("a", 1.5)

    grid = [1.1, 1.5, 2.0]
    answer = largest_confirmed("ab", grid, ("b", 2), lambda method, ratio: (method, ratio) != ("a", 2.0), confirms)
    assert answer == ("a", 1)
    assert asked == [("b", 2.0), ("b", 1.5), ("a", 1.5)]
    assert largest_confirmed("a", grid, ("a", 2), lambda *_: True, lambda *_: False) is None


def test_equal_models_on_few_problems_are_no_certainty():
    assert not margin([1, 1, 1], [1, 1, 1], 0.95).holds
    assert margin([1] * 200, [1] * 200, 0.95).holds
    assert margin([0.5, 0.25, 1.0], [0.5, 0.25, 1.0], 0.95).n == 3
    assert not margin([0.5, 0.25, 1.0], [0.5, 0.25, 1.0], 0.95).right_or_wrong
    assert margin([1, 0, 1], [1, 1, 1], 0.95).right_or_wrong
    few = margin([1] * 56 + [0] * 4, [1] * 60, 0.9)
    assert few.undecided
    assert few.problems_to_decide() > 60


@pytest.mark.parametrize(("accuracy", "share"), [(1.0, 0.95), (0.5, 0.95), (0.9, 0.99)])
def test_equal_answers_keep_a_share_from_so_many_problems_on(accuracy, share):
    least = problems_for_equal_answers(accuracy, share)

    def holds(n):
        right = round(accuracy * n)
        answers = [1] * right + [0] * (n - right)
        return margin(answers, answers, share).holds

    assert holds(least)
    assert all(holds(n) for n in range(least + 10, 3 * least))
    assert not any(holds(n) for n in range(1, least))
    assert problems_for_equal_answers(accuracy, 1.0) is None


@pytest.mark.parametrize(
    ("keep", "limit", "sentence"),
    [
        ("95%", 8, "by 8 problems, even with the answers of the uncompressed one"),
        ("100%", 16, "by 16 problems, even with the answers of the uncompressed one: no number shows it"),
    ],
)
def test_too_few_problems_are_named_in_place_of_advice_that_cannot_help(include_path, tmp_path, keep, limit, sentence):
    words = ["shrink", "--model", "tiny", "--task", "toy-math", "--benchmarks", "lm_eval:sums", "--methods", "svd"]
    words += ["--include-path", include_path, "--out", tmp_path / "runs", "--limit", limit, "--keep", keep]
    done = bench(*words, "--finetune-steps", 1, "--recover-steps", 1, "--between", "2,4", "--resolution", "1")
    assert done.returncode == 1, done.stderr
    assert sentence in done.stderr + done.stdout
    assert "longer --recover-steps" not in done.stderr + done.stdout


def test_a_sweep_of_the_same_configuration_keeps_its_results(include_path, tmp_path):
    config = likelihood_sweep(include_path, tmp_path, methods=["svd"], ratios=[1.5])
    folder = run_sweep(config).folder
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    result = shrink(config, SHARE, BETWEEN, RESOLUTION)
    assert result.folder == folder.with_name(f"{folder.name}-shrink")
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    named = likelihood_sweep(include_path, tmp_path, methods=["svd"], name="mine")
    assert shrink(named, SHARE, BETWEEN, RESOLUTION).folder.name == "mine-shrink"


def test_killed_at_random_it_ends_the_same(include_path, tmp_path):
    first = shrink(likelihood_sweep(include_path, tmp_path / "a", methods=["svd"]), SHARE, BETWEEN, RESOLUTION)
    assert first.smallest is not None
    script = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import test_shrink as t\n"
        "if __name__ == '__main__':\n"
        "    config = t.likelihood_sweep(Path(sys.argv[2]), Path(sys.argv[3]), methods=['svd'])\n"
        "    t.shrink(config, t.SHARE, t.BETWEEN, t.RESOLUTION)\n"
    )
    (tmp_path / "again.py").write_text(script)
    here = os.path.dirname(__file__)
    environment = os.environ | {"PYTHONPATH": os.path.dirname(os.path.dirname(here)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, tmp_path / "again.py", here, include_path, tmp_path / "b"]
    stages = tmp_path / "b" / "stages"
    for stage_count in sorted(random.Random().sample(range(5), 2)):  # finished stages at which it is killed
        process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
        while process.poll() is None and (len(list(stages.glob("*/stage.json"))) < stage_count or not stages.is_dir()):
            time.sleep(0.05)
        assert process.poll() is None, "it ended before it could be killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "b" / "tiny-toy-math-shrink" / "shrink.json").exists()
    second = shrink(likelihood_sweep(include_path, tmp_path / "b", methods=["svd"]), SHARE, BETWEEN, RESOLUTION)
    assert as_plain(second) == as_plain(first)
    reports = [(tmp_path / name / "tiny-toy-math-shrink" / "shrink.json").read_bytes() for name in "ab"]
    assert reports[0] == reports[1]
    assert {path.name for path in (tmp_path / "a" / "stages").iterdir()} <= {path.name for path in stages.iterdir()}


def test_what_is_left_is_an_ordinary_run_and_a_model(include_path, tmp_path):
    config = likelihood_sweep(include_path, tmp_path)
    result = shrink(config, SHARE, BETWEEN, RESOLUTION)
    best = result.smallest
    assert result.confirmable is False, "a file has no other problems"
    model = load_model(result.model)
    assert model_size(model).parameters == best.parameters
    assert low_rank_layers(model)
    cell = find_cell(f"{result.folder}:{best.method}@{best.target:g}", "lm_eval:sums")
    assert cell.record.value == pytest.approx(best.margin.accuracy)
    frame = read_records(result.folder)
    assert set(frame.label) == {"pretrained", *(probe.method for probe in result.tried)}
    assert {probe.target for probe in result.tried} == set(frame.ratio_target) - {1.0}
    failed = [probe for probe in result.tried if probe.target > best.target]
    assert all(not probe.margin.holds for probe in failed)
    before = (result.model / "model.safetensors").stat().st_mtime_ns
    again = shrink(config, SHARE, BETWEEN, RESOLUTION)
    assert as_plain(again) == as_plain(result)
    assert (again.model / "model.safetensors").stat().st_mtime_ns == before, "a complete copy is left alone"
    stricter = shrink(config, 0.01, BETWEEN, RESOLUTION)
    assert stricter.smallest.target >= best.target


def test_the_result_holds_on_generated_problems_with_another_seed(tmp_path):
    config = small_sweep(
        tmp_path, methods=["svd"], finetune={"steps": 60}, recover={"steps": 12}, limit=60, max_new_tokens=64, workers=1
    )
    result = shrink(config, 0.3, (1.05, 2.0), 1.0)
    assert result.confirmations
    assert [probe.problem_seed for probe in result.confirmations] == [
        CONFIRM_SEED + number for number in range(len(result.confirmations))
    ]
    problems = [
        benchmarks.get("toy-math")().data(EvalSettings(seed=seed)).sha256
        for seed in (42, CONFIRM_SEED, CONFIRM_SEED + 1)
    ]
    assert len(set(problems)) == 3
    if result.smallest is not None:
        last = result.confirmations[-1]
        assert (last.method, last.target) == (result.smallest.method, result.smallest.target)
        assert last.margin.holds


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"share": 0.0}, "more than 0% and at most 100%"),
        ({"share": 1.5}, "150%"),
        ({"between": (1.0, 4.0)}, "two ratios above 1"),
        ({"between": (5.0, 4.0)}, "two ratios above 1"),
        ({"resolution": 0.0}, "0.005 to 1"),
    ],
)
def test_bad_input_is_refused_in_a_sentence(tmp_path, change, sentence):
    words = {"share": 0.95, "between": (1.1, 4.0), "resolution": 0.1} | change
    with pytest.raises(UserError, match=sentence):
        check(small_sweep(tmp_path), **words)


@pytest.mark.parametrize(
    "text",
    [
        "tune: lr=1e-4,3e-4\ncontrols: [rtn8]\nbits: [8]\nratios: [2]\n",
        "training: {tune: 'lr=1e-4,3e-4'}\ncontrols: [rtn8]\nbytes: [0.5]\n",
        "execution: {keep: needed, workers: 1}\n",
    ],
)
def test_a_file_of_a_sweep_serves_a_search_too(tmp_path, text):
    """What a search has no option for could not be taken back on the command line."""
    (tmp_path / "sweep.yaml").write_text(f"model: tiny\ntask: toy-math\nmethods: [svd]\n{text}")
    words = ["shrink", "--config", tmp_path / "sweep.yaml", "--keep", "95%", "--out", tmp_path / "runs"]
    done = bench(*words, "--between", "5,4")
    assert done.returncode == 2
    assert "--between 5,4 is not usable" in done.stderr
    names = (done.stdout + done.stderr).partition("not used by a search: ")[2].partition(" of ")[0]
    assert set(names.split(", ")) == {name for name in NOT_USED if f"{name}:" in text}
    assert not (tmp_path / "runs").exists()


def test_a_perplexity_and_a_model_that_solves_nothing_are_refused(tmp_path, data_dir):
    free = {"methods": ["svd"], "training_free": True, "finetune": {}, "recover": {}, "workers": 1}
    config = small_sweep(tmp_path, benchmarks=["tinystories"], data=data_dir, **free | {"limit": 2})
    with pytest.raises(UserError, match="no accuracy"):
        shrink(config, 0.95, (2.0, 4.0), 1.0)
    with pytest.raises(UserError, match="solves none of the 4 problems"):
        shrink(small_sweep(tmp_path, **free), 0.95, (2.0, 4.0), 1.0)
