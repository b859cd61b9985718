"""One command gives perplexity, accuracies and biases of a model that is compressed without training."""

import pytest
from sweeps import changed, small_sweep

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.records.files import read_records
from lowrank_bench.results.sweep import run_sweep
from lowrank_bench.results.tables import overview
from lowrank_bench.results.tables.pivot import pivot
from lowrank_bench.results.tables.writers import to_csv, to_markdown
from lowrank_bench.runners.plan import make_plan


@pytest.fixture(scope="module")
def swept(tmp_path_factory, data_dir):
    config = small_sweep(
        tmp_path_factory.mktemp("commonsense"),
        model=str(data_dir / "models" / "stories260K"),
        task="commonsense",
        data=data_dir,
        training_free=True,
        finetune={},
        recover={},
        methods=["svd", "fwsvd:samples=8"],
        ratios=[2],
        benchmarks=["piqa", "hellaswag", "boolq", "crows_pairs", "stereoset", "winobias", "wikitext2"],
        context=[64, 128],
        limit=3,
        workers=1,
    )
    run_sweep(config)
    return read_records(config.execution.out / make_plan(config).name)


def test_records_name_variants_and_no_training(swept):
    assert set(swept.variant) == {
        *("piqa-0shot", "hellaswag-1000of10042-local-0shot", "boolq-0shot", "crows_pairs-original-1508"),
        *("stereoset-dev", "winobias-refers-to"),
        *(f"wikitext2-test-{window}{bos}" for window in (64, 128) for bos in ("", "-bos")),
    }
    assert set(swept.stage) == {"pretrained", "compressed"}
    assert not swept[[name for name in swept.columns if name.startswith(("steps_", "tokens_"))]].to_numpy().any()


def test_contexts_never_share_a_table(swept):
    tables = [table for table in pivot(swept) if table.benchmark == "wikitext2"]
    labels = {table.variant: {row.label for row in table.rows} for table in tables}
    # Without BOS only the uncompressed model is measured, for it is what published numbers are compared with.
    assert labels == {
        f"wikitext2-test-{window}{bos}": {"uncompressed (pretrained)", *(compressed if bos else [])}
        for window in (64, 128)
        for bos, compressed in (("", []), ("-bos", ["svd", "fwsvd:samples=8"]))
    }
    for window in (64, 128):
        notes = [table.note for table in tables if f"-{window}" in table.variant]
        assert notes[0] == notes[1]
        assert f"with a BOS at the start of each window (wikitext2-test-{window}-bos)" in notes[0]


def test_the_overview_puts_all_beside_each_other(swept):
    (view,) = overview.overviews(swept)
    assert len(view.columns) == 4
    assert len(view.rows) == 11
    assert len(view.notes) == 2
    names = [row[0] for row in view.rows]
    assert any(name.startswith("hellaswag-1000of10042-local-0shot: acc_norm") for name in names)
    assert any("50 is no preference" in name for name in names)
    assert names[-1] == "mean of the 3 accuracies above, %"
    accuracies = swept[swept.headline & swept.metric.isin(["acc", "acc_norm"]) & (swept.label == "svd")]
    column = next(index for index, column in enumerate(view.columns) if column.title.startswith("svd"))
    assert view.rows[-1][column] == f"{100 * accuracies.value.mean():.1f}"
    assert "| mean of the 3 accuracies above, % |" in to_markdown([view])
    assert to_csv([view]).count("\n") == 12
    assert overview.overviews(swept[swept.benchmark == "piqa"]) == []


def test_a_default_window_is_named_by_what_the_model_takes(tmp_path, data_dir):
    changes = {"training_free": True, "finetune": {}, "recover": {}, "methods": ["svd"], "ratios": [2], "limit": 2}
    model, task = str(data_dir / "models" / "stories260K"), "commonsense"
    config = small_sweep(
        tmp_path, model=model, task=task, data=data_dir, benchmarks=["wikitext2"], workers=1, **changes
    )
    run_sweep(config)
    assert set(read_records(tmp_path / make_plan(config).name).variant) == {
        "wikitext2-test-512",
        "wikitext2-test-512-bos",
    }
    with pytest.raises(UserError, match=r"--context 2048 is more than stories260K-[0-9a-f]{8} takes \(512\)"):
        make_plan(changed(config, context=(2048,)))
