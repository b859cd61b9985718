"""Views of bases: nothing is lost, hostile tokens stay text, equal views give equal bytes."""

import csv
import io
import json
import math

import pytest
from rich.console import Console

from lowrank_bench.results.inspection import bases, changes
from lowrank_bench.results.inspection.bases import Token, TokenBasis, TokenView
from lowrank_bench.results.inspection.change_figure import draw_changes
from lowrank_bench.results.inspection.changes import ChangeView, count_changes, frame_of
from lowrank_bench.results.tables.terminal import render
from lowrank_bench.results.tables.writers import to_csv, to_latex, to_markdown

HOSTILE = ("=cmd()", "|", "[red]", "\\frac{1}$_&%", "<b>", "\x1b[31m", "␣the")


def basis(number=0, state=""):
    plus = tuple(Token(i, text, 1.0 - i / 10) for i, text in enumerate(HOSTILE))
    return TokenBasis("model.layers.3.mlp.o_proj", 3, "o", None, "left", number, 2.5, 0.25, plus, plus[:1], state)


VIEW = TokenView("tiny_model · layer 3, o", ("A note.",), (basis(0), basis(1)))
NAN = math.nan


def change_view(layers=2, trained=True, outside=True):
    lines = []
    for layer in range(layers):
        for matrix in ("q", "o"):
            module = f"model.layers.{layer}.{matrix}_proj"
            lines += [(module, layer, matrix, 0, 4.0, 5.0 if trained else NAN, "grew" if trained else "kept")]
            lines += [(module, layer, matrix, 1, 3.0, 3.0 if trained else NAN, "kept")]
            lines += [(module, layer, matrix, i, 1.0, NAN, "died") for i in (2, 3, 4)]
            lines += [(module, layer, matrix, 0, NAN, 2.0, "new")] if trained else []
    lines += [("lm_head", -1, "lm_head", 0, 2.0, NAN, "kept")] if outside else []
    tokens = (basis(0, "grew to 5"), basis(2, "died"))
    return ChangeView("runs/x:bs@3: what became", "bs@3", ("Note.",), frame_of(lines), trained, tokens)


def terminal(tables, width=100):
    text = io.StringIO()
    render(tables, Console(file=text, width=width))
    return text.getvalue()


def test_terminal_shows_tokens_as_they_are_and_obeys_none():
    for text in (terminal([bases.bases_table(VIEW)]), terminal(changes.changes_tables(change_view()))):
        assert "\x1b" not in text
        assert all(part in text for part in ("=cmd()", "[red]", "␣the"))


def test_csv_has_a_line_a_token_and_no_formula():
    rows = list(csv.DictReader(io.StringIO(to_csv([bases.bases_data(VIEW)]))))
    assert len(rows) == 2 * (len(HOSTILE) + 1)
    assert [row["end"] for row in rows[:8]] == ["plus"] * 7 + ["minus"]
    assert rows[0]["token"] == "'=cmd()"
    assert float(rows[0]["value"]) == 2.5
    assert rows[0]["head"] == ""


def test_json_keeps_everything():
    data = json.loads(bases.bases_json(VIEW))
    assert [token["text"] for token in data["bases"][0]["positive"]] == list(HOSTILE)
    data = json.loads(changes.changes_json(change_view()))
    assert len(data["bases"]) == len(change_view().frame)
    assert data["bases"][-1]["layer"] is None
    assert data["matrices"][-1]["matrix"] == "all"
    assert "NaN" not in changes.changes_json(change_view())


def test_markdown_and_latex_hold_every_cell():
    text = to_markdown([bases.bases_table(VIEW)])
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert {line.replace("\\|", "").count("|") for line in table} == {6}
    text = to_latex([bases.bases_table(VIEW)])
    assert r"\textbackslash{}frac\{1\}\$\_\&\%" in text
    assert r"\textvisiblespace{}the" in text
    for write in (to_markdown, to_latex):
        assert "grew to 5" in write(changes.changes_tables(change_view()))
        untrained = write(changes.changes_tables(change_view(trained=False)))
        assert "grew" not in untrained.replace("grew to 5", "").replace("s grew most", "")


def test_counts_add_up():
    counts = count_changes(change_view(3))
    *by_matrix, total = counts
    assert [(c.layer, c.matrix) for c in by_matrix[:2]] == [(0, "q"), (0, "o")]
    assert by_matrix[-1].layer is None
    for c in counts:
        assert c.kept + c.died + c.freed == c.bases
    for name in ("bases", "kept", "grew", "died", "freed", "new"):
        assert getattr(total, name) == sum(getattr(c, name) for c in by_matrix)
    assert by_matrix[0].share == pytest.approx(7 / 10)
    assert by_matrix[0].after == pytest.approx(10 / 10)
    assert math.isnan(count_changes(change_view(trained=False))[0].after)


def test_csv_of_changes_has_a_line_a_basis():
    view = change_view()
    rows = list(csv.DictReader(io.StringIO(to_csv([changes.changes_data(view)]))))
    assert len(rows) == len(view.frame)
    assert rows[-1]["layer"] == ""
    assert rows[0] == {
        **{"module": "model.layers.0.q_proj", "layer": "0", "matrix": "q", "basis": "0"},
        **{"before": "4.0", "after": "5.0", "state": "grew"},
    }


@pytest.mark.parametrize(("layers", "trained", "outside"), [(2, True, True), (40, True, False), (1, False, True)])
def test_figure_has_the_same_bytes_twice(tmp_path, layers, trained, outside):
    view = change_view(layers, trained, outside)
    first, second = draw_changes(view, tmp_path / "a"), draw_changes(view, tmp_path / "b")
    assert [path.name for path in first] == ["bases-bs@3.png", "bases-bs@3.svg"]
    assert first[0].read_bytes().startswith(b"\x89PNG")
    assert first[1].read_bytes() == second[1].read_bytes()


def test_figure_of_the_head_alone(tmp_path):
    view = change_view(0)
    assert len(draw_changes(view, tmp_path)) == 2
