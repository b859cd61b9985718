"""docs/your-own-task.md: its fields are the model's, and its commands run, from a CSV file to a served model."""

import random
import re
import shlex
from pathlib import Path

import pytest
from code_blocks import ROOT, code_blocks
from commands import bench
from vllm_server import complete, serving

from lowrank_bench.evals.tasks.files.template import field_table
from lowrank_bench.records.files import read_records

PAGE = "docs/your-own-task.md"
QUESTIONS = {
    "billing": ["I was charged twice, please help.", "My invoice is wrong.", "I want my money back."],
    "shipping": ["The box never came.", "My parcel is late.", "Where is my order?"],
    "login": ["I cannot sign in.", "My password fails.", "The code never arrives."],
}


def test_the_table_of_fields_is_that_of_the_model() -> None:
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    assert field_table() in text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page's files, with enough rows."""
    folder = tmp_path_factory.mktemp("tickets")
    blocks = {block.language: block.text for block in code_blocks(PAGE)}
    choose, rows = random.Random(0), []
    for number in range(400):
        team = choose.choice(list(QUESTIONS))
        rows.append(f'"{choose.choice(QUESTIONS[team])} Number {number}.",{team}')
    header, *shown = blocks["csv"].splitlines()
    assert all(re.fullmatch(r'"?[^"]+ Number \d+\."?,(billing|shipping|login)', row) for row in shown)
    (folder / "tickets.csv").write_text("\r\n".join([header, *shown, *rows]) + "\r\n", encoding="utf-8-sig")
    (folder / "tickets.yaml").write_text(blocks["yaml"], encoding="utf-8")
    return folder


def test_five_commands_lead_from_a_csv_file_to_a_served_model(folder: Path, tmp_path: Path, monkeypatch) -> None:
    (block,) = [block.text for block in code_blocks(PAGE) if block.language == "sh"]
    *commands, serve = [shlex.split(line) for line in block.splitlines()]
    assert len(commands) == 4
    for program, *words in commands:
        assert program == "bench"
        more = ["--engine", "transformers"] if words[0] == "run" else []
        done = bench(*words, *more, cwd=folder, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stdout + done.stderr
        if words[:2] == ["task", "check"]:
            assert "⟪<s>Question: " in done.stdout
            assert re.search(r"^403 .* 0  ", done.stdout, re.MULTILINE)
    records = read_records(folder / "runs/tiny-tickets")
    assert set(records.variant) == {"tickets-team-0shot-question", "tickets-choice-0shot-question"}
    headline = records[records.headline & (records.benchmark == "tickets-team")]
    assert set(headline.label) == {"finetuned", "svd"}
    assert (headline.value > 0.9).all(), "three teams are soon learnt"
    report = (folder / "runs/tiny-tickets/report.md").read_text(encoding="utf-8")
    assert "tickets-team-0shot-question" in report
    assert "| what it is | which team answers a ticket |" in report
    counts = r"403 rows, \d+ for training, \d+ held out for benchmarks, \d+ to \d+ tokens each, median \d+ "
    assert re.search(rf"\| training data \| {counts}", report)
    program, *words = serve
    assert (program, words) == ("vllm", ["serve", "served"])
    monkeypatch.chdir(folder)
    with serving(words, tmp_path) as url:
        (answer,) = complete(url, "served", ["Question: My parcel is late. Number 5000.\nAnswer:\n"], 12)
    assert answer.strip() == "shipping"
