"""Only like is ranked with like, ties are ties, and every form carries the numbers and nothing that runs."""

import csv
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from lowrank_bench.records.files import to_frame
from lowrank_bench.results.leaderboard.bands import band_of, bands
from lowrank_bench.results.leaderboard.boards import boards
from lowrank_bench.results.leaderboard.figures import figures
from lowrank_bench.results.leaderboard.page import _board_view, _ranks, to_html
from lowrank_bench.results.leaderboard.ranking import AHEAD, Contender, Scores, rank
from lowrank_bench.results.leaderboard.texts import render_terminal, to_csv, to_latex, to_markdown
from lowrank_bench.results.tables.by_ratio import by_ratio
from lowrank_bench.results.tables.writers import to_markdown as tables_markdown

HOSTILE = (
    *("<script>alert(1)</script>", "</script><img src=x onerror=alert(1)>", "javascript:alert(1)"),
    *("a|b\\c", "$x_{1}$ & 50%", "'; DROP TABLE--", '"quoted"', "{{ 7 * 7 }}", "{% raw %}", "]]>", "&lt;"),
)


def frame_of(records, **origins):
    """A leaderboard's frame; records in keyword arguments are submissions of that name."""
    parts = {"": records, **origins}
    return pd.concat([to_frame(part).assign(origin=name) for name, part in parts.items()], ignore_index=True)


def scores(values, greedy=True, prefix="p"):
    return Scores(tuple(f"{prefix}{i}" for i in range(len(values))), np.array(values, dtype=float), greedy)


def solved(count, n=200):
    return [1.0] * count + [0.0] * (n - count)


# bands


@pytest.mark.parametrize(
    ("target", "band"),
    [
        *((1.5, 1.5), (1.49, 1.5), (2, 2), (2.04, 2), (2.05, 2.05), (1.43, 1.43), (1.6667, 1.67), (1.2, 1.2)),
        *((3.5, 3.5), (7.1, 7), (7.5, 7.5), (1.01, 1), (100.4, 100)),
        *((19.5625, 19.5625), (10.2165, 10.2165), (16.6533, 16.6533)),  # three digits would be in 20x, 10x, 17x
    ],
)
def test_bands_of_known_ratios(target, band):
    assert band_of(target) == band


@settings(deadline=None)
@given(st.floats(1, 1000))
def test_a_band_is_near_its_target_and_is_its_own_band(target):
    assert band_of(target) == pytest.approx(target, rel=0.021)
    assert band_of(band_of(target)) == band_of(target)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=3), st.sets(st.floats(1, 12), max_size=5), max_size=5))
def test_no_row_has_two_ratios_in_one_band(targets):
    band_by_ratio = bands(targets)
    for ratios in targets.values():
        assert len({band_by_ratio[ratio] for ratio in ratios}) == len(ratios)


# ranks


@pytest.mark.parametrize("sign", [1, -1])
def test_who_is_ahead_where_it_was_tested_is_not_called_worse(sign):
    """The best has one seed more, which lifts its mean; on the seed that both have it is behind."""
    few, many = scores(solved(120)), scores(solved(140))
    both = {1: many if sign < 0 else few, 2: scores(solved(0 if sign < 0 else 200))}
    first, second = rank([Contender(0.8, both, sign=sign), Contender(0.7, {1: few if sign < 0 else many}, sign=sign)])
    assert first.best
    assert (second.rank, second.tied, second.mark) == (2, None, "2?")
    assert second.reason == AHEAD
    behind = rank([Contender(0.7, {1: many}), Contender(0.6, {1: few})])[1]
    assert (behind.tied, behind.mark) == (False, "2")


# conditions


@pytest.mark.parametrize(
    "other",
    [
        *({"variant": "gsm8k-8shot"}, {"n": 50}, {"scorer": "strict"}, {"metric": "pass@1"}, {"task": "code"}),
        *({"engine": "vllm"}, {"dtype": "float32"}, {"model_sha256": "other"}, {"prompt_sha256": "other"}),
        *({"dataset_sha256": "other"}, {"dataset_sha256": "other", "seed": 7}, {"confidence": 0.9}),
    ],
)
def test_other_conditions_never_share_a_column(record, other):
    all_boards = boards(frame_of([record(), record(**other, method="bs", stage_key="b")]))
    assert [len(board.entries) for board in all_boards] == [1, 1]
    assert len({board.id for board in all_boards}) == 2
    assert len({(board.title, board.conditions) for board in all_boards}) == 2
    lines = list(csv.DictReader(io.StringIO(to_csv(all_boards))))
    assert [line["rank"] for line in lines] == ["1", "1"]


