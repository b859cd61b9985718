"""Perplexities with and without BOS of one model: both beside each other where they differ, with a sentence."""

import math

import pytest
from made_records import PARAMS, make_record

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.records.bos import differ, without_bos_references
from lowrank_bench.records.files import to_frame, write_records
from lowrank_bench.results.cells import find_cell
from lowrank_bench.results.leaderboard.boards import boards
from lowrank_bench.results.leaderboard.page import to_html
from lowrank_bench.results.leaderboard.texts import to_csv, to_markdown
from lowrank_bench.results.report.data import Asked, Report
from lowrank_bench.results.report.findings import findings
from lowrank_bench.results.report.markdown import report_markdown
from lowrank_bench.results.tables.by_ratio import by_ratio
from lowrank_bench.results.tables.overview import overviews
from lowrank_bench.results.tables.pivot import pivot
from lowrank_bench.results.tables.writers import to_markdown as tables_markdown

PLAIN, BOS = "wikitext2-test-512", "wikitext2-test-512-bos"
SENTENCE = (
    "perplexity of the uncompressed model is 22.00 with a BOS at the start of each window (wikitext2-test-512-bos) and "
    "55.60 without (wikitext2-test-512, the recipe of GPTQ's code): the number without BOS is for comparison with "
    "numbers measured so, not the model's quality"
)


def measured(variant, value, compressed=False, **changes):
    fields = {"benchmark": "wikitext2", "metric": "perplexity", "scorer": "", "higher_is_better": False, "n": 6}
    fields |= {"n": 7} if variant == PLAIN else {}  # a BOS takes a token's place, so there may be another window
    fields |= {"task": "language", "prompt_sha256": "", "dataset_sha256": variant, "stage_key": f"{variant}{value:g}"}
    if not compressed:
        fields |= {"method": "none", "label": "pretrained", "stage": "pretrained", "ratio_target": 1.0}
        fields |= {"params": PARAMS, "ratio_matrices": 1.0, "steps_recover": 0, "tokens_recover": 0}
    fields |= {"variant": variant, "value": value, "low": 0.9 * value, "high": 1.1 * value}
    return make_record(**fields | changes)


def sweep(with_bos=22.0, without=55.6, compressed=(BOS,)):
    small = [measured(variant, 300.0, compressed=True) for variant in compressed]
    return to_frame([measured(BOS, with_bos), measured(PLAIN, without), *small])


def report_of(frame):
    return Report("a run", frame, Asked((), ()))


def test_both_are_shown_with_a_sentence_where_they_differ():
    frame = sweep()
    assert {table.variant: table.note for table in pivot(frame)} == {BOS: SENTENCE, PLAIN: SENTENCE}
    text = tables_markdown(by_ratio(frame))
    assert text.count(SENTENCE) == 2
    assert "55.60" in text
    report = report_of(frame)
    assert f"The {SENTENCE}." in findings(report)[0][1]
    assert report_markdown(report).count(SENTENCE) >= 3
    board, *others = boards(frame.assign(origin=""))
    assert not others
    assert board.table.variant == BOS
    assert [(variant, entry.cell.value) for variant, entry in board.elsewhere] == [(PLAIN, 55.6)]
    for text in (to_markdown([board]), to_html([board])):
        assert "the number without BOS is for comparison with numbers measured so" in text
        assert "pretrained" in text
    (line,) = [line for line in to_csv([board]).splitlines() if f",{PLAIN}," in line]
    assert "measured under another variant" in line


@pytest.mark.parametrize(("with_bos", "without"), [(22.0, 22.0), (22.0, 23.0), (22.0, 21.1), (math.inf, math.inf)])
def test_values_that_differ_little_are_shown_once(with_bos, without):
    frame = sweep(with_bos, without)
    (table,) = pivot(frame)
    assert (table.variant, table.note) == (BOS, "")
    (board,) = boards(frame.assign(origin=""))
    assert (board.table.variant, board.elsewhere, board.note) == (BOS, (), "")


def test_what_was_asked_for_of_every_model_is_always_shown():
    assert {table.variant for table in pivot(sweep(22.0, 22.0, (BOS, PLAIN)))} == {BOS, PLAIN}
    frame = sweep(compressed=(BOS, PLAIN))
    assert {table.note for table in pivot(frame)} == {SENTENCE}
    assert {board.note for board in boards(frame.assign(origin=""))} == {SENTENCE}
    only = frame[frame.variant == PLAIN]
    assert [table.note for table in pivot(only)] == [""], "there is nothing to compare"


def test_a_worse_value_with_bos_is_not_called_the_better_one():
    (note,) = {table.note for table in pivot(sweep(60.0, 50.0))}
    assert note.endswith("compare only numbers that were measured alike")


def test_a_perplexity_beyond_all_numbers_differs_from_one_that_is_a_number():
    assert differ("perplexity", 22.0, math.inf)
    assert differ("nats_per_token", 3.0, 3.1)
    assert not differ("nats_per_token", 3.0, 3.04)


def test_an_overview_says_it_too():
    frame = to_frame(
        [
            record
            for name in ("wikitext2", "c4")
            for record in (
                measured(f"{name}-9-bos", 22.0, benchmark="c4") if name == "c4" else measured(BOS, 22.0),
                measured(f"{name}-9", 22.0, benchmark="c4") if name == "c4" else measured(PLAIN, 55.6),
                measured(f"{name}-9-bos", 99.0, True, benchmark="c4") if name == "c4" else measured(BOS, 300.0, True),
            )
        ]
    )
    (table,) = overviews(frame)
    assert list(table.notes) == [SENTENCE]
    assert len(table.rows) == 3


def test_a_name_of_a_cell_means_the_variant_of_the_others(tmp_path):
    frame = sweep()
    write_records(tmp_path / "run", [measured(BOS, 22.0), measured(PLAIN, 55.6), measured(BOS, 300.0, True)])
    assert set(without_bos_references(frame).variant) == {BOS}
    name = f"{tmp_path / 'run'}:pretrained@1"
    assert find_cell(name).record.variant == BOS
    assert find_cell(name, benchmark="wikitext2").record.variant == BOS
    assert find_cell(name, benchmark=PLAIN).record.variant == PLAIN


def test_a_cell_of_several_contexts_is_named_by_its_variant(tmp_path):
    write_records(tmp_path / "run", [measured(PLAIN, 55.6), measured("wikitext2-test-64", 99.0)])
    name = f"{tmp_path / 'run'}:pretrained@1"
    with pytest.raises(UserError, match=f"benchmarks {PLAIN}, wikitext2-test-64"):
        find_cell(name)
    assert find_cell(name, any_benchmark=True).record.benchmark == "wikitext2"
    assert find_cell(name, benchmark="wikitext2-test-64").record.value == 99.0
