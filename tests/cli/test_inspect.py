"""`bench inspect` as a user meets it."""

import csv
import io
import json

import commands
import pytest
from typer.testing import CliRunner

from lowrank_bench.cli import app


def bench(*arguments, cwd=None):
    return commands.bench("inspect", *arguments, cwd=cwd, COLUMNS="160")


def test_every_format_says_the_same_and_twice_the_same():
    words = ("tiny", "--layer", 1, "--matrix", "ov", "--head", 0, "--bases", 2, "--top", 3)
    names, runner = ("terminal", "markdown", "csv", "json", "latex"), CliRunner(env={"COLUMNS": "160"})
    outputs = {name: runner.invoke(app, ["inspect", *map(str, words), "--format", name]) for name in names}
    assert all(done.exit_code == 0 for done in outputs.values()), outputs
    tokens = [row["token_id"] for row in csv.DictReader(io.StringIO(outputs["csv"].stdout))]
    data = json.loads(outputs["json"].stdout)["bases"]
    assert tokens == [str(t["id"]) for row in data for t in row["positive"] + row["negative"]]
    assert len(tokens) == 12
    for name in ("terminal", "markdown", "latex"):
        assert f"{data[0]['value']:.4g}" in outputs[name].stdout
    assert bench(*words, "--format", "json").stdout == outputs["json"].stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["tiny"], ["--matrix", "--changes"]),
        (["tiny", "--matrix", "v"], ["--layer 0"]),
        (["tiny", "--layer", "4", "--matrix", "v"], ["0 to 3"]),
        (["tiny", "--layer", "0", "--matrix", "v", "--head", "4"], ["0 to 3"]),
        (["tiny", "--layer", "0", "--matrix", "q", "--side", "left"], ["--side right"]),
        (["tiny", "--layer", "0", "--matrix", "q", "--side", "up"], ["'up'", "left, right"]),
        (["tiny", "--layer", "0", "--matrix", "q", "--lens", "both"], ["'both'", "input, output"]),
        (["tiny", "--layer", "0", "--matrix", "q", "--format", "xml"], ["'xml'", "json"]),
        (["tiny", "--layer", "0", "--matrix", "q", "--out", "x"], ["--out", "--changes"]),
        (["tiny", "--changes"], ["RUN:LABEL@RATIO"]),
        (["runs/x:bs@3", "--changes"], ["runs/x"]),
        (["runs/x:bs@3", "--changes", "--head", "1"], ["--head"]),
        (["nowhere", "--layer", "0", "--matrix", "q"], ["nowhere", "preset"]),
    ],
)
def test_what_cannot_be_is_one_sentence(tmp_path, arguments, words):
    done = bench(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stdout
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert all(word in done.stderr for word in words)
    assert not list(tmp_path.iterdir())


def test_changes_of_a_real_sweep(finished, tmp_path):
    run = next(path.parent for path in finished.execution.out.glob("*/results.csv"))
    done = bench(f"{run}:svd@4", "--changes", "--layer", 1, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "down" in done.stdout
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["bases-svd@4-layer-1.png", "bases-svd@4-layer-1.svg"]
    done = bench(f"{run}:svd@4", "--changes", "--format", "csv", cwd=tmp_path)
    assert len(done.stdout.splitlines()) == 1 + 28 * 128
    assert len(list(tmp_path.iterdir())) == 2