def test_context_lengths_of_perplexities_are_boards_of_their_own(sweep):
    records = sweep(language=True, methods=("svd",))
    longer = [r.model_copy(update={"variant": "wikitext2-4096", "stage_key": f"{r.stage_key}-l"}) for r in records]
    assert [board.table.variant for board in boards(frame_of([*records, *longer]))] == [
        "wikitext2-2048",
        "wikitext2-4096",
    ]


def test_submissions_never_join_the_rows_of_what_was_measured_here(sweep):
    ours, theirs = sweep(seeds=(1,), methods=("svd",)), sweep(seeds=(2,), methods=("svd",))
    (board,) = boards(frame_of(ours, **{"submitted 1234": theirs}))
    assert {(e.label, e.origin, e.cell.seeds) for e in board.entries} == {
        ("svd", "", (1,)),
        ("svd (submitted 1234)", "submitted 1234", (2,)),
    }
    assert {entry.label for entry in board.references} == {
        "uncompressed (finetuned)",
        "uncompressed (finetuned) (submitted 1234)",
    }
    curve, front = (str(figure.svg) for figure in figures(board))
    for svg in (curve, front):
        names = re.findall(r">\s*(uncompressed \(finetuned\)[^<]*)<", svg)
        assert len(names) == len(set(names)) >= 2


def test_the_same_stage_in_two_runs_counts_once(sweep):
    records = sweep(methods=("svd", "bs"))
    twice = [r.model_copy(update={"sweep": "second"}) for r in records]
    once, again = boards(frame_of(records)), boards(frame_of([*records, *twice]))
    assert [[e.cell.value for e in b.entries] for b in once] == [[e.cell.value for e in b.entries] for b in again]


def test_uncompressed_models_of_other_variants_are_references_only(sweep):
    (board,) = boards(frame_of(sweep()))
    assert [variant for variant, _ in board.elsewhere] == ["gsm8k-8shot"]
    assert {entry.stage for entry in board.references} == {"finetuned"}


@pytest.mark.parametrize("changes", [{"dataset_sha256": "99" * 32}, {"model_sha256": "99" * 32}, {"engine": "vllm"}])
def test_a_reference_measured_under_other_conditions_stays_on_its_own_board(sweep, changes):
    few_shot = [r for r in sweep() if r.stage == "pretrained"]
    rest = [r for r in sweep() if r.stage != "pretrained"]
    home, alone = boards(frame_of([*rest, *(r.model_copy(update=changes) for r in few_shot)]))
    assert home.elsewhere == ()
    assert [entry.stage for entry in alone.references] == ["pretrained"]


@pytest.mark.parametrize(
    ("start", "end"),
    [
        ("svd:calibration=text_of_the_training_set_", "_tokens_and_then_everything_else_as_always"),
        ("x" * 80, "y" * 80),
        ("", "_" + "as_long_as_a_label_may_be_" * 4),
    ],
)
def test_long_labels_that_differ_in_the_middle_are_shown_differently(record, start, end):
    labels = [f"{start}{number}{end}" for number in (128, 256, 512)]
    rows = [record(label=label, options=f'{{"n":{i}}}', stage_key=label) for i, label in enumerate(labels)]
    shown = boards(frame_of(rows))
    (ranks,) = [_ranks(board) for board in shown]
    names = [row[0].text for row in ranks.fields]
    assert len(set(names)) == 3
    assert all(str(number) in name for number, name in zip((128, 256, 512), sorted(names), strict=True))
    text = to_markdown(shown)
    assert all(f"{name} |" in text.replace("\\", "") for name in names)
    (view,) = [_board_view(board) for board in shown]
    assert len({row[0].text for row in view.details.fields}) == len({name for name, _ in view.options}) == 3


def test_what_misses_its_ratio_is_not_ranked(record):
    params = record().params_original
    short = record(method="bs", params=int(params / 1.5), value=0.42, stage_key="b")
    (board,) = boards(frame_of([record(value=0.4), short]))
    standing = {entry.label: entry.standing for entry in board.entries}
    assert standing["svd"].rank == 1
    assert standing["bs"].rank is None
    assert "achieved ratio is 1.5×" in standing["bs"].reason


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_what_answered_no_prompt_is_not_ranked_and_shows_no_number(record, share):
    nothing = record(method="bs", value=0.0, low=0.0, high=0.434, stage_key="b")
    other = record(value=0.0, low=0.0, high=0.434)
    shares = {"metric": "prompt_too_long", "scorer": "", "headline": False, "higher_is_better": False}
    low, high = (share, 1.0) if share == 1 else (0.2, 0.8)
    too_long = record(method="bs", value=share, low=low, high=high, stage_key="b", **shares)
    (board,) = boards(frame_of([nothing, too_long, other]))
    standing = {entry.label: entry.standing for entry in board.entries}
    assert standing["svd"].rank == 1
    assert (standing["bs"].rank is None) == (share == 1)
    (alone,) = boards(frame_of([nothing, too_long]))
    (entry,) = alone.entries
    text = to_markdown([alone])
    if share == 1:
        assert entry.standing.rank is None
        assert "no prompt fits the model's context" in entry.standing.reason
        assert "| (–) – no prompt fits |" in text
        assert "43.4" not in text
    else:
        assert entry.standing.rank == 1
        assert "| (1) 0.0† \\[0.0, 43.4\\] |" in text
    table = tables_markdown(by_ratio(frame_of([nothing, too_long])))
    assert ("| – no prompt fits |" in table) == (share == 1)
    assert ("(gsm8k-0shot-alpaca, bs 2×: 50.0 %)" in table) == (share == 0.5)


