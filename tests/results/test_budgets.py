"""Models with different training after compression are never one value: tables, boards, checks, names, findings."""

import pytest

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.records.files import to_frame, write_records
from lowrank_bench.results.cells import find_cell
from lowrank_bench.results.leaderboard.boards import ORIGIN, boards
from lowrank_bench.results.plots.budgets import draw_budgets
from lowrank_bench.results.regression.recovery import estimates
from lowrank_bench.results.report.budgets import budget_findings
from lowrank_bench.results.report.data import Paired
from lowrank_bench.results.tables.by_ratio import by_ratio
from lowrank_bench.results.tables.pivot import pivot

VALUES = {("a", 200): 0.3, ("b", 200): 0.2, ("a", 600): 0.4, ("b", 600): 0.5}
"""Accuracy by label and budget: a is ahead with the small one, b with the large one."""


def cell(record, label, budget, value, half=0.02, **changes):
    fields = {"method": label, "label": label, "value": value, "low": value - half, "high": value + half}
    fields |= {"steps_recover": budget, "steps_budget": budget, "tokens_recover": 1000 * budget}
    return record(**(fields | {"stage_key": f"evaluate-{label}-{budget}"} | changes))


def records(record, values=VALUES, **changes):
    base = {"method": "none", "label": "finetuned", "stage": "finetuned", "ratio_target": 1.0, "params": 6_738_415_616}
    base |= {"steps_recover": 0, "tokens_recover": 0, "steps_budget": 0, "stage_key": "evaluate-none"}
    cells = [cell(record, label, budget, value, **changes) for (label, budget), value in values.items()]
    return [record(**base), *cells]


def test_one_table_with_a_column_of_steps(record):
    table, sizes = by_ratio(to_frame(records(record)))
    rows = [[field.text for field in row] for row in table.fields]
    assert [column.title for column in table.columns] == ["", "steps", "1×", "2×"]
    assert [row[:2] for row in rows] == [
        ["uncompressed (finetuned)", ""],
        *([x, n] for x in "ab" for n in ("200", "600")),
    ]
    assert [row[3] for row in rows] == ["", "30.0", "40.0", "20.0", "50.0"]
    assert len(sizes.rows) == 5


def test_one_budget_has_no_column(record):
    one_budget = {key: value for key, value in VALUES.items() if key[1] == 200}
    table, _ = by_ratio(to_frame(records(record, one_budget)))
    assert [column.title for column in table.columns] == ["", "1×", "2×"]
    assert pivot(to_frame(records(record, one_budget)))[0].budget == 0


def test_each_budget_has_a_board(record):
    frame = to_frame(records(record)).assign(**{ORIGIN: ""})
    small, large = boards(frame)
    assert small.id != large.id
    assert "200 steps" in small.conditions
    assert "600 steps" in large.conditions
    assert {entry.cell.value for entry in large.entries} == {0.4, 0.5}


def test_a_baseline_names_cells_by_budget_only_where_there_are_several(record):
    assert {name.row for name in estimates(to_frame(records(record))) if not name.uncompressed} == {
        f"{label} 2×, {budget} steps" for label, budget in VALUES
    }
    one_budget = {key: value for key, value in VALUES.items() if key[1] == 200}
    assert {name.row for name in estimates(to_frame(records(record, one_budget)))} >= {"a 2×", "b 2×"}


def test_a_cell_is_named_with_its_budget(record, tmp_path):
    run = tmp_path / "run"
    write_records(run, records(record))
    assert find_cell(f"{run}:b@2/600").record.value == 0.5
    assert find_cell(f"{run}:finetuned@1").record.method == "none"
    with pytest.raises(UserError, match=r"was trained for 200, 600 steps after the first finetuning; write .*b@2/200"):
        find_cell(f"{run}:b@2")
    with pytest.raises(UserError, match=r"write .*b@2/200"):
        find_cell(f"{run}:b@2/300")
    with pytest.raises(UserError, match="depends on none"):
        find_cell(f"{run}:finetuned@1/200")


def finding_text(rows, orders=()):
    return "\n".join(text for _, texts in budget_findings(pivot(to_frame(rows)), orders) for text in texts)


def order(table, leader, label, p):
    test = {"difference": 0.1, "low": 0.0, "high": 0.2, "p_value": p, "p_corrected": p, "units": 100}
    more = {"unit": "problems", "seeds": 1, "every_seed": True, "test": "McNemar, exact"}
    return Paired(table=table, ratio=2.0, leader=leader, label=label, **test, **more)


def test_a_change_of_order_is_asserted_where_both_sides_are_significant(record):
    rows = records(record)
    text = finding_text(rows, (order(0, "a", "b", 0.001), order(1, "b", "a", 0.01)))
    assert "the order of the methods changes with the budget (paired tests" in text
    assert "a is ahead of b with 200 steps and behind it with 600 steps" in text


@pytest.mark.parametrize("p_values", [(0.2, 0.001), (0.001, 0.2), (0.2, 0.2)])
def test_no_change_is_asserted_without_significance_on_both_sides(record, p_values):
    rows = records(record)
    text = finding_text(rows, (order(0, "a", "b", p_values[0]), order(1, "b", "a", p_values[1])))
    assert "no change is distinguishable from chance" in text
    assert "(200 steps: a, b; 600 steps: b, a)" in text
    assert "order of the methods changes" not in text


def test_intervals_decide_where_there_is_no_test(record):
    assert "the order of the methods changes with the budget (intervals)" in finding_text(records(record))
    assert "no change is distinguishable" in finding_text(records(record, half=0.2))


def test_ties_change_nothing(record):
    text = finding_text(records(record, VALUES | {("a", 600): 0.5}, half=0.2))
    assert "no two estimates change their order" in text


def test_no_sentence_about_one_budget(record):
    assert finding_text(records(record, {("a", 200): 0.3, ("b", 200): 0.2})) == ""


def test_figures_over_tokens_are_drawn_for_several_budgets_and_are_the_same_each_time(record, tmp_path):
    frame = to_frame(records(record))
    (first, svg), again = draw_budgets(frame, tmp_path / "a"), draw_budgets(frame, tmp_path / "b")
    assert first.name.endswith("-by-tokens.png")
    assert svg.read_bytes() == again[1].read_bytes()
    assert "200 k" in svg.read_text()
    assert draw_budgets(to_frame(records(record, {("a", 200): 0.3})), tmp_path / "c") == []


@pytest.mark.parametrize(
    "sums", [((0.1, 0.2, 0.3), (0.3, 0.2, 0.1)), ((0.1, 0.2), (0.15, 0.15)), ((0.7, 0.1, 0.2), (0.2, 0.1, 0.7))]
)
def test_means_that_differ_by_rounding_change_no_order(record, sums):
    rows = []
    for budget, pair in ((200, sums), (600, sums[::-1])):
        for label, values in zip("ab", pair, strict=True):
            for seed, value in enumerate(values, start=1):
                key = f"{label}-{budget}-{seed}"
                rows.append(cell(record, label, budget, value, seed=seed, stage_key=key, low=0.0, high=1.0))
    ((_, (text,)),) = budget_findings(pivot(to_frame(rows)), ())
    assert "no two estimates change their order between budgets" in text
    for board in boards(to_frame(rows).assign(**{ORIGIN: ""})):
        assert [entry.standing.rank for entry in board.entries] == [1, 1]
