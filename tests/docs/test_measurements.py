"""The tables of the README and of docs/measurements.md are those of the committed records, renewed from new ones."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
from code_blocks import ROOT

from lowrank_bench.foundation.errors import UserError
from lowrank_bench.measurements import pages
from lowrank_bench.measurements.pages import BLOCK, MEASURED, PAGES, read_list, read_result, update_page
from lowrank_bench.records.files import csv_text, read_records, to_records, write_records
from lowrank_bench.results.plots.budgets import draw_budgets

KNOWN = read_list()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tables_are_those_of_the_records(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert update_page(text, KNOWN) == text, "the page's tables are not those of docs/measured; run make measurements"


def test_every_measurement_has_its_section_and_every_record_its_measurement() -> None:
    page = (ROOT / "docs" / "measurements.md").read_text(encoding="utf-8")
    assert [match[1] for match in BLOCK.finditer(page)] == list(KNOWN)
    for file in MEASURED.glob("*"):
        assert file.stem in KNOWN
        assert file.stat().st_size < 300_000
        assert file.suffix == ".png" or not re.search(r'(?:^|[\s",=])/\w', file.read_text(encoding="utf-8")), (
            f"{file.name} names a folder"
        )


def test_records_are_of_the_commands_that_are_listed() -> None:
    for name, entry in KNOWN.items():
        result = read_result(name)
        if result is not None:
            assert result.facts["command"] == entry.command, f"{name} was measured by another command; measure it again"
            assert (result.records is not None) == entry.sweep


def test_figures_without_records_are_those_of_the_page_they_are_quoted_from() -> None:
    for page in PAGES:
        for match in BLOCK.finditer(page.read_text(encoding="utf-8")):
            if read_result(match[1]) is None:
                figures = re.findall(r"(?<![\w-])\d+(?:\.\d+)?(?![\w-])", match[3])
                source = KNOWN[match[1]].quoted
                assert not figures or source, f"{page.name} has figures of {match[1]} without records"
                quoted = (ROOT / source).read_text(encoding="utf-8") if source else ""
                assert all(figure in quoted for figure in figures)


def test_the_demo_that_is_measured_is_make_demo() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"^demo:.*\n\t\$\(BIN\)/(bench run .*)$", makefile, re.MULTILINE)
    assert KNOWN["demo"].command == recipe


def test_new_records_make_a_new_table(finished, tmp_path: Path) -> None:
    measure = runpy.run_path(str(ROOT / "measurements" / "measure.py"))
    entry = pages.Measurement("small", "bench run --methods svd --model tiny --task toy-math")
    run = next(path.parent for path in Path(finished.execution.out).rglob("results.csv"))
    for name, text in measure["sweep_files"](entry, run).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    result = read_result("small", tmp_path)
    assert result is not None
    assert result.records.headline.all()
    assert len(result.records) == sum(read_records(run).headline)
    page = "# A page\n\n<!-- measured: small -->\n<!-- end -->\n\n<!-- measured: small table -->\nold\n<!-- end -->\n"
    updated = update_page(page, {"small": entry}, tmp_path)
    assert updated.count("| uncompressed |") == 2
    assert "old" not in updated
    assert f"    {entry.command}\n" in updated
    assert result.records.git_commit.iloc[0][:7] in updated
    assert update_page(updated, {"small": entry}, tmp_path) == updated

    figure = re.search(r"\| (\d+\.\d) \[", updated)
    assert figure is not None
    edited = updated.replace(figure[0], "| 99.9 [", 1)
    assert edited != updated
    assert update_page(edited, {"small": entry}, tmp_path) == updated

    records = to_records(result.records)
    best = max(records, key=lambda record: record.value)
    other = [r.model_copy(update={"value": 0.123, "low": 0.1, "high": 0.2}) if r is best else r for r in records]
    (tmp_path / "small.csv").write_text(csv_text(other), encoding="utf-8")
    assert "12.3 [10.0, 20.0]" in update_page(updated, {"small": entry}, tmp_path)


def test_several_budgets_are_shown_with_what_the_report_says(record, tmp_path: Path) -> None:
    measure = runpy.run_path(str(ROOT / "measurements" / "measure.py"))
    entry, run = pages.Measurement("small", "bench run --recover-steps 200,600"), tmp_path / "run"
    rows = []
    for label, steps in (("svd", 200), ("svd", 600), ("bs", 200), ("bs", 600)):
        value = 0.2 + steps / 2000 * (label == "bs")
        trained = {"steps_budget": steps, "steps_recover": steps, "tokens_recover": 1000 * steps}
        measured = {"value": value, "low": value - 0.01, "high": value + 0.01, "stage_key": f"{label}-{steps}"}
        rows.append(record(method=label, label=label, **trained, **measured))
    write_records(run, rows)
    draw_budgets(read_records(run), run)
    for name, content in measure["sweep_files"](entry, run).items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    updated = update_page("<!-- measured: small -->\n<!-- end -->\n", {"small": entry}, tmp_path)
    assert all(f"{steps} steps after the first finetuning" in updated for steps in (200, 600))
    assert "\n- At 2×, " in updated
    assert "(measured/small.png)" in updated
    assert (tmp_path / "small.png").read_bytes().startswith(b"\x89PNG")


def test_a_script_is_shown_with_its_conditions(tmp_path: Path) -> None:
    measure = runpy.run_path(str(ROOT / "measurements" / "measure.py"))
    entry = pages.Measurement("help", "python perf/overhead.py --help")
    (text,) = measure["run_script"](entry).values()
    facts = json.loads(text)
    shown = pages.script_section(facts)
    assert "--stages" in facts["output"]
    assert facts["output"].strip() in shown
    assert all(str(facts[name]) in shown for name in ("command", "date", "machine"))


@pytest.mark.parametrize(
    ("mark", "sentence"),
    [("demmo", "did you mean 'demo'"), ("demo tabel", "did you mean 'table'")],
)
def test_wrong_marks_are_refused(mark: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        update_page(f"<!-- measured: {mark} -->\n<!-- end -->\n", KNOWN)


def test_wrong_names_end_with_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    measure = runpy.run_path(str(ROOT / "measurements" / "measure.py"))
    for words, sentence in ((["--only", "demmo"], "did you mean 'demo'"), (["--only", "stories260k"], "--data DATA")):
        monkeypatch.setattr(sys, "argv", ["measure.py", *words])
        assert measure["main"]() == 2
        assert sentence in capsys.readouterr().err