# ranks


def test_ranks_agree_with_mcnemar_and_holm():
    counts = (150, 148, 120, 30)
    rng = np.random.default_rng(1)
    answers = [rng.permutation(solved(count)) for count in counts]
    column = [Contender(sum(a) / len(a), {1: scores(a)}) for a in answers]
    standings = rank(column)
    raw = {}
    for i in range(4):
        for j in range(i + 1, 4):
            only = int((answers[i] > answers[j]).sum()), int((answers[i] < answers[j]).sum())
            raw[i, j] = stats.binomtest(only[0], sum(only), 0.5).pvalue
    ordered = sorted(raw, key=raw.get)
    adjusted, running = {}, 0.0
    for position, pair in enumerate(ordered):
        running = max(running, min(1.0, (len(ordered) - position) * raw[pair]))
        adjusted[pair] = running
    for j in (1, 2, 3):
        assert standings[j].p_value == pytest.approx(raw[0, j])
        assert standings[j].p_adjusted == pytest.approx(adjusted[0, j])
        assert standings[j].tied == (adjusted[0, j] >= 0.05)
    assert [s.mark for s in standings] == ["1", "≈1", "3", "4"]


def test_problems_are_averaged_over_the_seeds_that_both_have():
    rng = np.random.default_rng(2)
    good = {seed: scores((rng.random(200) < 0.7) * 1.0) for seed in (1, 2, 3)}
    bad = {seed: scores((rng.random(200) < 0.3) * 1.0) for seed in (2, 3, 4)}
    first, second = rank([Contender(0.7, good), Contender(0.3, bad)])
    assert first.best
    assert second.test == "sign flips (200 problems or windows, 2 seeds)"
    assert second.tied is False
    apart = np.mean([good[s].values - bad[s].values for s in (2, 3)], axis=0)
    assert second.p_value == pytest.approx(1 / 10_001) or abs(apart.mean()) < 0.3


def test_without_samples_there_is_a_reason_instead_of_a_p_value():
    standings = rank([Contender(0.5, {}, "no samples"), Contender(0.4, {1: scores(solved(80))})])
    assert math.isnan(standings[1].p_value)
    assert (standings[1].tied, standings[1].reason, standings[1].mark) == (None, "no samples", "2?")
    standings = rank([Contender(0.5, {1: scores(solved(9))}), Contender(0.4, {2: scores(solved(8))})])
    assert standings[1].reason == "no seed in common"
    standings = rank([Contender(0.5, {1: scores(solved(9))}), Contender(0.4, {1: scores(solved(8), prefix="q")})])
    assert standings[1].reason == "no problem in common"


@settings(deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=7), st.integers(0, 99))
def test_ranks_follow_the_values_and_ties_share_the_first_place(counts, seed):
    rng = np.random.default_rng(seed)
    column = [Contender(count / 60, {1: scores(rng.permutation(solved(count, 60)))}) for count in counts]
    standings = rank(column)
    best = max(counts)
    assert sum(s.best for s in standings) == 1
    for count, standing in zip(counts, standings, strict=True):
        if standing.best:
            assert (count, standing.rank) == (best, 1)
        elif standing.tied:
            assert standing.rank == 1
            assert standing.p_adjusted >= 0.05
        else:
            assert standing.rank == 1 + sum(other > count for other in counts)
        if not standing.best:
            assert standing.p_value <= standing.p_adjusted
    assert all(s.tied for c, s in zip(counts, standings, strict=True) if c == best and not s.best)


def test_equals_are_hardly_ever_distinguished():
    """With five equal methods, someone is called worse than the best in at most about 5 % of columns."""
    rng, wrong, columns = np.random.default_rng(5), 0, 200
    for _ in range(columns):
        difficulty = rng.random(100)
        drawn = [(rng.random(100) < difficulty) * 1.0 for _ in range(5)]
        standings = rank([Contender(d.mean(), {1: scores(d)}) for d in drawn])
        wrong += any(s.tied is False for s in standings)
    assert wrong <= stats.binom.ppf(0.999, columns, 0.05)


