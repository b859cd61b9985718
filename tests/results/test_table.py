"""One table in every form: nothing is lost, nothing is run, legends are said once, and it fits the terminal."""

import csv
import io
import math
import re
import subprocess
import sys

import pytest
from rich.console import Console

from lowrank_bench.results.tables.html import to_html
from lowrank_bench.results.tables.table import Column, Field, Table, number_columns, text_columns
from lowrank_bench.results.tables.terminal import render
from lowrank_bench.results.tables.writers import WRITERS, to_csv, to_latex, to_markdown

HOSTILE = "=1+1|<b>&_$\\[x]\x1b[31m"


def shown(tables, width=80):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    render(tables, console)
    return console.file.getvalue()


def table(columns=3, **changes):
    heads = [Column("method"), *number_columns(*(f"{i}×" for i in range(columns)), format="{:,.1f}")]
    best = Field("94.0", 0.94, "[90.3, 96.3]", "best", kind="best")
    rows = [["dense", *[98.4] * columns], [HOSTILE, best, *[1234.5] * (columns - 1)], ["svd", *[None] * columns]]
    return Table("A title", heads, rows, "t", **({"notes": ["A note."], "legend": "A legend."} | changes))


def test_csv_has_numbers_at_full_precision_and_no_formula():
    rows = [[HOSTILE, 1 / 3, math.nan, True], ["a", None, math.inf, 7]]
    first, second = csv.DictReader(io.StringIO(to_csv([Table("T", text_columns("", "x", "y", "z"), rows)])))
    assert first == {"T": "'=1+1|<b>&_$\\[x]\ufffd[31m", "x": repr(1 / 3), "y": "nan", "z": "True"}
    assert second == {"T": "a", "x": "", "y": "inf", "z": "7"}
    with_field = csv.DictReader(io.StringIO(to_csv([table()])))
    assert [row["0×"] for row in with_field] == ["98.4", "0.94", ""]


@pytest.mark.parametrize("name", ["markdown", "latex", "terminal", "html"])
def test_every_form_has_marks_details_formats_and_notes(name):
    text = {
        **{"terminal": shown([table()], 120), "html": to_html(table())},
        **{form: WRITERS[form]([table()]) for form in ("markdown", "latex")},
    }[name]
    plain = re.sub(r"<[^>]*>", "", text).replace("\\", "")
    for part in ("A title", "best 94.0 [90.3, 96.3]", "1,234.5", "98.4", "A note.", "A legend."):
        assert part in plain
    assert "\x1b" not in text
    assert "<b>" not in text.replace("\\<", "") or name == "terminal"


def test_pinned_rows_and_rules_are_set_apart_but_never_the_last_row():
    assert to_latex([table(pinned=1)]).count(r"\midrule") == 2
    assert to_latex([table(rules=[1, 2])]).count(r"\midrule") == 2
    assert to_latex([table(pinned=3)]).count(r"\midrule") == 1


def test_neighbours_with_one_legend_show_it_once_but_every_caption_has_it():
    pair = [table(), table(notes=["Another."])]
    assert to_markdown(pair).count("A legend.") == shown(pair).count("A legend.") == 1
    assert to_latex(pair).count("A legend.") == 2
    assert to_markdown([table(), table(legend="Other.")]).count("A legend.") == 1
    assert all(note in to_markdown(pair) for note in ("A note.", "Another."))


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("columns", [1, 6, 25])
def test_the_terminal_shows_every_column_within_its_width(width, columns):
    text = shown([table(columns)], width)
    assert max(map(len, text.splitlines())) <= width
    assert text.count("98.4") == columns
    assert all(f"{number}×" in text for number in range(columns))
    assert "…" not in text


def test_a_list_in_the_terminal_loads_no_pandas():
    code = (
        "import sys; from lowrank_bench.cli.output import print_rows; print_rows('t', ['a'], [('b',)]); "
        "sys.exit('pandas' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0
