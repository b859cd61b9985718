"""Progress: lines while a stage runs, estimates, the log file, and counts from deep inside a computation."""

import io
import re
import time

import pytest
from commands import bench
from rich.console import Console
from typed_stages import evaluate_stage, fit_stage

from lowrank_bench.evals.grading.math.pool import Request, compare_all
from lowrank_bench.foundation.progress import counting, reporting, throttled, track
from lowrank_bench.runners import progress as module
from lowrank_bench.runners.compressing import CompressRequest, compress, plan_compression
from lowrank_bench.runners.config import parse_method
from lowrank_bench.runners.evaluating import default_settings, evaluate
from lowrank_bench.runners.executors.local import Event, run_stages
from lowrank_bench.runners.progress import StageProgress, show_progress
from lowrank_bench.runners.store.folders import StageStore

FIT, EVALUATE = fit_stage("fit svd"), evaluate_stage("evaluate svd 2x")
STAGES = {stage.key: stage for stage in (FIT, EVALUATE)}
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d  \S")


def wait_for(text, file, seconds=120):
    end = time.monotonic() + seconds
    while text not in file.getvalue():
        assert time.monotonic() < end, file.getvalue()
        time.sleep(0.02)


@pytest.fixture
def file(monkeypatch):
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.05)
    monkeypatch.setattr(module, "LINE_SECONDS", 0.1)
    return io.StringIO()


def test_a_stage_that_runs_has_lines_with_count_and_estimate(file, tmp_path):
    log = tmp_path / "not-yet-there" / "run.log"
    with StageProgress(Console(file=file, width=200), STAGES, {FIT.key: 100.0}, 1, log) as shown:
        shown.start(FIT)
        assert file.getvalue().startswith("fit svd: started, stage 1 of 2, expected to take 2 min")
        wait_for("[0/2] fit svd: running", file)
        wait_for(" s left", file)  # from what it was expected to take: it has not counted yet
        shown.event(Event(FIT.key, "progress", 0, 126, unit="matrices"), FIT)
        time.sleep(0.05)
        shown.event(Event(FIT.key, "progress", 63, 126, unit="matrices"), FIT)
        wait_for("63 of 126 matrices, about ", file)
        shown.event(Event(FIT.key, "done"), FIT)
        wait_for("[1/2] fit svd: ", file)
    lines = log.read_text(encoding="utf-8").splitlines()
    assert all(LOG_LINE.match(line) for line in lines)
    assert "2 stages to do, 1 side by side" in lines[0]
    assert lines[1].endswith("fit svd: started, stage 1 of 2, expected to take 2 min")
    assert any("63 of 126" in line for line in lines)


def end_by(error, log):
    with StageProgress(Console(quiet=True), STAGES, {}, 1, log) as shown:
        shown.start(EVALUATE)
        raise error


@pytest.mark.parametrize(
    ("error", "ending"),
    [(KeyboardInterrupt(), "interrupted"), (ValueError("no room"), "ended by an error: no room")],
)
def test_the_log_says_how_it_ended_and_goes_on_in_the_next_run(error, ending, tmp_path):
    log = tmp_path / "run.log"
    for _ in range(2):
        with pytest.raises(type(error)):
            end_by(error, log)
    text = log.read_text(encoding="utf-8")
    assert text.count(f"{ending}; 0 of 2 stages are done and kept") == 2


def test_a_log_that_cannot_be_written_ends_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with StageProgress(Console(quiet=True), STAGES, {}, 1, tmp_path / "file" / "run.log") as shown:
        shown.start(FIT)
        shown.event(Event(FIT.key, "done"), FIT)
    assert shown.done == [FIT.key]


def test_a_terminal_has_a_display_and_no_lines_in_between(file):
    screen = Console(file=file, force_terminal=True, width=200)
    with show_progress(screen, "evaluate tiny") as report:
        report(1, 4)
        time.sleep(0.3)
        report(2, 4)
    assert "2/4" in file.getvalue()
    assert "running" not in file.getvalue()


