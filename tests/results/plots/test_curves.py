"""Figures exist, are the same for the same data, and say what they show."""

import re

import pytest

from lowrank_bench.records.files import to_frame
from lowrank_bench.results.plots.curves import draw_curves


def test_one_picture_a_benchmark_in_both_formats_and_the_same_bytes_twice(tmp_path, sweep):
    frame = to_frame(sweep() + sweep(language=True))
    paths = draw_curves(frame, tmp_path / "a")
    assert [p.suffix for p in paths] == [".png", ".svg"] * 2
    assert len({p.stem for p in paths}) == 2
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in paths[::2])
    assert all(p.stat().st_size > 10_000 for p in paths)
    again = draw_curves(frame.sample(frac=1, random_state=0).sort_values("label"), tmp_path / "b")
    assert [p.read_bytes() for p in again[1::2]] == [p.read_bytes() for p in paths[1::2]]
    assert not any(re.search(rb"<dc:date>", p.read_bytes()) for p in paths[1::2])


@pytest.mark.parametrize("changes", [{}, {"low": float("-inf"), "high": float("inf")}])
@pytest.mark.parametrize("metric", ["accuracy", "perplexity", "nats_per_token"])
def test_a_single_point_draws(tmp_path, record, metric, changes):
    value = {"accuracy": 0.0, "perplexity": 12.0, "nats_per_token": 1.25}[metric]
    point = record(metric=metric, **{"value": value, "low": value * 0.9, "high": value * 1.1, **changes})
    assert len(draw_curves(to_frame([point]), tmp_path)) == 2


def test_hostile_labels_draw(tmp_path, sweep):
    records = [r.model_copy(update={"label": f"_$\\frac{{{r.label}$ <&>" * 3}) for r in sweep(model="../x/y")]
    paths = draw_curves(to_frame(records), tmp_path)
    assert [p.parent for p in paths] == [tmp_path, tmp_path]


def test_many_methods_draw(tmp_path, sweep):
    methods = tuple(f"method-{i}" for i in range(12))
    assert (
        len(draw_curves(to_frame(sweep(methods=methods, seeds=(1, 2), ratios=(1.1, 1.15, 1.2, 20.0))), tmp_path)) == 2
    )


def test_nothing_compressed_nothing_drawn(tmp_path, sweep):
    assert draw_curves(to_frame(sweep(methods=())), tmp_path) == []


def test_lines_are_distinguishable_without_colour(tmp_path, sweep, monkeypatch):
    from lowrank_bench.results.plots import curves

    seen = []
    original = curves.draw_line
    monkeypatch.setattr(curves, "draw_line", lambda *args: seen.append(original(*args)) or seen[-1])
    draw_curves(to_frame(sweep(methods=tuple("abcdefgh"))), tmp_path)
    assert len({(line.get_marker(), line.get_color()) for line in seen}) == 8
    assert len({line.get_marker() for line in seen}) == 8


def test_many_lines_are_split_into_panels_and_each_line_is_distinguishable_in_its_own(tmp_path, sweep, monkeypatch):
    from lowrank_bench.results.plots import curves

    names = tuple(f"m{i:02}" for i in range(17))
    drawn = []
    original = curves.draw_line
    monkeypatch.setattr(
        curves, "draw_line", lambda *args: (drawn.append((args[0], args[1].label, original(*args))), drawn[-1][2])[1]
    )
    assert len(draw_curves(to_frame(sweep(methods=names, ratios=(2.0, 4.0))), tmp_path)) == 2
    assert sorted(label for _, label, _ in drawn) == sorted(names)
    panels = {}
    for axes, label, line in drawn:
        panels.setdefault(id(axes), []).append((label, line))
    assert [len(lines) for lines in panels.values()] == [6, 5, 6]
    assert all(len({line.get_marker() for _, line in lines}) == len(lines) for lines in panels.values())
    ends = [line.get_ydata()[-1] for _, _, line in drawn]
    assert ends == sorted(ends, reverse=True)
    drawn.clear()
    draw_curves(to_frame(sweep(methods=names[:8])), tmp_path)
    assert len({id(axes) for axes, _, _ in drawn}) == 1


def test_ranks_of_one_correction_are_one_line_over_bytes_and_rows_over_ratios(tmp_path, record, monkeypatch):
    from lowrank_bench.results.plots import curves

    def row(method, label, size, **changes):
        return record(
            method=method, label=label, bytes=size, stage="compressed", options=f'{{"l":"{label}"}}', **changes
        )

    labels = ["rtn4+r:rank=9,group=64", "rtn4+r:group=64,rank=12", "rtn4+r:group=64,rank=3", "rtn4+r:rank=3"]
    rows = [row("rtn4+r", label, 10_000 + 1000 * i) for i, label in enumerate(labels)]
    rows += [row("svd", f"svd:policy={name},rank=3", 30_000) for name in "ab"]
    seen = []
    original = curves.draw_line
    monkeypatch.setattr(curves, "draw_line", lambda *args: seen.append(args[1]) or original(*args))
    draw_curves(to_frame(rows), tmp_path, x="bytes")
    drawn = {line.label: [cell.bytes for cell in line.cells.values()] for line in seen}
    assert sorted(drawn) == ["rtn4+r:group=64", "rtn4+r:rank=3", "svd:policy=a,rank=3", "svd:policy=b,rank=3"]
    assert drawn["rtn4+r:group=64"] == [10_000, 11_000, 12_000]
    seen.clear()
    draw_curves(to_frame(rows), tmp_path)
    assert sorted(line.label for line in seen) == sorted([*labels, "svd:policy=a,rank=3", "svd:policy=b,rank=3"])