def test_metrics_with_an_ideal_are_ranked_by_the_distance_to_it(record):
    bias = {"metric": "pct_stereotype", "higher_is_better": False, "scorer": "", "low": 0.0, "high": 1.0}
    values = {"a": 0.62, "b": 0.47, "c": 0.30}
    (board,) = boards(frame_of([record(method=m, value=v, stage_key=m, **bias) for m, v in values.items()]))
    assert {e.label: e.standing.rank for e in board.entries} == {"a": 2, "b": 1, "c": 3}


def test_collapsed_perplexities_come_last(record):
    ppl = {"metric": "perplexity", "higher_is_better": False, "scorer": "", "low": 1.0, "high": math.inf}
    records = [record(method=m, value=v, stage_key=m, **ppl) for m, v in {"a": math.inf, "b": 9.0, "c": 8.0}.items()]
    (board,) = boards(frame_of(records))
    assert {e.label: e.standing.rank for e in board.entries} == {"a": 3, "b": 2, "c": 1}
    assert "∞" in to_html([board])


# forms


def forms(all_boards):
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    render_terminal(all_boards, console)
    return {
        "csv": to_csv(all_boards),
        "markdown": to_markdown(all_boards),
        "latex": to_latex(all_boards),
        "html": to_html(all_boards),
        "terminal": console.file.getvalue(),
    }


def test_every_form_carries_every_value(sweep):
    (board,) = all_boards = boards(frame_of(sweep(seeds=(1, 2, 3))))
    shown = forms(all_boards)
    for entry in board.entries:
        for name, text in shown.items():
            assert (repr(entry.cell.value) if name == "csv" else f"{100 * entry.cell.value:.1f}") in text
        assert entry.id in shown["html"]
    lines = list(csv.DictReader(io.StringIO(shown["csv"])))
    assert len(lines) == len(board.entries) + len(board.references) + len(board.elsewhere)
    assert {line["origin"] for line in lines} == {"measured"}
    assert r"\toprule" in shown["latex"]


def test_equal_records_in_any_order_give_equal_bytes(sweep):
    records = sweep(seeds=(1, 2)) + sweep(language=True)
    theirs = sweep(seeds=(3,))
    frame = frame_of(records, **{"submitted 1234": theirs})
    shuffled = frame.sample(frac=1, random_state=1).reset_index(drop=True)
    assert forms(boards(frame)) == forms(boards(shuffled))


def elements(html):
    """All elements of a page with their attributes."""
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, attributes))
    parser.feed(html)
    return tags


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_stay_text_in_every_form(record, text):
    names = {"label": text, "model": text, "task": text, "variant": text, "sweep": text, "device": text}
    all_boards = boards(frame_of([record(**names), record(method="bs", stage_key="b", **names | {"label": "bs"})]))
    shown = forms(all_boards)
    html = shown["html"]
    assert html.count("<script") == 1
    assert "<img" not in html
    for tag, attributes in elements(html):
        assert tag not in ("iframe", "object", "embed", "base")
        for name, value in attributes:
            assert not name.startswith("on")
            assert name not in ("href", "src", "action", "formaction") or re.match("#|data:,$", value)
    for line in csv.reader(io.StringIO(shown["csv"])):
        assert not any(cell[:1] in "=+@" for cell in line if cell)
    assert "<script" not in shown["markdown"].replace("\\<script", "")
    for name, form in shown.items():
        assert all(c.isprintable() or c == "\n" for c in form), name


def test_control_and_bidi_characters_do_not_reach_any_form(record):
    # Records refuse them; names that come by another way are cleaned all the same.
    frame = frame_of([record()])
    frame["label"] = "a\x1b[31mb\u202ec\x00"
    frame["model"] = "m" * 5000
    shown = forms(boards(frame))
    for name, text in shown.items():
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]", text), name
    assert "m" * 200 not in shown["html"].replace("data-model", "").split("<h2")[1].split("</h2>")[0]


def test_huge_numbers_are_shown_and_drawn(record):
    ppl = {"metric": "perplexity", "higher_is_better": False, "scorer": "", "high": math.inf, "low": 1.0}
    records = [
        record(method=m, value=v, stage_key=m, **ppl)
        for m, v in {"a": 1e308, "b": 1.7e308, "c": 5.0, "d": math.inf}.items()
    ]
    shown = forms(boards(frame_of(records)))
    assert not re.search(r"\b(nan|inf)\b", shown["html"].partition("<svg")[2].partition("</svg>")[0])
    assert "1e+308" in shown["html"]


def test_ten_thousand_records_go_through(sweep):
    records = [r for task in range(20) for r in sweep(seeds=tuple(range(36)), task=f"t{task}")][:10_000]
    all_boards = boards(frame_of(records))
    assert sum(len(e.cell.seeds) for b in all_boards for e in b.entries) > 8_000
    assert len(to_csv(all_boards).splitlines()) > 80
    assert to_html(all_boards).count('<section class="board"') == len(all_boards)
