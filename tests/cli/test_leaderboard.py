"""bench leaderboard in real processes."""

import json
import subprocess
import sys

import commands
import pytest
from made_records import make_sweep

from lowrank_bench.records.files import write_records


@pytest.fixture
def bench(tmp_path):
    def call(*arguments):
        return commands.bench(*arguments, cwd=tmp_path)

    return call


@pytest.fixture
def run(tmp_path):
    write_records(tmp_path / "runs" / "demo", make_sweep())
    return tmp_path / "runs" / "demo"


def test_a_run_and_a_submission_become_four_files_and_a_table(bench, run, tmp_path):
    done = bench("leaderboard", run)
    assert done.returncode == 0, done.stderr
    assert "llama2-7b · math · gsm8k-0shot-alpaca" in done.stdout
    folder = tmp_path / "runs" / "leaderboard"
    assert sorted(path.name for path in folder.iterdir()) == [
        f"leaderboard.{kind}" for kind in ("csv", "html", "md", "tex")
    ]
    write_records(tmp_path / "theirs", make_sweep(methods=("new",), seeds=(7,)))
    added = bench("leaderboard", "add", "theirs/results.csv")
    assert added.returncode == 0, added.stderr
    assert added.stdout.startswith("added 6 records: runs/submissions/submitted-")
    assert bench("leaderboard", "add", "theirs/results.csv").stdout.startswith("the same 6 records were added before")
    again = bench("leaderboard", "--out", "out", run)
    assert "new (submitted" in again.stdout
    assert (tmp_path / "out" / "leaderboard.html").read_text().count("new (submitted") > 1


def test_a_faulty_file_is_reported_line_by_line_and_stores_nothing(bench, run, tmp_path):
    text = (run / "results.csv").read_text().splitlines()
    text[2] = text[2].replace(",true,", ",perhaps,", 1)
    text[4] = text[4][: len(text[4]) // 2]
    (tmp_path / "bad.csv").write_text("\n".join(text) + "\n")
    done = bench("leaderboard", "add", "bad.csv")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    first, second, last = done.stderr.strip().splitlines()
    assert first.startswith("line 3, headline: 'perhaps'")
    assert first.endswith("interpret input")
    assert second.startswith("line 5: ")
    assert last.startswith("error: bad.csv was not added: 2 faults in 2 lines")
    assert not (tmp_path / "runs" / "submissions").exists()


def test_many_faults_are_cut_at_a_limit(bench, run, tmp_path):
    lines = (run / "results.csv").read_text().splitlines()
    (tmp_path / "bad.csv").write_text("\n".join([lines[0]] + ["x"] * 500) + "\n")
    done = bench("leaderboard", "add", "bad.csv")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-2] == "… and 450 more"
    assert "500 faults in 500 lines" in done.stderr


def test_the_schema_is_printed(bench):
    done = bench("leaderboard", "schema")
    assert json.loads(done.stdout)["$schema"].startswith("https://json-schema.org/")


def test_nothing_to_rank_is_one_sentence(bench):
    done = bench("leaderboard")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert "runs/tiny-toy-math" in done.stderr


def test_ranking_imports_no_torch():
    code = (
        "import sys\nimport lowrank_bench.results.leaderboard.gather, lowrank_bench.results.leaderboard.page\n"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
