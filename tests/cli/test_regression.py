"""bench check and bench baseline as a CI job meets them; with a method that is damaged for real."""

import re
from pathlib import Path

import commands
import pytest
from junitparser import JUnitXml

from lowrank_bench.records.files import write_records

BASELINE = Path(__file__).parent.parent / "baselines" / "tiny.csv"

DAMAGED = '''"""SVD that keeps the smallest singular values instead of the largest, as a wrong sort would."""

from lowrank_bench.methods.fitted import Factors
from lowrank_bench.methods.library.svd import SVD


class Damaged(SVD):
    def fit_key(self):
        return super().fit_key() | {"factors": "damaged"}

    def decompose(self, weight, statistic=None, rank=None):
        factors = super().decompose(weight, statistic, rank)
        return Factors(factors.left.flip(1), factors.right.flip(0), factors.spectrum)
'''
# What pip leaves of a package beside its modules; methods/test_third_party.py has pip install one.
INSTALLED = {
    "METADATA": "Metadata-Version: 2.1\nName: acme-damaged\nVersion: 1.0\n",
    "entry_points.txt": "[lowrank_bench.methods]\ndamaged-svd = acme_damaged:Damaged\n",
}
# The protocol of the committed baseline (Makefile: SMALL_SWEEP), at one ratio and a seed that the baseline has not.
SWEEP = """
model: tiny
task: toy-math
methods: [{{name: {method}, label: ours}}]
ratios: [1.5]
seeds: [4]
name: {method}
training:
  finetune: {{steps: 200}}
  recover: {{steps: 80}}
execution:
  out: {out}
"""
ONLY = ("--where", "label=ours,finetuned", "--where", "ratio_target<2")


@pytest.fixture
def damaged(tmp_path_factory, monkeypatch):
    """Put the damaged method where bench finds it, as an installed package."""
    site = tmp_path_factory.mktemp("site")
    (site / "acme_damaged.py").write_text(DAMAGED)
    (site / "acme_damaged-1.0.dist-info").mkdir()
    for name, text in INSTALLED.items():
        (site / "acme_damaged-1.0.dist-info" / name).write_text(text)
    monkeypatch.syspath_prepend(str(site))


def bench(*words):
    return commands.bench(*words, COLUMNS="120")


@pytest.mark.usefixtures("damaged")
def test_a_damaged_method_fails_and_another_seed_passes(tmp_path):
    checks = {}
    # Both have the label of one method of the baseline, as two versions of a package have; no other may be called svd.
    baseline = tmp_path / "baseline.csv"
    baseline.write_text(BASELINE.read_text().replace(",svd,svd,", ",svd,ours,"))
    for method in ("svd", "damaged-svd"):
        (tmp_path / f"{method}.yaml").write_text(SWEEP.format(method=method, out=tmp_path))
        done = bench("run", "--config", tmp_path / f"{method}.yaml")
        assert done.returncode == 0, done.stderr
        junit = tmp_path / f"{method}.xml"
        checks[method] = bench("check", tmp_path / method, "--baseline", baseline, "--junit", junit, *ONLY)
        cases = {case.name: case for suite in JUnitXml.fromfile(str(junit)) for case in suite}
        assert set(cases) == {"uncompressed (finetuned)", "ours 1.5×"}
        assert bool(cases["ours 1.5×"].result) == (method != "svd")
    passed, failed = checks.values()
    assert passed.returncode == 0, passed.stdout
    assert "passed (2 same)" in passed.stdout
    assert failed.returncode == 1, failed.stdout + failed.stderr
    assert "FAILED: 1 of 2 cells" in failed.stdout
    sentence = next(line for line in failed.stdout.splitlines() if line.strip().startswith("ours 1.5× on tiny"))
    assert "recovery fell from" in sentence
    assert "standard errors" in sentence


def test_the_committed_baseline_agrees_with_itself_and_can_be_shown():
    done = bench("check", BASELINE, "--baseline", BASELINE)
    assert done.returncode == 0, done.stderr
    assert "passed (7 same)" in done.stdout
    shown = bench("baseline", "show", BASELINE)
    assert shown.returncode == 0, shown.stderr
    for word in ("seeds 1, 2, 3", "svd 2×", "fwsvd 1.5×", "bs 1.5×"):
        assert word in shown.stdout


