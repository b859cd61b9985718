"""Stored samples of a real run: found by name, compared, scored again, shown."""

import json
import shutil

import pytest
from sealing import seal

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.records.files import read_records, to_records, write_records
from lowrank_bench.results.samples.compare import compare
from lowrank_bench.results.samples.stored import (
    Filters,
    compare_samples,
    load_samples,
    rescore_run,
    sample_file,
    show_samples,
)
from lowrank_bench.runners.plan import make_plan


@pytest.fixture
def run(finished):
    return finished.execution.out / make_plan(finished).name


def test_a_cell_is_found_by_label_and_ratio(finished, run):
    plan = make_plan(finished)
    cell = next(cell for cell in plan.cells if cell.method.shown == "svd" and cell.ratio == 2)
    folder = plan.store.path(cell.evaluations["toy-math"])
    assert sample_file(f"{run}:svd@2") == sample_file(str(folder)) == folder / "samples.jsonl"
    assert sample_file(f"{run}:bs:prunings=3@4x").exists()


@pytest.mark.parametrize(
    ("name", "words"), [("{run}:svd@3", "svd@2"), ("{run}:sdv@2", "its cells"), ("nowhere", "RUN:LABEL@RATIO")]
)
def test_what_is_not_there_is_reported_with_what_is(run, name, words):
    with pytest.raises(UserError, match=words):
        sample_file(name.format(run=run))


def test_a_run_does_not_differ_from_itself(run):
    name = f"{run}:svd@2"
    result = compare(load_samples(sample_file(name)), load_samples(sample_file(name)))
    assert result.problems == 4
    assert result.difference == 0
    assert not result.significant
    for other in (name, str(sample_file(name).parent)):
        with pytest.raises(UserError, match="are the same evaluation; name two"):
            compare_samples(name, other, None, None, None)


def test_rescoring_unchanged_samples_changes_nothing(run, tmp_path):
    changes, csv = rescore_run(run, None, tmp_path / "again")
    assert len(changes) == 7
    assert all(change.before == change.after for change in changes)
    old, new = read_records(run), read_records(csv)
    assert old[["label", "metric", "scorer", "value", "low", "high"]].equals(
        new[["label", "metric", "scorer", "value", "low", "high"]]
    )


def test_rescoring_sees_the_completions_not_the_old_verdicts(finished, run, tmp_path):
    out = tmp_path / "copy"
    shutil.copytree(finished.execution.out, out)
    copied = out / run.name
    path = sample_file(f"{copied}:svd@2")
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    from lowrank_bench.evals.tasks.toy.math import toy_math_problems

    gold = toy_math_problems("test", 250, 42)
    for line, row in zip(lines, gold, strict=False):
        line["completion"] = row["answer"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match=r"samples\.jsonl has .* bench doctor --repair"):
        rescore_run(copied, None, None)
    seal(path.parent)
    changes, _ = rescore_run(copied, None, None)
    changed = next(change for change in changes if (change.label, change.ratio) == ("svd", 2))
    assert changed.after == 1.0


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 43},
        {"label": "svd, again", "options": '{"again":true}'},
        {"sweep": "second"},
    ],
)
def test_every_cell_that_shares_an_evaluation_is_rescored(finished, run, tmp_path, changes):
    out = tmp_path / "copy"
    shutil.copytree(finished.execution.out, out)
    rows = to_records(read_records(out / run.name))
    shared = {row.stage_key for row in rows if row.label in ("none", "svd")}
    more = [row.model_copy(update=changes) for row in rows if row.stage_key in shared]
    write_records(out / run.name, [*rows, *more])
    rescored, csv = rescore_run(out / run.name, None, None)
    assert len(rescored) == 7 + len(shared)
    assert len({(change.label, change.ratio, change.seed) for change in rescored}) == (
        7 if "sweep" in changes else len(rescored)
    )
    old, new = read_records(out / run.name), read_records(csv)
    columns = ["sweep", "label", "seed", "ratio_target", "metric", "scorer", "value", "low", "high", "stage_key"]
    assert old[columns].equals(new[columns])


def test_filters(run):
    lines = load_samples(sample_file(f"{run}:svd@2"))
    assert len(list(show_samples(lines, Filters()))) == 4
    first = lines[0]
    assert [line["problem"] for line in show_samples(lines, Filters(problem=str(first["problem"])))] == [
        first["problem"]
    ]
    assert not list(show_samples(lines, Filters(contains="no such text")))
    for filters in (Filters(verdict="splendid"), Filters(finish="cut"), Filters(problem="no such problem")):
        with pytest.raises(UserError, match=r"no sample has the (verdict|finish reason|problem) '.*'; there are: "):
            list(show_samples(lines, filters))


def test_a_table_without_records_is_not_rescored(run, tmp_path):
    (tmp_path / "empty").mkdir()
    heading = (run / "results.csv").read_text().splitlines()[0]
    (tmp_path / "empty" / "results.csv").write_text(heading + "\n")
    with pytest.raises(UserError, match="holds no records"):
        rescore_run(tmp_path / "empty", None, None)
    assert not (tmp_path / "empty" / "rescored").exists()