def _references(frame, headline=False):
    from lowrank_bench.results.plots.references import references_of
    from lowrank_bench.results.tables.pivot import pivot

    tables = pivot(frame, headline)
    return {
        (table.model, table.scorer, table.engine): {
            text: next(iter(row.cells.values())).value for row, text in references_of(table, tables)
        }
        for table in tables
        if table.compressed
    }


def _few_shot(record, value, **changes):
    fields = {"method": "none", "label": "none", "stage": "pretrained", "ratio_target": 1.0, "steps_recover": 0}
    fields |= {"params": 6_738_415_616, "variant": "gsm8k-8shot", "low": 0.0, "high": 1.0}
    return record(**{**fields, "value": value, "stage_key": f"{value}", **changes})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"scorer": "strict"}, "strict"),
        ({"n": 100}, "n = 100"),
        ({"engine": "vllm"}, "vllm"),
        ({"dtype": "float32"}, "float32"),
        ({"scorer": "strict", "n": 100}, "strict, n = 100"),
    ],
)
def test_a_reference_of_another_variant_is_one_under_the_conditions_of_the_table_or_names_its_own(
    record, changes, named
):
    alike, other = _few_shot(record, 0.1), _few_shot(record, 0.2, **changes)
    assert list(_references(to_frame([record(), alike, other])).values()) == [
        {"uncompressed (pretrained), gsm8k-8shot": 0.1}
    ]
    assert list(_references(to_frame([record(), other])).values()) == [
        {f"uncompressed (pretrained), gsm8k-8shot, {named}": 0.2}
    ]
    third = _few_shot(record, 0.3, dtype="float16")
    texts = next(iter(_references(to_frame([record(), other, third])).values()))
    assert sorted(texts.values()) == [0.2, 0.3]


def test_a_figure_of_headlines_names_the_scorer_of_few_shot_prompts_and_one_of_all_scorers_takes_its_own(sweep):
    rows = []
    for scorer, headline in (("strict", "pretrained"), ("answer-is", "finetuned")):
        for row in sweep(scorer=scorer, methods=("svd",)):
            shown = row.stage == "pretrained" if headline == "pretrained" else row.stage != "pretrained"
            rows.append(row.model_copy(update={"headline": shown}))
    of_headlines = _references(to_frame(rows), headline=True)
    assert [list(texts) for texts in of_headlines.values()] == [
        ["uncompressed (finetuned)", "uncompressed (pretrained), gsm8k-8shot, strict"]
    ]
    of_all = _references(to_frame(rows))
    assert [list(texts)[1] for texts in of_all.values()] == ["uncompressed (pretrained), gsm8k-8shot"] * 2


def test_a_reference_is_of_the_model_of_the_table_where_two_models_have_one_name(tmp_path, sweep):
    first, second = sweep(methods=("svd",)), sweep(methods=("svd",), model_sha256="cd" * 32, steps_finetune=601)
    second = [row.model_copy(update={"value": row.low}) for row in second]
    frame = to_frame(first + second)
    drawn = _references(frame)
    assert [model for model, _, _ in drawn] == ["llama2-7b (abababab)", "llama2-7b (cdcdcdcd)"]
    of = {model: list(texts.values()) for (model, _, _), texts in drawn.items()}
    for name, rows in (("llama2-7b (abababab)", first), ("llama2-7b (cdcdcdcd)", second)):
        assert sorted(of[name]) == sorted(row.value for row in rows if row.method == "none")
    assert len(set(draw_curves(frame, tmp_path))) == 4
    assert [model for model, _, _ in _references(to_frame(first))] == ["llama2-7b"]


def test_reference_lines_of_one_stage_have_different_dashes(tmp_path, record, monkeypatch):
    from lowrank_bench.results.plots import curves

    seen = []
    original = curves.draw_references
    monkeypatch.setattr(curves, "draw_references", lambda *args: seen.extend(original(*args)) or seen[:])
    finetuned = [
        _few_shot(record, 0.5 + i / 10, stage="finetuned", variant="gsm8k-0shot-alpaca", steps_finetune=600 + i)
        for i in range(3)
    ]
    pretrained = [_few_shot(record, 0.1 + i / 100, variant=f"gsm8k-{i}shot") for i in range(3)]
    assert len(draw_curves(to_frame([record(), *finetuned, *pretrained]), tmp_path)) == 2
    assert len(seen) == 6
    patterns = {(line.get_color(), str(line._unscaled_dash_pattern)) for line in seen}
    assert len(patterns) == 6