def test_a_part_is_compared_with_its_own_reference(tmp_path):
    for condition, same in (("label=svd", 3), ("ratio_target>=2", 4)):
        done = bench("check", BASELINE, "--baseline", BASELINE, "--where", condition)
        assert done.returncode == 0, done.stderr
        assert f"passed ({same} same)" in done.stdout
    lines = BASELINE.read_text().splitlines(keepends=True)
    bare = tmp_path / "bare.csv"
    bare.write_text("".join(line for line in lines if ",finetuned," not in line))
    for words in (("check", BASELINE, "--baseline", bare), ("check", bare, "--baseline", BASELINE)):
        done = bench(*words)
        assert done.returncode == 2 or "FAILED" in done.stdout, done.stdout


def test_what_cannot_be_written_is_no_regression(tmp_path):
    (tmp_path / "file").touch()
    done = bench("check", BASELINE, "--baseline", BASELINE, "--junit", tmp_path / "file" / "junit.xml")
    assert done.returncode == 2
    assert "cannot be written" in done.stderr
    assert "passed (7 same)" in done.stdout


def test_update_makes_a_baseline_and_says_what_changed(tmp_path):
    file = tmp_path / "baseline.csv"
    done = bench("baseline", "update", BASELINE, "--baseline", file, "--where", "label!=bs")
    assert done.returncode == 0, done.stderr
    assert "added    svd 2× on tiny · toy-math" in done.stdout
    first = file.read_bytes()
    again = bench("baseline", "update", BASELINE, "--baseline", file, "--where", "label!=bs")
    assert "nothing changed" in again.stdout
    assert file.read_bytes() == first
    missing = bench("check", BASELINE, "--baseline", file)
    assert missing.returncode == 0
    assert "new, not in the baseline" in missing.stdout
    dropped = bench("check", file, "--baseline", BASELINE)
    assert dropped.returncode == 1
    assert "bs 1.5×, bs 2× on tiny" in dropped.stdout
    assert "missing in the run" in dropped.stdout
    assert re.search(r"bs 1\.5× +\d+\.\d +–", dropped.stdout)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("check", BASELINE, "--baseline", "none.csv"), "bench baseline update RUN --baseline none.csv"),
        (("check", "nowhere", "--baseline", BASELINE), "nowhere does not exist|nowhere is not a results file"),
        (("check", BASELINE, "--baseline", BASELINE, "--sigmas", "-1"), "--sigmas is -1"),
        (("check", BASELINE, "--baseline", BASELINE, "--min-drop", "nan"), "--min-drop is nan"),
        (("check", BASELINE, "--baseline", BASELINE, "--where", "method=sdv"), "did you mean 'svd'"),
        (("baseline", "update", BASELINE, "--baseline", "b.parquet"), "does not end in .csv"),
        (("baseline", "update", BASELINE, "--baseline", "b.csv", "--where", "method=none"), "no compressed model"),
        (("table", BASELINE, "--rows", "lable"), "did you mean 'label'"),
        (("table", BASELINE, "--rows", "label", "--overview"), "leave out --rows"),
        (("table", BASELINE, "--out", "table.html"), ".md, .csv, .tex"),
        (("table", BASELINE, "--out", "table.md", "--format", "csv"), "leave out --format"),
        (("check", BASELINE, "--baseline", BASELINE, "--junit", BASELINE), "does not end in .xml"),
        (("table",), "name a run"),
        (("table", BASELINE, BASELINE), "named twice"),
    ],
)
def test_wrong_input_is_one_sentence(words, message, tmp_path):
    done = commands.bench(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert any(part in done.stderr for part in message.split("|")), done.stderr
    assert not list(tmp_path.iterdir())


def test_tables_of_any_layout_are_written_by_their_ending(tmp_path):
    words = ("table", BASELINE, "--where", "label=svd,bs", "--rows", "label,seed")
    for ending, mark in (("md", "| svd, 1 |"), ("csv", "svd,1,"), ("tex", "\\toprule")):
        done = bench(*words, "--out", tmp_path / f"t.{ending}")
        assert done.returncode == 0, done.stderr
        assert mark in (tmp_path / f"t.{ending}").read_text()
    shown = bench(*words)
    assert "value by ratio_target" in shown.stdout


def test_a_table_is_not_written_over_the_results_of_a_run(record, tmp_path):
    csv, _ = write_records(tmp_path, [record()])
    before = csv.read_bytes()
    done = bench("table", tmp_path, "--out", csv)
    assert done.returncode == 2
    assert "holds the results of a run and would be overwritten" in " ".join(done.stderr.split())
    assert csv.read_bytes() == before
    assert bench("table", tmp_path, "--out", tmp_path / "other.csv").returncode == 0
