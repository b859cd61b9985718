"""The leaderboard of a real run: its samples, speeds and submissions."""

import csv
import io
import json
import math
import shutil

import pytest
from made_records import make_record
from sealing import seal
from typed_stages import RESULTS, evaluate_stage

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.records.files import read_records, to_records, write_records
from lowrank_bench.results.leaderboard import submissions
from lowrank_bench.results.leaderboard.gather import gather, write
from lowrank_bench.results.leaderboard.ranking import NO_SAMPLES, Scores
from lowrank_bench.results.leaderboard.texts import to_csv
from lowrank_bench.results.samples.paired_scores import scores_of, stage_scores
from lowrank_bench.results.samples.stored import compare_samples
from lowrank_bench.runners.plan import make_plan
from lowrank_bench.runners.store.folders import StageStore


def stage_of(lines, folder):
    """A finished stage with these samples."""
    store, stage = StageStore(folder), evaluate_stage()

    def write(part):
        (part / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return RESULTS["evaluate"]

    store.run(stage, write)
    return store.path(stage.key)


@pytest.fixture
def run(finished):
    return finished.execution.out / make_plan(finished).name


@pytest.fixture
def copied(run, tmp_path):
    """A copy of the run with its evaluations, to be damaged."""
    shutil.copytree(run, tmp_path / run.name)
    for stage in (run.parent / "stages").glob("evaluate-*"):
        shutil.copytree(stage, tmp_path / "stages" / stage.name)
    return tmp_path / run.name


def test_every_headline_has_scores_that_sum_up_to_it(run):
    frame = read_records(run)
    frame = frame[frame.headline]
    rows = [
        (run.parent / "stages", *row)
        for row in zip(frame.stage_key, frame.metric, frame.scorer, frame.value, strict=True)
    ]
    for (key, _, _), scores in scores_of(rows).items():
        assert isinstance(scores, Scores)
        assert scores.greedy
        assert scores.values.mean() == pytest.approx(frame[frame.stage_key == key].value.iloc[0])


def test_tests_are_those_of_bench_compare(run, tmp_path):
    (board,) = gather([run], tmp_path).boards
    assert len(board.entries) == 6
    for band in board.bands:
        column = [entry for entry in board.entries if entry.band == band]
        (best,) = (entry for entry in column if entry.standing.best)
        for entry in column:
            if entry is not best:
                names = (f"{run}:{compared.label}@{compared.target:g}" for compared in (best, entry))
                assert entry.standing.p_value == pytest.approx(compare_samples(*names, None, None, None).p_value)
                assert entry.standing.test == "McNemar, exact (4 problems or windows, 1 seed)"


def test_four_problems_never_show_a_difference(run, tmp_path):
    (board,) = gather([run], tmp_path).boards
    assert {entry.standing.rank for entry in board.entries} == {1}


def test_samples_that_are_gone_damaged_or_of_other_answers_give_a_reason(copied, tmp_path):
    frame = read_records(copied)
    stages = copied.parent / "stages"
    keys = sorted(set(frame[frame.method != "none"].stage_key))[:3]
    (stages / keys[0] / "samples.jsonl").unlink()
    (stages / keys[1] / "samples.jsonl").write_text("{broken")
    lines = [json.loads(line) for line in (stages / keys[2] / "samples.jsonl").read_text().splitlines()]
    for line in lines:
        line["verdicts"][line["scorer"]] = "wrong" if line["verdicts"][line["scorer"]] == "correct" else "correct"
    (stages / keys[2] / "samples.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    seal(stages / keys[2])
    (board,) = gather([copied], tmp_path / "none").boards
    reasons = {}
    for entry in board.entries:
        if entry.provenance.stage_keys in keys:
            reasons[entry.provenance.stage_keys] = entry.standing.reason or entry.standing.test
    untested = [entry for entry in board.entries if entry.standing.tied is None and not entry.standing.best]
    assert untested
    assert all(math.isnan(entry.standing.p_value) for entry in untested)
    value = {(row.stage_key): row.value for row in frame[frame.headline].itertuples()}
    metric, scorer = "accuracy", lines[0]["scorer"]
    why_untested = [stage_scores(stages / key, {(metric, scorer): value[key]})[metric, scorer] for key in keys]
    assert why_untested == [NO_SAMPLES, "the stage with the samples is damaged", "no paired test for this metric"]


def test_a_stage_key_cannot_lead_out_of_the_stages(copied):
    outside = copied.parent / "outside"
    key = next((copied.parent / "stages").iterdir())
    shutil.copytree(key, outside)
    rows = [(copied.parent / "stages", "../outside", "accuracy", "strict", 0.0)]
    assert scores_of(rows) == {("../outside", "accuracy", "strict"): NO_SAMPLES}


def test_perplexities_are_tested_over_windows(tmp_path):
    sums, counts = [10.0, 22.5, 31.0], [8, 16, 20]
    lines = [{"index": i, "nll": s, "tokens": t} for i, (s, t) in enumerate(zip(sums, counts, strict=True))]
    stage = stage_of(lines, tmp_path)
    value = math.exp(sum(sums) / sum(counts))
    by_metric = stage_scores(stage, {("perplexity", ""): value, ("nats_per_token", ""): math.log(value)})
    for scores in by_metric.values():
        assert scores.values.tolist() == sums
        assert not scores.greedy
    assert isinstance(stage_scores(stage, {("perplexity", ""): 2 * value})["perplexity", ""], str)


def test_several_samples_of_a_problem_are_averaged(tmp_path):
    line = {
        "problem": "0",
        "problem_sha256": "a" * 64,
        "prompt_sha256": "b" * 64,
        "temperature": 0.8,
        "scorer": "strict",
    }
    rights = [[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 1, 0]]
    lines = [
        {**line, "problem": str(p), "verdicts": {"strict": "correct" if hit else "wrong"}}
        for p, hits in enumerate(rights)
        for hit in hits
    ]
    stage = stage_of(lines, tmp_path)
    two = [1 - math.comb(4 - sum(h), 2) / math.comb(4, 2) for h in rights]
    by_metric = stage_scores(stage, {("accuracy", "strict"): 5 / 12, ("accuracy-pass@2", "strict"): sum(two) / 3})
    assert by_metric["accuracy", "strict"].values.tolist() == [0.5, 0.0, 0.75]
    assert not by_metric["accuracy", "strict"].greedy
    assert by_metric["accuracy-pass@2", "strict"].values.tolist() == pytest.approx(two)


def test_submissions_are_ranked_beside_and_never_tested(run, tmp_path):
    records = to_records(read_records(run))
    theirs = [r.model_copy(update={"seed": 9, "label": f"{r.label} of theirs"}) for r in records if r.method == "svd"]
    path, _ = write_records(tmp_path / "theirs", theirs)
    submissions.add(path, tmp_path / "submissions")
    gathered = gather([run], tmp_path / "submissions")
    (board,) = gathered.boards
    (name,) = gathered.submissions
    new = [entry for entry in board.entries if entry.origin]
    assert len(new) == 2
    assert all(entry.label == f"svd of theirs ({name})" for entry in new)
    assert all(entry.standing.tied is None for entry in new)
    lines = list(csv.DictReader(io.StringIO(to_csv(gathered.boards))))
    assert {line["origin"] for line in lines} == {"measured", name}
    alone = gather([], tmp_path / "submissions")
    assert {entry.origin for b in alone.boards for entry in b.entries} == {name}


def test_runs_that_contradict_each_other_are_refused(run, copied, tmp_path):
    records = to_records(read_records(copied))
    changed = [
        r.model_copy(update={"value": r.low, "stage_key": "evaluate-other"}) if r.headline and r.method == "svd" else r
        for r in records
    ]
    write_records(copied, changed)
    with pytest.raises(UserError, match=r"two records give accuracy of 'svd.*leave one of them out"):
        gather([run, copied], tmp_path / "none")


def test_nothing_to_rank_is_reported(tmp_path):
    with pytest.raises(UserError, match="nothing to rank"):
        gather([], tmp_path)


def test_measured_speeds_draw_a_front_and_submissions_do_not_borrow_them(run, tmp_path):
    records = [r for r in to_records(read_records(run)) if r.headline]
    shutil.copytree(run, tmp_path / "runs" / "a")
    speeds = [
        make_record(
            **{name: getattr(r, name) for name in ("model", "model_sha256", "method", "label", "stage", "seed")},
            **{name: getattr(r, name) for name in ("ratio_target", "ratio", "kept", "params", "params_original")},
            **{"benchmark": "speed", "variant": "speed-batch1", "metric": "decode_tokens_per_second", "scorer": ""},
            **{"value": 100 * r.ratio, "low": 90 * r.ratio, "high": 110 * r.ratio, "stage_key": r.stage_key},
        )
        for r in records
    ]
    write_records(tmp_path / "runs" / "speed", speeds)
    theirs = [r.model_copy(update={"seed": 9}) for r in records if r.method == "svd"]
    path, _ = write_records(tmp_path / "theirs", theirs)
    submissions.add(path, tmp_path / "submissions")
    (board,) = gather([tmp_path / "runs" / "a"], tmp_path / "submissions").boards
    for entry in (*board.entries, *board.references):
        expected = {} if entry.origin else {"speed-batch1": pytest.approx(100 * entry.cell.ratio)}
        assert dict(entry.speeds) == expected
    files = write(gather([tmp_path / "runs" / "a"], tmp_path / "submissions"), tmp_path / "out")
    assert "decoding speed" in files[-1].read_text()


def test_files_are_the_same_bytes_each_time(run, tmp_path):
    first = [path.read_bytes() for path in write(gather([run, run], tmp_path), tmp_path / "a")]
    second = [path.read_bytes() for path in write(gather([run], tmp_path), tmp_path / "b")]
    assert first == second
