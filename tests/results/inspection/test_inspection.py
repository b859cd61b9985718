"""Inspection of a real sweep's cells, and of models by name."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from sealing import seal

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.foundation.files import read_json
from lowrank_bench.models.loading import load_model
from lowrank_bench.results.cells import checkpoint_folder
from lowrank_bench.results.inspection.changes import count_changes
from lowrank_bench.results.inspection.gather import Reading, _compress_stage, find_cell, inspect_bases, inspect_changes
from lowrank_bench.results.inspection.meaning import find_bases


@pytest.fixture(scope="module")
def run(finished):
    return next(path.parent for path in finished.execution.out.glob("*/results.csv"))


def test_a_cell_is_its_checkpoint(run):
    name = f"{run}:bs,prunings=3@4"
    name = name if "bs,prunings=3" in labels(run) else f"{run}:{next(x for x in labels(run) if x.startswith('bs'))}@4"
    view = inspect_bases(name, "o", 1, head=2, count=3, reading=Reading(top=4))
    model = load_model(checkpoint_folder(name))
    assert [row.value for row in view.rows] == find_bases(model, "o", 1, 2).values[:3].tolist()
    assert all(len(row.positive) == len(row.negative) == 4 for row in view.rows)
    assert sum(row.share for row in view.rows) < 1


def labels(run):
    from lowrank_bench.records.files import read_records

    return sorted(set(read_records(run).label))


def cells(run, start):
    return f"{run}:{next(label for label in labels(run) if label.startswith(start))}@4"


def test_real_sentencepiece_model_reads_as_words(data_dir):
    view = inspect_bases(str(data_dir / "models" / "stories260K"), "ov", 3, head=1, reading=Reading(top=50))
    texts = {token.text for row in view.rows for token in row.positive + row.negative}
    assert {"␣upon", "␣Lily"} <= texts
    assert len(view.rows) == 8


def test_basis_selection_accounts_for_every_basis(run):
    view = inspect_changes(cells(run, "bs"), count=2)
    *by_matrix, total = count_changes(view)
    assert len(by_matrix) == 4 * 7
    assert all(c.bases == 128 == c.kept + c.died + c.freed for c in by_matrix)
    assert total.died > 0
    assert view.trained
    assert any(row.state == "died" for row in view.tokens)
    stage = _compress_stage(find_cell(cells(run, "bs"), any_benchmark=True))
    ranks = read_json(stage.ratio / "report.json")["ranks"]
    assert sum(c.kept + c.new for c in by_matrix) == sum(ranks.values())
    stored = load_file(stage.ratio / "bases.safetensors")
    assert set(view.frame.module) == {key.rpartition(".")[0] for key in stored}
    assert not list((stage.ratio / "model").glob("bases*"))  # the checkpoint's own format is as it was


@pytest.mark.parametrize("method", ["svd", "fwsvd"])
def test_a_method_that_truncates_keeps_its_ranks(run, method):
    view = inspect_changes(cells(run, method), count=1)
    *by_matrix, total = count_changes(view)
    assert not view.trained
    assert (total.grew, total.new, total.freed) == (0, 0, 0)
    assert all(c.kept + c.died == c.bases == 128 for c in by_matrix)
    assert [row.state for row in view.tokens] == ["died"]


def test_the_largest_dead_basis_is_read_with_the_model_before(run):
    view = inspect_changes(cells(run, "svd"), matrix="o", count=1)
    stage = _compress_stage(find_cell(cells(run, "svd"), any_benchmark=True))
    row = view.tokens[0]
    bases = find_bases(load_model(stage.base), "o", row.layer)
    assert row.value == pytest.approx(float(bases.values[row.basis]), rel=1e-4)
    dead = view.frame[view.frame.state == "died"]
    assert row.value == pytest.approx(dead.before.max())
    whole = inspect_bases(stage.base, "o", row.layer, count=row.basis + 1)
    assert {t.text for t in row.positive[:3]} == {t.text for t in whole.rows[row.basis].positive[:3]}


def test_a_part_of_the_model(run):
    assert {*inspect_changes(cells(run, "svd"), layer=2, count=0).frame.layer} == {2}
    assert {*inspect_changes(cells(run, "svd"), matrix="v", count=0).frame.matrix} == {"v"}
    for part, words in (({"layer": 7}, "0 to 3"), ({"matrix": "w"}, "unknown matrix 'w'")):
        with pytest.raises(UserError, match=words):
            inspect_changes(cells(run, "svd"), **part)


def test_what_has_no_account_says_so(run, tmp_path):
    with pytest.raises(UserError, match="not compressed"):
        inspect_changes(f"{run}:finetuned@1")
    shutil.copytree(run.parent, tmp_path / "runs")
    name = cells(tmp_path / "runs" / run.name, "bs")
    stage = _compress_stage(find_cell(name, any_benchmark=True))
    for file in stage.ratio.parent.rglob("bases.safetensors"):  # as an earlier version would have left it
        file.unlink()
    seal(stage.ratio.parent)
    with pytest.raises(UserError, match="made before") as error:
        inspect_changes(name)
    assert str(stage.ratio.parent) in str(error.value)
    shutil.rmtree(stage.fit)
    with pytest.raises(UserError, match="is gone"):
        inspect_changes(name)


def test_equal_stages_give_equal_views(run):
    a, b = (inspect_changes(cells(run, "bs"), count=1) for _ in range(2))
    assert a.tokens == b.tokens
    assert a.frame.equals(b.frame)
    assert torch.isfinite(torch.tensor(a.frame[a.frame.state == "grew"].after.to_numpy())).all()