def test_seconds_left_follow_what_the_finished_stages_took(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    with StageProgress(Console(quiet=True), STAGES, {FIT.key: 10.0, EVALUATE.key: 30.0}, 1) as shown:
        assert shown.seconds_left() == pytest.approx(40)
        shown.start(FIT)
        clock[0] = 20.0  # twice as long as expected
        shown.event(Event(FIT.key, "done"), FIT)
        assert shown.seconds_left() == pytest.approx(60)
        shown.start(EVALUATE)
        clock[0] = 30.0
        assert shown.seconds_left() == pytest.approx(50)


def test_track_reports_every_item_and_nothing_outside():
    seen = []
    assert list(track([5, 6])) == [5, 6]
    with reporting(lambda done, total, unit: seen.append((done, total))):
        assert list(track(iter("ab"), 2)) == ["a", "b"]
        with reporting(None):
            list(track(range(3)))
    assert seen == [(0, 2), (1, 2), (2, 2)]
    with pytest.raises(TypeError, match="total"):
        list(track(iter("ab")))


@pytest.mark.parametrize("memory", ["whole", "layerwise"])
def test_a_fit_counts_its_batches_and_its_matrices(memory, tmp_path):
    seen = []
    request = CompressRequest(
        "tiny", parse_method("svd-llm:samples=32"), 2.0, tmp_path / "m", "toy-math", memory=memory
    )
    compress(request, lambda done, total: seen.append((done, total)))
    ended = {total for done, total in seen if done == total}
    matrices = 7 * 4
    assert matrices in ended, seen
    assert len(ended) > 1, seen
    assert all(0 <= done <= total for done, total in seen)


def test_a_command_names_its_stages_and_keeps_a_log_beside_the_result(tmp_path, file):
    console = Console(file=file, width=200)
    compress(CompressRequest("tiny", "svd-llm:samples=8", 2.0, tmp_path / "m", "toy-math"), console=console)
    settings = default_settings(limit=2, stage="pretrained")
    evaluate(str(tmp_path / "m"), ["toy-math", "toy-code"], settings, out=tmp_path / "e", console=console)
    lines = file.getvalue().splitlines()
    for expected in (
        "fit whitened, seed 42: started, stage 1 of 2, expected to take ",
        "[1/2] fit whitened, seed 42: ",
        "compress svd-llm:samples=8 2x, seed 42: started, stage 2 of 2, expected to take ",
        "evaluate toy-math: started, stage 1 of 2",
        "[2/2] evaluate toy-code: ",
    ):
        assert any(line.startswith(expected) for line in lines), lines
    for folder in ("m", "e"):
        log = (tmp_path / folder / "run.log").read_text(encoding="utf-8").splitlines()
        assert all(LOG_LINE.match(line) for line in log)
        assert "2 stages to do" in log[0]
        assert ": started, stage 1 of 2" in log[1]


@pytest.mark.parametrize("command", ["compress", "eval"])
def test_an_interrupt_leaves_nothing(command, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    out = tmp_path / "out"
    run = {
        "compress": lambda: compress(CompressRequest("tiny", "svd", 2.0, out), interrupt),
        "eval": lambda: evaluate("tiny", ["toy-math"], default_settings(limit=2), out=out, progress=interrupt),
    }
    with pytest.raises(KeyboardInterrupt):
        run[command]()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "units"),
    [
        ("svd-llm:samples=8", {"batches", "matrices"}),
        ("svd:policy=sensitivity(least=0.5;step=0.4),probe_samples=2", {"matrices", "matrices measured"}),
        ("svd:policy=laser,probe_samples=2", {"matrices", "matrices measured"}),
        ("svd:policy=surgical,probe_samples=2", {"matrices", "matrices searched"}),
    ],
)
def test_every_long_loop_says_what_it_counts(method, units, tmp_path):
    request = CompressRequest("tiny", method, 2.0, tmp_path / "m", "toy-math")
    counted = set()
    with pytest.MonkeyPatch.context() as patch:
        event = StageProgress.event
        patch.setattr(StageProgress, "event", lambda self, e, s: (counted.add(e.unit), event(self, e, s)))
        compress(request, lambda done, total: None)
    assert units <= counted


def test_generated_code_and_answers_are_counted_while_they_are_judged():
    seen = set()
    with reporting(lambda done, total, unit: seen.add((done, total, unit))):
        compare_all([Request("minerva", "1", "2"), Request("minerva", "1", "1")], workers=1)
        report = counting("programs")
        report(1, 2)
    assert {(2, 2, "answers"), (1, 2, "programs")} <= seen
    assert counting("programs") is None


def test_a_throttled_report_passes_on_first_and_last_of_each_count():
    seen = []
    report = throttled(lambda *news: seen.append(news), 1e9)
    for total, unit in ((1000, "batches"), (1000, "matrices"), (7, "matrices")):
        for done in range(total + 1):
            report(done, total, unit)
    assert seen == [
        *((0, 1000, "batches"), (1000, 1000, "batches")),
        *((0, 1000, "matrices"), (1000, 1000, "matrices")),
        *((0, 7, "matrices"), (7, 7, "matrices")),
    ]


def test_a_worker_sends_what_it_counts(tmp_path):
    plan = plan_compression(CompressRequest("tiny", "svd", 2.0, tmp_path / "m"))
    todo = {key: stage for key, stage in plan.stages.items() if stage.kind == "fit"}
    events = []
    store = StageStore(tmp_path / "stages")
    run_stages(todo, plan.needs, store, 1, 1, lambda event, stage: events.append(event), lambda stage: None)
    counts = [(event.done, event.total, event.unit) for event in events if event.kind == "progress"]
    assert (0, 28, "matrices") in counts
    assert (28, 28, "matrices") in counts


def test_commands_say_how_far_they_are_on_standard_error_only():
    done = bench("eval", "tiny", "--benchmarks", "toy-math", "--limit", "2", "--stage", "pretrained")
    assert done.returncode == 0, done.stderr
    assert "[1/1]" not in done.stdout
